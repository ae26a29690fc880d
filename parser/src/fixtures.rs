//! The shared fixtures: tables and Dockerfiles that lie beside the repository where it is developed.

use std::path::PathBuf;

/// The path of a fixture, or `None` (said loudly) where the folder is not there.
pub(crate) fn path(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures").join(name);
    if !path.exists() {
        eprintln!("SKIPPED: {} is not there", path.display());
        return None;
    }
    Some(path)
}

/// A fixture in JSON.
pub(crate) fn json<T: serde::de::DeserializeOwned>(name: &str) -> Option<T> {
    let text = std::fs::read_to_string(path(name)?).expect("the fixture can be read");
    Some(serde_json::from_str(&text).expect("the fixture is as its README says"))
}
