//! A repository: found from a directory, opened without a word of anybody's configuration, read by several threads.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use gix::{
    ObjectId,
    bstr::ByteSlice,
    discover::{is_git, repository},
    objs::{Find, Kind, compute_hash},
    odb::store::init::Slots,
};

use super::{
    GitError,
    error::Cause,
    plain,
    supply::{Supplied, Supply},
};

/// What one object may take in memory. A larger file is a context's that is checked out.
const OBJECT_MAX: u64 = 1 << 30;
/// What each thread keeps of the bases of deltas, since most objects of a pack are a few bytes and a base.
const BASES_MAX: u64 = 32 << 20;

/// A repository on this machine.
pub struct Repository {
    shared: gix::ThreadSafeRepository,
    /// What threads read through: each has caches of its own, which are worth being used again.
    idle: Mutex<Vec<gix::Repository>>,
    work_tree: Option<PathBuf>,
    /// Where objects lie.
    objects: Vec<PathBuf>,
    /// Who brings what is lacking.
    supplied: Option<Supplied>,
    /// The commit that was checked out when somebody first asked.
    head: OnceLock<Option<ObjectId>>,
}

/// A commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// Its id.
    pub id: ObjectId,
    /// That of its tree.
    pub tree: ObjectId,
    /// When it was committed, Unix seconds.
    pub time: i64,
}

impl std::fmt::Debug for Repository {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_tuple("Repository").field(&self.directory()).finish()
    }
}

impl Repository {
    /// The repository that a directory lies in, or is; and the way to the directory from the top of the work tree.
    /// The end of the path need not be there: another commit than the one that is checked out may have it.
    ///
    /// # Errors
    /// There is none, or it cannot be opened.
    pub fn discover(place: &Path) -> Result<(Self, Vec<u8>), GitError> {
        let absolute = std::path::absolute(place).unwrap_or_else(|_| place.to_owned());
        let here = absolute.ancestors().find_map(|ancestor| Some((ancestor, ancestor.canonicalize().ok()?)));
        let none = || GitError::NoRepository { place: place.to_owned() };
        let (ancestor, here) = here.ok_or_else(none)?;
        let beyond = absolute.strip_prefix(ancestor).unwrap_or(Path::new(""));
        for directory in here.ancestors() {
            let dot_git = directory.join(".git");
            if dot_git.symlink_metadata().is_ok() {
                let way = here.strip_prefix(directory).unwrap_or(Path::new("")).components();
                let way: PathBuf = way.chain(beyond.components()).collect();
                return Ok((Self::open_named(&dot_git)?, way.as_os_str().as_encoded_bytes().to_vec()));
            }
            if plain::may_be_repository(directory)? && is_git(directory).is_ok() {
                let below = here.strip_prefix(directory).unwrap_or(Path::new("")).components();
                let way: PathBuf = below.chain(beyond.components()).collect();
                return Ok((Self::open_named(directory)?, way.as_os_str().as_encoded_bytes().to_vec()));
            }
        }
        Err(none())
    }

    /// Opens a repository whose references must be readable: without HEAD nobody knows what is checked out.
    ///
    /// # Errors
    /// As [`open`](Self::open); [`GitError::References`], [`GitError::Unreadable`].
    pub(super) fn open_named(directory: &Path) -> Result<Self, GitError> {
        let opened = Self::open(directory);
        let opened = opened.map_err(|error| match error {
            GitError::Open { .. } => plain::denied(directory).unwrap_or(error),
            _ => error,
        })?;
        let format = opened.with(|repository| repository.config_snapshot().string("extensions.refStorage"));
        match format.filter(|format| !format.eq_ignore_ascii_case(b"files")) {
            Some(format) => {
                let directory = opened.directory().to_owned();
                Err(GitError::References { directory, format: format.to_string() })
            }
            None => Ok(opened),
        }
    }

