//! Reads tar archives as data: what an entry says, never what the host makes of it.
//!
//! Understands ustar, GNU long names, base-256 numbers and PAX records with arbitrary bytes in their values (other
//! readers lose a binary `SCHILY.xattr.*` at its first newline). The PAX size wins over the header's, and anything
//! malformed is an error rather than skipped, since readers that disagree about where an entry ends can be shown
//! different files (RELIABILITY R19). Names, PAX headers, attributes and the number of entries are bounded (R20).
//!
//! The framing is our own: `tar` has raw entries, too, but ends them where the header says and not where PAX does.

mod header;
mod pax;

use std::{
    collections::BTreeMap,
    io::{self, Read},
};

use header::{BLOCK, Header, Role};
use pax::PaxRecords;

/// Headers in one archive, the extension headers included.
const MAX_HEADERS: u64 = 4 << 20;
/// Bytes of one extension header.
const MAX_EXTENSION: u64 = 1 << 20;
/// Bytes of a path or link target: Linux's `PATH_MAX` without its NUL, as no step could name a longer one.
const MAX_NAME: usize = 4095;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TarKind {
    /// A regular file; its bytes follow.
    File,
    /// A directory.
    Directory,
    /// A symbolic link with this target, as stored.
    Symlink(Vec<u8>),
    /// Another name of the entry with this path, as stored.
    HardLink(Vec<u8>),
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// Everything an archive says about one entry beside its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TarEntry {
    /// Path as stored, `.` where there is none: may be absolute, hold `.` and `..` or end in a slash. Never empty, no
    /// NUL, at most 4095 bytes.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: TarKind,
    /// Length of its bytes; 0 for everything but files.
    pub size: u64,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, whole Unix seconds rounded down.
    pub seconds: i64,
    /// The rest of the modification time.
    pub nanoseconds: u32,
    /// Extended attributes by full name (`SCHILY.xattr.*` records).
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The bytes could not be had.
    #[error("cannot read the archive")]
    Io(#[source] io::Error),
    /// The archive ends in the middle of an entry.
    #[error("the archive ends early, at byte {0}")]
    Truncated(u64),
    /// The entry whose headers begin at `offset` is not one we can or will read.
    #[error("bad entry {:?} at byte {offset} of the archive: {reason}", String::from_utf8_lossy(path))]
    Entry {
        /// Where its header stands in the archive.
        offset: u64,
        /// Its path, if that could be read.
        path: Vec<u8>,
        /// What is wrong with it.
        reason: String,
    },
    /// The archive has more headers than we will read.
    #[error("the archive has more than {MAX_HEADERS} entries")]
    TooManyEntries,
}

/// Walks an uncompressed archive entry by entry.
///
/// ```
/// # use executor::tarball::TarReader;
/// # fn print(stream: impl std::io::Read) -> Result<(), Box<dyn std::error::Error>> {
/// let mut archive = TarReader::new(stream);
/// while let Some(entry) = archive.next_entry()? {
///     println!("{:?}, {} bytes", entry.path, entry.size);
///     std::io::copy(&mut archive.content(), &mut std::io::stdout())?; // what is not read is skipped
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct TarReader<R> {
    stream: R,
    /// Bytes read so far.
    offset: u64,
    /// Bytes of the current entry's content that were not read yet.
    remaining: u64,
    /// Bytes between the content's end and the next header.
    padding: u64,
    headers: u64,
    ended: bool,
}

/// Extension headers that wait for the entry they belong to.
#[derive(Default)]
struct Extensions {
    pax: Option<PaxRecords>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<R: Read> TarReader<R> {
    /// Reads from the beginning of an archive. Reads of one block are common: hand over something buffered.
    pub fn new(stream: R) -> Self {
        Self { stream, offset: 0, remaining: 0, padding: 0, headers: 0, ended: false }
    }

    /// The next entry, or `None` at the end of the archive: two blocks of zeros, or the end of the stream where a
    /// header would stand. What comes after is not read. An archive that was cut between two entries cannot be told from one
    /// whose writer leaves the mark out, as docker's classic builder does with contexts: as Go's reader and GNU tar have it,
    /// both are whole. Of layers, downloads with a checksum and compressed archives something else vouches for the end.
    ///
    /// # Errors
    /// See [`TarError`]; nothing more can be read after one.
    pub fn next_entry(&mut self) -> Result<Option<TarEntry>, TarError> {
        let mut extensions = Extensions::default();
        let start = self.offset + self.remaining + self.padding;
        loop {
            let Some(header) = self.next_header()? else {
                return match extensions.is_empty() {
                    true => Ok(None),
                    false => Err(bad_entry(start, &[], "its extension headers are followed by no entry")),
                };
            };
            let path = header.path();
            let bad = |reason: String| TarError::Entry { offset: start, path: path.clone(), reason };
            let role = header.role().map_err(bad)?;
            if matches!(role, Role::Pax | Role::PaxGlobal | Role::LongName | Role::LongLink) {
                let bytes = self.extension(&header, start)?;
                extensions.add(role, bytes).map_err(bad)?;
                continue;
            }
            let entry = entry(&header, role, extensions).map_err(|(path, reason)| TarError::Entry {
                offset: start,
                path,
                reason,
            })?;
            self.frame(entry.size);
            return Ok(Some(entry));
        }
    }

    /// The bytes of the entry that came last. Fails with [`io::ErrorKind::UnexpectedEof`] rather than end early.
    pub fn content(&mut self) -> impl Read + '_ {
        Content { archive: self }
    }

    /// Everything after the archive's end mark.
    pub fn into_inner(self) -> R {
        self.stream
    }

    fn frame(&mut self, size: u64) {
        self.remaining = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
    }

    fn next_header(&mut self) -> Result<Option<Header>, TarError> {
        if self.ended {
            return Ok(None);
        }
        self.skip_rest()?;
        let offset = self.offset;
        let Some(block) = self.block()? else {
            self.ended = true;
            return Ok(None);
        };
        if block == [0; BLOCK] {
            self.ended = true;
            return match self.block()? {
                Some(second) if second != [0; BLOCK] => Err(bad_entry(
                    self.offset - BLOCK as u64,
                    &[],
                    "a single block of zeros stands before it",
                )),
                _ => Ok(None),
            };
        }
        self.headers += 1;
        if self.headers > MAX_HEADERS {
            return Err(TarError::TooManyEntries);
        }
        Header::new(block).map(Some).map_err(|reason| bad_entry(offset, &[], reason))
    }

    /// A whole block, or `None` at the end of the stream.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.stream.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(TarError::Truncated(self.offset + filled as u64)),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(TarError::Io(error)),
            }
        }
        self.offset += BLOCK as u64;
        Ok(Some(block))
    }

    fn skip_rest(&mut self) -> Result<(), TarError> {
        let rest = std::mem::take(&mut self.remaining) + std::mem::take(&mut self.padding);
        let skipped =
            io::copy(&mut self.stream.by_ref().take(rest), &mut io::sink()).map_err(TarError::Io)?;
        self.offset += skipped;
        if skipped == rest { Ok(()) } else { Err(TarError::Truncated(self.offset)) }
    }

    fn extension(&mut self, header: &Header, start: u64) -> Result<Vec<u8>, TarError> {
        let bad = |reason: &str| bad_entry(start, &header.path(), reason);
        let size = header.size().and_then(|size| u64::try_from(size).ok());
        let size = size.ok_or_else(|| bad("the size of its extension header is malformed"))?;
        if size > MAX_EXTENSION {
            return Err(bad("its extension header is larger than 1 MiB"));
        }
        self.frame(size);
        let mut bytes = Vec::new();
        let read = self.content().read_to_end(&mut bytes);
        match read {
            Ok(_) => Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(TarError::Truncated(self.offset))
            }
            Err(error) => Err(TarError::Io(error)),
        }
    }
}

