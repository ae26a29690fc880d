//! `testdata/lint/CASE/Dockerfile` against what a check says about it, with the place and the advice. `options` holds
//! what the command line would say, a flag a line; `UPDATE_EXPECT=1` writes `expected` anew.

use std::{collections::BTreeSet, fs, path::Path};

use parser::{Diagnostic, Severity, line_column, lint};

use super::{check, mistakes};
use crate::plan::tests::{Registry, options};

#[test]
fn dockerfiles_are_checked_as_expected() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/lint");
    let mut cases: Vec<_> =
        fs::read_dir(&root).expect("testdata").map(|entry| entry.expect("entry").path()).collect();
    cases.sort();
    assert!(cases.len() >= 40, "{} cases in {}", cases.len(), root.display());
    let (mut wrong, mut shown) = (Vec::new(), BTreeSet::new());
    for case in cases {
        let text = fs::read_to_string(case.join("Dockerfile")).expect("every case has a Dockerfile");
        let flags = fs::read_to_string(case.join("options")).unwrap_or_default();
        let found = found(&text, &flags);
        shown.extend(found.iter().filter_map(|finding| finding.rule));
        let got: String = found.iter().map(|finding| render(&text, finding)).collect();
        let expected = case.join("expected");
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            fs::write(&expected, &got).expect("testdata is writable");
        } else if fs::read_to_string(&expected).ok().as_ref() != Some(&got) {
            wrong.push(format!("{}:\n{got}", case.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let unseen: Vec<_> =
        lint::RULES.iter().map(|rule| rule.name).filter(|rule| !shown.contains(rule)).collect();
    assert!(unseen.is_empty(), "no case shows {unseen:?}");
}

#[test]
fn no_image_is_missed_beside_a_mistake() {
    let text = "FROM debian\nRUN --network=isolated true\nEXPOSE $PORT/tcp\nFROM busybox\nCOPY --from=debian a b /x\n";
    let parsed = parser::parse(text);
    let remains = parsed.remains.expect("all but one instruction");
    for flags in [
        "",
        "--build-context debian=layout\n--build-context busybox=layout",
        "--build-context busybox=layout",
    ] {
        let found: String =
            mistakes(&remains, &options(flags)).iter().map(|found| render(text, found)).collect();
        let want =
            "5:24 error: When using COPY with more than one source file, the destination must be a directory";
        assert!(found.starts_with(want) && found.matches(" error: ").count() == 1, "{flags}: {found}");
    }
}

/// What the command line shows.
fn found(text: &str, flags: &str) -> Vec<Diagnostic> {
    let mut options = options(flags);
    let checks = options.build_args.get("BUILDKIT_DOCKERFILE_CHECK").map(String::as_str);
    let parsed = parser::parse_checked(text, checks);
    let Some(dockerfile) = parsed.dockerfile else { return parsed.diagnostics };
    options.findings = parsed.diagnostics;
    check(&dockerfile, &options, &Registry::default()).diagnostics
}

fn render(text: &str, found: &Diagnostic) -> String {
    let (line, column) = line_column(text, found.span);
    let kind = match (found.severity, found.rule) {
        (Severity::Error, _) => "error",
        (Severity::Warning, rule) => rule.unwrap_or("warning"),
    };
    let source = text[found.span.start..found.span.end].lines().next().unwrap_or_default();
    let hint = found.hint.iter().map(|hint| format!("  = {hint}\n")).collect::<String>();
    format!("{line}:{column} {kind}: {}\n  | {source}\n{hint}", found.message)
}