    /// Opens a repository: a directory, or the file `.git` that leads to one.
    ///
    /// # Errors
    /// It is none, or of a kind that is not known here.
    pub fn open(directory: &Path) -> Result<Self, GitError> {
        let failed = |source: Cause| GitError::Open { directory: directory.to_owned(), source };
        let objects = plain::check(directory)?;
        let kind = is_git(directory).map_err(|error| failed(error.into()))?;
        let current = std::env::current_dir().map_err(|error| failed(error.into()))?;
        let found = repository::Path::from_dot_git_dir(directory.to_owned(), kind, &current);
        let found = found.ok_or_else(|| failed("its path leads out of the file system".into()))?;
        let (git_dir, work_tree) = found.into_repository_and_work_tree_directories();
        let git_dir = git_dir.canonicalize().map_err(|error| failed(error.into()))?;
        let limits = [
            format!("gitoxide.objects.allocLimit={OBJECT_MAX}"),
            format!("core.deltaBaseCacheLimit={BASES_MAX}"),
        ];
        // Its own configuration says of what format it is, and nothing else that matters here; so it is always believed.
        let options = gix::open::Options::isolated()
            .with(gix::sec::Trust::Full)
            .filter_config_section(|_| true)
            .open_path_as_is(true)
            // Packs may be added while it is read.
            .object_store_slots(Slots::AsNeededByDiskState { multiplier: 2.0, minimum: 256 })
            .config_overrides(limits);
        let shared = gix::ThreadSafeRepository::open_opts(git_dir, options);
        let shared = shared.map_err(|error| failed(error.into()))?;
        Ok(Self { shared, idle: Mutex::default(), work_tree, objects, supplied: None, head: OnceLock::new() })
    }

    /// The same one, of which one commit is read, with somebody who brings the blobs that are not there.
    pub fn supplied_by(self, supply: Arc<dyn Supply>, commit: ObjectId) -> Self {
        Self { supplied: Some(Supplied::new(supply, commit)), ..self }
    }

    pub(super) fn supplied(&self) -> Option<&Supplied> {
        self.supplied.as_ref()
    }

    /// Its own directory: `.git`, or that of a bare one.
    pub fn directory(&self) -> &Path {
        self.shared.git_dir()
    }

    /// Where its files are checked out; `None` for a bare one.
    pub fn work_tree(&self) -> Option<&Path> {
        self.work_tree.as_deref()
    }

    /// The directory that all work trees of the repository have in common.
    pub fn common_directory(&self) -> PathBuf {
        self.with(|repository| repository.common_dir().to_owned())
    }

    /// What `revision` names, as git would understand it.
    ///
    /// # Errors
    /// Nothing, or no commit.
    pub fn commit(&self, revision: &str) -> Result<Commit, GitError> {
        if let Some(commit) = self.named(revision).and_then(|id| self.commit_by_id(id).ok()) {
            return Ok(commit);
        }
        // Whoever follows anything but a name may open all that there is.
        let logs = [self.directory().join("logs"), self.common_directory().join("logs")];
        logs.iter().chain(&self.objects).try_for_each(|path| plain::all(path))?;
        let found = self.with(|repository| -> Result<ObjectId, Cause> {
            let named = repository.rev_parse_single(revision.as_bytes().as_bstr())?;
            Ok(named.object()?.peel_to_kind(Kind::Commit)?.id)
        });
        match found {
            Ok(id) => self.commit_by_id(id),
            Err(_) => Err(self.unresolved(revision)),
        }
    }

    /// What a whole hash, or the name of a reference, stands for, without a search among objects.
    fn named(&self, revision: &str) -> Option<ObjectId> {
        if revision == "HEAD" {
            return self.head();
        }
        if revision.bytes().any(|byte| b"^~@:{}".contains(&byte)) {
            return None;
        }
        let id = ObjectId::from_hex(revision.as_bytes()).ok();
        let id = id.filter(|id| self.with(|repository| id.kind() == repository.object_hash()));
        id.or_else(|| self.named_by_reference(revision))
    }

    /// What a branch, a tag or another reference stands for; a tag itself, where it is an object.
    pub(super) fn named_by_reference(&self, name: &str) -> Option<ObjectId> {
        self.with(|repository| {
            let mut reference = repository.try_find_reference(name).ok()??;
            while let Some(next) = reference.follow() {
                reference = next.ok()?;
            }
            reference.try_id().map(gix::Id::detach)
        })
    }

    /// A commit by its id.
    ///
    /// # Errors
    /// It is not there, or damaged.
    pub fn commit_by_id(&self, id: ObjectId) -> Result<Commit, GitError> {
        let bytes = self.object(&id, Kind::Commit)?;
        let parsed = || -> Result<Commit, Cause> {
            let commit = gix::objs::CommitRef::from_bytes(&bytes, id.kind())?;
            // What has no time has been made by no git; its files have one all the same.
            let committer = commit.committer().ok().filter(|committer| !committer.time.trim().is_empty());
            let time = committer.map(|committer| {
                let time = committer.time().map(|time| time.seconds);
                time.map_err(|_| format!("nobody can say when it was made: {:?}", committer.time))
            });
            Ok(Commit { id, tree: commit.tree(), time: time.transpose()?.unwrap_or(0) })
        };
        parsed().map_err(|source| self.damaged(&id, Kind::Commit, source))
    }

