//! Files outside the store that appear whole or not at all.
//!
//! The bytes go to a file without a name, where the file system has such, and get their name when they are complete:
//! a killed export leaves the old file or none, and no temporary beside it.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags},
    io::Errno,
};

/// Bytes that are copied before somebody may stop it.
const COPIED_AT_ONCE: u64 = 32 * 1024 * 1024;

/// A file that is being written and not yet to be seen.
#[derive(Debug)]
pub struct NewFile<'a> {
    file: File,
    parent: &'a OwnedFd,
    name: OsString,
    /// Its name until then, where the file system needs one.
    temporary: Option<OsString>,
}

impl<'a> NewFile<'a> {
    /// Starts the file that will be called `name` in a directory, with mode 0666 less the umask.
    ///
    /// # Errors
    /// The directory takes no file.
    pub fn create(parent: &'a OwnedFd, name: &OsStr) -> io::Result<Self> {
        let mode = Mode::from_raw_mode(0o666);
        let name = name.to_owned();
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let can_be_named_later = rustix::fs::access("/proc/self/fd", rustix::fs::Access::EXEC_OK).is_ok();
        if can_be_named_later && let Ok(file) = rustix::fs::openat(parent, ".", flags, mode) {
            return Ok(Self { file: file.into(), parent, name, temporary: None });
        }
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let create = |temporary: &OsStr| rustix::fs::openat(parent, temporary, flags, mode);
        let (file, temporary) = with_temporary_name(create)?;
        Ok(Self { file: file.into(), parent, name, temporary: Some(temporary) })
    }

    /// The file, for its metadata.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Takes all bytes of another file: shares them where the file system can, else the kernel copies them. `go_on` is
    /// asked every now and then.
    ///
    /// # Errors
    /// What the operating system or `go_on` says.
    pub fn copy_from<E: From<io::Error>>(
        &mut self,
        from: &File,
        go_on: impl Fn() -> Result<(), E>,
    ) -> Result<(), E> {
        if rustix::fs::ioctl_ficlone(&self.file, from).is_ok() {
            return Ok(());
        }
        loop {
            go_on()?;
            // The standard library uses `copy_file_range` between two files, and what else there is where it cannot be.
            if io::copy(&mut from.take(COPIED_AT_ONCE), &mut self.file)? == 0 {
                return Ok(());
            }
        }
    }

    /// Gives the file its name; what had the name before is gone.
    ///
    /// # Errors
    /// The name belongs to a directory, or the directory takes no entry.
    pub fn commit(mut self) -> io::Result<()> {
        let temporary = match self.temporary.take() {
            Some(temporary) => temporary,
            None => match link(&self.file, self.parent, &self.name) {
                Err(Errno::EXIST) => with_temporary_name(|name| link(&self.file, self.parent, name))?.1,
                linked => return Ok(linked?),
            },
        };
        rename(self.parent, &temporary, &self.name)
    }
}

impl Write for NewFile<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for NewFile<'_> {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // There is nobody left to tell; the file carries our name.
            rustix::fs::unlinkat(self.parent, temporary, AtFlags::empty()).unwrap_or_default();
        }
    }
}

/// Makes something under `name`, replacing what is there unless that is a directory: `make` gets another name, which
/// is then renamed.
///
/// # Errors
/// What `make` says, or the name belongs to a directory.
pub fn replace(
    parent: &OwnedFd,
    name: &OsStr,
    make: impl Fn(&OsStr) -> rustix::io::Result<()>,
) -> io::Result<()> {
    let ((), temporary) = with_temporary_name(make)?;
    rename(parent, &temporary, name)
}

/// Why no file can appear at a path, as far as that can be seen before there is one: a long build should not end with it.
pub fn obstacle(path: &Path) -> Option<&'static str> {
    // The parent of a bare name is the empty path, which stands for the working directory.
    let parent = path.parent().map(|parent| if parent == Path::new("") { Path::new(".") } else { parent });
    match parent {
        _ if path.is_dir() => Some("it is a directory"),
        Some(parent) if parent.is_dir() => None,
        _ => Some("its directory does not exist"),
    }
}

/// Writes a whole file.
///
/// # Errors
/// The file cannot be written; the old one is untouched then.
pub fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_with(path, |out| out.write_all(bytes))
}

