//! What `--check`, `--call`, `context ls` and `debug ast` say: every folder of `testdata/call/` is asked about by the
//! real binary, and exit code, standard output and standard error are compared with `expected`. `UPDATE_EXPECT=1`
//! writes them anew.
//!
//! A folder holds `context` and `args`, the whole command line, one argument a line, with `context` as the working
//! directory. Nothing of this needs a store, so that none may be there afterwards.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

#[test]
fn answers_are_as_expected() {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/call");
    let mut cases: Vec<PathBuf> =
        fs::read_dir(cases).expect("cases").map(|entry| entry.expect("a case").path()).collect();
    cases.sort();
    assert!(cases.len() >= 12, "cases have gone: {cases:?}");
    let wrong: Vec<String> = cases.iter().filter_map(|case| check(case).err()).collect();
    assert!(wrong.is_empty(), "{}\nUPDATE_EXPECT=1 writes them anew", wrong.join("\n"));
}

/// Asks; the difference, if there is one.
fn check(case: &Path) -> Result<(), String> {
    let actual = ask(case);
    let path = case.join("expected");
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(&path, &actual).expect("written");
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    match actual == expected {
        true => Ok(()),
        false => Err(format!("=== {}\n--- expected\n{expected}--- actual\n{actual}", case.display())),
    }
}

fn ask(case: &Path) -> String {
    let work = tempfile::tempdir().expect("a temporary directory");
    let root = work.path().join("root");
    let args = fs::read_to_string(case.join("args")).expect("a case has arguments");
    let output = Command::new(env!("CARGO_BIN_EXE_layerwright"))
        .args(args.lines())
        .current_dir(case.join("context"))
        .stdin(Stdio::null())
        .env_clear()
        .env("LAYERWRIGHT_ROOT", &root)
        .output()
        .expect("the binary runs");
    assert!(!root.exists(), "{}: a question needs no store", case.display());
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    let code = output.status.code().expect("not ended by a signal");
    format!("exit code {code}\n== stdout\n{}== stderr\n{}", text(output.stdout), text(output.stderr))
}
