//! `docs/dockerfile.md` names a case for every construct, and every build case has its place there.
//!
//! The page is the promise, `testdata` its proof; neither may grow without the other.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The folder of `testdata` for names without one.
const DEFAULT_FOLDER: &str = "build";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("cli lies in the workspace").to_owned()
}

/// Rows of the page's tables: the construct, and the cases of its last column as paths below `testdata`.
fn rows(page: &str) -> Vec<(String, Vec<String>)> {
    let rows = page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| Construct"));
    rows.map(|line| {
        // A pipe inside a code span would split a cell: the page does without.
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        assert_eq!(cells.len(), 3, "a row has construct, how and cases: {line}");
        let named = cells[2].split_whitespace().map(|name| name.trim_matches('`'));
        let paths = named.map(|name| match name.contains('/') {
            true => name.to_owned(),
            false => format!("{DEFAULT_FOLDER}/{name}"),
        });
        (cells[0].to_owned(), paths.collect())
    })
    .collect()
}

fn page() -> Vec<(String, Vec<String>)> {
    let text = std::fs::read_to_string(repository().join("docs/dockerfile.md")).expect("it can be read");
    let rows = rows(&text);
    assert!(rows.len() > 50, "the tables of docs/dockerfile.md were not found");
    rows
}

#[test]
fn every_documented_construct_has_a_case() {
    let missing: Vec<String> = page()
        .into_iter()
        .flat_map(|(construct, cases)| {
            let none = cases.is_empty().then(|| format!("{construct}: no case"));
            let gone = cases.into_iter().filter(|case| !repository().join("testdata").join(case).is_dir());
            let gone: Vec<String> =
                gone.map(|case| format!("{construct}: no folder testdata/{case}")).collect();
            none.into_iter().chain(gone)
        })
        .collect();
    assert!(missing.is_empty(), "docs/dockerfile.md:\n{}", missing.join("\n"));
}

#[test]
fn every_build_case_is_documented() {
    let documented: BTreeSet<String> = page().into_iter().flat_map(|(_, cases)| cases).collect();
    let folders = std::fs::read_dir(repository().join("testdata").join(DEFAULT_FOLDER)).unwrap();
    let names = folders.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let unnamed: BTreeSet<String> = names
        .map(|name| format!("{DEFAULT_FOLDER}/{name}"))
        .filter(|case| !documented.contains(case))
        .collect();
    assert!(unnamed.is_empty(), "name these in docs/dockerfile.md: {unnamed:?}");
}

#[test]
fn every_build_case_is_whole() {
    let folders = std::fs::read_dir(repository().join("testdata").join(DEFAULT_FOLDER)).unwrap();
    for folder in folders.map(|entry| entry.unwrap().path()) {
        let table = std::fs::read_to_string(folder.join("case.toml"));
        let table = table.unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        assert!(table.starts_with("summary = \""), "{}: case.toml begins with its summary", folder.display());
    }
}
