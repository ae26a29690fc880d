//! The files of a commit as a build context: listed from trees, with what is known of their blobs.
//!
//! They have the identity that a checkout's files have, so both find each other's results. What a selector picks of a tree is
//! known by the ids of what stands where it leads: where the next build asks for the same, nothing is listed
//! ([`CommitContext::name_of_look`]).

use std::sync::Arc;

use oci::{
    TreeDigest,
    canonical::{Bytes, Encoder},
};
use rayon::prelude::*;
use solver::{Cancel, op::Selector, remote::GitTimes};

use super::{ContextError, Ignore, IgnoreFile, hint};
use crate::{
    git::{CommitTerrain, CommitTree, GitError, known::Known, tree::Name},
    listing::{
        Content, ListError, Listing, NodeKind, sight,
        walk::{Seen, is_unread},
    },
    rootfs::shown,
};

/// So many paths are told of files that are not here.
const POINTERS_TOLD: usize = 3;

/// A commit that files are copied from.
#[derive(Debug, Clone)]
pub struct CommitContext {
    tree: Arc<CommitTree>,
    ignore: Option<Ignore>,
    times: GitTimes,
}

impl CommitContext {
    /// A context in a commit, with the ignore file that applies to it. Nothing is read yet.
    ///
    /// # Errors
    /// [`ContextError::Ignore`].
    pub fn new(tree: Arc<CommitTree>, ignore: Option<IgnoreFile>) -> Result<Self, ContextError> {
        let ignore = ignore.map(Ignore::new).transpose()?;
        Ok(Self { tree, ignore, times: GitTimes::Checkout })
    }

    /// The same with other times.
    pub fn with_times(self, times: GitTimes) -> Self {
        Self { times, ..self }
    }

    pub(super) fn ignore(&self) -> Option<&Ignore> {
        self.ignore.as_ref()
    }

    /// The files.
    pub fn tree(&self) -> &Arc<CommitTree> {
        &self.tree
    }

    /// Lists what the selector can pick, and reads of that the blobs that are not known, several at a time, until `cancel`
    /// asks to stop.
    ///
    /// # Errors
    /// A source is not there, or something that would be copied cannot be read.
    pub fn files(
        &self,
        selector: &Selector,
        known: &Known,
        cancel: &Cancel,
    ) -> Result<Listing, ContextError> {
        let ignore = self.ignore.as_ref().map(|ignore| &ignore.matcher);
        let terrain = CommitTerrain { tree: &self.tree, ignore, known, cancel };
        let sight = match sight::see(&terrain, selector) {
            Err(ListError::NotFound(path)) => {
                let hint = self.hint(&terrain, &path);
                return Err(ContextError::NotFound { path, hint });
            }
            answer => answer.map_err(told)?,
        };
        let (mut seen, _) = sight.settled();
        self.complete(&mut seen, known, cancel).map_err(told)?;
        let tree = Arc::clone(&self.tree);
        let content = match self.times {
            GitTimes::Checkout => Content::Commit(tree),
            GitTimes::Commit => Content::DatedCommit(tree),
        };
        Ok(Listing { nodes: sight::nodes(seen), content })
    }

    /// Names a look at this context: what there is where the selector leads, what is picked of that, and what becomes of it. Only
    /// the trees on the way there are read. `None` where that is not known without looking.
    pub fn name_of_look(&self, selector: &Selector, cancel: &Cancel) -> Option<TreeDigest> {
        let ignore = self.ignore.as_ref();
        let (known, matcher) = (Known::default(), ignore.map(|ignore| &ignore.matcher));
        let terrain = CommitTerrain { tree: &self.tree, ignore: matcher, known: &known, cancel };
        let (picks, links) = sight::reach(&terrain, selector).ok()?;
        let mut encoder = Encoder::new("commit-reach");
        encoder.field(1, selector).field(2, &ignore.map(|ignore| ignore.file.text.clone()));
        encoder.field(3, &env!("CARGO_PKG_VERSION"));
        // A source with a pivot may lead, by a link, from below what it picks to anywhere.
        let everything = selector.parents.then(|| (&[][..], &[][..]));
        let links = links.iter().map(|link| (&[][..], link.as_slice()));
        let reached = picks.iter().map(|pick| (pick.named.as_slice(), pick.at.as_slice()));
        for (named, at) in reached.chain(links).chain(everything) {
            let Name { kind, id, place, rules } = self.tree.name_of(at).ok()??;
            let rules: Vec<_> = rules.iter().map(|(dir, id)| (Bytes(dir), Bytes(id.as_slice()))).collect();
            encoder.field(4, &Bytes(named)).field(5, &Bytes(at)).field(6, &u64::from(kind));
            encoder.field(7, &Bytes(id.as_slice())).field(8, &Bytes(&place)).field(9, &rules);
        }
        if let Some(rules) = self.tree.rules_of_submodules().ok()? {
            encoder.field(10, &rules.map(|id| id.to_string()));
        }
        if self.times == GitTimes::Commit {
            encoder.field(11, &self.tree.commit().time.to_string());
        }
        Some(encoder.digest())
    }

    /// Reads the blobs that are not known. All files of Git LFS that are not here are told together.
    fn complete(&self, seen: &mut [Seen], known: &Known, cancel: &Cancel) -> Result<(), ListError> {
        let unread = seen.iter().filter(|thing| is_unread(&thing.node));
        self.tree.bring(unread.map(|thing| thing.path.as_slice()), Some(cancel))?;
        let unread = seen.par_iter_mut().filter(|thing| is_unread(&thing.node));
        let read = unread.map(|Seen { path, node, .. }| {
            sight::go_on(cancel)?;
            let file = match self.tree.file(path) {
                Err(GitError::Pointers { paths, .. }) => return Ok(Err(paths)),
                file => file?.ok_or_else(|| ListError::NotFound(shown(path)))?,
            };
            let learned = file.content(path, known)?;
            node.kind = NodeKind::File { size: learned.2, content: Some(learned.1) };
            Ok(Ok(learned))
        });
        let (mut missing, mut learned) = (Vec::new(), Vec::new());
        for read in read.collect::<Result<Vec<_>, ListError>>()? {
            match read {
                Ok((id, content, size)) => learned.extend(id.map(|id| (id, content, size))),
                Err(paths) => missing.extend(paths),
            }
        }
        known.learn(learned);
        if missing.is_empty() {
            return Ok(());
        }
        let more = missing.len().saturating_sub(POINTERS_TOLD);
        missing.truncate(POINTERS_TOLD);
        Err(GitError::Pointers { paths: missing, more }.into())
    }

    fn hint(&self, terrain: &CommitTerrain<'_>, path: &str) -> Option<String> {
        if path.split('/').next() == Some(".git") {
            return Some("a commit holds no .git: build the directory without --git".to_owned());
        }
        hint(&CommitTerrain { ignore: None, ..*terrain }, self.ignore.as_ref(), path)
    }
}

fn told(error: ListError) -> ContextError {
    match error {
        ListError::Cancelled => ContextError::Cancelled,
        error => error.into(),
    }
}
