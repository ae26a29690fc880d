//! What is done to a file system through open directories: look, list, make, stamp, own.
//!
//! Nothing here follows a link: a function takes a directory that is open already and a single name in it, or the
//! open file itself. Paths are turned into open directories by [`open_in_root`], where links are wanted, or
//! by [`open_beneath`], where the path is one that we found ourselves and a link in it means that somebody moved it.
//!
//! Extended attributes are an allow-list ([`reaches_layer`]): what an ordinary user could not set, what belongs to the
//! host (SELinux labels, IMA, overlay's own notes), and what no image should depend on stays out of layers, so that root
//! and an ordinary user make the same ones. What the kernel lets which kind of inode carry is in [`may_carry`].

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fmt, io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
};

use rustix::{
    buffer::spare_capacity,
    fs::{
        AtFlags, Dir, FileType, Gid, Mode, OFlags, RawMode, ResolveFlags, Stat, Timespec, Timestamps,
        UTIME_OMIT, Uid, XattrFlags, chmodat, chownat, fchmod, fgetxattr, fgetxattr_query, flistxattr,
        flistxattr_query, fsetxattr, lgetxattr, lgetxattr_query, llistxattr, llistxattr_query, lsetxattr,
        mkdirat, openat2, statat, utimensat,
    },
    io::{Errno, retry_on_intr},
};

use crate::{view::open_in_root, whiteout::is_overlay_xattr};

/// Attributes of one file together may not be larger (RELIABILITY R20).
const XATTRS_MAX: usize = 4 << 20;

/// What was being done to which path when the system said no.
#[derive(Debug)]
pub struct PathError {
    /// In the progressive: `creating`.
    pub action: &'static str,
    /// As people would write it in an image or a context: `/etc/passwd`, `src/main.c`.
    pub path: String,
    /// What the system said.
    pub source: io::Error,
}

impl fmt::Display for PathError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.action, self.path)
    }
}

impl std::error::Error for PathError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Says what was being done to which path, for `map_err`.
pub fn failed<E: Into<io::Error>>(action: &'static str, path: &[u8]) -> impl FnOnce(E) -> PathError {
    move |source| PathError { action, path: shown(path), source: source.into() }
}

/// A path for people. Bytes that are not UTF-8 are replaced.
pub fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// `parent/name`, or `name` where the parent is the root (an empty path).
pub fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}

/// Splits a relative path into its parent (empty for the root) and its last name.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

/// Opens a directory for reading, following links inside the root; `/` and the empty path are the root itself.
///
/// # Errors
/// What openat2(2) says: `ENOENT`, `ENOTDIR`, `ELOOP`, ...
pub fn open_dir(root: impl AsFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    open_in_root(root, path, OFlags::RDONLY | OFlags::DIRECTORY)
}

/// Opens a relative path below a directory and refuses any link on the way, the last component included: for paths
/// that were found to hold none.
///
/// # Errors
/// What openat2(2) says; `ELOOP` for a link.
pub fn open_beneath(dir: impl AsFd, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let path = if path.is_empty() { b"." } else { path };
    let mode = if flags.contains(OFlags::CREATE) { Mode::RUSR | Mode::WUSR } else { Mode::empty() };
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    loop {
        match retry_on_intr(|| openat2(dir.as_fd(), OsStr::from_bytes(path), flags, mode, resolve)) {
            Err(Errno::AGAIN) => continue,
            answer => return answer,
        }
    }
}

/// What a name in a directory is, links themselves and not what they point to; `None` where nothing is.
///
/// # Errors
/// What fstatat(2) says.
pub fn lstat(dir: impl AsFd, name: &[u8]) -> Result<Option<Stat>, Errno> {
    match retry_on_intr(|| statat(dir.as_fd(), OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW)) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The file type in a `stat`.
pub fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode as RawMode)
}

/// Permission bits with setuid, setgid and sticky.
pub fn permissions(stat: &Stat) -> u32 {
    stat.st_mode & 0o7777
}

/// The names in a directory, sorted by their bytes, without `.` and `..`.
///
/// # Errors
/// What getdents(2) says.
pub fn names(dir: impl AsFd) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Whether an extended attribute is part of an image: `user.*`, `security.capability` and POSIX ACLs, but not what
/// overlays keep for themselves.
pub fn reaches_layer(name: &[u8]) -> bool {
    let ours: [&[u8]; 3] = [b"security.capability", b"system.posix_acl_access", b"system.posix_acl_default"];
    ours.contains(&name) || (name.starts_with(b"user.") && !is_overlay_xattr(name))
}

/// Whether something of a kind can have an attribute that [reaches layers](reaches_layer): `user.*` is for files and
/// directories (xattr(7)), links have no ACLs, and only directories have default ones (acl(5)).
pub fn may_carry(kind: FileType, name: &[u8]) -> bool {
    match name {
        b"system.posix_acl_default" => kind == FileType::Directory,
        b"system.posix_acl_access" => kind != FileType::Symlink,
        name if name.starts_with(b"user.") => matches!(kind, FileType::RegularFile | FileType::Directory),
        _ => true,
    }
}

