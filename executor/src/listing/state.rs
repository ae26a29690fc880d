//! What the system says of a file without opening it, as far as it differs when the bytes do.

use oci::canonical::{Canonical, Encoder};
use rustix::fs::Stat;

/// One state of a regular file, like an entry of git's index. Two equal states of one path are the same bytes, unless
/// the file was written to again within the grain of its file system's clock; who remembers states must see to that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileState {
    /// The device it is on.
    pub device: u64,
    /// Its number there: another file has another one.
    pub inode: u64,
    /// Length in bytes.
    pub size: u64,
    /// Kind and permission bits.
    pub mode: u32,
    /// Modification time, Unix seconds and nanoseconds.
    pub modified: (i64, u32),
    /// When anything about it last changed, Unix seconds and nanoseconds; nobody can set this one.
    pub changed: (i64, u32),
}

impl Canonical for FileState {
    fn encode(&self, out: &mut Encoder) {
        let Self { device, inode, size, mode, modified, changed } = self;
        out.field(1, device).field(2, inode).field(3, size).field(4, mode);
        out.field(5, &modified.0).field(6, &modified.1).field(7, &changed.0).field(8, &changed.1);
    }
}

impl FileState {
    /// The state that stat(2) tells.
    pub fn of(stat: &Stat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: stat.st_size as u64,
            mode: stat.st_mode,
            modified: (stat.st_mtime, stat.st_mtime_nsec as u32),
            changed: (stat.st_ctime, stat.st_ctime_nsec as u32),
        }
    }
}
