//! The files of a build context: which of them a step can pick, and the identity of those.
//!
//! Identity is paths, kinds, modes, link targets, contents and file capabilities; never times, owners, inodes, the order
//! of a directory or where the context lies. Other extended attributes stay behind: browsers and desktops leave
//! theirs on files, git and most copies lose them, and they would make digests depend on that. Modes that only
//! differ by somebody's umask are made the same ([`ContextModes`]). Names of one file stay names of one file, as with
//! BuildKit, where a step picks more than one of them.
//!
//! A socket becomes an empty file, as with BuildKit. A device or something unreadable is an error that names it, but only
//! where a step would copy it: no ordinary user could make the device, or a digest of it. A link leads wherever it leads
//! inside the context, and nowhere outside of it.

pub mod clock;
mod commit;
pub mod index;
pub mod kept;
mod look;
mod read;

use std::{
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use oci::{
    TreeDigest,
    canonical::{Bytes, Encoder},
};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};
use solver::{
    Cancel,
    op::Selector,
    pattern::{
        ignore::{self, IgnoreError, Matcher},
        suggest,
    },
    remote::GitAddress,
};

use crate::{
    git::Revision,
    listing::{
        Content, ListError, Listing, Node, NodeKind,
        disk::{Disk, DiskKind},
        lookup::{LastLink, resolve},
        sight::{self, Sight, Terrain},
        walk::Seen,
    },
    rootfs::{PathError, failed, join, shown, split},
    view::open_in_root,
};

pub use commit::CommitContext;
pub use index::Index;
pub use look::{Entry, EntryKind, IgnoreLine, Ruling};

/// The one extended attribute that is copied from contexts.
const CAPABILITY: &[u8] = b"security.capability";

/// The ignore file of a context, at its root.
pub const DEFAULT_IGNORE_FILE: &str = ".dockerignore";
/// The longest ignore file that is read of files that came from elsewhere, in bytes.
const IGNORE_FILE_MAX: u64 = 16 << 20;

/// Why a context cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// A source names nothing.
    #[error("\"/{path}\": not found")]
    NotFound {
        /// The source, without a leading slash.
        path: String,
        /// What may help, as a sentence part without a period: a similar name, or the pattern that took it out.
        hint: Option<String>,
    },
    /// A pattern of the ignore file is malformed.
    #[error("{file}")]
    Ignore {
        /// What the file is called.
        file: String,
        /// What is wrong.
        #[source]
        source: IgnoreError,
    },
    /// The ignore file of files that came from elsewhere cannot be read.
    #[error("cannot read {file}")]
    IgnoreUnreadable {
        /// What the file is called.
        file: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The system does not let us read something that would be copied.
    #[error("cannot read {path:?} in the build context")]
    Unreadable {
        /// What: relative to the context.
        path: String,
        /// What the ignore file is called that could take it out.
        ignore_file: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The build was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// Its files cannot be listed or read.
    #[error(transparent)]
    List(#[from] ListError),
}

/// What becomes of permission bits that depend on the umask of whoever checked the files out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ContextModes {
    /// 0664 becomes 0644 and 0775 becomes 0755: what umask 002 makes of them becomes what umask 022 does.
    #[default]
    Normalise,
    /// All are kept.
    Preserve,
    /// What git knows of them: files are 0644, or 0755 where their owner may run them, and directories 0755.
    Git,
}

/// An ignore file, as read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IgnoreFile {
    /// What to call it in messages: `.dockerignore`.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// Where the files of a context of the command line come from.
#[derive(Debug, Clone)]
pub enum ContextOrigin {
    /// A directory of this machine.
    Directory(ContextDirectory),
    /// A commit of a repository of this machine.
    Commit(CommitContext),
    /// A git repository, fetched when a step first looks at it.
    Git(GitAddress),
    /// A URL (named contexts): one file called `context`, as BuildKit has it, downloaded when a step first looks at it.
    Url(String),
}

impl IgnoreFile {
    /// The `.dockerignore` at the root of files that came from elsewhere; a link leads inside of them only.
    ///
    /// # Errors
    /// It cannot be read, or is no text.
    pub fn at_root(root: &Path) -> Result<Option<Self>, ContextError> {
        Self::first_of(root, &[DEFAULT_IGNORE_FILE])
    }

    /// The first of several ignore files that is there, by paths from the root.
    ///
    /// # Errors
    /// It cannot be read, or is no text.
    pub fn first_of(root: &Path, names: &[&str]) -> Result<Option<Self>, ContextError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(root, flags, Mode::empty());
        let directory =
            directory.map_err(failed("opening", root.as_os_str().as_bytes())).map_err(ListError::from)?;
        for name in names {
            let unreadable = |source| ContextError::IgnoreUnreadable { file: (*name).to_owned(), source };
            let file = match open_in_root(&directory, name.as_bytes(), OFlags::RDONLY | OFlags::NONBLOCK) {
                Err(Errno::NOENT | Errno::NOTDIR) => continue,
                opened => File::from(opened.map_err(|error| unreadable(error.into()))?),
            };
            if !file.metadata().map_err(unreadable)?.is_file() {
                return Err(unreadable(io::Error::other("it is no regular file")));
            }
            let mut text = String::new();
            file.take(IGNORE_FILE_MAX + 1).read_to_string(&mut text).map_err(unreadable)?;
            if text.len() as u64 > IGNORE_FILE_MAX {
                return Err(unreadable(io::ErrorKind::FileTooLarge.into()));
            }
            return Ok(Some(Self { name: (*name).to_owned(), text }));
        }
        Ok(None)
    }
}

