//! Whose a store is, and on what it lies.
//!
//! Snapshots hold files of many owners, written through the user namespace of the process that made them. The same
//! directory seen through another id map would give other owners, and so other images: it is refused instead.
//!
//! The file `format` says so in three lines: version, owner, and the BLAKE3 of both, so that a damaged one is not taken
//! for somebody else's.

use std::{fmt, fs, io, os::fd::AsFd, path::Path};

use rustix::fs::{AtFlags, Mode, StatVfsMountFlags};

use super::{StoreError, write_new};
use crate::digest::ContentDigest;

/// First line of the `format` file.
pub(super) const FORMAT: &str = "layerwright store 1";
/// Its name.
pub(super) const FILE: &str = "format";
/// It, while it is written.
const NEW: &str = "format.new";

/// A user and the id maps it sees the store through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    uid: u32,
    uid_map: String,
    gid_map: String,
}

impl Owner {
    /// The effective user of this process and the maps of its user namespace.
    ///
    /// # Errors
    /// [`StoreError::Io`] when `/proc` does not tell.
    pub fn of_this_process() -> Result<Self, StoreError> {
        let uid = rustix::process::geteuid().as_raw();
        Ok(Self { uid, uid_map: read_map("/proc/self/uid_map")?, gid_map: read_map("/proc/self/gid_map")? })
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "uid={} map={};{}", self.uid, self.uid_map, self.gid_map)
    }
}

/// An id map on one line: `inside:outside:count` for each extent, joined by commas.
fn read_map(path: &str) -> Result<String, StoreError> {
    let text = fs::read_to_string(path).map_err(StoreError::io("read", path))?;
    let extent = |line: &str| line.split_ascii_whitespace().collect::<Vec<_>>().join(":");
    Ok(text.lines().map(extent).collect::<Vec<_>>().join(","))
}

/// Whether the store in a directory is `own`'s; `None` where none is, or nothing says so.
pub(super) fn is_of(root: &Path, own: &Owner) -> Option<bool> {
    let text = fs::read_to_string(root.join(FILE)).ok()?;
    let found = text.lines().nth(1)?;
    Some(found == own.to_string())
}

/// Checks that the store is `own`'s, or makes it so where the directory is empty. Needs the store's lock.
pub(super) fn claim(directory: impl AsFd, root: &Path, own: &Owner) -> Result<(), StoreError> {
    let metadata = rustix::fs::fstat(&directory).map_err(StoreError::errno("stat", root))?;
    if metadata.st_uid != own.uid {
        // Whose it is cannot be said: in a user namespace, all that it has no number for are one.
        return Err(StoreError::OtherUser { root: root.to_owned() });
    }
    match fs::read(root.join(FILE)) {
        Ok(text) => check(&String::from_utf8_lossy(&text), root, own)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => found(root, own)?,
        Err(error) => return Err(StoreError::io("read", root.join(FILE))(error)),
    }
    if metadata.st_mode & 0o7777 != 0o700 {
        rustix::fs::fchmod(&directory, Mode::RWXU).map_err(StoreError::errno("change the mode of", root))?;
    }
    Ok(())
}

/// Says anew whose a store is whose `format` file is damaged or missing: this process's, if the directory is its user's.
/// Needs the store's lock.
pub(super) fn claim_again(directory: impl AsFd, root: &Path, own: &Owner) -> Result<(), StoreError> {
    match claim(directory, root, own) {
        Err(StoreError::Unmarked { .. }) => mark(root, own),
        claimed => claimed,
    }
}

fn check(text: &str, root: &Path, own: &Owner) -> Result<(), StoreError> {
    let is_whole = match text.strip_suffix('\n').and_then(|text| text.rsplit_once('\n')) {
        Some((lines, digest)) if lines.contains('\n') => {
            ContentDigest::of(lines.as_bytes()).to_string() == digest
        }
        // Those of earlier versions end with the second line, and so may those of later ones.
        _ => {
            text.ends_with('\n')
                && !text.contains("blake3:")
                && is_version(text.lines().next().unwrap_or_default())
        }
    };
    if !is_whole {
        return Err(StoreError::Unmarked { root: root.to_owned(), what: "damaged" });
    }
    let mut lines = text.lines();
    let format = lines.next().unwrap_or_default();
    if format != FORMAT {
        return Err(StoreError::Format { root: root.to_owned(), found: format.chars().take(80).collect() });
    }
    let found = lines.next().unwrap_or_default();
    if found != own.to_string() {
        return Err(StoreError::Foreign {
            root: root.to_owned(),
            found: found.to_owned(),
            own: own.to_string(),
        });
    }
    Ok(())
}

