//! A copy of a context that has everything a build may look at, and nothing it must not: other times, another order in its
//! directories, another place. Owners (where we may give files away), modes, links, names of one file, holes and file
//! capabilities are the same.
//!
//! What the build's ignore file takes out is left behind, and directories are not even read that no exception reaches into.
//! The Dockerfile and the ignore files are there always, and what they lead to, where they are links.

mod bytes;

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, Metadata, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, lchown, symlink},
    path::{Component, Path, PathBuf},
};

use executor::context::IgnoreFile;
use rustix::{
    fs::{CWD, FileType, Mode, mknodat},
    process::geteuid,
};
use solver::{
    Cancel,
    pattern::ignore::{self, Matcher},
};
use walkdir::WalkDir;

/// Why a context cannot be copied.
#[derive(Debug, thiserror::Error)]
#[error("cannot copy {} to build it elsewhere", path.display())]
pub struct MirrorError {
    /// Of the context.
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// What is read of a context whatever its ignore file says.
const ALWAYS: [&str; 5] =
    ["Dockerfile", "dockerfile", "Dockerfile.dockerignore", "dockerfile.dockerignore", ".dockerignore"];
/// So many links are followed as the kernel follows.
const LINKS: usize = 40;

/// Copies a context without what its ignore file takes out. `to` must not be there.
///
/// # Errors
/// Something cannot be read or made, a pattern is malformed, or the user has stopped us.
pub fn mirror(
    from: &Path,
    to: &Path,
    ignored: Option<&IgnoreFile>,
    cancel: &Cancel,
) -> Result<(), MirrorError> {
    let matcher = ignored.map(|file| Matcher::new(&ignore::read(&file.text))).transpose();
    let matcher = matcher.map_err(|error| failed(from)(io::Error::other(error)))?;
    let mut made = Made { from, to, cancel, names: BTreeMap::new(), directories: Vec::new() };
    made.all(matcher.as_ref())?;
    for name in ALWAYS {
        made.reachable(Path::new(name))?;
    }
    made.finish()
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> MirrorError {
    let path = path.to_owned();
    move |source| MirrorError { path, source }
}

/// What has no name in UTF-8 is taken along: no pattern could mean it alone.
fn is_ignored(relative: &Path, matcher: Option<&Matcher>) -> bool {
    let (Some(path), Some(matcher)) = (relative.to_str(), matcher) else { return false };
    !ALWAYS.contains(&path) && matcher.matches(path)
}

/// Whether nothing of a directory is seen.
fn can_prune(relative: &Path, matcher: Option<&Matcher>) -> bool {
    let (Some(path), Some(matcher)) = (relative.to_str(), matcher) else { return false };
    !path.is_empty() && matcher.can_prune(path)
}

/// What there is of the copy.
struct Made<'a> {
    from: &'a Path,
    to: &'a Path,
    cancel: &'a Cancel,
    /// Files of several names, by device and inode, and where their first one is.
    names: BTreeMap<(u64, u64), PathBuf>,
    /// Directories that get their owners and modes when they are full.
    directories: Vec<(PathBuf, Metadata)>,
}

impl Made<'_> {
    /// Everything but what is ignored.
    fn all(&mut self, matcher: Option<&Matcher>) -> Result<(), MirrorError> {
        let from = self.from;
        let relative = |path: &Path| path.strip_prefix(from).unwrap_or(path).to_owned();
        let walk =
            WalkDir::new(from).sort_by(|one, other| other.file_name().cmp(one.file_name())).into_iter();
        let walk = walk.filter_entry(|entry| {
            !(entry.file_type().is_dir() && can_prune(&relative(entry.path()), matcher))
        });
        for entry in walk {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    let path = error.path().unwrap_or(from).to_owned();
                    if is_ignored(&relative(&path), matcher) {
                        continue;
                    }
                    return Err(failed(&path)(error.into()));
                }
            };
            let path = relative(entry.path());
            if entry.file_type().is_dir() || !is_ignored(&path, matcher) {
                self.entry(&path).map_err(failed(entry.path()))?;
            }
        }
        Ok(())
    }

    /// What a file that is read always leads to, step by step, as far as it is in the context.
    fn reachable(&mut self, name: &Path) -> Result<(), MirrorError> {
        let mut path = name.to_owned();
        for _ in 0..LINKS {
            let Ok(target) = fs::read_link(self.from.join(&path)) else { break };
            let Some(next) = inside(path.parent().unwrap_or(Path::new("")), &target) else { break };
            path = next;
            let there = self.from.join(&path);
            if there.symlink_metadata().is_ok_and(|found| !found.is_dir()) && !exists(&self.to.join(&path)) {
                self.parents(&path).and_then(|()| self.entry(&path)).map_err(failed(&there))?;
            }
        }
        Ok(())
    }

    fn parents(&mut self, path: &Path) -> io::Result<()> {
        let above: Vec<_> = path.ancestors().skip(1).collect();
        above
            .into_iter()
            .rev()
            .filter(|path| !exists(&self.to.join(path)))
            .try_for_each(|path| self.entry(path))
    }

    fn entry(&mut self, path: &Path) -> io::Result<()> {
        if self.cancel.is_requested() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let is_root = path.as_os_str().is_empty();
        let (from, to) = match is_root {
            true => (self.from.to_owned(), self.to.to_owned()),
            false => (self.from.join(path), self.to.join(path)),
        };
        // The context itself may be a link.
        let metadata = if is_root { from.metadata() } else { from.symlink_metadata() }?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            DirBuilder::new().mode(0o700).create(&to)?;
            self.directories.push((to, metadata));
            return Ok(());
        }
        if metadata.nlink() > 1 && !kind.is_symlink() {
            let key = (metadata.dev(), metadata.ino());
            if let Some(first) = self.names.get(&key) {
                return fs::hard_link(first, to);
            }
            self.names.insert(key, to.clone());
        }
        if kind.is_symlink() {
            symlink(fs::read_link(&from)?, &to)?;
            return own(&to, &metadata);
        }
        if kind.is_file() {
            return bytes::copy(&from, &to, &metadata, self.cancel);
        }
        let node = match (kind.is_socket(), kind.is_fifo()) {
            (true, _) => FileType::Socket,
            (_, true) => FileType::Fifo,
            _ => return Err(io::Error::other("it is a device, which an ignore file can take out")),
        };
        mknodat(CWD, &to, node, Mode::from_raw_mode(0o600), 0)?;
        finish(&to, &metadata)
    }

    fn finish(self) -> Result<(), MirrorError> {
        let mut directories = self.directories.into_iter().rev();
        directories.try_for_each(|(path, metadata)| finish(&path, &metadata).map_err(failed(&path)))
    }
}

fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// Where a link in a directory leads, if it stays in the context. A `..` behind another link is not looked through.
fn inside(directory: &Path, target: &Path) -> Option<PathBuf> {
    let mut path = directory.to_owned();
    for part in target.components() {
        match part {
            Component::Normal(name) => path.push(name),
            Component::CurDir => {}
            Component::ParentDir if path.pop() => {}
            _ => return None,
        }
    }
    Some(path)
}

/// Nothing becomes root's that is not: it may be setuid. Everybody else owns what they make, and can give nothing away; so
/// can a root whose namespace has no such id, or who has lost that right, and then only the room keeps others out.
fn own(path: &Path, of: &Metadata) -> io::Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    match lchown(path, Some(of.uid()), Some(of.gid())) {
        Err(error)
            if [io::ErrorKind::PermissionDenied, io::ErrorKind::InvalidInput].contains(&error.kind()) =>
        {
            Ok(())
        }
        answer => answer,
    }
}

/// Owner and mode, in this order: a new owner takes setuid away.
fn finish(path: &Path, of: &Metadata) -> io::Result<()> {
    own(path, of)?;
    fs::set_permissions(path, Permissions::from_mode(of.mode() & 0o7777))
}

#[cfg(test)]
mod tests;
