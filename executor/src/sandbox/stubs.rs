//! Mount points that a root file system lacks: made before a step, taken away after it, so they are in no layer.
//!
//! What is made is remembered by the directory it was made in (held open), its name and its inode, and only that is
//! removed again: a name that by then stands for something else is the step's own, and so is a directory it has put
//! something into. The directory above keeps its time both times. What was made inside of another mount stays: a cache
//! mount is no layer, and another step that shares it may use the same mount point at this moment and would lose it.
//!
//! They are made by the inner init, which sees every mount there is and so in which of them a target lies, and taken away
//! by the outer one, for which they are mount points no more: it gets the open directories over a socket.

use std::{
    ffi::CString,
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{
        AtFlags, FileType, Mode, OFlags, Stat, StatxFlags, Timespec, Timestamps, fstat, mkdirat, openat,
        readlinkat, statat, statx, unlinkat, utimensat,
    },
    io::{Errno, retry_on_intr},
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
    },
};

use crate::view::open_in_root;

/// Links are followed this often, as the kernel does.
pub const MOST_LINKS: u32 = 40;

/// What stands at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An empty file.
    File,
    /// A directory.
    Directory,
}

/// Everything that was made in one root file system.
#[derive(Debug, Default)]
pub struct Stubs {
    made: Vec<Stub>,
}

#[derive(Debug)]
struct Stub {
    parent: OwnedFd,
    name: CString,
    kind: Kind,
    device: u64,
    inode: u64,
}

/// Why nothing was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmade {
    /// The kernel says so.
    Refused(Errno),
    /// It would be in a mount in the root, and that is read-only, as it was asked for. The root itself is so only where the disk
    /// that it lies on has become so.
    InReadOnlyMount,
}

impl From<Errno> for Unmade {
    fn from(errno: Errno) -> Self {
        Self::Refused(errno)
    }
}

impl From<Unmade> for Errno {
    fn from(unmade: Unmade) -> Self {
        match unmade {
            Unmade::Refused(errno) => errno,
            Unmade::InReadOnlyMount => Errno::ROFS,
        }
    }
}

impl Stubs {
    /// Makes sure that something of that kind is at a path, following links inside the root (to where a dangling one
    /// points, too).
    ///
    /// # Errors
    /// `ENOTDIR` or `EISDIR` when the path is taken by something else; what the kernel says.
    pub fn ensure(&mut self, root: impl AsFd, path: &[u8], kind: Kind) -> Result<(), Unmade> {
        self.ensure_within(root.as_fd(), path, kind, MOST_LINKS)
    }