/// Writes a file as `produce` writes it; its bytes are durable before it has its name. A device or pipe that has the name
/// is written to as it is.
///
/// # Errors
/// Those of `produce`, or the file cannot be written; an old regular file is untouched then.
pub fn write_with<E: From<io::Error>>(
    path: &Path,
    produce: impl FnOnce(&mut dyn Write) -> Result<(), E>,
) -> Result<(), E> {
    let name = path.file_name().ok_or(io::ErrorKind::IsADirectory).map_err(io::Error::from)?;
    if let Some(mut stream) = open_stream(path)? {
        return produce(&mut stream);
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = open_directory(directory.unwrap_or(Path::new(".")))?;
    let mut file = NewFile::create(&parent, name)?;
    produce(&mut file)?;
    file.file().sync_all()?;
    Ok(file.commit()?)
}

/// Tries whether a path that has no [`obstacle`] lets us write a file, and leaves nothing behind. A pipe or device there
/// is not opened.
///
/// # Errors
/// It does not.
pub fn try_file(path: &Path) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::IsADirectory)?;
    if std::fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        return Ok(rustix::fs::access(path, rustix::fs::Access::WRITE_OK)?);
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = open_directory(directory.unwrap_or(Path::new(".")))?;
    NewFile::create(&parent, name).map(drop)
}

/// Tries whether a directory, or the one in which it would be made, can be written to, and leaves nothing behind.
///
/// # Errors
/// It cannot.
pub fn try_directory(path: &Path) -> io::Result<()> {
    let path = std::path::absolute(path)?;
    let there = path.ancestors().find(|above| above.symlink_metadata().is_ok()).unwrap_or(Path::new("/"));
    try_file(&there.join(".layerwright-trial"))
}

/// What a path names that is neither a regular file nor a directory, open for writing.
fn open_stream(path: &Path) -> io::Result<Option<File>> {
    let kind = match rustix::fs::stat(path) {
        Ok(stat) => FileType::from_raw_mode(stat.st_mode),
        Err(_) => return Ok(None),
    };
    match kind {
        FileType::RegularFile => Ok(None),
        FileType::Directory => Err(io::ErrorKind::IsADirectory.into()),
        _ => std::fs::OpenOptions::new().write(true).open(path).map(Some),
    }
}

/// Opens a directory to make entries in it.
///
/// # Errors
/// What the operating system says.
pub fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, path, flags, Mode::empty())?)
}

fn link(file: &File, parent: &OwnedFd, name: &OsStr) -> rustix::io::Result<()> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::linkat(CWD, path, parent, name, AtFlags::SYMLINK_FOLLOW)
}

fn rename(parent: &OwnedFd, temporary: &OsStr, name: &OsStr) -> io::Result<()> {
    rustix::fs::renameat(parent, temporary, parent, name).map_err(|error| {
        rustix::fs::unlinkat(parent, temporary, AtFlags::empty()).unwrap_or_default();
        error.into()
    })
}

/// Tries names until `make` does not say that there is one.
fn with_temporary_name<T>(make: impl Fn(&OsStr) -> rustix::io::Result<T>) -> io::Result<(T, OsString)> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!(".layerwright-{}-{number}", std::process::id());
        let name = OsStr::from_bytes(name.as_bytes());
        match make(name) {
            Err(Errno::EXIST) => {}
            made => return Ok((made?, name.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<OsString> {
        let entries = std::fs::read_dir(directory).expect("readable");
        entries.map(|entry| entry.expect("readable").file_name()).collect()
    }

    #[test]
    fn a_file_is_replaced_whole_and_nothing_else_is_left() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("f");
        for content in ["old", "new, and longer"] {
            write_file(&path, content.as_bytes()).expect("written");
            assert_eq!(std::fs::read_to_string(&path).expect("readable"), content);
            assert_eq!(names(directory.path()), ["f"]);
        }
    }

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("f");
        write_file(&path, b"old").expect("written");
        let failed = write_with(&path, |out| {
            out.write_all(b"half")?;
            Err(io::Error::other("stop"))
        });
        assert!(failed.is_err());
        assert_eq!(std::fs::read_to_string(&path).expect("readable"), "old");
        assert_eq!(names(directory.path()), ["f"]);
    }

    #[test]
    fn without_anonymous_files_a_temporary_name_is_used_and_removed() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let parent = open_directory(directory.path()).expect("open");
        let file = std::fs::File::create_new(directory.path().join(".temporary")).expect("created");
        let temporary = Some(OsString::from(".temporary"));
        let mut new = NewFile { file, parent: &parent, name: "f".into(), temporary };
        new.write_all(b"x").expect("written");
        new.commit().expect("renamed");
        assert_eq!(names(directory.path()), ["f"]);
        drop(NewFile {
            file: std::fs::File::create_new(directory.path().join(".other")).expect("created"),
            parent: &parent,
            name: "g".into(),
            temporary: Some(".other".into()),
        });
        assert_eq!(names(directory.path()), ["f"]);
    }

    #[test]
    fn a_device_is_written_to_and_a_directory_refused() {
        write_file(Path::new("/dev/null"), b"x").expect("written");
        let directory = tempfile::tempdir().expect("temporary directory");
        assert!(write_file(directory.path(), b"x").is_err());
    }
}