/// What has attributes: an open file (not one opened with `O_PATH`), or a name in a directory, no link followed.
enum Bearer<'a> {
    Open(BorrowedFd<'a>),
    Named(BorrowedFd<'a>, &'a [u8]),
}

/// A name in a directory. There is no call that takes attributes from an `O_PATH` descriptor before Linux 6.13, and
/// devices, pipes and links cannot be opened otherwise; the directory's own entry in /proc is a descriptor, too.
fn by_descriptor(dir: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
    [format!("/proc/self/fd/{}/", dir.as_raw_fd()).as_bytes(), name].concat()
}

impl Bearer<'_> {
    fn set(&self, name: &[u8], value: &[u8]) -> Result<(), Errno> {
        let name = OsStr::from_bytes(name);
        match self {
            Self::Open(file) => fsetxattr(file, name, value, XattrFlags::empty()),
            Self::Named(dir, last) => lsetxattr(by_descriptor(*dir, last), name, value, XattrFlags::empty()),
        }
    }

    /// The names, each with a NUL behind it.
    fn list(&self) -> Result<Vec<u8>, Errno> {
        let size = match self {
            Self::Open(file) => flistxattr_query(file),
            Self::Named(dir, last) => llistxattr_query(by_descriptor(*dir, last)),
        };
        let size = match size {
            Err(Errno::OPNOTSUPP) | Ok(0) => return Ok(Vec::new()),
            size => size?,
        };
        let mut list = Vec::with_capacity(size + 1024);
        match self {
            Self::Open(file) => flistxattr(file, spare_capacity(&mut list))?,
            Self::Named(dir, last) => llistxattr(by_descriptor(*dir, last), spare_capacity(&mut list))?,
        };
        Ok(list)
    }

    fn xattr(&self, name: &[u8]) -> Result<Option<Vec<u8>>, Errno> {
        let name = OsStr::from_bytes(name);
        loop {
            let size = match self {
                Self::Open(file) => fgetxattr_query(file, name),
                Self::Named(dir, last) => lgetxattr_query(by_descriptor(*dir, last), name),
            };
            let size = match size {
                Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
                size => size?,
            };
            if size > XATTRS_MAX {
                return Err(Errno::TOOBIG);
            }
            let mut value = Vec::with_capacity(size + 1);
            let read = match self {
                Self::Open(file) => fgetxattr(file, name, spare_capacity(&mut value)),
                Self::Named(dir, last) => {
                    lgetxattr(by_descriptor(*dir, last), name, spare_capacity(&mut value))
                }
            };
            match read {
                // It grew between the two calls.
                Err(Errno::RANGE) => continue,
                Err(Errno::NODATA) => return Ok(None),
                read => read?,
            };
            return Ok(Some(value));
        }
    }

    fn xattrs(&self) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Errno> {
        let mut found = BTreeMap::new();
        for name in self.list()?.split(|byte| *byte == 0).filter(|name| reaches_layer(name)) {
            if let Some(value) = self.xattr(name)? {
                found.insert(name.to_vec(), value);
            }
        }
        Ok(found)
    }
}

/// One extended attribute of an open file (not one opened with `O_PATH`); `None` where it has none of that name.
///
/// # Errors
/// What fgetxattr(2) says. Where the file system has no attributes at all there are none.
pub fn xattr(file: impl AsFd, name: &[u8]) -> Result<Option<Vec<u8>>, Errno> {
    Bearer::Open(file.as_fd()).xattr(name)
}

/// The attributes of an open file that [reach layers](reaches_layer).
///
/// # Errors
/// What flistxattr(2) and fgetxattr(2) say; `E2BIG` when they are larger than any image should need.
pub fn xattrs(file: impl AsFd) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Errno> {
    Bearer::Open(file.as_fd()).xattrs()
}

/// The same of a name in a directory, of a link itself: for what must not be opened.
///
/// # Errors
/// What llistxattr(2) and lgetxattr(2) say.
pub fn xattrs_at(dir: impl AsFd, name: &[u8]) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Errno> {
    Bearer::Named(dir.as_fd(), name).xattrs()
}

/// Sets an extended attribute of an open file.
///
/// # Errors
/// What fsetxattr(2) says.
pub fn set_xattr(file: impl AsFd, name: &[u8], value: &[u8]) -> Result<(), Errno> {
    Bearer::Open(file.as_fd()).set(name, value)
}

/// The same of a name in a directory, of a link itself.
///
/// # Errors
/// What lsetxattr(2) says.
pub fn set_xattr_at(dir: impl AsFd, name: &[u8], attribute: &[u8], value: &[u8]) -> Result<(), Errno> {
    Bearer::Named(dir.as_fd(), name).set(attribute, value)
}

/// Sets the modification time of a name in a directory, of a link itself; the access time stays.
///
/// # Errors
/// What utimensat(2) says.
pub fn set_mtime(dir: impl AsFd, name: &[u8], seconds: i64, nanoseconds: u32) -> Result<(), Errno> {
    utimensat(dir, OsStr::from_bytes(name), &mtime(seconds, nanoseconds), AtFlags::SYMLINK_NOFOLLOW)
}

