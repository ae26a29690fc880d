//! What an error says where the disk of a store takes nothing more: how much was wanted, and how much is free.

use std::{
    fs::{self, File},
    io,
};

use rustix::fs::{StatVfs, fstatvfs};

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
    let free = free_bytes(&disk);
    io::Error::new(error.kind(), NoSpace { wanted, free, source: error })
}

/// What this user may write to a disk, in bytes.
pub fn free_bytes(disk: &StatVfs) -> u64 {
    let uid_map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let is_root = rustix::process::geteuid().is_root() && is_initial(&uid_map);
    // What is set aside for root is of use to root only, and not to whoever is called so in a user namespace.
    let blocks = if is_root { disk.f_bfree } else { disk.f_bavail };
    blocks.saturating_mul(disk.f_frsize)
}

/// Whether these are the ids of the first user namespace (user_namespaces(7)).
fn is_initial(uid_map: &str) -> bool {
    uid_map.split_whitespace().eq(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_root_in_the_first_namespace_only() {
        assert!(is_initial("         0          0 4294967295\n"));
        for other in ["", "0 1000 1\n", "0 100000 65536\n1 0 1\n"] {
            assert!(!is_initial(other), "{other}");
        }
        let disk = rustix::fs::statvfs("/").expect("there is a root");
        let blocks = [disk.f_bavail, disk.f_bfree].map(|blocks| blocks * disk.f_frsize);
        assert!((blocks[0]..=blocks[1]).contains(&free_bytes(&disk)));
    }

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
