//! `testdata/outline/CASE/Dockerfile` against its outline and targets.
//! `options` holds what the command line would say, a flag a line; `UPDATE_EXPECT=1` writes `expected` anew.

use std::{fs, path::Path};

use parser::line_column;

use super::{CacheUse, Outline, OutlineArg, SecretUse, SshUse, StageInfo, outline, targets};
use crate::plan::tests::{Registry, options};

#[test]
fn outlines_are_as_expected() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/outline");
    let mut cases: Vec<_> =
        fs::read_dir(&root).expect("testdata").map(|entry| entry.expect("entry").path()).collect();
    cases.sort();
    assert!(cases.len() >= 8, "{} cases in {}", cases.len(), root.display());
    let mut wrong = Vec::new();
    for case in cases {
        let text = fs::read_to_string(case.join("Dockerfile")).expect("every case has a Dockerfile");
        let got = answers(&text, &fs::read_to_string(case.join("options")).unwrap_or_default());
        let expected = case.join("expected");
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            fs::write(&expected, &got).expect("testdata is writable");
        } else if fs::read_to_string(&expected).ok().as_ref() != Some(&got) {
            wrong.push(format!("{}:\n{got}", case.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn answers(text: &str, flags: &str) -> String {
    let dockerfile = parser::parse(text).dockerfile.expect("a Dockerfile without mistakes");
    let registry = Registry::default();
    let mut answer = match outline(&dockerfile, &options(flags), &registry) {
        Ok(outline) => shown(&outline, text),
        Err(error) => format!("error {error}\n"),
    };
    registry.asked().iter().for_each(|image| answer += &format!("asked for {image}\n"));
    for StageInfo { name, description, base, platform, is_default, span } in targets(&dockerfile) {
        let line = line_column(text, span).0;
        answer += &format!(
            "{line}: stage {name:?} {description:?} on {base:?} {platform:?} default {is_default}\n"
        );
    }
    answer
}

fn shown(outline: &Outline, text: &str) -> String {
    let Outline { name, description, args, secrets, ssh, cache, notices } = outline;
    let line = |span| line_column(text, span).0;
    let mut shown = format!("target {name:?} {description:?}\n");
    for OutlineArg { name, description, value, span } in args {
        shown += &format!("{}: arg {name} = {value:?} {description:?}\n", line(*span));
    }
    for SecretUse { name, required, span } in secrets {
        shown += &format!("{}: secret {name} required {required}\n", line(*span));
    }
    for SshUse { name, required, span } in ssh {
        shown += &format!("{}: ssh {name} required {required}\n", line(*span));
    }
    for CacheUse { id, span } in cache {
        shown += &format!("{}: cache {id}\n", line(*span));
    }
    notices.iter().for_each(|notice| shown += &format!("notice {notice}\n"));
    shown
}
