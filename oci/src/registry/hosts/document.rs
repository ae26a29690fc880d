//! A TOML file of settings: every mistake in it is told with its path and line.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use toml_span::{Span, Value, value::Table};

/// Longest file of settings that is read.
const MAX_FILE: u64 = 4 << 20;

/// Why what is set for registries cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum HostsError {
    /// A file or directory cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file says what cannot be.
    #[error("{}:{line}: {reason}", path.display())]
    Malformed {
        /// Which.
        path: PathBuf,
        /// In which line, the first being 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// A directory of certificates is not what it should be.
    #[error("{}: {reason}", path.display())]
    Certificates {
        /// The file that is wrong, or alone.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// The text of a file.
pub(super) struct Document {
    pub path: Arc<Path>,
    text: String,
}

impl Document {
    /// The file, or `None` where there is none.
    pub fn find(path: &Path) -> Result<Option<Self>, HostsError> {
        match Self::read(path) {
            Err(HostsError::Read { source, .. })
                if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
            {
                Ok(None)
            }
            read => read.map(Some),
        }
    }

    /// The file, which must be there.
    pub fn read(path: &Path) -> Result<Self, HostsError> {
        let failed = |source| HostsError::Read { path: path.to_owned(), source };
        if fs::metadata(path).map_err(failed)?.len() > MAX_FILE {
            let long = io::Error::new(io::ErrorKind::FileTooLarge, format!("longer than {MAX_FILE} bytes"));
            return Err(failed(long));
        }
        let text = fs::read_to_string(path).map_err(failed)?;
        Ok(Self { path: path.into(), text })
    }

    /// All of it.
    pub fn root(&self) -> Result<Value<'_>, HostsError> {
        toml_span::parse(&self.text).map_err(|error| self.wrong(error.span, &error.to_string()))
    }

    /// The line in which something begins.
    pub fn line(&self, span: Span) -> usize {
        let before = self.text.as_bytes().iter().take(span.start);
        1 + before.filter(|byte| **byte == b'\n').count()
    }

    pub fn wrong(&self, span: Span, reason: &str) -> HostsError {
        HostsError::Malformed {
            path: self.path.to_path_buf(),
            line: self.line(span),
            reason: reason.to_owned(),
        }
    }

    /// `true` or `false`; the latter where the key is not there.
    pub fn flag(&self, table: &Table<'_>, key: &str) -> Result<bool, HostsError> {
        let Some(value) = table.get(key) else { return Ok(false) };
        value.as_bool().ok_or_else(|| self.wrong(value.span, &format!("{key} is neither true nor false")))
    }

    /// A text that is there and not empty.
    pub fn text<'v>(&self, table: &'v Table<'_>, key: &str) -> Result<Option<(&'v str, Span)>, HostsError> {
        let Some(value) = table.get(key) else { return Ok(None) };
        let text = value.as_str().ok_or_else(|| self.wrong(value.span, &format!("{key} is no text")))?;
        Ok((!text.is_empty()).then_some((text, value.span)))
    }

    /// The tables of an array.
    pub fn tables<'v, 'de>(
        &self,
        table: &'v Table<'de>,
        key: &str,
    ) -> Result<Vec<(&'v Table<'de>, Span)>, HostsError> {
        let Some(value) = table.get(key) else { return Ok(Vec::new()) };
        let wrong = |span| self.wrong(span, &format!("{key} is no array of tables: write [[{key}]]"));
        let items = value.as_array().ok_or_else(|| wrong(value.span))?;
        items.iter().map(|item| Ok((item.as_table().ok_or_else(|| wrong(item.span))?, item.span))).collect()
    }
}
