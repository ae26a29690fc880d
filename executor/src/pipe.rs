//! Opens what the command line names and somebody else may have made: a pipe that nobody writes to is an error, and not
//! waited for without end (RELIABILITY F1). One with a writer, such as a shell's `<(...)`, is read like a file.

use std::{
    fs::File,
    io::{self, Read},
    os::{fd::AsFd, unix::fs::FileTypeExt},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl};

/// How long a pipe's writer may take to begin, and how often we look.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(5);

/// Reads at most `limit` bytes of a file, a device or a pipe.
///
/// # Errors
/// What open(2) and read(2) say; [`io::ErrorKind::TimedOut`] for a pipe that nobody writes to.
pub fn read_at_most(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let mut bytes = Vec::new();
    if limit > 0 && file.metadata()?.file_type().is_fifo() {
        bytes.push(first_byte(&file)?);
    }
    fcntl_setfl(file.as_fd(), fcntl_getfl(&file)?.difference(OFlags::NONBLOCK))?;
    file.take(limit - bytes.len() as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Without a writer a pipe is at its end each time it is read; with one that has nothing yet, it would block.
fn first_byte(mut pipe: &File) -> io::Result<u8> {
    let (began, mut byte) = (Instant::now(), [0]);
    loop {
        let has_writer = match pipe.read(&mut byte) {
            Ok(0) => false,
            Ok(_) => return Ok(byte[0]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => true,
            Err(error) => return Err(error),
        };
        if !has_writer && began.elapsed() > PATIENCE {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it is a pipe, and nobody writes to it"));
        }
        thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use super::*;

    #[test]
    fn files_pipes_with_a_writer_and_pipes_without() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| directory.path().join(name);
        fs::write(path("file"), "content").expect("written");
        assert_eq!(read_at_most(&path("file"), 4).expect("read"), b"cont");
        assert_eq!(read_at_most(Path::new("/dev/zero"), 4).expect("read"), [0; 4]);
        rustix::fs::mknodat(rustix::fs::CWD, path("pipe"), rustix::fs::FileType::Fifo, Mode::RWXU, 0)
            .expect("made");
        let nobody = read_at_most(&path("pipe"), 4).expect_err("nobody writes");
        assert_eq!(nobody.kind(), io::ErrorKind::TimedOut);
        let pipe = path("pipe");
        let writer = thread::spawn(move || {
            let mut pipe = fs::OpenOptions::new().write(true).open(pipe).expect("opened");
            pipe.write_all(b"from a pipe").expect("written");
        });
        assert_eq!(read_at_most(&path("pipe"), 100).expect("read"), b"from a pipe");
        writer.join().expect("it has ended");
    }
}
