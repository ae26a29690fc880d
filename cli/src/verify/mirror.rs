//! A copy of a context that has everything a build may look at, and nothing it must not: other times, another order in its
//! directories, another place. Modes, links, names of one file and file capabilities are the same.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use executor::{context::IgnoreFile, rootfs};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use solver::pattern::ignore::{self, Matcher};
use walkdir::{DirEntry, WalkDir};

/// Why a context cannot be copied.
#[derive(Debug, thiserror::Error)]
#[error("cannot copy {} to build it elsewhere", path.display())]
pub struct MirrorError {
    /// Of the context.
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// What is read of a context whatever the ignore file says.
const ALWAYS: [&str; 3] = ["Dockerfile", "Dockerfile.dockerignore", ".dockerignore"];
/// The one extended attribute that builds take from contexts.
const CAPABILITY: &[u8] = b"security.capability";

/// Copies a context; what its ignore file takes out is left behind. `to` must not be there.
///
/// # Errors
/// Something cannot be read or made.
pub fn mirror(from: &Path, to: &Path) -> Result<(), MirrorError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source: io::Error| MirrorError { path, source }
    };
    let matcher = matcher(from).map_err(failed(from))?;
    let mut made = Made { names: BTreeMap::new(), directories: Vec::new() };
    let descending = |one: &DirEntry, other: &DirEntry| other.file_name().cmp(one.file_name());
    for entry in WalkDir::new(from).sort_by(descending) {
        let entry = entry.map_err(|error| {
            let path = error.path().unwrap_or(from).to_owned();
            MirrorError { path, source: error.into() }
        })?;
        let relative = entry.path().strip_prefix(from).unwrap_or(entry.path());
        if entry.file_type().is_dir() || is_seen(relative, matcher.as_ref()) {
            let target = if relative.as_os_str().is_empty() { to.to_owned() } else { to.join(relative) };
            made.entry(&entry, &target).map_err(failed(entry.path()))?;
        }
    }
    made.finish().map_err(failed(to))
}

fn matcher(from: &Path) -> io::Result<Option<Matcher>> {
    let file = IgnoreFile::first_of(from, &ALWAYS[1..]).map_err(io::Error::other)?;
    let matcher = file.map(|file| Matcher::new(&ignore::read(&file.text)));
    matcher.transpose().map_err(io::Error::other)
}

/// What has no name in UTF-8 is taken along: no pattern could mean it alone.
fn is_seen(relative: &Path, matcher: Option<&Matcher>) -> bool {
    let (Some(path), Some(matcher)) = (relative.to_str(), matcher) else { return true };
    ALWAYS.contains(&path) || !matcher.matches(path)
}

/// What there is of the copy.
struct Made {
    /// Files of several names, by device and inode, and where their first one is.
    names: BTreeMap<(u64, u64), PathBuf>,
    /// Directories that get their modes when they are full.
    directories: Vec<(PathBuf, u32)>,
}

impl Made {
    fn entry(&mut self, entry: &DirEntry, to: &Path) -> io::Result<()> {
        let metadata = entry.metadata()?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            self.directories.push((to.to_owned(), metadata.mode()));
            return DirBuilder::new().mode(0o700).create(to);
        }
        if kind.is_symlink() {
            return symlink(fs::read_link(entry.path())?, to);
        }
        if metadata.nlink() > 1 {
            let key = (metadata.dev(), metadata.ino());
            if let Some(first) = self.names.get(&key) {
                return fs::hard_link(first, to);
            }
            self.names.insert(key, to.to_owned());
        }
        let node = if kind.is_socket() {
            Some(FileType::Socket)
        } else if kind.is_fifo() {
            Some(FileType::Fifo)
        } else if kind.is_file() {
            None
        } else {
            // A device: a step that would copy it has failed in the first build already.
            return Ok(());
        };
        match node {
            Some(kind) => mknodat(CWD, to, kind, Mode::from_raw_mode(metadata.mode() & 0o7777), 0)?,
            None => copy(entry.path(), to)?,
        }
        fs::set_permissions(to, Permissions::from_mode(metadata.mode() & 0o7777))
    }

    fn finish(self) -> io::Result<()> {
        let mut modes = self.directories.into_iter().rev();
        modes.try_for_each(|(path, mode)| fs::set_permissions(path, Permissions::from_mode(mode & 0o7777)))
    }
}

/// A file that cannot be read is one that no step of the first build has read.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = match File::open(from) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return File::create_new(to).map(drop);
        }
        opened => opened?,
    };
    let mut target = File::create_new(to)?;
    io::copy(&mut source, &mut target)?;
    if let Some(capability) = rootfs::xattr(&source, CAPABILITY)? {
        rootfs::set_xattr(&target, CAPABILITY, &capability)?;
    }
    Ok(())
}