impl IgnoreFile {
    /// The `.dockerignore` of a commit's context; links lead inside of the commit only.
    ///
    /// # Errors
    /// It cannot be read, or is no text.
    pub fn of_commit(revision: &Revision) -> Result<Option<Self>, ContextError> {
        let Some(bytes) = revision.read(&revision.in_context(Path::new(DEFAULT_IGNORE_FILE)))? else {
            return Ok(None);
        };
        let name = || DEFAULT_IGNORE_FILE.to_owned();
        let unreadable =
            |kind: io::ErrorKind| ContextError::IgnoreUnreadable { file: name(), source: kind.into() };
        if bytes.len() as u64 > IGNORE_FILE_MAX {
            return Err(unreadable(io::ErrorKind::FileTooLarge));
        }
        let text = String::from_utf8(bytes).map_err(|_| unreadable(io::ErrorKind::InvalidData))?;
        Ok(Some(Self { name: name(), text }))
    }
}

/// A directory that files are copied from.
#[derive(Debug, Clone)]
pub struct ContextDirectory {
    path: PathBuf,
    ignore: Option<Ignore>,
    modes: ContextModes,
}

/// An ignore file, ready to be asked.
#[derive(Debug, Clone)]
struct Ignore {
    file: IgnoreFile,
    matcher: Matcher,
}

/// What a selector picks of a context.
#[derive(Debug, Clone)]
pub struct ContextFiles {
    /// The files; [`Listing::digest`] is their identity.
    pub listing: Listing,
    /// The directories whose names were read, some perhaps twice.
    pub directories: Vec<Vec<u8>>,
    /// The first path whose mode was normalised, for a notice.
    pub normalised: Option<String>,
    /// Whether the states in which files were seen say what they hold from now on.
    pub is_settled: bool,
}

/// What there is in a context, before anything is known of the content of its files.
#[derive(Debug)]
pub struct ContextSight {
    root: Arc<OwnedFd>,
    sight: Sight,
}

impl ContextSight {
    /// Stands for all that was seen; see [`Sight::print`].
    pub fn print(&self) -> TreeDigest {
        self.sight.print()
    }
}

impl ContextDirectory {
    /// A context in a directory, with the ignore file that applies to it. Nothing is read yet.
    ///
    /// # Errors
    /// [`ContextError::Ignore`].
    pub fn new(path: PathBuf, ignore: Option<IgnoreFile>, modes: ContextModes) -> Result<Self, ContextError> {
        Ok(Self { path, ignore: ignore.map(Ignore::new).transpose()?, modes })
    }

    /// Walks what the selector can pick, no more, and reads its files, several at a time, until `cancel` asks to stop.
    ///
    /// # Errors
    /// A source is not there, or something that would be copied cannot be read or cannot be copied.
    pub fn files(&self, selector: &Selector, cancel: &Cancel) -> Result<ContextFiles, ContextError> {
        self.files_by_index(selector, &Index::default(), cancel)
    }

    /// Like [`Self::files`], but only files that the index does not know are read.
    ///
    /// # Errors
    /// Those of [`Self::files`].
    pub fn files_by_index(
        &self,
        selector: &Selector,
        index: &Index,
        cancel: &Cancel,
    ) -> Result<ContextFiles, ContextError> {
        self.complete(self.see(selector, cancel)?, index, cancel)
    }

    /// Walks what the selector can pick, no more, and opens nothing but directories.
    ///
    /// # Errors
    /// Those of [`Self::files`] that show without a file being read.
    pub fn see(&self, selector: &Selector, cancel: &Cancel) -> Result<ContextSight, ContextError> {
        let root = Arc::new(self.open()?);
        let matcher = self.ignore.as_ref().map(|ignore| &ignore.matcher);
        let disk = Disk { root: root.as_fd(), kind: DiskKind::Context { ignore: matcher }, cancel };
        let sight = match sight::see(&disk, selector) {
            Err(ListError::NotFound(path)) => {
                let hint = self.hint(&root, &path);
                return Err(ContextError::NotFound { path, hint });
            }
            answer => answer.map_err(|error| self.told(error))?,
        };
        Ok(ContextSight { root, sight })
    }

