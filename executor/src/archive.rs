//! ADD of a local tar archive: told by its content, plain or compressed, and unpacked into the destination.
//!
//! The destination is the archive's world: its paths and links end there. Entries keep mode, owner and time;
//! `--chown` overrides the owner of all, `--chmod` does not apply. An entry replaces whatever is there, a directory with
//! all below it, except that a directory goes into a directory, also through a link. Parents that the archive does
//! not list are root's, 0755. An entry for the destination itself is skipped. All as BuildKit does it.
//!
//! Of a context's archive, the bytes that were unpacked are the bytes that were keyed, or the step fails. A compressed one is
//! read to its end, where its checksums stand: one that was cut or damaged behind its last file is refused as well.

mod compressed;

use std::{
    collections::BTreeMap,
    io::{self, BufReader, Read},
};

pub(crate) use compressed::{Compression, decompress};
use oci::ContentDigest;
use rustix::fs::FileType;
use solver::Cancel;

use crate::{
    copy::{
        CopyError,
        content::write_stream,
        ground::Ground,
        target::{Stamp, Target},
    },
    listing::{ListError, Listing, NodeKind, Opened, hash},
    rootfs::{failed, file_type, join, may_carry, open_dir, reaches_layer, shown, split},
    tarball::{TarEntry, TarError, TarKind, TarReader},
};

/// Bytes that an archive may unpack to, with what follows its end (RELIABILITY R21).
const UNPACKED_MAX: u64 = 64 << 30;
/// Length of a tar header.
const HEADER: usize = 512;

/// Why an archive cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// It cannot be read.
    #[error("unpacking {archive}")]
    Tar {
        /// The archive in its source.
        archive: String,
        /// What is wrong.
        #[source]
        source: TarError,
    },
    /// A path leads out of the destination.
    #[error("unpacking {archive}: {path:?} leads out of the destination")]
    Outside {
        /// The archive in its source.
        archive: String,
        /// The path in the archive.
        path: String,
    },
    /// A hard link names nothing that is there.
    #[error("unpacking {archive}: hard link {path:?} has no target {target:?}")]
    NoTarget {
        /// The archive in its source.
        archive: String,
        /// The path in the archive.
        path: String,
        /// Its target.
        target: String,
    },
    /// It unpacks to more than any layer should hold.
    #[error("unpacking {archive}: it holds more than 64 GiB")]
    TooLarge {
        /// The archive in its source.
        archive: String,
    },
    /// All its files can be had, and yet it is not whole.
    #[error("unpacking {archive}: it is cut or damaged behind its last file")]
    Damaged {
        /// The archive in its source.
        archive: String,
        /// What is wrong.
        #[source]
        source: io::Error,
    },
}

/// Whether a file is a tar archive, compressed or not. What cannot be decompressed is none.
///
/// # Errors
/// The file cannot be opened.
pub fn is_archive(listing: &Listing, path: &[u8]) -> Result<bool, CopyError> {
    let node = listing.nodes.get(path);
    if node.is_none_or(|node| matches!(node.kind, NodeKind::File { size: 0, .. })) {
        return Ok(false);
    }
    let mut header = [0; HEADER];
    let Ok(mut stream) = decompress(listing.open(path)?) else { return Ok(false) };
    Ok(stream.read_exact(&mut header).is_ok() && has_header(&header))
}

/// Unpacks an archive into a directory of the target, a path without links. Owners are set by `owner` where it is given.
///
/// # Errors
/// See [`ArchiveError`]; what was unpacked until then stays.
pub fn unpack(
    listing: &Listing,
    path: &[u8],
    target: &mut Target<'_>,
    destination: &[u8],
    owner: Option<(u32, u32)>,
    cancel: &Cancel,
) -> Result<(), CopyError> {
    let root = open_dir(target.root(), destination).map_err(failed("opening", destination))?;
    let mut inside = Target::inside(&root, destination);
    std::mem::swap(&mut inside.owners, &mut target.owners);
    let unpacked =
        Unpacker { archive: path, target: inside, owner, cancel, directories: BTreeMap::new(), bytes: 0 }
            .run(listing);
    unpacked.map(|owners| target.owners = owners)
}

