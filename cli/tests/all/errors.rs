//! What a user sees when a build fails: every folder of `testdata/errors/` is built by the real binary, and its
//! standard error and exit code are compared with `expected`. `UPDATE_EXPECT=1` writes them anew.
//!
//! A folder is the context. Beside the Dockerfile it may hold `args`, one flag a line. A Dockerfile that copies
//! `busybox` gets this machine's static one. What differs from run to run (times, digests) is masked, and progress
//! lines are left out: they are compared elsewhere.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Built statically, so it runs in an image that holds nothing else.
const BUSYBOX: &str = "/bin/busybox";

#[test]
fn failures_are_told_well() {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/errors");
    let mut cases: Vec<PathBuf> =
        fs::read_dir(cases).expect("cases").map(|entry| entry.expect("a case").path()).collect();
    cases.sort();
    assert!(cases.len() >= 10, "cases have gone: {cases:?}");
    let wrong: Vec<String> = cases.iter().filter_map(|case| check(case).err()).collect();
    assert!(wrong.is_empty(), "{}\nUPDATE_EXPECT=1 writes them anew", wrong.join("\n"));
}

/// Builds a case; the difference, if there is one.
fn check(case: &Path) -> Result<(), String> {
    let name = case.file_name().expect("a name").to_string_lossy();
    if needs_busybox(case) && !Path::new(BUSYBOX).exists() {
        eprintln!("SKIPPED {name}: it needs a static {BUSYBOX}");
        return Ok(());
    }
    let actual = build(case);
    let path = case.join("expected");
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(&path, &actual).expect("written");
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    match actual == expected {
        true => Ok(()),
        false => Err(format!("=== {name}\n--- expected\n{expected}--- actual\n{actual}")),
    }
}

fn needs_busybox(case: &Path) -> bool {
    fs::read_to_string(case.join("Dockerfile")).is_ok_and(|text| text.contains("busybox"))
}

/// Exit code and what is left of standard error.
fn build(case: &Path) -> String {
    let work = tempfile::tempdir().expect("a temporary directory");
    let context = work.path().join("context");
    copy_context(case, &context);
    let args = fs::read_to_string(case.join("args")).unwrap_or_default();
    let output = Command::new(env!("CARGO_BIN_EXE_layerwright"))
        .args(["build", "--progress", "plain", "--root"])
        .arg(work.path().join("root"))
        .args(args.lines())
        .arg(".")
        .current_dir(&context)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", work.path())
        .output()
        .expect("the binary runs");
    assert!(output.stdout.is_empty(), "standard output is for data");
    let stderr = String::from_utf8(output.stderr).expect("UTF-8");
    let code = output.status.code().expect("not ended by a signal");
    let told: Vec<String> =
        stderr.lines().filter(|line| is_told(line)).map(|line| mask(line, work.path())).collect();
    format!("exit code {code}\n{}\n", told.join("\n").trim_matches('\n'))
}

fn copy_context(case: &Path, context: &Path) {
    fs::create_dir(context).expect("created");
    for entry in fs::read_dir(case).expect("readable") {
        let entry = entry.expect("readable");
        if entry.file_name() != "expected" && entry.file_name() != "args" {
            fs::copy(entry.path(), context.join(entry.file_name())).expect("copied");
        }
    }
    if needs_busybox(case) && Path::new(BUSYBOX).exists() {
        fs::copy(BUSYBOX, context.join("busybox")).expect("copied");
    }
}

/// Progress lines and notes about this machine are not.
fn is_told(line: &str) -> bool {
    !line.starts_with('#') && !line.starts_with("warning: ")
}

/// Puts `TIME` for the seconds in front of a step's output, and `WORK` for the directory of this run.
fn mask(line: &str, work: &Path) -> String {
    let line = line.replace(&work.display().to_string(), "WORK");
    match line.split_once(' ') {
        Some((time, rest)) if time.contains('.') && time.parse::<f64>().is_ok() => format!("TIME {rest}"),
        _ => line,
    }
}
