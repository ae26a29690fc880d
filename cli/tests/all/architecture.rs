//! The shape of the workspace, as ARCHITECTURE.md draws it: who may import whom, and where `unsafe` may stand.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Command,
};

use serde::Deserialize;

/// Every arrow between our crates that may exist. An arrow that is not here is a design change.
const ALLOWED: &[(&str, &[&str])] = &[
    ("oci", &[]),
    ("parser", &[]),
    ("solver", &["parser", "oci"]),
    ("executor", &["solver", "oci"]),
    ("exporter", &["solver", "oci"]),
    ("layerwright", &["oci", "parser", "solver", "executor", "exporter"]),
];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    manifest_path: PathBuf,
    dependencies: Vec<Dependency>,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
    src_path: PathBuf,
}

fn workspace() -> Vec<Package> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"))
        .output()
        .expect("cargo runs this test");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice::<Metadata>(&output.stdout).expect("cargo writes what it documents").packages
}

#[test]
fn crates_import_only_what_lies_below_them() {
    let allowed: BTreeMap<&str, BTreeSet<&str>> =
        ALLOWED.iter().map(|(name, below)| (*name, below.iter().copied().collect())).collect();
    let packages = workspace();
    let names: BTreeSet<&str> = packages.iter().map(|package| package.name.as_str()).collect();
    assert_eq!(names, allowed.keys().copied().collect(), "a crate came or went: say here what it may import");
    for package in &packages {
        let imports = package.dependencies.iter().map(|dependency| dependency.name.as_str());
        let ours: BTreeSet<&str> = imports.filter(|name| names.contains(name)).collect();
        let forbidden: Vec<&&str> = ours.difference(&allowed[package.name.as_str()]).collect();
        assert!(forbidden.is_empty(), "{} must not import {forbidden:?}", package.name);
    }
}

/// Test-only code counts too, and so does `build.rs`: every root of every crate says it.
#[test]
fn unsafe_stands_in_the_executor_only() {
    for package in workspace().iter().filter(|package| package.name != "executor") {
        let is_root = |target: &&Target| target.kind.iter().any(|kind| kind == "lib" || kind == "bin");
        for target in package.targets.iter().filter(is_root) {
            let text = std::fs::read_to_string(&target.src_path).expect("cargo names files that exist");
            assert!(
                text.lines().any(|line| line == "#![forbid(unsafe_code)]"),
                "{} does not forbid unsafe code",
                target.src_path.display()
            );
        }
    }
}

#[test]
fn unsafe_of_the_executor_stands_in_one_module() {
    let executor = workspace().into_iter().find(|package| package.name == "executor").expect("it exists");
    let sources = executor.manifest_path.parent().expect("has a parent").join("src");
    let root = std::fs::read_to_string(sources.join("lib.rs")).expect("readable");
    assert!(
        root.lines().any(|line| line == "#![deny(unsafe_code)]"),
        "executor denies unsafe code at its root"
    );
    let allowing: Vec<PathBuf> = rust_files(&sources)
        .into_iter()
        .filter(|file| std::fs::read_to_string(file).expect("readable").contains("allow(unsafe_code)"))
        .collect();
    let module = sources.join("sandbox/mod.rs");
    assert_eq!(allowing, std::slice::from_ref(&module), "only sandbox/mod.rs allows unsafe code, for sys");
    let text = std::fs::read_to_string(module).expect("readable");
    let allowed: Vec<&str> =
        text.split("#[allow(unsafe_code)]\n").skip(1).filter_map(|rest| rest.lines().next()).collect();
    assert!(matches!(allowed[..], [line] if line.ends_with("mod sys;")), "{allowed:?}");
}

fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).expect("readable") {
        let path = entry.expect("readable").path();
        match path.is_dir() {
            true => files.extend(rust_files(&path)),
            false if path.extension().is_some_and(|extension| extension == "rs") => files.push(path),
            false => {}
        }
    }
    files
}

/// Both pure crates ban what would make them impure; the list is read by clippy, which runs with `-D warnings`.
#[test]
fn pure_crates_ban_the_world() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for name in ["parser", "solver"] {
        let bans = std::fs::read_to_string(root.join(name).join("clippy.toml")).expect("there is one");
        for banned in
            ["std::fs::File", "std::net::TcpStream", "std::env::var", "std::time::SystemTime", "std::println"]
        {
            assert!(bans.contains(&format!("\"{banned}\"")), "{name}/clippy.toml does not ban {banned}");
        }
    }
}
