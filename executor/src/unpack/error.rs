//! What can be wrong with a layer, or with the disk it is unpacked to.

use rustix::io::Errno;

use crate::tarball::TarError;

/// Why a layer was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The archive cannot be read.
    #[error(transparent)]
    Archive(#[from] TarError),
    /// An entry that no layer may have.
    #[error("the layer's entry {:?} is refused: {reason}", String::from_utf8_lossy(path))]
    Refused {
        /// Its path as stored.
        path: Vec<u8>,
        /// Why.
        reason: &'static str,
    },
    /// A system call failed.
    #[error("cannot {action} {:?}", String::from_utf8_lossy(path))]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which path of the layer.
        path: Vec<u8>,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// What must be remembered until the end of the layer does not fit.
    #[error("the layer has too many directories and whiteouts: their paths take more than {0} MiB")]
    TooMuchToRemember(usize),
}

impl UnpackError {
    pub(crate) fn io(action: &'static str, path: &[u8], source: impl Into<std::io::Error>) -> Self {
        Self::Io { action, path: path.to_vec(), source: source.into() }
    }

    pub(crate) fn refused(path: &[u8], reason: &'static str) -> Self {
        Self::Refused { path: path.to_vec(), reason }
    }

    /// For `map_err` after a system call.
    pub(super) fn at<'a>(action: &'static str, path: &'a [u8]) -> impl Fn(Errno) -> Self + 'a {
        move |errno| Self::io(action, path, errno)
    }
}