    /// Reads of what was seen the files that the index does not know.
    ///
    /// # Errors
    /// Those of [`Self::files`].
    pub fn complete(
        &self,
        sighted: ContextSight,
        index: &Index,
        cancel: &Cancel,
    ) -> Result<ContextFiles, ContextError> {
        let ContextSight { root, sight } = sighted;
        let (mut seen, directories) = sight.settled();
        let is_settled = read::complete(root.as_fd(), &mut seen, index, cancel);
        let is_settled = is_settled.map_err(|error| self.told(error))?;
        sight::forget_names_elsewhere(&mut seen);
        let mut normalised = None;
        for Seen { path, node, .. } in &mut seen {
            let mode = self.modes.apply(node);
            if mode != node.mode && self.modes == ContextModes::Normalise {
                normalised.get_or_insert_with(|| shown(path));
            }
            node.mode = mode;
        }
        let nodes = sight::nodes(seen);
        Ok(ContextFiles {
            listing: Listing { nodes, content: Content::Context(root) },
            directories,
            normalised,
            is_settled,
        })
    }

    /// Names a look at this context: where it is, what is picked, and what becomes of that.
    pub fn name_of_look(&self, selector: &Selector) -> TreeDigest {
        let Self { path, ignore, modes } = self;
        let mut encoder = Encoder::new("look");
        encoder.field(1, &Bytes(path.as_os_str().as_bytes())).field(2, selector);
        encoder.field(3, &ignore.as_ref().map(|ignore| ignore.file.text.clone())).field(4, &(*modes as u64));
        encoder.field(5, &env!("CARGO_PKG_VERSION"));
        encoder.digest()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn told(&self, error: ListError) -> ContextError {
        match error {
            ListError::Cancelled => ContextError::Cancelled,
            ListError::Path(PathError { path, source, .. }) => {
                let ignore_file = self.ignore.as_ref().map_or(".dockerignore", |ignore| &ignore.file.name);
                ContextError::Unreadable { path, ignore_file: ignore_file.to_owned(), source }
            }
            error => error.into(),
        }
    }

    fn open(&self) -> Result<OwnedFd, ListError> {
        let opened =
            rustix::fs::open(&self.path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let action = "opening the build context";
        Ok(opened.map_err(|error| PathError {
            action,
            path: self.path.display().to_string(),
            source: error.into(),
        })?)
    }

    /// Why a path may be missing.
    fn hint(&self, root: &OwnedFd, path: &str) -> Option<String> {
        let cancel = Cancel::default();
        let disk = Disk { root: root.as_fd(), kind: DiskKind::Context { ignore: None }, cancel: &cancel };
        hint(&disk, self.ignore.as_ref(), path)
    }
}

/// Why a path of a context may be missing; `all` is what there is without the ignore file.
fn hint(all: &impl Terrain, ignore: Option<&Ignore>, path: &str) -> Option<String> {
    let look = |last| resolve(all, path.as_bytes(), last, &mut Vec::new()).ok().flatten();
    match (look(LastLink::Follow), look(LastLink::Keep)) {
        (Some(at), _) => ignore?.reason(&shown(&at)),
        (None, Some(_)) => Some("it is a link that leads to nothing in the context".to_owned()),
        (None, None) => similar(all, path).map(|name| format!("did you mean {name:?}?")),
    }
}

impl Ignore {
    fn new(file: IgnoreFile) -> Result<Self, ContextError> {
        match Matcher::new(&ignore::read(&file.text)) {
            Ok(matcher) => Ok(Self { file, matcher }),
            Err(source) => Err(ContextError::Ignore { file: file.name, source }),
        }
    }

    fn reason(&self, path: &str) -> Option<String> {
        let index = self.matcher.decide(path)?;
        let lines = self.file.text.lines().enumerate();
        // One line holds at most one pattern, so that the n-th pattern is that of the n-th line that holds any.
        let patterns = lines.filter_map(|(number, line)| Some((number + 1, ignore::read(line).pop()?)));
        let (line, pattern) = patterns.into_iter().nth(index)?;
        Some(format!("it is excluded by {} line {line}: {pattern}", self.file.name))
    }
}

impl ContextModes {
    fn apply(self, node: &Node) -> u32 {
        match (self, &node.kind, node.mode) {
            (Self::Normalise, _, 0o664) => 0o644,
            (Self::Normalise, _, 0o775) | (Self::Git, NodeKind::Directory, _) => 0o755,
            (Self::Git, NodeKind::File { .. }, mode) if mode & 0o100 != 0 => 0o755,
            (Self::Git, NodeKind::File { .. }, _) => 0o644,
            (_, _, mode) => mode,
        }
    }
}

/// The path next to a missing one that is most like it, if any is like it at all.
fn similar(all: &impl Terrain, path: &str) -> Option<String> {
    let (parent, name) = split(path.as_bytes());
    let dir = resolve(all, parent, LastLink::Follow, &mut Vec::new()).ok()??;
    let candidates: Vec<String> = all.children(&dir).ok()?.into_iter().map(|name| shown(&name)).collect();
    let nearest = suggest::nearest(&shown(name), candidates.iter().map(String::as_str))?;
    Some(shown(&join(parent, nearest.as_bytes())))
}

#[cfg(test)]
mod tests;
