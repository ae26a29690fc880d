//! Main contexts that come as one stream: a tar archive, compressed or not, or else a Dockerfile.
//!
//! The stream is kept below the store's `tmp/` while it is looked at, and unpacked by what unpacks the archives of ADD: paths
//! and links end at the context's root.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::Arc,
};

use oci::store::Store;
use rustix::fs::{Mode, OFlags};
use solver::{Cancel, FailureKind, StepFailure};

use super::{Received, UnpackedContext};
use crate::{
    archive::{self, Compression},
    copy::target::Target,
    error::blame,
    listing::{Content, Listing, Node, NodeKind, Nodes, Until},
};

/// The largest archive, in bytes (RELIABILITY R21).
const ARCHIVE_MAX: u64 = 64 << 30;
/// The largest Dockerfile that is taken in this way: more is no text that people write.
const DOCKERFILE_MAX: u64 = 64 << 20;
/// Bytes of a stream that tell whether it is text at all.
const BEGINNING: usize = 64;
/// What the archive is called in messages.
const NAME: &str = "context";

/// Receives a context from a pipe.
///
/// # Errors
/// The pipe or the disk fails, or the archive is malformed or hostile.
pub fn receive(store: &Store, stream: impl Read, cancel: &Cancel) -> Result<Received, StepFailure> {
    let temp = store.temp_dir("context-archive").map_err(|error| blame(FailureKind::Machine, error))?;
    let path = temp.path().join(NAME);
    let mut file = File::create_new(&path).map_err(failed("cannot keep the build context"))?;
    let mut stream = Until { stream, cancel }.take(ARCHIVE_MAX + 1);
    let copied = io::copy(&mut stream, &mut file).and_then(|length| file.flush().map(|()| length));
    if cancel.is_requested() {
        return Err(StepFailure::new(FailureKind::Cancelled, "cancelled"));
    }
    let length = copied.map_err(failed("cannot receive the build context"))?;
    if length > ARCHIVE_MAX {
        return Err(StepFailure::new(FailureKind::Build, "the build context is larger than 64 GiB"));
    }
    open(store, temp.path(), NAME, cancel)
}

/// Looks at a file, the only one in a directory: unpacks it, or takes it for a Dockerfile.
///
/// # Errors
/// The disk fails, or the archive is malformed or hostile.
pub fn open(store: &Store, directory: &Path, name: &str, cancel: &Cancel) -> Result<Received, StepFailure> {
    let listing = listing(directory, name)?;
    if !archive::is_archive(&listing, name.as_bytes())? {
        return dockerfile(&directory.join(name));
    }
    let unpacked = store.temp_dir("context").map_err(|error| blame(FailureKind::Machine, error))?;
    let files = unpacked.path().join("fs");
    fs::create_dir(&files).map_err(failed("cannot unpack the build context"))?;
    let root = open_directory(&files)?;
    let mut target = Target::new(root.as_fd(), None);
    // Whose the files are means nothing in a context.
    archive::unpack(&listing, name.as_bytes(), &mut target, b"", Some((0, 0)), cancel)?;
    Ok(Received::Files(UnpackedContext { directory: files, _temp: unpacked }))
}

fn dockerfile(path: &Path) -> Result<Received, StepFailure> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed("cannot read the build context"))?;
    file.take(DOCKERFILE_MAX + 1).read_to_end(&mut bytes).map_err(failed("cannot read the build context"))?;
    if bytes.len() as u64 > DOCKERFILE_MAX {
        let message = "the build context is no tar archive, and too large for a Dockerfile";
        return Err(StepFailure::new(FailureKind::Build, message));
    }
    // Nobody packs a Dockerfile alone: it would be told as text that is none.
    if let Some(form) = Compression::of(&bytes) {
        let message =
            format!("the build context is compressed with {form}, and holds no tar archive or is damaged");
        return Err(StepFailure::new(FailureKind::Build, message));
    }
    // A few bytes tell what somebody has packed otherwise; a mistake in a text is told by its place.
    let is_control = |byte: &u8| byte.is_ascii_control() && !byte.is_ascii_whitespace();
    if bytes.iter().take(BEGINNING).any(is_control) {
        let message = "the build context is neither a tar archive, plain or compressed with gzip, bzip2, xz or \
                       zstd, nor a Dockerfile";
        return Err(StepFailure::new(FailureKind::Build, message));
    }
    Ok(Received::Dockerfile(bytes))
}

/// The listing of a directory that holds one file of ours.
fn listing(directory: &Path, name: &str) -> Result<Listing, StepFailure> {
    let metadata = fs::metadata(directory.join(name)).map_err(failed("cannot read the build context"))?;
    let kind = NodeKind::File { size: metadata.len(), content: None };
    let node = Node { kind, mode: 0o600, xattrs: BTreeMap::new(), inode: None, ..Node::bare_directory() };
    let nodes = Nodes::from([(name.as_bytes().to_vec(), node)]);
    Ok(Listing { nodes, content: Content::Snapshot(Arc::new(open_directory(directory)?)) })
}

fn open_directory(path: &Path) -> Result<OwnedFd, StepFailure> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .map_err(io::Error::from)
        .map_err(failed("cannot open the build context"))
}

fn failed(message: &'static str) -> impl Fn(io::Error) -> StepFailure {
    move |error| StepFailure::caused(FailureKind::Machine, message, error)
}
