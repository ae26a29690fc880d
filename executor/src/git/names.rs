//! What a commit is called: by its hashes, and by the branches and tags of its repository.
//!
//! Hashes are the same in every clone. Names are what a clone has been told: a checkout of a CI system often is on no branch and
//! has no tags, so whoever wants a name hears which there are.

use gix::{ObjectId, Reference};

use super::{Repository, Revision, error::Cause};

/// What a commit is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Called {
    /// The commit's hash, in hexadecimal digits.
    pub sha: String,
    /// That of the tree that is the context.
    pub tree: String,
    /// When it was committed, Unix seconds.
    pub time: i64,
    /// Whether files of the work tree are laid over it, which have no name.
    pub is_dirty: bool,
    /// Its branch: the one it was named by, or that is checked out; else all local ones that end in it, or else those of remotes,
    /// without the remote's name.
    pub branches: Vec<String>,
    /// Its tag: the one it was named by, else all that name it, in the order of their names.
    pub tags: Vec<String>,
}

impl Revision {
    /// What the commit is called. Names that cannot be read are none.
    pub fn called(&self) -> Called {
        let (repository, commit) = (self.top().repository(), self.top().commit());
        let named = |prefix: &str| {
            let name = self.name().strip_prefix(prefix).unwrap_or(self.name());
            // HEAD is itself and no branch; and a branch may be called what, of several things, another one is.
            let is_its = name != "HEAD" && repository.is_reference_to(&format!("{prefix}{name}"), &commit.id);
            is_its.then(|| vec![name.to_owned()])
        };
        let branches = || {
            let current = repository.current_branch().filter(|_| repository.head() == Some(commit.id));
            current.map(|branch| vec![branch]).unwrap_or_else(|| repository.branches_at(&commit.id))
        };
        Called {
            sha: commit.id.to_string(),
            tree: self.context().tree_id().unwrap_or(commit.tree).to_string(),
            time: commit.time,
            is_dirty: self.is_dirty(),
            branches: named("refs/heads/").unwrap_or_else(branches),
            tags: named("refs/tags/").unwrap_or_else(|| repository.tags_at(&commit.id)),
        }
    }
}

impl Repository {
    fn is_reference_to(&self, name: &str, commit: &ObjectId) -> bool {
        self.with(|repository| {
            let found = repository.try_find_reference(name).ok().flatten();
            // A search goes on to `refs/heads/refs/heads/x`.
            let mut found = found.filter(|found| found.name().as_bstr() == name);
            found.as_mut().and_then(|found| found.peel_to_id().ok()).is_some_and(|id| id == *commit)
        })
    }

    /// The branch that is checked out; none where HEAD is a commit.
    fn current_branch(&self) -> Option<String> {
        self.with(|repository| Some(repository.head_name().ok()??.shorten().to_string()))
    }

    fn branches_at(&self, commit: &ObjectId) -> Vec<String> {
        let local = self.names_at("refs/heads/", commit);
        if !local.is_empty() {
            return local;
        }
        // `refs/remotes/REMOTE/BRANCH`; what is called HEAD there is another name of one of them.
        let remote = self.names_at("refs/remotes/", commit);
        let branches = remote.iter().filter_map(|name| Some(name.split_once('/')?.1));
        let mut branches: Vec<String> = branches.filter(|name| *name != "HEAD").map(str::to_owned).collect();
        branches.sort();
        branches.dedup();
        branches
    }

    fn tags_at(&self, commit: &ObjectId) -> Vec<String> {
        self.names_at("refs/tags/", commit)
    }

    /// The names below a prefix that lead to a commit, without the prefix, sorted.
    fn names_at(&self, prefix: &str, commit: &ObjectId) -> Vec<String> {
        let found = self.with(|repository| -> Result<Vec<String>, Cause> {
            let leads_there =
                |reference: &mut Reference<'_>| reference.peel_to_id().is_ok_and(|id| id == *commit);
            let mut names = Vec::new();
            for mut reference in repository.references()?.prefixed(prefix)?.flatten() {
                let name = reference.name().as_bstr().to_string();
                if leads_there(&mut reference) {
                    names.extend(name.strip_prefix(prefix).map(str::to_owned));
                }
            }
            Ok(names)
        });
        let mut names = found.unwrap_or_default();
        names.sort();
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::testing::Scratch;

    #[test]
    fn a_commit_has_the_names_that_its_clone_knows() {
        let scratch = Scratch::new();
        scratch.write(&[("sub/file", "one")]);
        scratch.commit();
        let called = |revision: &str| Revision::open(&scratch.top(), revision).expect("there").called();
        let git = |arguments: &[&str]| scratch.git(arguments);
        git(&["branch", "-M", "main"]);
        let head = called("HEAD");
        assert_eq!((head.sha.as_str(), head.is_dirty), (git(&["rev-parse", "HEAD"]).trim(), false));
        assert_eq!(head.tree, git(&["rev-parse", "HEAD^{tree}"]).trim());
        assert_eq!(called("HEAD:sub").tree, git(&["rev-parse", "HEAD:sub"]).trim());
        assert_eq!(head.time.to_string(), git(&["log", "-1", "--format=%ct"]).trim());
        assert_eq!((head.branches, head.tags), (vec!["main".to_owned()], Vec::new()));

        git(&["tag", "v1"]);
        git(&["tag", "-a", "-m", "x", "v1.0"]);
        git(&["branch", "other"]);
        assert_eq!(called("HEAD").tags, ["v1", "v1.0"]);
        assert_eq!(called("HEAD").branches, ["main"], "the one that is checked out");
        assert_eq!(called("other").branches, ["other"], "the one it was named by");
        assert_eq!(called("v1").tags, ["v1"]);
        assert_eq!(called("refs/tags/v1.0").tags, ["v1.0"]);
        // Of a tag and a branch with the same name REV is the tag: the branch is another commit's.
        let first = git(&["rev-parse", "HEAD"]);
        git(&["tag", "both", &first]);
        git(&["checkout", "-q", "-b", "both"]);
        git(&["commit", "-q", "--allow-empty", "-m", "y"]);
        let both = called("both");
        assert_eq!(
            (both.sha, both.branches, both.tags),
            (first, vec!["main".to_owned(), "other".to_owned()], vec!["both".to_owned()])
        );
        assert_eq!(called("refs/heads/both").branches, ["both"]);
        git(&["tag", "-d", "both"]);
        git(&["checkout", "-q", "main"]);
        git(&["branch", "-q", "-D", "both"]);
        git(&["checkout", "-q", "--detach"]);
        assert_eq!(called("HEAD").branches, ["main", "other"]);
        let head = git(&["rev-parse", "HEAD"]);
        git(&["update-ref", "refs/remotes/origin/feature/x", head.trim()]);
        git(&["branch", "-q", "-D", "main", "other"]);
        assert_eq!(called("HEAD").branches, ["feature/x"], "without the remote's name");
    }
}
