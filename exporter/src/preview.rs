//! Compresses what a step has written while it still runs, so that the end of the step finds most of its layer done.
//!
//! A chunk is a function of bytes close to it ([`crate::chunk`]), and what it is compressed to is one of the chunk alone.
//! So whatever a step's files are made into at some moment, the chunks that come again in the layer at the end are had by
//! their BLAKE3, and no other: a preview that is wrong or incomplete costs time that nobody else wanted, and cannot reach
//! a byte of a blob. What is kept lies in a file without a name, takes a bounded part of the disk, and is gone with the
//! build.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Write},
    os::unix::fs::FileExt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use oci::{ContentDigest, FileSource, LayerPreview, Tree, store::Store};
use rustix::time::{ClockId, clock_gettime};

use crate::{
    archive::{ArchiveError, ArchiveWriter},
    chunk::Chunker,
    encode::Encoder,
    layer::{LayerTar, TimePolicy},
    old::Chunk,
};

/// What is kept takes at most this, in bytes,
const MOST: u64 = 1 << 30;
/// and at most this part of what is free on its disk.
const PART: u64 = 8;

/// The compressed chunks of layers that are not complete yet. Shared by whoever looks at steps and the [`Sealer`] that
/// makes their layers.
///
/// [`Sealer`]: crate::Sealer
#[derive(Debug)]
pub struct Preview {
    store: Arc<Store>,
    encoder: Encoder,
    times: TimePolicy,
    members: Mutex<Members>,
}

/// What has been kept so far.
#[derive(Debug, Default)]
struct Members {
    /// Made with the first of them.
    file: Option<Arc<File>>,
    end: u64,
    known: HashMap<ContentDigest, (u64, Chunk)>,
}

impl Preview {
    /// A preview of layers that this encoder will be given, with these times.
    pub fn new(store: Arc<Store>, encoder: Encoder, times: TimePolicy) -> Self {
        Self { store, encoder, times, members: Mutex::default() }
    }

    /// What it has made of a chunk with this encoder, if it has: reads that into `member`.
    pub(crate) fn read(
        &self,
        encoder: Encoder,
        content: &ContentDigest,
        member: &mut Vec<u8>,
    ) -> Option<Chunk> {
        let ((at, chunk), file) = {
            // Held by a thread that has no processor it may stay so for long; compressing takes less.
            let members = self.members.try_lock().ok()?;
            (*members.known.get(content).filter(|_| encoder == self.encoder)?, members.file.clone()?)
        };
        member.resize(chunk.size as usize, 0);
        file.read_exact_at(member, at).ok()?;
        (ContentDigest::of(member) == chunk.member).then_some(chunk)
    }

    fn knows(&self, content: &ContentDigest) -> bool {
        self.members().known.contains_key(content)
    }

    /// Keeps what a chunk was made into.
    ///
    /// # Errors
    /// There is no room for it.
    fn keep(&self, chunk: Chunk, member: &[u8]) -> io::Result<()> {
        let (file, end) = {
            let mut members = self.members();
            let file = match &members.file {
                Some(file) => Arc::clone(file),
                None => Arc::clone(members.file.insert(Arc::new(self.nameless_file()?))),
            };
            members.end += member.len() as u64;
            (file, members.end)
        };
        let disk = rustix::fs::fstatvfs(&file)?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if end > MOST.min((free + end) / PART) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let at = end - member.len() as u64;
        file.write_all_at(member, at)?;
        self.members().known.insert(chunk.content, (at, chunk));
        Ok(())
    }

    fn nameless_file(&self) -> io::Result<File> {
        let directory = self.store.temp_dir("preview").map_err(io::Error::other)?;
        File::options().read(true).write(true).create_new(true).open(directory.path().join("members"))
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LayerPreview for Preview {
    fn look(&self, tree: &Tree, files: &dyn FileSource, stop: &dyn Fn() -> bool) -> u64 {
        let Ok(tar) = LayerTar::new(tree, self.times) else { return 0 };
        let (chunker, chunk, member) = Default::default();
        let mut look = Look { preview: self, stop, chunker, chunk, member, new: 0 };
        let mut archive = ArchiveWriter::new(&mut look);
        for entry in tar.entries() {
            // One that changes meanwhile makes another chunk, and is made again when it is whole.
            if let Err(ArchiveError::Write(_)) = tar.write(entry, files, &mut archive) {
                return look.new;
            }
        }
        // Where there is no room any more the last chunk is not kept.
        let _ = archive.finish().map(|look| look.compress());
        look.new
    }
}

/// A look at one layer.
struct Look<'a> {
    preview: &'a Preview,
    stop: &'a dyn Fn() -> bool,
    chunker: Chunker,
    chunk: Vec<u8>,
    member: Vec<u8>,
    /// Bytes that were compressed.
    new: u64,
}

impl Look<'_> {
    /// Compresses what is a whole chunk now, unless that has been done.
    fn compress(&mut self) -> io::Result<()> {
        if (self.stop)() {
            return Err(io::Error::other("the step has ended"));
        }
        let content = ContentDigest::of(&self.chunk);
        if !self.preview.knows(&content) {
            let pace = Pace::begin();
            self.preview.encoder.compress(&self.chunk, &mut self.member);
            let chunk = Chunk {
                length: self.chunk.len() as u32,
                content,
                size: self.member.len() as u32,
                member: ContentDigest::of(&self.member),
            };
            self.preview.keep(chunk, &self.member)?;
            self.new += self.chunk.len() as u64;
            pace.give_way(self.stop);
        }
        self.chunk.clear();
        Ok(())
    }
}

