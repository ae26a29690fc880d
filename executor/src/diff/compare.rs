//! Tells changes from what only looks like one.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::File,
    io::{self, Read},
    os::{fd::BorrowedFd, unix::ffi::OsStrExt},
};

use oci::ContentDigest;
use rustix::fs::{FileType, OFlags, Stat, readlinkat};
use solver::{Cancel, op::Timestamps};

use super::{
    Changed, DiffError, Lower, go_on, kept_time,
    walk::{Before, Found, Present, directory_attributes, node_attributes},
};
use crate::{
    listing::{NodeKind, Until},
    rootfs::{PathError, failed, file_type, open_beneath, permissions, split, xattrs},
};

/// Read, hashed and compared at a time.
const BLOCK: usize = 256 << 10;

/// A file, link, device or FIFO with all its names in the upper directory, in byte order.
#[derive(Debug)]
pub struct Leader<'a> {
    /// The names.
    pub names: Vec<&'a [u8]>,
    /// What stands there, by the first name.
    pub present: &'a Present,
    /// What stood at each name before.
    before: Vec<Option<&'a Before>>,
    /// Whether that shows again at each name when this is gone.
    shows_lower: Vec<bool>,
}

impl Leader<'_> {
    /// Whether what stood at one of its names would not show again if this were gone.
    pub fn is_hidden(&self) -> bool {
        self.before.iter().zip(&self.shows_lower).any(|(before, shows)| before.is_some() && !shows)
    }
}

/// The content of a [`Leader`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// It has none.
    None,
    /// That of a regular file.
    Bytes {
        /// Length.
        size: u64,
        /// BLAKE3.
        digest: ContentDigest,
        /// Attributes that reach layers.
        xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    },
}

/// Everything that is neither directory nor socket, names of one file together.
pub fn leaders(found: &Changed) -> Vec<Leader<'_>> {
    let mut leaders: Vec<Leader<'_>> = Vec::new();
    let mut inodes = BTreeMap::new();
    for (path, found) in found {
        let Found::Present(present) = found else { continue };
        if present.is_directory() || present.kind.is_none() {
            continue;
        }
        let before = vec![present.before.as_ref()];
        let new = Leader { names: vec![path], present, before, shows_lower: vec![present.shows_lower] };
        if present.stat.st_nlink < 2 {
            leaders.push(new);
            continue;
        }
        match inodes.get(&present.stat.st_ino) {
            None => {
                inodes.insert(present.stat.st_ino, leaders.len());
                leaders.push(new);
            }
            Some(index) => {
                leaders[*index].names.push(path);
                leaders[*index].before.push(present.before.as_ref());
                leaders[*index].shows_lower.push(present.shows_lower);
            }
        }
    }
    leaders
}

/// Whether a directory was there before and has changed in nothing that counts.
pub fn directory_is_unchanged(
    lower: Lower<'_>,
    path: &[u8],
    present: &Present,
    timestamps: Timestamps,
) -> Result<bool, PathError> {
    match &present.before {
        Some(before) => same_metadata(lower, path, present, before, timestamps),
        None => Ok(false),
    }
}

/// Reads a file and says what its content is; `None` if it is no change under any of its names.
pub fn read(
    root: BorrowedFd<'_>,
    lower: Lower<'_>,
    leader: &Leader<'_>,
    timestamps: Timestamps,
    cancel: &Cancel,
) -> Result<Option<Content>, DiffError> {
    go_on(cancel)?;
    let same = may_be_unchanged(lower, leader, timestamps)?;
    if !matches!(leader.present.kind, Some(NodeKind::File { .. })) {
        return Ok((!same).then_some(Content::None));
    }
    let name = leader.names[0];
    let mut file = open(root, name)?;
    let xattrs = attributes(&file, name)?;
    let mut before = if same { Some(open(lower.root, name)?) } else { None };
    if let Some(was) = &before
        && attributes(was, name)? != xattrs
    {
        before = None;
    }
    let hashed = hash_and_compare(&mut file, &mut before, cancel);
    go_on(cancel)?;
    let (size, digest) = hashed.map_err(failed("reading", name))?;
    Ok(before.is_none().then_some(Content::Bytes { size, digest, xattrs }))
}

fn attributes(file: &File, path: &[u8]) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, PathError> {
    xattrs(file).map_err(failed("reading attributes of", path))
}

