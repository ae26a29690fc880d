//! What an error says where the disk of a store takes nothing more: how much was wanted, and how much is free.

use std::{fs::File, io};

use rustix::fs::fstatvfs;

/// The cause of an I/O error of the kind [`StorageFull`](io::ErrorKind::StorageFull) or
/// [`QuotaExceeded`](io::ErrorKind::QuotaExceeded).
#[derive(Debug, thiserror::Error)]
#[error("{source}: {} and {free} bytes are free", told(.wanted))]
pub struct NoSpace {
    /// What all of the file takes, in bytes, where that was known when it was begun; compressed it may be less.
    pub wanted: Option<u64>,
    /// What this user could write when it failed, in bytes, beside what had been written by then.
    pub free: u64,
    /// What the system said.
    source: io::Error,
}

fn told(wanted: &Option<u64>) -> String {
    wanted.map_or("more is needed,".to_owned(), |bytes| format!("up to {bytes} bytes are needed in all,"))
}

/// Whether a disk, or what the user may have of it, has no room left.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The error of writing a file, with what is to be known of its disk if that is full.
pub(super) fn explained(error: io::Error, file: &File, wanted: Option<u64>) -> io::Error {
    let disk = is_full(&error).then(|| fstatvfs(file).ok()).flatten();
    let Some(disk) = disk else { return error };
    // What is set aside for root is of use to root only.
    let blocks = if rustix::process::geteuid().is_root() { disk.f_bfree } else { disk.f_bavail };
    let free = blocks.saturating_mul(disk.f_frsize);
    io::Error::new(error.kind(), NoSpace { wanted, free, source: error })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_explained_and_nothing_else_is() {
        let file = tempfile::tempfile().expect("made");
        let full = || io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error());
        for (wanted, told) in [
            (Some(700), "(os error 28): up to 700 bytes are needed in all, and "),
            (None, "(os error 28): more is needed, and "),
        ] {
            let error = explained(full(), &file, wanted);
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
            assert!(
                error.to_string().contains(told) && error.to_string().ends_with(" bytes are free"),
                "{error}"
            );
        }
        let other = explained(io::ErrorKind::PermissionDenied.into(), &file, Some(700));
        assert_eq!((other.kind(), other.get_ref().is_none()), (io::ErrorKind::PermissionDenied, true));
    }
}