    fn ensure_within(
        &mut self,
        root: impl AsFd + Copy,
        path: &[u8],
        kind: Kind,
        links_left: u32,
    ) -> Result<(), Unmade> {
        match open_in_root(root, path, OFlags::PATH) {
            Ok(found) => return Ok(check_kind(&fstat(found)?, kind)?),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        let (directory, name) = split(path).ok_or(Errno::INVAL)?;
        self.ensure_within(root, directory, Kind::Directory, links_left)?;
        let parent = open_in_root(root, directory, OFlags::PATH | OFlags::DIRECTORY)?;
        let mount = mount_id(&parent)?;
        match self.make(root, parent, name, kind) {
            Err(Errno::EXIST) => {}
            Err(Errno::ROFS) if mount != mount_id(root)? => return Err(Unmade::InReadOnlyMount),
            answer => return Ok(answer?),
        }
        let links_left = links_left.checked_sub(1).ok_or(Errno::LOOP)?;
        let parent = open_in_root(root, directory, OFlags::PATH | OFlags::DIRECTORY)?;
        let target = readlinkat(parent, name, Vec::new())?;
        let target = if target.as_bytes().starts_with(b"/") {
            target.into_bytes()
        } else {
            [directory, b"/", target.as_bytes()].concat()
        };
        self.ensure_within(root, &target, kind, links_left)
    }

    fn make(&mut self, root: impl AsFd, parent: OwnedFd, name: &[u8], kind: Kind) -> Result<(), Errno> {
        let name = CString::new(name).map_err(|_| Errno::INVAL)?;
        let above = fstat(&parent)?;
        let times = modified(&above);
        match kind {
            Kind::File => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                drop(openat(&parent, &name, flags, Mode::from_raw_mode(0o644))?);
            }
            Kind::Directory => mkdirat(&parent, &name, Mode::from_raw_mode(0o755))?,
        }
        let stat = statat(&parent, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        utimensat(&parent, ".", &times, AtFlags::empty())?;
        if above.st_dev != fstat(root)?.st_dev {
            return Ok(());
        }
        self.made.push(Stub { parent, name, kind, device: stat.st_dev, inode: stat.st_ino });
        Ok(())
    }

    /// Hands over what was made.
    ///
    /// # Errors
    /// What sendmsg(2) says.
    pub fn send(self, channel: impl AsFd) -> Result<(), Errno> {
        self.made.iter().try_for_each(|stub| stub.send(channel.as_fd()))
    }

    /// Takes what was handed over until the other side has closed its end.
    ///
    /// # Errors
    /// What recvmsg(2) says.
    pub fn receive(channel: impl AsFd) -> Result<Self, Errno> {
        let mut stubs = Self::default();
        while let Some(stub) = Stub::receive(channel.as_fd())? {
            stubs.made.push(stub);
        }
        Ok(stubs)
    }

    /// Takes away what was made and is still as it was, the last first.
    ///
    /// # Errors
    /// What the kernel says; the rest is left as it is then.
    pub fn remove(mut self) -> Result<(), Errno> {
        while let Some(stub) = self.made.pop() {
            stub.remove()?;
        }
        Ok(())
    }
}

/// The two ends of what [`Stubs::send`] and [`Stubs::receive`] need.
///
/// # Errors
/// What socketpair(2) says.
pub fn channel() -> Result<(OwnedFd, OwnedFd), Errno> {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

/// Longest name of a file, and the numbers before it in a message.
const MESSAGE_MAX: usize = 255 + NUMBERS;
const NUMBERS: usize = 1 + 8 + 8;

impl Stub {
    /// One message: kind, device, inode, name; and the directory.
    fn send(&self, channel: BorrowedFd<'_>) -> Result<(), Errno> {
        let kind = u8::from(self.kind == Kind::Directory);
        let (device, inode) = (self.device.to_le_bytes(), self.inode.to_le_bytes());
        let message = [&[kind][..], &device, &inode, self.name.as_bytes()].concat();
        let descriptors = [self.parent.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(Errno::NOBUFS);
        }
        let io = [IoSlice::new(&message)];
        retry_on_intr(|| sendmsg(channel, &io, &mut ancillary, SendFlags::NOSIGNAL)).map(drop)
    }

    /// `None` at the end.
    fn receive(channel: BorrowedFd<'_>) -> Result<Option<Self>, Errno> {
        let mut buffer = [0; MESSAGE_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received =
            retry_on_intr(|| recvmsg(channel, &mut [IoSliceMut::new(&mut buffer)], &mut ancillary, flags))?;
        let Some((numbers, name)) = buffer[..received.bytes].split_first_chunk::<NUMBERS>() else {
            return if received.bytes == 0 { Ok(None) } else { Err(Errno::BADMSG) };
        };
        let directories = ancillary.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        });
        let parent = directories.flatten().next().ok_or(Errno::BADMSG)?;
        let number = |at: usize| {
            u64::from_le_bytes(numbers[at..at + 8].try_into().expect("eight bytes are eight bytes"))
        };
        Ok(Some(Self {
            parent,
            name: CString::new(name).map_err(|_| Errno::BADMSG)?,
            kind: if numbers[0] == 0 { Kind::File } else { Kind::Directory },
            device: number(1),
            inode: number(9),
        }))
    }

    fn remove(&self) -> Result<(), Errno> {
        let stat = match statat(&self.parent, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        let untouched = (stat.st_dev, stat.st_ino) == (self.device, self.inode)
            && (self.kind == Kind::Directory || stat.st_size == 0);
        if !untouched {
            return Ok(());
        }
        let times = modified(&fstat(&self.parent)?);
        let flags = if self.kind == Kind::Directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        match unlinkat(&self.parent, &self.name, flags) {
            Ok(()) => utimensat(&self.parent, ".", &times, AtFlags::empty()),
            Err(Errno::NOTEMPTY) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}

/// Directory and last component; `None` for the root itself.
pub fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let path = path.strip_suffix(b"/").unwrap_or(path);
    let slash = path.iter().rposition(|byte| *byte == b'/')?;
    let name = &path[slash + 1..];
    (!name.is_empty()).then_some((&path[..slash], name))
}

/// Which of the mounts that there are something lies on: copies and what is mounted in them can be on one disk.
fn mount_id(place: impl AsFd) -> Result<u64, Errno> {
    Ok(statx(place, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?.stx_mnt_id)
}

fn check_kind(stat: &Stat, kind: Kind) -> Result<(), Errno> {
    let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    match kind {
        Kind::Directory if !is_directory => Err(Errno::NOTDIR),
        Kind::File if is_directory => Err(Errno::ISDIR),
        _ => Ok(()),
    }
}

/// The times of something, as they are set.
pub fn modified(stat: &Stat) -> Timestamps {
    let time = |seconds, nanoseconds: u64| Timespec { tv_sec: seconds, tv_nsec: nanoseconds as _ };
    Timestamps {
        last_access: time(stat.st_atime as _, stat.st_atime_nsec as _),
        last_modification: time(stat.st_mtime as _, stat.st_mtime_nsec as _),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt, symlink},
        path::Path,
    };

    use super::*;

    fn open(directory: &Path) -> OwnedFd {
        fs::File::open(directory).expect("the test made it").into()
    }

    /// Every path below, with its time; directories end in a slash.
    fn listing(directory: &Path) -> Vec<String> {
        let mut paths = Vec::new();
        for entry in walkdir::WalkDir::new(directory).sort_by_file_name() {
            let entry = entry.expect("the test may read it");
            let metadata = entry.metadata().expect("it is there");
            let slash = if metadata.is_dir() { "/" } else { "" };
            let time = (metadata.mtime(), metadata.mtime_nsec());
            paths.push(format!("{}{slash} {time:?}", entry.path().display()));
        }
        paths
    }

    #[test]
    fn what_was_made_goes_and_times_stay() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        fs::create_dir_all(path.join("usr/etc")).unwrap();
        symlink("usr/etc", path.join("etc")).unwrap();
        symlink("../../run/resolve/stub.conf", path.join("usr/etc/resolv.conf")).unwrap();
        symlink("/absolute/hosts", path.join("usr/etc/hosts")).unwrap();
        let before = listing(path);

        let mut stubs = Stubs::default();
        for target in ["/etc/resolv.conf", "/etc/hosts", "/etc/made/file"] {
            stubs.ensure(open(path), target.as_bytes(), Kind::File).unwrap();
        }
        for made in ["run/resolve/stub.conf", "absolute/hosts", "usr/etc/made/file"] {
            assert!(path.join(made).is_file(), "{made}");
        }
        assert_eq!(
            before.iter().filter(|line| !listing(path).contains(line)).count(),
            0,
            "a directory's time changed when something was made in it"
        );
        stubs.remove().unwrap();
        assert_eq!(listing(path), before);
    }

    #[test]
    fn what_a_step_made_of_it_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let mut stubs = Stubs::default();
        stubs.ensure(open(path), b"/etc/hosts", Kind::File).unwrap();
        stubs.ensure(open(path), b"/etc/resolv.conf", Kind::File).unwrap();
        fs::write(path.join("etc/passwd"), "root").unwrap();
        fs::write(path.join("etc/hosts"), "written").unwrap();
        fs::rename(path.join("etc/passwd"), path.join("etc/resolv.conf")).unwrap();
        stubs.remove().unwrap();
        assert_eq!(fs::read_to_string(path.join("etc/hosts")).unwrap(), "written");
        assert_eq!(fs::read_to_string(path.join("etc/resolv.conf")).unwrap(), "root");
    }

    #[test]
    fn wrong_things_and_loops_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        fs::write(path.join("file"), "").unwrap();
        symlink("/loop", path.join("loop")).unwrap();
        let ensure = |target: &str, kind| Stubs::default().ensure(open(path), target.as_bytes(), kind);
        assert_eq!(ensure("/file", Kind::Directory), Err(Errno::NOTDIR.into()));
        assert_eq!(ensure("/", Kind::File), Err(Errno::ISDIR.into()));
        assert_eq!(ensure("/loop", Kind::File), Err(Errno::LOOP.into()));
        assert_eq!(ensure("/file/below", Kind::File), Err(Errno::NOTDIR.into()));
    }
}