/// `layerwright store 1`
fn is_version(line: &str) -> bool {
    let number = line.strip_prefix("layerwright store ");
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Makes an empty directory a store.
fn found(root: &Path, own: &Owner) -> Result<(), StoreError> {
    // The second is what a kill between the write and the rename leaves, the third what mkfs makes.
    const HARMLESS: [&str; 2] = [NEW, "lost+found"];
    let is_store = super::AREAS.iter().all(|area| root.join(area).is_dir());
    if is_store {
        return Err(StoreError::Unmarked { root: root.to_owned(), what: "missing" });
    }
    for entry in fs::read_dir(root).map_err(StoreError::io("read", root))? {
        let entry = entry.map_err(StoreError::io("read", root))?;
        if !HARMLESS.iter().any(|name| entry.file_name() == *name) {
            return Err(StoreError::NotAStore { root: root.to_owned() });
        }
    }
    mark(root, own)
}

fn mark(root: &Path, own: &Owner) -> Result<(), StoreError> {
    let temporary = root.join(NEW);
    let _ = rustix::fs::unlinkat(rustix::fs::CWD, &temporary, AtFlags::empty());
    let lines = format!("{FORMAT}\n{own}");
    let text = format!("{lines}\n{}\n", ContentDigest::of(lines.as_bytes()));
    write_new(&temporary, text.as_bytes()).map_err(StoreError::io("write", &temporary))?;
    fs::rename(&temporary, root.join(FILE)).map_err(StoreError::io("create", root.join(FILE)))
}

/// Refuses file systems whose `flock` another machine does not see.
pub(super) fn refuse_network_file_system(directory: impl AsFd, root: &Path) -> Result<(), StoreError> {
    let stat = rustix::fs::fstatfs(directory).map_err(StoreError::errno("stat the file system of", root))?;
    match network_file_system(stat.f_type as u64 & 0xffff_ffff) {
        Some(kind) => Err(StoreError::NetworkFileSystem { root: root.to_owned(), kind }),
        None => Ok(()),
    }
}

/// Refuses a file system, or a mount of one, that takes nothing.
pub(super) fn refuse_read_only_file_system(directory: impl AsFd, root: &Path) -> Result<(), StoreError> {
    let stat = rustix::fs::fstatvfs(directory).map_err(StoreError::errno("stat the file system of", root))?;
    match stat.f_flag.contains(StatVfsMountFlags::RDONLY) {
        true => Err(StoreError::ReadOnly { root: root.to_owned() }),
        false => Ok(()),
    }
}

/// The name of a network file system by its magic number (`linux/magic.h`, and for AFS and CIFS their sources).
fn network_file_system(magic: u64) -> Option<&'static str> {
    match magic {
        0x6969 => Some("NFS"),
        0x517b => Some("SMB"),
        0xfe53_4d42 | 0xff53_4d42 => Some("CIFS"),
        0x0102_1997 => Some("9p"),
        0x5346_414f | 0x6b41_4653 => Some("AFS"),
        0x7375_7245 => Some("Coda"),
        0x564c => Some("NCP"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_file_systems_are_known_by_their_magic() {
        for (magic, want) in [(0x6969, Some("NFS")), (0xff53_4d42, Some("CIFS")), (0x0102_1997, Some("9p"))] {
            assert_eq!(network_file_system(magic), want);
        }
        for local in [0xef53, 0x0102_1994, 0x9123_683e, 0x794c_7630, 0x5846_5342, 0x6573_5546] {
            assert_eq!(network_file_system(local), None, "{local:x}");
        }
    }

    #[test]
    fn what_the_proc_file_says_fits_on_one_line() {
        let owner = Owner::of_this_process().expect("/proc is there");
        let text = owner.to_string();
        assert!(text.starts_with("uid=") && !text.contains(['\n', '\t']), "{text}");
        assert!(owner.uid_map.split(',').all(|extent| extent.split(':').count() == 3), "{text}");
    }
}
