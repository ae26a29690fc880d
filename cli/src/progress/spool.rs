//! Lines of a step's output that a view has not shown and memory should not hold: if the step fails, all of them are
//! told; if it does not, nobody needs them.
//!
//! They lie in a file without a name (open(2), O_TMPFILE) in the store, so nothing has to be cleaned up after a kill.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Read, Seek, Write},
    path::Path,
    time::Duration,
};

use rustix::fs::{Mode, OFlags};

use super::board::Line;

/// Lines in a file.
#[derive(Debug)]
pub struct Spool {
    file: BufWriter<File>,
}

impl Spool {
    /// An empty spool on the file system of a directory.
    ///
    /// # Errors
    /// The file cannot be made, for example because the file system knows no files without a name.
    pub fn create(directory: &Path) -> io::Result<Self> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR)?;
        Ok(Self { file: BufWriter::new(file.into()) })
    }

    /// Appends a line.
    ///
    /// # Errors
    /// The disk is full, or worse.
    pub fn push(&mut self, line: &Line) -> io::Result<()> {
        let length = u32::try_from(line.text.len()).map_err(io::Error::other)?;
        let micros = u64::try_from(line.at.as_micros()).unwrap_or(u64::MAX);
        self.file.write_all(&micros.to_le_bytes())?;
        self.file.write_all(&length.to_le_bytes())?;
        self.file.write_all(&line.text)
    }

    /// Gives every line back, the first first.
    ///
    /// # Errors
    /// What could not be written before, or cannot be read now; or `each` fails.
    pub fn drain(self, mut each: impl FnMut(Line) -> io::Result<()>) -> io::Result<()> {
        let mut file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        let length = file.stream_position()?;
        file.rewind()?;
        let mut lines = BufReader::new(file).take(length);
        while lines.limit() > 0 {
            let (mut micros, mut length) = ([0; 8], [0; 4]);
            lines.read_exact(&mut micros)?;
            lines.read_exact(&mut length)?;
            let mut text = vec![0; u32::from_le_bytes(length) as usize];
            lines.read_exact(&mut text)?;
            each(Line { at: Duration::from_micros(u64::from_le_bytes(micros)), text })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_comes_back_in_order() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut spool = Spool::create(directory.path()).expect("created");
        for index in 0..5000_u32 {
            let text = vec![b'x'; index as usize % 70];
            spool.push(&Line { at: Duration::from_micros(index.into()), text }).expect("written");
        }
        let mut index = 0;
        let drained = spool.drain(|line| {
            assert_eq!((line.at.as_micros(), line.text.len()), (index, index as usize % 70));
            index += 1;
            Ok(())
        });
        drained.expect("read");
        assert_eq!(index, 5000);
        assert_eq!(std::fs::read_dir(directory.path()).expect("readable").count(), 0, "it has no name");
    }
}