/// A modification time for futimens(2), which leaves the access time as it is.
pub fn mtime(seconds: i64, nanoseconds: u32) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() },
    }
}

/// Sets the owner of a name in a directory, of a link itself. Clears setuid, setgid and capabilities: set those after.
///
/// # Errors
/// What fchownat(2) says; `EINVAL` for an id that this user namespace does not have, `EPERM` without the right.
pub fn set_owner(dir: impl AsFd, name: &[u8], uid: u32, gid: u32) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    chownat(dir, OsStr::from_bytes(name), Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
}

/// Sets the permission bits of an open file or directory, whatever the umask.
///
/// # Errors
/// What fchmod(2) says.
pub fn set_mode(file: impl AsFd, mode: u32) -> Result<(), Errno> {
    fchmod(file, Mode::from_raw_mode(mode))
}

/// Sets the permission bits of a device or FIFO, which cannot be opened to get at its mode.
///
/// # Errors
/// `ELOOP` if the name is a link by now; else what fchmodat(2) says.
pub fn set_node_mode(dir: impl AsFd, name: &[u8], mode: u32) -> Result<(), Errno> {
    match lstat(&dir, name)? {
        Some(stat) if file_type(&stat) == FileType::Symlink => Err(Errno::LOOP),
        Some(_) => chmodat(dir, OsStr::from_bytes(name), Mode::from_raw_mode(mode), AtFlags::empty()),
        None => Err(Errno::NOENT),
    }
}

/// Makes a directory with exactly these permission bits and opens it.
///
/// # Errors
/// What mkdirat(2) says; `EEXIST` where something is.
pub fn make_dir(dir: impl AsFd, name: &[u8], mode: u32) -> Result<OwnedFd, Errno> {
    mkdirat(&dir, OsStr::from_bytes(name), Mode::from_raw_mode(0o700))?;
    let made = open_beneath(&dir, name, OFlags::RDONLY | OFlags::DIRECTORY)?;
    set_mode(&made, mode)?;
    Ok(made)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn scratch() -> (tempfile::TempDir, OwnedFd) {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let root = rustix::fs::open(temp.path(), flags, Mode::empty()).expect("it opens");
        (temp, root)
    }

    #[test]
    fn a_link_ends_inside_the_root_or_not_at_all() {
        let (temp, root) = scratch();
        std::os::unix::fs::symlink("/etc", temp.path().join("out")).expect("a link");
        std::os::unix::fs::symlink("../../..", temp.path().join("up")).expect("a link");
        assert_eq!(open_dir(&root, b"out").err(), Some(Errno::NOENT));
        let up = open_dir(&root, b"up/up").expect("the root is its own parent");
        assert_eq!(names(&up), names(&root));
        assert_eq!(open_beneath(&root, b"up", OFlags::RDONLY).err(), Some(Errno::LOOP));
        assert_eq!(open_beneath(&root, b"../x", OFlags::RDONLY).err(), Some(Errno::XDEV));
    }

    #[test]
    fn directories_have_the_mode_asked_for() {
        let (_temp, root) = scratch();
        let made = make_dir(&root, b"d", 0o1777).expect("it is made");
        assert_eq!(permissions(&rustix::fs::fstat(&made).expect("open")), 0o1777);
        assert_eq!(make_dir(&root, b"d", 0o755).err(), Some(Errno::EXIST));
    }

    #[test]
    fn attributes_are_those_of_images() {
        let (_temp, root) = scratch();
        set_xattr(&root, b"user.kept", b"a\0b\n").expect("attributes work here");
        set_xattr(&root, b"user.overlay.opaque", b"y").expect("attributes work here");
        let kept = BTreeMap::from([(b"user.kept".to_vec(), b"a\0b\n".to_vec())]);
        assert_eq!(xattrs(root.as_fd()), Ok(kept));
        assert_eq!(xattr(&root, b"user.overlay.opaque"), Ok(Some(b"y".to_vec())));
        assert_eq!(xattr(&root, b"user.none"), Ok(None));
        assert!(!reaches_layer(b"security.selinux") && !reaches_layer(b"trusted.overlay.opaque"));
    }

    #[test]
    fn times_and_paths() {
        let (temp, root) = scratch();
        std::os::unix::fs::symlink("nowhere", temp.path().join("l")).expect("a link");
        set_mtime(&root, b"l", -5, 7).expect("of the link itself");
        let stat = lstat(&root, b"l").expect("it is there").expect("it is there");
        assert_eq!((stat.st_mtime, stat.st_mtime_nsec), (-5, 7));
        assert!(lstat(&root, b"none").expect("looked").is_none());
        assert_eq!((split(b"a/b/c"), split(b"c")), ((&b"a/b"[..], &b"c"[..]), (&b""[..], &b"c"[..])));
        assert_eq!((join(b"", b"c"), join(b"a", b"c")), (b"c".to_vec(), b"a/c".to_vec()));
    }
}
