//! A step that has a directory and no mount: `--sandbox=chroot`, for root of a container that allows neither namespaces nor
//! mounts.
//!
//! What a step finds in the place of the image's own is put there before, and taken away after it: an empty `/proc` and `/sys`, a
//! `/dev` with the nodes that every program expects, and the files it is lent. What is the image's is moved aside meanwhile, and
//! comes back whatever the step has done to what stood in its place, as from below a mount. Nothing is written to and
//! nothing is removed that a step could have changed: names are moved, by the directory that is held open, between the file
//! system and a place out of its reach.
//!
//! The command changes its root itself, after everything else is made, and then gives up the capability to do so again. The
//! inits stay outside, where they have the container's `/proc` to find what is left of a step ([`super::kin`]).
//!
//! A builder that is killed leaves such a file system as it is; nobody takes it for a step's, since it lies among the
//! temporaries of the store.

mod enter;

use std::{collections::BTreeSet, ffi::CString, os::fd::OwnedFd, path::Path};

use rustix::{
    fs::{
        AtFlags, CWD, FileType, Mode, OFlags, StatVfsMountFlags, Timestamps, fchmod, fstat, fstatvfs,
        makedev, mkdirat, mknodat, open, openat, readlinkat, renameat, statat, symlinkat, utimensat,
    },
    io::Errno,
    process::{chdir, chroot, fchdir},
};

use crate::{
    sandbox::{
        SandboxError, devices,
        failure::{Failure, NamePlace, NameStep},
        plan::ProvidedFile,
        stubs::{Kind, MOST_LINKS, Stubs, Unmade, modified, split},
    },
    view::open_in_root,
};

pub use enter::{enter, enter_for_store, offer};

/// What stands in a root file system in the place of what is the image's.
pub struct Covers {
    root: OwnedFd,
    /// Where the other ones are.
    aside: OwnedFd,
    laid: Vec<Cover>,
    /// Directories above them that were not there.
    stubs: Stubs,
}

/// One name. What is the image's is called `N-own` aside, and `N-used` what stood in its place.
struct Cover {
    parent: OwnedFd,
    name: CString,
}

impl Covers {
    /// Puts everything in its place. Where this fails the file system is not to be used any more.
    pub fn lay(directory: &Path, aside: &Path, files: &[ProvidedFile]) -> Result<Self, Failure> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = open(directory, flags, Mode::empty()).step("open root directory")?;
        let aside = own_directory(aside).step("make a place for what is covered")?;
        let mut covers = Self { root, aside, laid: Vec::new(), stubs: Stubs::default() };
        for (name, mode) in [("proc", 0o555), ("sys", 0o555), ("dev", 0o755)] {
            let made = covers.directory(name, mode)?;
            if name == "dev" {
                populate(&made)?;
            }
        }
        for file in files {
            covers.file(file)?;
        }
        Ok(covers)
    }

    /// The root directory.
    pub fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// Puts back what is the image's. No process of the step may be left.
    pub fn lift(mut self) -> Result<(), Failure> {
        while let Some(cover) = self.laid.pop() {
            let name = cover.name.to_string_lossy().into_owned();
            cover.lift(&self.aside, self.laid.len()).step(&format!("uncover {name}"))?;
        }
        self.stubs.remove().step("remove directories")
    }

    fn directory(&mut self, name: &str, mode: u32) -> Result<OwnedFd, Failure> {
        let step = format!("cover /{name}");
        match statat(&self.root, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Directory => {
                return Err(Errno::NOTDIR).place(&step);
            }
            Ok(_) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno).step(&step),
        }
        self.cover_directory(name, mode).step(&step)
    }

    fn cover_directory(&mut self, name: &str, mode: u32) -> Result<OwnedFd, Errno> {
        let parent = open_in_root(&self.root, b"/", OFlags::PATH | OFlags::DIRECTORY)?;
        let parent = self.cover(parent, name.as_bytes(), |parent, name| {
            mkdirat(parent, name, Mode::from_raw_mode(mode))
        })?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(parent, name, flags, Mode::empty())
    }

    fn file(&mut self, file: &ProvidedFile) -> Result<(), Failure> {
        let step = format!("make {}", file.target);
        let (parent, name) = self.place(file.target.as_bytes()).place(&step)?;
        let covered = self.cover(parent, &name, |parent, name| {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let made = openat(parent, name, flags, Mode::RUSR)?;
            super::filesystem::write_all(&made, file.content.as_bytes())?;
            fchmod(&made, Mode::from_raw_mode(file.mode))
        });
        covered.map(drop).step(&step)
    }

    /// The directory and the name to which a path leads, following links inside the root; what lacks above is made.
    fn place(&mut self, path: &[u8]) -> Result<(OwnedFd, Vec<u8>), Errno> {
        let mut path = path.to_vec();
        for _ in 0..MOST_LINKS {
            let (directory, name) = split(&path).ok_or(Errno::INVAL)?;
            self.stubs.ensure(&self.root, directory, Kind::Directory)?;
            let parent = open_in_root(&self.root, directory, OFlags::PATH | OFlags::DIRECTORY)?;
            let kind = match statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                Err(Errno::NOENT) => FileType::RegularFile,
                Err(errno) => return Err(errno),
            };
            match kind {
                FileType::Symlink => {}
                FileType::Directory => return Err(Errno::ISDIR),
                _ => return Ok((parent, name.to_vec())),
            }
            let target = readlinkat(&parent, name, Vec::new())?.into_bytes();
            path = if target.starts_with(b"/") { target } else { [directory, b"/", &target].concat() };
        }
        Err(Errno::LOOP)
    }

    /// Moves aside what is there, has something else made, and leaves the directory its time; gives that back.
    fn cover(
        &mut self,
        parent: OwnedFd,
        name: &[u8],
        make: impl FnOnce(&OwnedFd, &CString) -> Result<(), Errno>,
    ) -> Result<&OwnedFd, Errno> {
        let name = CString::new(name).map_err(|_| Errno::INVAL)?;
        let times = modified(&fstat(&parent)?);
        match renameat(&parent, &name, &self.aside, format!("{}-own", self.laid.len())) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
        make(&parent, &name)?;
        utimensat(&parent, ".", &times, AtFlags::empty())?;
        self.laid.push(Cover { parent, name });
        self.laid.last().map(|cover| &cover.parent).ok_or(Errno::INVAL)
    }
}

