//! Commits of a remote repository as something to be read: what of them is not in the store yet is fetched when somebody
//! needs it, and submodules with it.

use std::{
    collections::BTreeSet,
    fmt,
    fs::File,
    io::Seek,
    path::{Path, PathBuf},
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use gix::{ObjectId, objs::Kind};
use solver::{Cancel, Event, StepFailure};

use super::{
    command::{Call, Git},
    error::GitError,
    progress::Progress,
    remote::Remote,
    repository::{Blobs, Repository},
    resolve::Resolved,
};
use crate::{
    error::in_store,
    git::{
        Commit, GitError as ReadError, Repository as Reader,
        supply::{Gitlink, Supply},
    },
    remote::RemoteOptions,
};

/// What is larger git does not take into its memory as a whole, unless it is a difference to something else.
const STREAMED: (&str, &str) = ("core.bigFileThreshold", "1m");
/// How deep submodules may lie in submodules.
const DEPTH_MAX: usize = 16;
/// How many submodules one commit may have.
const SUBMODULES_MAX: usize = 1000;

/// A remote repository, and how it is spoken to.
#[derive(Clone)]
pub struct Origin {
    /// What it is worked with.
    pub options: RemoteOptions,
    /// Where it is.
    pub remote: Remote,
    /// How it is asked.
    pub git: Git,
    /// Stops what is fetched later.
    pub lasting: Arc<Cancel>,
}

/// What becomes of the submodules of a commit, and of theirs.
#[derive(Debug, Clone)]
struct Submodules {
    /// How many repositories are around these.
    depth: usize,
    /// How many there are until now, wherever they lie.
    count: Arc<AtomicUsize>,
}

/// Brings what is lacking of one commit.
struct CommitSupply {
    origin: Origin,
    wanted: Resolved,
    /// `None` where they are left out.
    submodules: Option<Submodules>,
}

impl fmt::Debug for CommitSupply {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("CommitSupply").field(&self.origin.remote.shown).field(&self.wanted).finish()
    }
}

impl Origin {
    /// Does something that tells how far it has come.
    pub fn heard<T>(&self, work: impl FnOnce(&(dyn Fn(&str) + Sync)) -> T) -> T {
        let progress = Progress::new(&self.options, &self.remote);
        let done = work(&|line| progress.heard(line));
        progress.end();
        done
    }

    /// A commit, to be read: fetched where the store does not have it.
    ///
    /// # Errors
    /// The remote does not have it, or cannot be asked.
    pub fn open(&self, wanted: &Resolved, submodules: bool) -> Result<(Arc<Reader>, Commit), GitError> {
        self.open_at(wanted, submodules.then(|| Submodules { depth: 0, count: Arc::default() }))
    }

    fn open_at(
        &self,
        wanted: &Resolved,
        submodules: Option<Submodules>,
    ) -> Result<(Arc<Reader>, Commit), GitError> {
        let store = self.options.fetcher.store();
        let place = Repository::place(store, &self.remote, wanted.object.len());
        store.pin(&[&place])?;
        let read = |commit: &str| self.read(&place, commit, wanted, submodules.as_ref());
        if let Ok(found) = read(wanted.commit()) {
            store.touch(&place);
            return Ok(found);
        }
        self.heard(|heard| {
            let open = || Repository::open(store, &self.git, &self.remote, wanted.object.len(), heard);
            Repository::mended(store, open, |repository| {
                repository.ensure(wanted, Blobs::Later)?;
                Ok(read(&repository.commit_of(&wanted.object)?)?)
            })
        })
    }

    /// A commit that is in the store.
    fn read(
        &self,
        place: &Path,
        commit: &str,
        wanted: &Resolved,
        submodules: Option<&Submodules>,
    ) -> Result<(Arc<Reader>, Commit), ReadError> {
        let reader = Reader::open(place)?;
        let id = ObjectId::from_str(commit).expect("a commit is called by a whole hash");
        let commit = reader.commit_by_id(id)?;
        // A damaged repository is best found out now, when it can be fetched again.
        reader.object(&commit.tree, Kind::Tree)?;
        let supply =
            CommitSupply { origin: self.lasting(), wanted: wanted.clone(), submodules: submodules.cloned() };
        Ok((Arc::new(reader.supplied_by(Arc::new(supply), id)), commit))
    }

    /// The same for who may ask at any time.
    fn lasting(&self) -> Self {
        let cancel = || Arc::clone(&self.lasting);
        let options = RemoteOptions { cancel: cancel(), ..self.options.clone() };
        Self { options, git: Git { cancel: cancel(), ..self.git.clone() }, ..self.clone() }
    }
}

