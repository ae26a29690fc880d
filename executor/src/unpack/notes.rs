//! What an unpacked layer leaves to know, and what could not be done for lack of rights.

use std::collections::{BTreeMap, BTreeSet};

use oci::ContentDigest;
use rustix::io::Errno;

use super::UnpackError;
use crate::{
    listing::Owners,
    snapshot::{BLOCK, Stamp},
    tarball::{TarEntry, TarKind},
};

/// Bytes of paths that are kept until the layer's end.
const MAX_REMEMBERED: usize = 256 << 20;
/// Files of a layer whose contents are remembered; one with more is not verified later.
const MAX_CONTENTS: usize = 2_000_000;

/// What is remembered of a path until the layer's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// A directory that the archive lists; it gets this time when everything in it is made.
    Listed(Stamp),
    /// A directory that the archive implies and has not listed so far.
    Implied,
    /// Something of the lower layers is removed here.
    Whiteout,
    /// A device node that could not be made.
    SkippedDevice,
}

/// Collected while unpacking.
pub(super) struct Notes {
    /// The time of unpacking.
    pub(super) stamp: Stamp,
    pub(super) brought: BTreeSet<ContentDigest>,
    /// Owners that the disk could not hold.
    pub(super) owners: Owners,
    /// Whether everything of the lower layers is gone.
    pub(super) opaque_root: bool,
    /// What the files take on disk, about.
    pub(super) bytes: u64,
    /// Contents of regular files by inode; `None` once there are too many.
    pub(super) contents: Option<BTreeMap<u64, ContentDigest>>,
    paths: BTreeMap<Vec<u8>, Known>,
    /// Bytes that `paths` takes.
    remembered: usize,
    skipped_xattrs: u64,
    first_skipped_xattr: Option<String>,
}

impl Notes {
    pub(super) fn new(stamp: Stamp) -> Self {
        Self {
            stamp,
            brought: BTreeSet::new(),
            owners: Owners::new(),
            opaque_root: false,
            bytes: 0,
            contents: Some(BTreeMap::new()),
            paths: BTreeMap::from([(Vec::new(), Known::Implied)]),
            remembered: 0,
            skipped_xattrs: 0,
            first_skipped_xattr: None,
        }
    }

    /// Adds what an entry takes on disk.
    pub(super) fn count(&mut self, entry: &TarEntry) {
        let directory = if entry.kind == TarKind::Directory { BLOCK } else { 0 };
        self.bytes =
            self.bytes.saturating_add(entry.size.saturating_add(BLOCK - 1) / BLOCK * BLOCK + directory);
    }

    /// Remembers what a file holds. What replaces it has another inode, since it is kept until the layer's end.
    pub(super) fn content(&mut self, inode: u64, content: ContentDigest) {
        if let Some(contents) = &mut self.contents {
            contents.insert(inode, content);
            self.contents = self.contents.take().filter(|contents| contents.len() <= MAX_CONTENTS);
        }
    }

    /// Remembers one thing of a path, and forgets what was known of it.
    pub(super) fn remember(&mut self, path: Vec<u8>, known: Known) -> Result<(), UnpackError> {
        self.account(&path)?;
        self.paths.insert(path, known);
        Ok(())
    }

    fn account(&mut self, path: &[u8]) -> Result<(), UnpackError> {
        self.remembered += path.len() + 64;
        match self.remembered > MAX_REMEMBERED {
            true => Err(UnpackError::TooMuchToRemember(MAX_REMEMBERED >> 20)),
            false => Ok(()),
        }
    }

    pub(super) fn known(&self, path: &[u8]) -> Option<Known> {
        self.paths.get(path).copied()
    }

    /// Everything that was remembered, parents first.
    pub(super) fn paths(&self) -> impl Iterator<Item = (&[u8], Known)> {
        self.paths.iter().map(|(path, known)| (path.as_slice(), *known))
    }

    /// What was at a path is no longer there, nor anything below it.
    pub(super) fn forget(&mut self, path: &[u8]) {
        forget_in(&mut self.paths, path);
        forget_in(&mut self.owners, path);
    }

    /// Looks at how a chown ended. An id that this user namespace does not have cannot be given on disk; the build goes
    /// on, since COPY needs no owner on disk, and RUN is told.
    pub(super) fn owner(
        &mut self,
        path: &[u8],
        entry: &TarEntry,
        result: Result<(), Errno>,
    ) -> Result<(), UnpackError> {
        match result {
            Ok(()) => {
                self.owners.remove(path);
                Ok(())
            }
            Err(Errno::INVAL) => {
                self.account(path)?;
                self.owners.insert(path.to_vec(), (entry.uid, entry.gid));
                Ok(())
            }
            Err(errno) => Err(UnpackError::io("set the owner of", path, errno)),
        }
    }

    /// A hard link has the owner of what it links to.
    pub(super) fn same_owner(&mut self, path: &[u8], target: &[u8]) -> Result<(), UnpackError> {
        if let Some(owner) = self.owners.get(target).copied() {
            self.account(path)?;
            self.owners.insert(path.to_vec(), owner);
        }
        Ok(())
    }

    /// Looks at how setting an attribute ended. Only a lost capability would change what the image's programs can do;
    /// others are refused by file systems and user namespaces as a matter of course.
    pub(super) fn xattr(
        &mut self,
        entry: &TarEntry,
        name: &[u8],
        result: Result<(), Errno>,
    ) -> Result<(), UnpackError> {
        match result {
            Err(Errno::PERM | Errno::ACCESS | Errno::NOTSUP | Errno::INVAL)
                if name != b"security.capability" =>
            {
                self.skipped_xattr(entry, name);
                Ok(())
            }
            result => result.map_err(UnpackError::at("set an extended attribute of", &entry.path)),
        }
    }

    pub(super) fn skipped_xattr(&mut self, entry: &TarEntry, name: &[u8]) {
        self.skipped_xattrs += 1;
        let first = || format!("{} of {}", lossy(name), lossy(&entry.path));
        self.first_skipped_xattr.get_or_insert_with(first);
    }

    /// What people should know, in whole sentences without a period.
    pub(super) fn warnings(&self) -> Vec<String> {
        let skipped = || self.paths().filter(|(_, known)| *known == Known::SkippedDevice);
        let devices = skipped().next().map(|(first, _)| {
            let (count, first) = (skipped().count(), lossy(first));
            format!("{count} device nodes were left out, since only root can make them; the first is {first}")
        });
        let xattrs = self.first_skipped_xattr.as_ref().map(|first| {
            let count = self.skipped_xattrs;
            format!("{count} extended attributes could not be set while unpacking; the first is {first}")
        });
        devices.into_iter().chain(xattrs).collect()
    }
}

/// Removes a path and all below it, in time proportional to their number.
fn forget_in<T>(map: &mut BTreeMap<Vec<u8>, T>, path: &[u8]) {
    map.remove(path);
    let from = [path, b"/"].concat();
    let below = map.range(from.clone()..).map(|(path, _)| path).take_while(|path| path.starts_with(&from));
    for path in below.cloned().collect::<Vec<_>>() {
        map.remove(&path);
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