impl Cover {
    /// A step may have removed the directory: with it went what is the image's, as is written in its layer.
    fn lift(&self, aside: &OwnedFd, number: usize) -> Result<(), Errno> {
        let moved = |answer: Result<(), Errno>| match answer {
            Err(Errno::NOENT) => Ok(()),
            answer => answer,
        };
        let times: Timestamps = modified(&fstat(&self.parent)?);
        moved(renameat(&self.parent, &self.name, aside, format!("{number}-used")))?;
        moved(renameat(aside, format!("{number}-own"), &self.parent, &self.name))?;
        moved(utimensat(&self.parent, ".", &times, AtFlags::empty()))
    }
}

/// A directory below that nobody has used: the same file system can be run on twice.
fn own_directory(aside: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let aside = open(aside, flags, Mode::empty())?;
    for number in 0.. {
        let name = format!("{number}");
        match mkdirat(&aside, &name, Mode::RWXU) {
            Ok(()) => return openat(&aside, &name, flags | OFlags::NOFOLLOW, Mode::empty()),
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::EXIST)
}

/// What programs expect in `/dev`; there is no terminal's file system, and what is shared lies on the disk.
fn populate(dev: &OwnedFd) -> Result<(), Failure> {
    for (name, major, minor) in devices::NODES {
        let (mode, number) = (Mode::from_raw_mode(0o666), makedev(*major, *minor));
        let made = mknodat(dev, *name, FileType::CharacterDevice, mode, number);
        made.step(&format!("make /dev/{name}"))?;
    }
    let without_terminals = devices::LINKS.iter().filter(|(name, _)| *name != "ptmx");
    for (name, target) in without_terminals {
        symlinkat(*target, dev, *name).step(&format!("make /dev/{name}"))?;
    }
    mkdirat(dev, "shm", Mode::from_raw_mode(0o1777)).step("make /dev/shm")?;
    // A file system may have been mounted so that nodes open nothing, and a container's control group may forbid it.
    let opened = openat(dev, "null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    opened.map(drop).step("open /dev/null").map_err(|failure| match opens_nothing(dev) {
        true => failure.hint(NO_NODES),
        false => failure,
    })
}

/// For a store on such a file system.
const NO_NODES: &str = "the file system of the store is mounted with `nodev`, and with --sandbox=chroot the devices of a step lie there: put the store \
     elsewhere with --root";

fn opens_nothing(dev: &OwnedFd) -> bool {
    fstatvfs(dev).is_ok_and(|found| found.f_flag.contains(StatVfsMountFlags::NODEV))
}

/// Makes a directory this process's root, with nothing of the old one in reach.
pub fn change_root(root: &OwnedFd) -> Result<(), Failure> {
    fchdir(root).step("enter root")?;
    chroot(".").step("change root")?;
    chdir("/").step("enter root")
}

/// Makes directories that are missing, following links inside the root.
///
/// # Errors
/// One of them cannot be made.
pub(crate) fn make_directories(root: &Path, paths: &BTreeSet<String>) -> Result<(), SandboxError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut stubs = Stubs::default();
    rustix::fs::openat(CWD, root, flags, Mode::empty())
        .map_err(Unmade::from)
        .and_then(|root| {
            paths.iter().try_for_each(|path| stubs.ensure(&root, path.as_bytes(), Kind::Directory))
        })
        .place("make volumes")
        .map_err(SandboxError::from)
}