impl Extensions {
    fn is_empty(&self) -> bool {
        self.pax.is_none() && self.long_name.is_none() && self.long_link.is_none()
    }

    /// Readers disagree about what repeated extensions mean, and whether the size in a PAX header also counts for a
    /// GNU header that follows it; such archives are refused.
    fn add(&mut self, role: Role, bytes: Vec<u8>) -> Result<(), String> {
        let sized = self.pax.as_ref().is_some_and(|pax| pax.size.is_some());
        let slot = match role {
            Role::Pax if self.pax.is_none() => {
                self.pax = Some(PaxRecords::parse(&bytes)?);
                return Ok(());
            }
            Role::PaxGlobal => return check_global(&bytes),
            Role::LongName if !sized => &mut self.long_name,
            Role::LongLink if !sized => &mut self.long_link,
            _ => return Err("its extension headers contradict each other".to_owned()),
        };
        let name = bytes.strip_suffix(b"\0").unwrap_or(&bytes);
        let repeated = slot.replace(name.to_vec()).is_some();
        if repeated { Err("its extension headers contradict each other".to_owned()) } else { Ok(()) }
    }
}

/// A global header counts for some readers and not for others, so only one that changes nothing is let through, such
/// as git's comment.
fn check_global(bytes: &[u8]) -> Result<(), String> {
    match PaxRecords::parse(bytes)?.is_empty() {
        true => Ok(()),
        false => Err("a global PAX header changes it, which is not supported".to_owned()),
    }
}