fn open(root: BorrowedFd<'_>, path: &[u8]) -> Result<File, PathError> {
    let opened = open_beneath(root, path, OFlags::RDONLY | OFlags::NONBLOCK);
    opened.map(File::from).map_err(failed("reading", path))
}

/// Whether everything but bytes and attributes of regular files is as it was, under every name, and the names are those of one
/// file as before.
fn may_be_unchanged(
    lower: Lower<'_>,
    leader: &Leader<'_>,
    timestamps: Timestamps,
) -> Result<bool, PathError> {
    let mut were = Vec::new();
    for (name, before) in leader.names.iter().zip(&leader.before) {
        let Some(before) = before else { return Ok(false) };
        if !same_metadata(lower, name, leader.present, before, timestamps)? {
            return Ok(false);
        }
        were.push(&before.stat);
    }
    let is_one =
        were.windows(2).all(|pair| (pair[0].st_dev, pair[0].st_ino) == (pair[1].st_dev, pair[1].st_ino));
    Ok(is_one && may_stand_alone(leader, were[0]))
}

/// Whether the file that is on disk after the step has the names that the one below has. Where that one shows again it has;
/// overlayfs parts the names of what it copies up, so nothing can be told from them. Where something hides it the new file
/// stays, and must be all of it: a layer that says nothing would bring the old file, with names that the new one does not
/// have.
fn may_stand_alone(leader: &Leader<'_>, was: &Stat) -> bool {
    let shown = leader.shows_lower.iter().filter(|shows| **shows).count();
    match shown {
        0 => was.st_nlink as usize == leader.names.len(),
        _ => shown == leader.names.len(),
    }
}

/// Kind, mode, owner, kept time, link target, device number; of files the size, of all else attributes.
fn same_metadata(
    lower: Lower<'_>,
    path: &[u8],
    present: &Present,
    before: &Before,
    timestamps: Timestamps,
) -> Result<bool, PathError> {
    let Present { kind, stat, mode, owner, xattrs, .. } = present;
    let is_link = matches!(kind, Some(NodeKind::Symlink { .. }));
    let kept = kept_time(stat.st_mtime, timestamps);
    let same = file_type(stat) == file_type(&before.stat)
        && (is_link || *mode == permissions(&before.stat))
        && *owner == before.owner
        && stat.st_rdev == before.stat.st_rdev
        // A normalised time is no change, whatever was there before.
        && kept.is_none_or(|kept| kept == before.stat.st_mtime)
        && (file_type(stat) != FileType::RegularFile || stat.st_size == before.stat.st_size);
    if !same {
        return Ok(false);
    }
    let xattrs_before = match kind {
        Some(NodeKind::File { .. }) | None => BTreeMap::new(),
        Some(NodeKind::Directory) => directory_attributes(lower.root, path, path)?,
        Some(_) => node_attributes(lower.root, path)?,
    };
    if *xattrs != xattrs_before {
        return Ok(false);
    }
    if let Some(NodeKind::Symlink { target }) = kind {
        let parent = open_beneath(lower.root, split(path).0, OFlags::PATH | OFlags::DIRECTORY);
        let parent = parent.map_err(failed("reading", path))?;
        let was = readlinkat(parent, OsStr::from_bytes(split(path).1), Vec::new());
        return Ok(was.map_err(failed("reading link", path))?.as_bytes() == target);
    }
    Ok(true)
}

/// Hashes a file, or fails when it is to stop; `before` is gone afterwards unless it held the same bytes.
fn hash_and_compare(
    file: &mut File,
    before: &mut Option<File>,
    cancel: &Cancel,
) -> io::Result<(u64, ContentDigest)> {
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(BLOCK);
    let mut block = vec![0; BLOCK.min(length.saturating_add(1))];
    let mut other = if before.is_some() { block.clone() } else { Vec::new() };
    let mut hasher = blake3::Hasher::new();
    let mut size = 0;
    let mut file = Until { stream: file, cancel };
    loop {
        let count = match file.read(&mut block) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            count => count?,
        };
        if let Some(was) = before {
            let wanted = &mut other[..count];
            let same = match was.read_exact(wanted) {
                Ok(()) => *wanted == block[..count],
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => false,
                Err(error) => return Err(error),
            };
            if !same {
                *before = None;
            }
        }
        if count == 0 {
            return Ok((size, hasher.finalize().into()));
        }
        hasher.update(&block[..count]);
        size += count as u64;
    }
}
