//! Secrets of the command line (`--secret`), read when they are used and kept nowhere.
//!
//! A value is in no key, no event and no error. Files are looked at when a build begins, so that a misspelt path costs no
//! build, and read each time a step wants them, as BuildKit does.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io,
    path::{Path, PathBuf},
};

use crate::pipe::read_at_most;

/// Largest secret, in bytes: BuildKit's limit.
pub const SECRET_MAX: u64 = 500 << 10;

/// Where a secret's value is.
#[derive(Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// In a file (`src=`).
    File(PathBuf),
    /// Here, taken from a variable of the environment (`env=`).
    Env(String),
}

/// Why a secret cannot be had. None of these holds any of its value.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// Its file is not to be read.
    #[error("cannot read secret {id:?} from {}", path.display())]
    Read {
        /// Which secret.
        id: String,
        /// Its file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// More than [`SECRET_MAX`].
    #[error("secret {id:?} is too big: the maximum size of a secret is {SECRET_MAX} bytes")]
    TooBig {
        /// Which secret.
        id: String,
    },
}

/// All secrets of a build, by id.
#[derive(Debug, Clone, Default)]
pub struct Secrets {
    sources: BTreeMap<String, SecretSource>,
}

impl Secrets {
    /// Takes the secrets of a command line; looks at their files, and reads none.
    ///
    /// # Errors
    /// A file is missing, is not to be opened, is no file, or is too big.
    pub fn new(sources: BTreeMap<String, SecretSource>) -> Result<Self, SecretError> {
        for (id, source) in &sources {
            match source {
                SecretSource::File(path) => look_at(id, path)?,
                SecretSource::Env(value) => check_size(id, value.len() as u64)?,
            }
        }
        Ok(Self { sources })
    }

    /// The value of a secret; `None` where the command line has none of that id.
    ///
    /// # Errors
    /// Its file cannot be read, or has grown too big.
    pub fn get(&self, id: &str) -> Result<Option<Vec<u8>>, SecretError> {
        match self.sources.get(id) {
            None => Ok(None),
            Some(SecretSource::Env(value)) => Ok(Some(value.clone().into_bytes())),
            Some(SecretSource::File(path)) => read(id, path).map(Some),
        }
    }

    /// Whether there is a secret of that id.
    pub fn contains(&self, id: &str) -> bool {
        self.sources.contains_key(id)
    }

    /// The ids, in order.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.sources.keys().map(String::as_str)
    }
}

/// Never shows a value.
impl fmt::Debug for SecretSource {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => out.debug_tuple("File").field(path).finish(),
            Self::Env(_) => out.write_str("Env(...)"),
        }
    }
}

/// Finds out before anything runs whether it could be read; a pipe is left alone, for it can be read once.
fn look_at(id: &str, path: &Path) -> Result<(), SecretError> {
    let failed = |source| SecretError::Read { id: id.to_owned(), path: path.to_owned(), source };
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if metadata.is_dir() {
        return Err(failed(io::ErrorKind::IsADirectory.into()));
    }
    check_size(id, metadata.len())?;
    match metadata.is_file() {
        true => File::open(path).map(drop).map_err(failed),
        false => Ok(()),
    }
}

fn read(id: &str, path: &Path) -> Result<Vec<u8>, SecretError> {
    look_at(id, path)?;
    let value = read_at_most(path, SECRET_MAX + 1);
    let value =
        value.map_err(|source| SecretError::Read { id: id.to_owned(), path: path.to_owned(), source })?;
    check_size(id, value.len() as u64)?;
    Ok(value)
}

fn check_size(id: &str, size: u64) -> Result<(), SecretError> {
    match size > SECRET_MAX {
        true => Err(SecretError::TooBig { id: id.to_owned() }),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(source: SecretSource) -> Result<Secrets, SecretError> {
        Secrets::new(BTreeMap::from([("token".to_owned(), source)]))
    }

    #[test]
    fn values_come_from_files_and_variables_as_they_are_now() {
        let file = tempfile::NamedTempFile::new().expect("made");
        let secrets = one(SecretSource::File(file.path().to_owned())).expect("there");
        std::fs::write(file.path(), b"later\n\0").expect("written");
        assert_eq!(secrets.get("token").expect("read"), Some(b"later\n\0".to_vec()));
        let secrets = one(SecretSource::Env("hush".to_owned())).expect("there");
        assert_eq!(secrets.get("token").expect("read"), Some(b"hush".to_vec()));
        assert_eq!(secrets.get("other").expect("none"), None);
        assert!(!format!("{secrets:?}").contains("hush"));
    }

    #[test]
    fn what_cannot_be_read_is_told_at_the_start() {
        let directory = tempfile::tempdir().expect("made");
        let path = directory.path().join("big");
        File::create(&path).expect("made").set_len(SECRET_MAX + 1).expect("grown");
        for (path, expected) in [
            (directory.path().join("absent"), "cannot read secret \"token\" from "),
            (directory.path().to_owned(), "cannot read secret \"token\" from "),
            (path.clone(), "secret \"token\" is too big"),
        ] {
            let error = one(SecretSource::File(path)).expect_err("refused").to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        let grown = tempfile::NamedTempFile::new().expect("made");
        let secrets = one(SecretSource::File(grown.path().to_owned())).expect("small");
        grown.as_file().set_len(SECRET_MAX + 1).expect("grown");
        assert!(matches!(secrets.get("token"), Err(SecretError::TooBig { .. })));
        assert!(one(SecretSource::Env("x".repeat(SECRET_MAX as usize + 1))).is_err());
    }
}