/// Puts a header and its extensions together; an error comes with the path that was to be read.
fn entry(header: &Header, role: Role, extensions: Extensions) -> Result<TarEntry, (Vec<u8>, String)> {
    let pax = extensions.pax.unwrap_or_default();
    let path = extensions.long_name.or(pax.path).unwrap_or_else(|| header.path());
    // GNU tar and Go's path.Clean agree on what an entry without a name is.
    let path = if path.is_empty() { b".".to_vec() } else { path };
    let link = extensions.long_link.or(pax.link).unwrap_or_else(|| header.link().to_vec());
    let fail = |what: &str| (path.clone(), format!("its {what} is malformed"));
    let size = pax.size.or_else(|| u64::try_from(header.size()?).ok()).ok_or_else(|| fail("size"))?;
    let kind = kind(header, role, &path, link).ok_or_else(|| fail("link target or device number"))?;
    if kind != TarKind::File && size != 0 {
        return Err((path, format!("it has {size} bytes of content, but is not a regular file")));
    }
    if path.len() > MAX_NAME || path.contains(&0) {
        return Err(fail("path"));
    }
    let (seconds, nanoseconds) =
        pax.time.or_else(|| Some((header.time()?, 0))).ok_or_else(|| fail("time"))?;
    Ok(TarEntry {
        kind,
        size,
        mode: header.mode().ok_or_else(|| fail("mode"))? as u32 & 0o7777,
        uid: pax.uid.or_else(|| id(header.uid()?)).ok_or_else(|| fail("owner"))?,
        gid: pax.gid.or_else(|| id(header.gid()?)).ok_or_else(|| fail("group"))?,
        seconds,
        nanoseconds,
        xattrs: pax.xattrs,
        path,
    })
}

fn kind(header: &Header, role: Role, path: &[u8], link: Vec<u8>) -> Option<TarKind> {
    let link = || {
        let valid = !link.is_empty() && link.len() <= MAX_NAME && !link.contains(&0);
        valid.then_some(link)
    };
    let device = || {
        let (major, minor) = header.device()?;
        Some((u32::try_from(major).ok()?, u32::try_from(minor).ok()?))
    };
    Some(match role {
        // Before ustar a directory was a file with a slash at the end of its name.
        Role::File if path.ends_with(b"/") => TarKind::Directory,
        Role::File => TarKind::File,
        Role::Directory => TarKind::Directory,
        Role::Symlink => TarKind::Symlink(link()?),
        Role::HardLink => TarKind::HardLink(link()?),
        Role::CharDevice => device().map(|(major, minor)| TarKind::CharDevice { major, minor })?,
        Role::BlockDevice => device().map(|(major, minor)| TarKind::BlockDevice { major, minor })?,
        Role::Fifo => TarKind::Fifo,
        Role::Pax | Role::PaxGlobal | Role::LongName | Role::LongLink => return None,
    })
}

fn id(number: i64) -> Option<u32> {
    u32::try_from(number).ok().filter(|id| *id != u32::MAX)
}

fn bad_entry(offset: u64, path: &[u8], reason: &str) -> TarError {
    TarError::Entry { offset, path: path.to_vec(), reason: reason.to_owned() }
}

struct Content<'a, R> {
    archive: &'a mut TarReader<R>,
}

impl<R: Read> Read for Content<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted =
            usize::try_from(self.archive.remaining).map_or(buffer.len(), |rest| rest.min(buffer.len()));
        if wanted == 0 {
            return Ok(0);
        }
        let count = self.archive.stream.read(&mut buffer[..wanted])?;
        if count == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the archive ends in the middle of a file",
            ));
        }
        self.archive.remaining -= count as u64;
        self.archive.offset += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
pub(crate) mod craft;
#[cfg(test)]
mod tests;
