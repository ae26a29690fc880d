//! Lines of a step's output that a view has not shown and memory should not hold: if the step fails, they are told; if
//! it does not, nobody needs them.
//!
//! They lie in files without a name (open(2), O_TMPFILE) in the store, so nothing has to be cleaned up after a kill. A step
//! works on the same disk and may write without end, so only the beginning and the end are kept: the beginning in one
//! file, the end in two, of which the older goes when the younger is full. A disk that takes nothing more fills a file
//! early; what it has taken stays, and what it has not is still in memory. So every line is either kept or counted.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::{Mode, OFlags};

use super::board::Line;

/// How many bytes of the beginning are kept.
const HEAD: u64 = 8 << 20;
/// How many bytes of the end are kept at least, and not quite twice that at most.
const TAIL: u64 = 4 << 20;
/// How many bytes wait in memory to be written.
const BUFFER: usize = 64 << 10;

/// Lines in files.
#[derive(Debug)]
pub struct Spool {
    directory: PathBuf,
    head: Segment,
    /// The end, once the beginning is full.
    tail: Option<Tail>,
    gap: Gap,
}

/// The end of what was written.
#[derive(Debug, Default)]
struct Tail {
    older: Segment,
    younger: Segment,
}

/// What is not kept between the beginning and the end.
#[derive(Debug, Default)]
pub struct Gap {
    /// How many lines.
    pub lines: u64,
    /// What kept a file from taking them all, if it was not its size.
    pub error: Option<io::Error>,
}

/// What is given back.
#[derive(Debug)]
pub enum Piece {
    /// A line.
    Line(Line),
    /// Lines are missing here, one at least.
    Gap(Gap),
}

impl Spool {
    /// An empty spool on the file system of a directory.
    pub fn new(directory: &Path) -> Self {
        let (head, gap) = Default::default();
        Self { directory: directory.to_owned(), head, tail: None, gap }
    }

    /// Appends a line.
    pub fn push(&mut self, line: &Line) {
        let (segment, most) = match &mut self.tail {
            None => (&mut self.head, HEAD),
            Some(tail) => (&mut tail.younger, TAIL),
        };
        let taken = segment.push(line, &self.directory);
        let is_full = taken.is_err() || segment.bytes() >= most;
        if let Err(error) = taken {
            self.gap.error.get_or_insert(error);
        }
        if is_full {
            let Tail { older, younger } = self.tail.take().unwrap_or_default();
            self.gap.lines += older.lines;
            self.tail = Some(Tail { older: younger, younger: Segment::default() });
        }
    }

    /// Gives back what is kept, the first line first.
    ///
    /// # Errors
    /// What was written cannot be read; or `each` fails.
    pub fn drain(self, mut each: impl FnMut(Piece) -> io::Result<()>) -> io::Result<()> {
        let Self { directory: _, head, tail, gap } = self;
        head.drain(&mut each)?;
        if gap.lines > 0 {
            each(Piece::Gap(gap))?;
        }
        let Tail { older, younger } = tail.unwrap_or_default();
        older.drain(&mut each)?;
        younger.drain(&mut each)
    }
}

/// Lines that go together.
#[derive(Debug, Default)]
struct Segment {
    /// `None` until there is something to write.
    file: Option<File>,
    /// How many bytes of the file are whole lines.
    written: u64,
    /// What follows them.
    pending: Vec<u8>,
    /// How many there are, in the file and behind it.
    lines: u64,
}

impl Segment {
    fn bytes(&self) -> u64 {
        self.written + self.pending.len() as u64
    }

    /// Takes a line in any case.
    ///
    /// # Errors
    /// It must be the last one: the disk is full, or worse.
    fn push(&mut self, line: &Line, directory: &Path) -> io::Result<()> {
        let micros = u64::try_from(line.at.as_micros()).unwrap_or(u64::MAX);
        self.pending.extend_from_slice(&micros.to_le_bytes());
        self.pending.extend_from_slice(&(line.text.len() as u64).to_le_bytes());
        self.pending.extend_from_slice(&line.text);
        self.lines += 1;
        match self.pending.len() < BUFFER {
            true => Ok(()),
            false => self.flush(directory),
        }
    }