impl CommitSupply {
    fn bring_once(&self, git: &Git, lacking: &dyn Fn() -> BTreeSet<ObjectId>) -> Result<(), GitError> {
        let Origin { options, remote, .. } = &self.origin;
        let length = self.wanted.object.len();
        self.origin.heard(|heard| {
            let repository = Repository::open(options.fetcher.store(), git, remote, length, heard)?;
            repository.bring(&lacking(), &self.wanted)
        })
    }

    /// Where the store's repository is.
    fn place(&self) -> PathBuf {
        let Origin { options, remote, .. } = &self.origin;
        Repository::place(options.fetcher.store(), remote, self.wanted.object.len())
    }

    /// A blob in a file that goes when it is closed.
    fn streamed(&self, id: &ObjectId) -> Result<File, GitError> {
        let temp = self.origin.options.fetcher.store().temp_dir("large")?;
        let path = temp.path().join("blob");
        let failed = || GitError::io("write", &path);
        let opened = File::options().read(true).write(true).create_new(true).open(&path);
        let mut file = opened.map_err(failed())?;
        let call = Call {
            git_dir: Some(&self.place()),
            settings: &[STREAMED],
            output: Some(file.try_clone().map_err(failed())?),
            ..Call::default()
        };
        self.origin.git.run(call, &["cat-file", "blob", &id.to_string()])?;
        file.rewind().map_err(failed())?;
        Ok(file)
    }

    /// The repository of a submodule, and how many others it lies in.
    fn submodule_of(&self, link: Gitlink<'_>) -> Result<Option<(Arc<Reader>, Commit)>, GitError> {
        let Some(submodules) = &self.submodules else { return Ok(None) };
        let failed = |reason: &str| GitError::Submodule {
            remote: self.origin.remote.shown.clone(),
            path: link.path.to_owned(),
            reason: reason.to_owned(),
        };
        let module = link.module.ok_or_else(|| failed("no submodule mapping found in .gitmodules"))?;
        if module.is_unwanted {
            return Ok(None);
        }
        let url = module.url.as_ref().ok_or_else(|| failed("its entry in .gitmodules has no url"))?;
        let url = std::str::from_utf8(url).ok();
        let remote = url.and_then(|url| self.origin.remote.submodule(url));
        let remote = remote.ok_or_else(|| failed("its url is no http, https, ssh or git address"))?;
        let Submodules { depth, count } = submodules;
        if *depth == DEPTH_MAX || count.fetch_add(1, Ordering::Relaxed) >= SUBMODULES_MAX {
            return Err(failed("there are too many submodules, or they lie too deep"));
        }
        let git = self.origin.git.for_submodule(&remote)?;
        let origin = Origin { remote, git, ..self.origin.clone() };
        let below = Submodules { depth: depth + 1, count: Arc::clone(count) };
        origin.open_at(&Resolved::by_hash(&link.commit.to_string()), Some(below)).map(Some)
    }

    /// As many attempts as the user allows for.
    fn trying<T>(
        &self,
        cancel: &Cancel,
        attempt: impl Fn() -> Result<T, GitError>,
    ) -> Result<T, StepFailure> {
        let Origin { options, remote, .. } = &self.origin;
        let tell = |text: &str| (options.events)(Event::Warning(format!("{}: {text}", remote.shown)));
        let done = options.retry.make(cancel, tell, || Ok(attempt()?));
        done.map_err(|failure| in_store(failure, options.fetcher.store().root()))
    }
}

impl Supply for CommitSupply {
    fn bring(
        &self,
        lacking: &dyn Fn() -> BTreeSet<ObjectId>,
        cancel: Option<&Cancel>,
    ) -> Result<(), StepFailure> {
        let cancel = cancel.unwrap_or(&self.origin.lasting);
        let git = Git { cancel: Arc::new(cancel.clone()), ..self.origin.git.clone() };
        self.trying(cancel, || self.bring_once(&git, lacking))
    }

    fn submodule(&self, link: Gitlink<'_>) -> Result<Option<(Arc<Reader>, Commit)>, StepFailure> {
        self.trying(&self.origin.lasting, || self.submodule_of(link))
    }

    fn has_submodules(&self) -> bool {
        self.submodules.is_some()
    }

    fn stream(&self, id: &ObjectId) -> Result<File, StepFailure> {
        Ok(self.streamed(id)?)
    }

    fn discard(&self) -> Result<bool, StepFailure> {
        let store = self.origin.options.fetcher.store();
        Ok(store.set_aside(&self.place()).map_err(GitError::from)?)
    }
}
