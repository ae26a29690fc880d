//! Where the store lies, and whose it is.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use executor::sandbox::Mode;
use oci::store::{Store, StoreError};

use super::{Environment, RequestError};

/// Where the store is: `--root`, LAYERWRIGHT_ROOT, or below the user's data directory.
///
/// # Errors
/// [`RequestError::NoRoot`]
pub fn store_root(given: Option<PathBuf>, environment: &Environment) -> Result<PathBuf, RequestError> {
    let in_data_home = || environment.path("XDG_DATA_HOME").map(|data| data.join("layerwright"));
    let in_home = || environment.path("HOME").map(|home| home.join(".local/share/layerwright"));
    let root = given.or_else(|| environment.path("LAYERWRIGHT_ROOT")).or_else(in_data_home).or_else(in_home);
    let root = root.ok_or(RequestError::NoRoot)?;
    std::path::absolute(&root).map_err(|source| RequestError::Read { what: "store", path: root, source })
}

/// The same for a build: what root makes in a user namespace is no one's but that namespace's, so unless a directory is
/// named it lies beside the store that root has otherwise.
///
/// # Errors
/// [`RequestError::NoRoot`]
pub fn store_root_for(
    mode: Mode,
    given: Option<PathBuf>,
    environment: &Environment,
) -> Result<PathBuf, RequestError> {
    let is_named = given.is_some() || environment.path("LAYERWRIGHT_ROOT").is_some();
    let mut root = store_root(given, environment)?;
    if mode == Mode::SubordinateIds && environment.is_root && !is_named {
        root.set_file_name("layerwright-userns");
    }
    Ok(root)
}

/// Which namespaces see the files of a store as the build did that made it. Root, who has all ids, is told by the store.
pub fn mode_of_store(root: &Path) -> Mode {
    match Store::is_of_this_process(root) {
        Some(false) if rustix::process::geteuid().is_root() => Mode::SubordinateIds,
        _ => Mode::Auto,
    }
}

/// Whether there is a directory that could be a store; who asks about one makes none.
///
/// # Errors
/// Something else is there, or it cannot be looked at.
pub fn has_store(root: &Path) -> Result<bool, StoreError> {
    let failed = |source| StoreError::Io { action: "look into", path: root.to_owned(), source };
    match fs::metadata(root) {
        Ok(metadata) if metadata.is_dir() => Ok(true),
        Ok(_) => Err(failed(io::ErrorKind::NotADirectory.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed(error)),
    }
}