impl Write for Look<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (taken, ends) = self.chunker.fill(&mut self.chunk, bytes);
        if ends {
            self.compress()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Finds out whether others want the processor. Where the step is in another scheduling group (a cgroup, the kernel's
/// autogroups), the idle class of this thread says nothing to it.
struct Pace {
    began: Instant,
    worked: Duration,
}

impl Pace {
    fn begin() -> Self {
        Self { began: Instant::now(), worked: processor_time() }
    }

    /// Leaves the processor alone for a while if this had to wait for it.
    fn give_way(self, stop: &dyn Fn() -> bool) {
        const NAP: Duration = Duration::from_millis(5);
        let (took, worked) = (self.began.elapsed(), processor_time().saturating_sub(self.worked));
        if took < 2 * worked {
            return;
        }
        let until = Instant::now() + took;
        while Instant::now() < until && !stop() {
            thread::sleep(NAP);
        }
    }
}

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use oci::{Entry, EntryKind, Metadata};

    use super::*;

    const ENCODER: Encoder = Encoder::ZSTD;

    /// One file that has several chunks.
    struct Lines(Vec<u8>);

    impl FileSource for Lines {
        fn open(&self, _path: &[u8]) -> io::Result<Box<dyn io::Read + Send>> {
            Ok(Box::new(io::Cursor::new(self.0.clone())))
        }
    }

    fn layer() -> (Tree, Lines) {
        let lines: Vec<u8> = (0..400_000).flat_map(|line: u32| format!("{line}\n").into_bytes()).collect();
        let kind = EntryKind::File { size: lines.len() as u64, content: ContentDigest::of(&lines) };
        let entry = Entry { path: b"lines".to_vec(), kind, metadata: Metadata::default() };
        (Tree::new(vec![entry]).expect("valid"), Lines(lines))
    }

    fn chunks(tree: &Tree, files: &Lines) -> Vec<Vec<u8>> {
        let mut tar = Vec::new();
        crate::write_tar(tree, files, TimePolicy::Default, &mut tar).expect("in memory");
        let (mut chunker, mut chunks, mut rest) = (Chunker::default(), vec![Vec::new()], &tar[..]);
        while !rest.is_empty() {
            let (taken, ends) = chunker.fill(chunks.last_mut().expect("one"), rest);
            rest = &rest[taken..];
            if ends {
                chunks.push(Vec::new());
            }
        }
        chunks
    }

    fn preview(directory: &tempfile::TempDir) -> Preview {
        let store = Arc::new(Store::open(directory.path()).expect("a store"));
        Preview::new(store, ENCODER, TimePolicy::Default)
    }

    #[test]
    fn every_chunk_of_what_stays_is_had_again() {
        let (directory, (tree, files)) = (tempfile::tempdir().expect("made"), layer());
        let preview = preview(&directory);
        preview.look(&tree, &files, &|| false);
        preview.look(&tree, &files, &|| false);
        let chunks = chunks(&tree, &files);
        assert!(chunks.len() > 2 && preview.members().known.len() == chunks.len());
        for chunk in &chunks {
            let (content, mut member, mut compressed) = (ContentDigest::of(chunk), Vec::new(), Vec::new());
            let known = preview.read(ENCODER, &content, &mut member).expect("it was kept");
            ENCODER.compress(chunk, &mut compressed);
            assert!(member == compressed && known.content == content && known.length as usize == chunk.len());
            assert!(preview.read(Encoder::GZIP, &content, &mut member).is_none());
        }
        // A disk that gives other bytes back.
        let file = preview.members().file.clone().expect("it is made");
        file.write_all_at(b"?", 1).expect("written");
        assert!(preview.read(ENCODER, &ContentDigest::of(&chunks[0]), &mut Vec::new()).is_none());
        let names = std::fs::read_dir(directory.path().join("tmp")).expect("listed").count();
        assert_eq!(names, 1, "the store's own directory for this process and no more");
    }

    #[test]
    fn a_look_ends_when_it_is_to() {
        let (directory, (tree, files)) = (tempfile::tempdir().expect("made"), layer());
        let preview = preview(&directory);
        let asked = std::cell::Cell::new(0);
        preview.look(&tree, &files, &|| asked.replace(asked.get() + 1) > 0);
        assert_eq!(preview.members().known.len(), 1);
    }
}
