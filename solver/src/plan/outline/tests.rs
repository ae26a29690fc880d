//! `testdata/outline/CASE/Dockerfile` against its outline and targets in JSON, without the sources that end them.
//! `options` holds what the command line would say, a flag a line; `UPDATE_EXPECT=1` writes `expected` anew.

use std::{fs, path::Path};

use super::{outline, targets};
use crate::plan::{
    calls::{outline_json, targets_json},
    tests::{Registry, options},
};

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
    let outline = match outline(&dockerfile, &options(flags), &registry) {
        Ok(outline) => without_sources(&outline_json(&outline, text)),
        Err(error) => format!("{error}\n"),
    };
    let asked: String = registry.asked().iter().map(|image| format!("asked for {image}\n")).collect();
    format!("outline {outline}{asked}targets {}", without_sources(&targets_json(&targets(&dockerfile), text)))
}

fn without_sources(json: &str) -> String {
    let (before, sources) = json.split_once("  \"sources\": [").expect("the Dockerfile ends the answer");
    assert!(sources.trim_start().starts_with('"'), "the Dockerfile in base64");
    before.to_owned()
}