    /// The commit that is checked out, where there is one.
    pub fn head(&self) -> Option<ObjectId> {
        *self.head.get_or_init(|| self.with(|repository| repository.head_id().ok().map(gix::Id::detach)))
    }

    /// The index; an empty one where there is none.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn index(&self) -> Result<gix::index::File, GitError> {
        let (path, format) = self.with(|repository| (repository.index_path(), repository.object_hash()));
        let options = gix::index::decode::Options { thread_limit: Some(1), ..Default::default() };
        let index = gix::index::File::at_or_default(&path, format, true, options);
        index.map_err(|error| GitError::Index { path, source: error.into() })
    }

    /// Reads an object and verifies that it is the one that is asked for. A blob that can be brought is.
    ///
    /// # Errors
    /// It is not there, is of another kind, or is damaged.
    pub fn object(&self, id: &ObjectId, kind: Kind) -> Result<Vec<u8>, GitError> {
        match self.object_here(id, kind) {
            Err(GitError::Missing { .. }) if kind == Kind::Blob && self.bring_alone(id)? => {
                self.object_here(id, kind)
            }
            Err(error @ GitError::Damaged { .. }) => Err(self.given_up(error)),
            read => read,
        }
    }

    fn object_here(&self, id: &ObjectId, kind: Kind) -> Result<Vec<u8>, GitError> {
        let damaged = |source| self.damaged(id, kind, source);
        self.look_at(id)?;
        let (found, bytes) = self.with(|repository| {
            let mut bytes = Vec::new();
            let found =
                repository.objects.try_find(id, &mut bytes).map(|found| found.map(|found| found.kind));
            (found, bytes)
        });
        match found.map_err(|error| damaged(error.into()))? {
            None => return Err(self.missing(id, kind)),
            Some(found) if found != kind => return Err(damaged(format!("it is a {found}").into())),
            Some(_) => {}
        }
        let actual = compute_hash(id.kind(), kind, &bytes).map_err(|error| damaged(error.into()))?;
        match actual == *id {
            true => Ok(bytes),
            false => Err(damaged(format!("it holds what is called {actual}").into())),
        }
    }

    /// How long a blob is, by what is written in front of it. Its bytes are not read.
    ///
    /// # Errors
    /// It is not there, or damaged.
    pub(super) fn size(&self, id: &ObjectId) -> Result<u64, GitError> {
        self.look_at(id)?;
        let found = self.with(|repository| {
            let header = repository.try_find_header(*id).map_err(Cause::from);
            header.map(|header| header.map(|header| header.size()))
        });
        let found = found.map_err(|error| self.damaged(id, Kind::Blob, error))?;
        found.ok_or_else(|| self.missing(id, Kind::Blob))
    }

    /// Looks at where an object may lie by itself, before it is opened.
    fn look_at(&self, id: &ObjectId) -> Result<(), GitError> {
        let name = id.to_string();
        self.objects.iter().try_for_each(|path| plain::file(&path.join(&name[..2]).join(&name[2..])))
    }

    /// Lends a handle that only one thread reads through.
    pub(super) fn with<R>(&self, work: impl FnOnce(&gix::Repository) -> R) -> R {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let lent = idle().pop();
        let lent = lent.unwrap_or_else(|| {
            let mut repository = self.shared.to_thread_local();
            repository.objects.ignore_replacements = true;
            repository
        });
        let result = work(&lent);
        idle().push(lent);
        result
    }

    pub(super) fn missing(&self, id: &ObjectId, kind: Kind) -> GitError {
        GitError::Missing { what: what(kind), id: *id, path: None, repository: self.directory().to_owned() }
    }

    pub(super) fn damaged(&self, id: &ObjectId, kind: Kind, source: Cause) -> GitError {
        let repository = self.directory().to_owned();
        GitError::Damaged { what: what(kind), id: *id, path: None, repository, source }
    }
}

fn what(kind: Kind) -> &'static str {
    match kind {
        Kind::Blob => "the blob",
        Kind::Tree => "the tree",
        Kind::Commit => "the commit",
        Kind::Tag => "the tag",
    }
}
