//! What can be mounted into a step, as plain data.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Something that is mounted into a step. What is made on disk for it is gone afterwards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedMount {
    /// Absolute clean path inside.
    pub target: String,
    /// What it shows.
    pub source: MountSource,
}

/// What a mount shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MountSource {
    /// Part of a file system.
    Files {
        /// Which file system.
        tree: FileTree,
        /// Absolute clean path of a file or directory in it; links are followed inside.
        path: String,
        /// Whether it can be written.
        access: Access,
    },
    /// An empty directory in memory.
    Tmpfs {
        /// At most this many bytes; `None` is the kernel's default, half of the memory.
        size: Option<u64>,
    },
    /// A file in memory.
    Secret {
        /// What stands in it.
        content: SecretBytes,
        /// Permission bits.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// A socket of the builder, which has its mode and owner already.
    Socket(PathBuf),
    /// A device node of the machine.
    Device(PathBuf),
    /// A file or directory of the machine, without setuid programs.
    Host {
        /// Where it is.
        path: PathBuf,
        /// Whether it can be written.
        access: Access,
    },
}

/// Files that a mount can show.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileTree {
    /// One directory or file.
    Place(PathBuf),
    /// Directories to merge, topmost first, at least two.
    Merged(Vec<PathBuf>),
    /// Directories to merge, topmost first, on which something is written that nobody keeps.
    Scratch {
        /// At least one.
        lowers: Vec<PathBuf>,
        /// Where changes arrive.
        upper: PathBuf,
        /// The overlay's own directory, empty, on the same file system as `upper`.
        work: PathBuf,
    },
}

/// What may be done with the files of a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Reading; not even root can mount it anew for more.
    Read,
    /// Writing, too.
    Write,
}

/// Bytes that no log, error or file may show.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretBytes(pub Vec<u8>);

impl std::fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}