struct Unpacker<'a> {
    archive: &'a [u8],
    target: Target<'a>,
    owner: Option<(u32, u32)>,
    cancel: &'a Cancel,
    /// Directories to be stamped once nothing is written into them any more.
    directories: BTreeMap<Vec<u8>, TarEntry>,
    /// Of files, so far.
    bytes: u64,
}

impl Unpacker<'_> {
    fn run(mut self, listing: &Listing) -> Result<crate::listing::Owners, CopyError> {
        let reading = |error: io::Error| failed("reading", self.archive)(error);
        let mut raw = Tapped { stream: listing.open(self.archive)?, hasher: blake3::Hasher::new() };
        let stream = decompress(&mut raw).map_err(reading)?;
        let mut archive = TarReader::new(BufReader::with_capacity(128 << 10, stream));
        let archive_name = shown(self.archive);
        let broken = |source| ArchiveError::Tar { archive: archive_name.clone(), source };
        while let Some(entry) = archive.next_entry().map_err(broken)? {
            self.entry(entry, &mut archive.content())?;
        }
        self.rest(archive.into_inner())?;
        self.check(listing, raw)?;
        for (path, entry) in std::mem::take(&mut self.directories).iter().rev() {
            self.stamp(path, entry)?;
        }
        Ok(self.target.owners)
    }

    /// Reads what follows the end of the tar: padding, and the checksums of what it was compressed by.
    fn rest(&self, mut stream: impl Read) -> Result<(), CopyError> {
        let mut chunk = vec![0; 128 << 10];
        let mut bytes = self.bytes;
        loop {
            if self.cancel.is_requested() {
                return Err(CopyError::Cancelled);
            }
            match stream.read(&mut chunk) {
                Ok(0) => return Ok(()),
                Ok(count) => bytes = bytes.saturating_add(count as u64),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(ArchiveError::Damaged { archive: shown(self.archive), source }.into());
                }
            }
            if bytes > UNPACKED_MAX {
                return Err(ArchiveError::TooLarge { archive: shown(self.archive) }.into());
            }
        }
    }

    /// That what was unpacked is what was keyed.
    fn check(&self, listing: &Listing, mut raw: Tapped<Opened<'_>>) -> Result<(), CopyError> {
        let Some(NodeKind::File { content: Some(expected), .. }) =
            listing.nodes.get(self.archive).map(|node| &node.kind)
        else {
            return Ok(());
        };
        hash(&mut raw.stream, u64::MAX, &mut raw.hasher).map_err(failed("reading", self.archive))?;
        let read: ContentDigest = raw.hasher.finalize().into();
        if read == *expected { Ok(()) } else { Err(ListError::Changed(shown(self.archive)).into()) }
    }

    fn entry(&mut self, entry: TarEntry, content: &mut impl Read) -> Result<(), CopyError> {
        if self.cancel.is_requested() {
            return Err(CopyError::Cancelled);
        }
        let name = self.clean(&entry.path)?;
        if name.is_empty() {
            return Ok(());
        }
        if entry.kind == TarKind::Directory {
            return self.directory(name, entry);
        }
        let path = join(&self.target.resolve(split(&name).0)?, split(&name).1);
        self.target.make_dirs(split(&path).0, (0, 0), 0o755)?;
        if let TarKind::HardLink(existing) = &entry.kind {
            return self.hard_link(&entry, existing, &path);
        }
        self.replace(&path)?;
        match &entry.kind {
            TarKind::File => {
                self.bytes = self.bytes.saturating_add(entry.size);
                if self.bytes > UNPACKED_MAX {
                    return Err(ArchiveError::TooLarge { archive: shown(self.archive) }.into());
                }
                drop(write_stream(content, entry.size, &self.target, &path, self.cancel)?);
            }
            kind => self.target.create_node(&path, &node_kind(kind))?,
        }
        self.stamp(&path, &entry)
    }

    fn directory(&mut self, name: Vec<u8>, entry: TarEntry) -> Result<(), CopyError> {
        let path = self.target.resolve(&name)?;
        self.target.make_dirs(split(&path).0, (0, 0), 0o755)?;
        let found = self.target.find(&path)?.map(|stat| file_type(&stat));
        if found != Some(FileType::Directory) {
            self.replace(&path)?;
            self.target.make_dir(&path, 0o700)?;
        }
        self.directories.insert(path, entry);
        Ok(())
    }

    fn hard_link(&mut self, entry: &TarEntry, existing: &[u8], path: &[u8]) -> Result<(), CopyError> {
        let name = self.clean(existing)?;
        let existing_path = join(&self.target.resolve(split(&name).0)?, split(&name).1);
        if name.is_empty() || existing_path == path || self.target.find(&existing_path)?.is_none() {
            return Err(ArchiveError::NoTarget {
                archive: shown(self.archive),
                path: shown(&entry.path),
                target: shown(existing),
            }
            .into());
        }
        self.replace(path)?;
        self.target.link(&existing_path, path)?;
        self.stamp(path, entry)
    }

    /// Makes way for an entry.
    fn replace(&mut self, path: &[u8]) -> Result<(), CopyError> {
        if self.target.find(path)?.is_none() {
            return Ok(());
        }
        self.target.remove_all(path)?;
        let gone = |dir: &[u8]| dir.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest[0] == b'/');
        self.directories.retain(|dir, _| !gone(dir));
        Ok(())
    }

    fn stamp(&mut self, path: &[u8], entry: &TarEntry) -> Result<(), CopyError> {
        let stands = self.target.find(path)?.map(|stat| file_type(&stat));
        let carries = |name: &[u8]| stands.is_some_and(|kind| may_carry(kind, name));
        let kept = |(name, _): &(&Vec<u8>, &Vec<u8>)| reaches_layer(name) && carries(name);
        let xattrs =
            entry.xattrs.iter().filter(kept).map(|(name, value)| (name.clone(), value.clone())).collect();
        self.target.stamp(
            path,
            &Stamp {
                owner: self.owner.unwrap_or((entry.uid, entry.gid)),
                mode: entry.mode,
                xattrs: &xattrs,
                time: (entry.seconds, entry.nanoseconds),
            },
        )
    }

    /// A path of the archive, relative and without `.` and `..`; empty for the destination itself.
    fn clean(&self, path: &[u8]) -> Result<Vec<u8>, CopyError> {
        let mut clean: Vec<&[u8]> = Vec::new();
        for name in path.split(|byte| *byte == b'/') {
            match name {
                b"" | b"." => {}
                b".." if clean.pop().is_some() => {}
                b".." => {
                    let (archive, path) = (shown(self.archive), shown(path));
                    return Err(ArchiveError::Outside { archive, path }.into());
                }
                name => clean.push(name),
            }
        }
        Ok(clean.join(&b'/'))
    }
}

fn node_kind(kind: &TarKind) -> NodeKind {
    match kind {
        TarKind::Symlink(target) => NodeKind::Symlink { target: target.clone() },
        TarKind::CharDevice { major, minor } => NodeKind::CharDevice { major: *major, minor: *minor },
        TarKind::BlockDevice { major, minor } => NodeKind::BlockDevice { major: *major, minor: *minor },
        TarKind::Fifo => NodeKind::Fifo,
        TarKind::File | TarKind::Directory | TarKind::HardLink(_) => unreachable!("made otherwise"),
    }
}

/// Whether a block is the header of an entry: its checksum is right (POSIX pax, "ustar Header Block").
fn has_header(block: &[u8; HEADER]) -> bool {
    let text = std::str::from_utf8(&block[148..156]).unwrap_or_default();
    let stored = u32::from_str_radix(text.trim_matches([' ', '\0']), 8);
    let blanks = 8 * u32::from(b' ');
    let sum: u32 = block[..148].iter().chain(&block[156..]).map(|byte| u32::from(*byte)).sum();
    stored == Ok(sum + blanks)
}

/// Hashes what is read through it.
struct Tapped<R> {
    stream: R,
    hasher: blake3::Hasher,
}

impl<R: Read> Read for Tapped<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests;