    fn flush(&mut self, directory: &Path) -> io::Result<()> {
        let file = match &self.file {
            Some(file) => file,
            None => self.file.insert(create(directory)?),
        };
        file.write_all_at(&self.pending, self.written).inspect_err(|_| {
            // Half of it is of no use; what cannot be given back now is when the file goes.
            let _ = file.set_len(self.written);
        })?;
        self.written += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }

    fn drain(self, each: &mut impl FnMut(Piece) -> io::Result<()>) -> io::Result<()> {
        let Self { file, written, pending, lines } = self;
        let written: Box<dyn Read> = match file {
            Some(mut file) => {
                file.rewind()?;
                Box::new(BufReader::new(file).take(written))
            }
            None => Box::new(io::empty()),
        };
        let mut kept = written.chain(&pending[..]);
        for _ in 0..lines {
            let (mut micros, mut length) = ([0; 8], [0; 8]);
            kept.read_exact(&mut micros)?;
            kept.read_exact(&mut length)?;
            let mut text = Vec::new();
            let length = u64::from_le_bytes(length);
            if (&mut kept).take(length).read_to_end(&mut text)? as u64 != length {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            each(Piece::Line(Line { at: Duration::from_micros(u64::from_le_bytes(micros)), text }))?;
        }
        Ok(())
    }
}

/// A file without a name.
fn create(directory: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    Ok(rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is given back of so many lines of a length: the numbers of those that are kept, and the gap behind the first of them.
    fn spooled(directory: &Path, lines: u64, length: usize) -> (Vec<u64>, Option<(usize, Gap)>) {
        let mut spool = Spool::new(directory);
        for index in 0..lines {
            let text = vec![b'x'; length + index as usize % 7];
            spool.push(&Line { at: Duration::from_micros(index), text });
        }
        let (mut kept, mut gap) = (Vec::new(), None);
        let drained = spool.drain(|piece| {
            match piece {
                Piece::Gap(found) => gap = Some((kept.len(), found)),
                Piece::Line(line) => {
                    let index = u64::try_from(line.at.as_micros()).expect("small");
                    assert_eq!(line.text.len(), length + index as usize % 7);
                    kept.push(index);
                }
            }
            Ok(())
        });
        drained.expect("read");
        (kept, gap)
    }

    #[test]
    fn every_line_comes_back_in_order() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (kept, gap) = spooled(directory.path(), 50_000, 70);
        assert!(gap.is_none() && kept == (0..50_000).collect::<Vec<_>>(), "{gap:?}");
        assert_eq!(std::fs::read_dir(directory.path()).expect("readable").count(), 0, "it has no name");
    }

    /// Both ends are there, and between them as many lines are missing as are told.
    fn check_ends(lines: u64, kept: &[u64], head: usize, gap: &Gap) {
        let tail = kept.len() - head;
        assert_eq!(kept[..head], (0..head as u64).collect::<Vec<_>>());
        assert_eq!(kept[head..], (lines - tail as u64..lines).collect::<Vec<_>>());
        assert_eq!(kept.len() as u64 + gap.lines, lines);
    }

    #[test]
    fn of_much_the_beginning_and_the_end_are_kept() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (kept, gap) = spooled(directory.path(), 30_000, 1000);
        let (head, gap) = gap.expect("30 MB are too much");
        check_ends(30_000, &kept, head, &gap);
        let (head, tail) = (head as u64 * 1020, (kept.len() - head) as u64 * 1020);
        assert!(head.abs_diff(HEAD) < 100_000 && tail > TAIL && tail < 2 * TAIL, "{head} {tail}");
        assert!(gap.error.is_none());
    }

    #[test]
    fn without_a_disk_both_ends_are_in_memory_and_the_rest_is_counted() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (kept, gap) = spooled(&directory.path().join("gone"), 5000, 100);
        let (head, gap) = gap.expect("500 kB are too much");
        check_ends(5000, &kept, head, &gap);
        let least = BUFFER / 130;
        assert!(head > least && kept.len() - head > least, "{head} {}", kept.len());
        assert_eq!(gap.error.expect("why").kind(), io::ErrorKind::NotFound);
    }
}
