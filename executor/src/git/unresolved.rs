//! Why a revision leads to no commit, in the words of people who know git, and not of the library that looked.
//!
//! What is damaged or missing on the way is no mistake of who asked, and is told as what it is.

use gix::{
    ObjectId,
    hash::Prefix,
    head,
    objs::{CommitRef, Kind, TagRefIter},
};
use solver::pattern::suggest;

use super::{GitError, Repository, error::Cause};

/// So many names are told of a repository that lacks another one.
const NAMES_TOLD: usize = 5;

/// What stands at the beginning of a revision.
enum Start {
    /// HEAD, which is this branch, and nobody has committed to it.
    Unborn(String),
    /// No name and no object.
    Nothing,
    /// The beginning of several objects' ids.
    Ambiguous,
    /// This object, whatever tags lead to it.
    Object(ObjectId, Kind),
}

impl Repository {
    /// Why a revision that leads to no commit does not.
    pub(super) fn unresolved(&self, revision: &str) -> GitError {
        let told = |(why, hint)| GitError::NoCommit {
            revision: revision.to_owned(),
            repository: self.directory().to_owned(),
            why,
            hint,
        };
        self.reason(revision).map_or_else(|error| error, told)
    }

    /// Why, and what to do about it.
    fn reason(&self, revision: &str) -> Result<(String, String), GitError> {
        if revision.contains("..") || revision.starts_with('^') {
            return Ok((
                "it names several commits, and one is built".to_owned(),
                self.names_told(&self.names()),
            ));
        }
        let end = revision.find(['^', '~', ':']).into_iter().chain(revision.find("@{")).min();
        let (base, rest) = revision.split_at(end.unwrap_or(revision.len()));
        let names = self.names();
        Ok(match self.start(base, rest)? {
            Start::Unborn(_) | Start::Nothing if names.is_empty() => (
                "it has no commit yet".to_owned(),
                "commit first what is to be built, or build the directory without --git".to_owned(),
            ),
            Start::Unborn(branch) => {
                (format!("HEAD is the branch {branch:?}, which has no commit yet"), self.names_told(&names))
            }
            Start::Nothing => {
                (format!("nothing is called {base:?} there"), self.names_like(revision, &names))
            }
            Start::Ambiguous => {
                (format!("several objects begin with {base}"), "more digits say which one".to_owned())
            }
            Start::Object(id, Kind::Commit) if !rest.is_empty() => self.beyond(id, base, rest, &names)?,
            Start::Object(_, kind) => (format!("it is a {kind}"), self.names_told(&names)),
        })
    }

    /// The same where a commit is there, and what is behind it in the revision leads to none.
    fn beyond(
        &self,
        commit: ObjectId,
        base: &str,
        rest: &str,
        names: &[String],
    ) -> Result<(String, String), GitError> {
        let named = if base.is_empty() { "HEAD" } else { base };
        let why = format!("{named} is a commit, and {rest:?} leads to none from there");
        let others = || format!("git -C {} fetch --unshallow brings the others", self.directory().display());
        if let Some(end) = self.shallow_end(commit, rest)? {
            let told = format!("{why}: the clone is shallow, and {end} is the last commit that it has");
            return Ok((told, others()));
        }
        // What it leads to need not be there.
        let found = self.with(|repository| {
            let found = repository.rev_parse_single(format!("{base}{rest}").as_str());
            found.ok().map(gix::Id::detach)
        });
        found.map(|id| self.behind_tags(id)).transpose()?;
        // What is searched for may lie beyond the end.
        let searches = rest.contains('{') && self.with(|repository| repository.is_shallow().unwrap_or(false));
        let hint =
            if searches { format!("the clone is shallow: {}", others()) } else { self.names_told(names) };
        Ok((why, hint))
    }

    /// The commit, among those that the parents at the beginning of `rest` lead to, at which a shallow clone ends.
    ///
    /// # Errors
    /// One of them is damaged, or not there in a clone that should have it.
    fn shallow_end(&self, commit: ObjectId, rest: &str) -> Result<Option<ObjectId>, GitError> {
        let shallow = self.with(|repository| repository.shallow_commits().ok().flatten());
        let mut at = commit;
        for (count, parent) in parents(rest) {
            for _ in 0..count {
                let bytes = self.object(&at, Kind::Commit)?;
                let read = CommitRef::from_bytes(&bytes, at.kind());
                let read = read.map_err(|source| self.damaged(&at, Kind::Commit, source.into()))?;
                let Some(next) = read.parents().nth(parent - 1) else { return Ok(None) };
                if shallow.as_ref().is_some_and(|ends| ends.contains(&at)) {
                    return Ok(Some(at));
                }
                at = next;
            }
        }
        self.object(&at, Kind::Commit).map(|_| None)
    }

    /// What the beginning of a revision stands for. With nothing in front of `rest`, HEAD is meant.
    fn start(&self, base: &str, rest: &str) -> Result<Start, GitError> {
        let is_head = matches!(base, "HEAD" | "@") || base.is_empty() && !rest.is_empty();
        let found = self.with(|repository| -> Result<Start, Cause> {
            if is_head {
                return Ok(match repository.head()?.kind {
                    head::Kind::Unborn(name) => Start::Unborn(name.shorten().to_string()),
                    head::Kind::Detached { target, .. } => Start::Object(target, Kind::Commit),
                    head::Kind::Symbolic(reference) => {
                        let id = reference.target.try_id();
                        id.map_or(Start::Nothing, |id| Start::Object(id.to_owned(), Kind::Commit))
                    }
                });
            }
            let prefix = Prefix::from_hex(base).ok();
            let found = prefix.map(|prefix| repository.objects.lookup_prefix(prefix, None)).transpose()?;
            Ok(match found.flatten() {
                Some(Ok(id)) => Start::Object(id, Kind::Commit),
                Some(Err(())) => Start::Ambiguous,
                None => Start::Nothing,
            })
        });
        let id = match (self.named_by_reference(base), found) {
            (Some(id), _) | (None, Ok(Start::Object(id, _))) => id,
            (None, found) => return Ok(found.unwrap_or(Start::Nothing)),
        };
        self.behind_tags(id)
    }

    /// What an object is, or what the tag that it is has been put at.
    fn behind_tags(&self, id: ObjectId) -> Result<Start, GitError> {
        let mut id = id;
        loop {
            let header = self.with(|repository| {
                repository
                    .try_find_header(id)
                    .map(|header| header.map(|header| header.kind()))
                    .map_err(Cause::from)
            });
            match header.map_err(|source| self.damaged(&id, Kind::Commit, source))? {
                None => return Err(self.missing(&id, Kind::Commit)),
                Some(Kind::Tag) => {
                    let bytes = self.object(&id, Kind::Tag)?;
                    let target = TagRefIter::from_bytes(&bytes, id.kind()).target_id();
                    id = target.map_err(|source| self.damaged(&id, Kind::Tag, source.into()))?;
                }
                Some(kind) => {
                    // What is damaged is told for that.
                    self.object(&id, kind).map(drop)?;
                    return Ok(Start::Object(id, kind));
                }
            }
        }
    }

    /// All that a person may name; HEAD where it is a commit.
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.head().map(|_| "HEAD".to_owned()).into_iter().collect();
        let found = self.with(|repository| -> Result<Vec<String>, Cause> {
            let references = repository.references()?;
            let names = references.all()?.flatten().map(|reference| reference.name().shorten().to_string());
            Ok(names.filter(|name| !name.ends_with("/HEAD") && name != "stash").collect())
        });
        names.extend(found.unwrap_or_default());
        names
    }

    /// What a person may have meant, else what there is.
    fn names_like(&self, revision: &str, names: &[String]) -> String {
        match suggest::nearest(revision, names.iter().map(String::as_str)) {
            Some(name) => format!("did you mean {name:?}?"),
            None => self.names_told(names),
        }
    }

    fn names_told(&self, names: &[String]) -> String {
        let told = names.iter().take(NAMES_TOLD).cloned().collect::<Vec<_>>().join(", ");
        match names.len() {
            _ if names.iter().all(|name| name == "HEAD") => "it has no branches and no tags".to_owned(),
            count if count > NAMES_TOLD => {
                format!("it has {told} and {} other branches and tags", count - NAMES_TOLD)
            }
            _ => format!("it has {told}"),
        }
    }
}

/// How often which parent is gone to, as far as the beginning of what stands behind a commit says it: `~3` the first one three
/// times, `^2` the second one once.
fn parents(rest: &str) -> Vec<(usize, usize)> {
    let (mut steps, mut rest) = (Vec::new(), rest);
    while let Some(behind) = rest.strip_prefix(['~', '^']) {
        let digits = behind.find(|c: char| !c.is_ascii_digit()).unwrap_or(behind.len());
        let (number, further) = behind.split_at(digits);
        if number.is_empty() && further.starts_with(['{', '@', '!', '-']) {
            break;
        }
        let number = if number.is_empty() { 1 } else { number.parse().unwrap_or(usize::MAX) };
        steps.push(match (rest.starts_with('~'), number) {
            (_, 0) => (0, 1),
            (true, count) => (count, 1),
            (false, parent) => (1, parent),
        });
        rest = further;
    }
    steps
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::git::{
        Revision,
        testing::{Scratch, git},
    };

    #[test]
    fn revisions_are_what_git_takes_them_for() {
        let scratch = Scratch::new();
        scratch.write(&[("file", "1")]);
        let first = scratch.commit();
        scratch.git(&["tag", "-a", "v1", "-m", "one"]);
        scratch.write(&[("file", "2")]);
        let second = scratch.commit();
        let repository = scratch.open();
        for (revision, commit) in [
            ("HEAD", &second),
            ("main", &second),
            ("HEAD~1", &first),
            ("v1", &first),
            ("refs/tags/v1", &first),
            (&second[..10], &second),
            ("v1^{commit}", &first),
        ] {
            assert_eq!(repository.commit(revision).expect(revision).id.to_string(), *commit, "{revision}");
        }
        assert_eq!(repository.head().expect("there").to_string(), second);
        let blob = scratch.git(&["rev-parse", "HEAD:file"]);
        let others = "it has HEAD, main, v1";
        for (revision, why, hint) in [
            ("mian", "nothing is called \"mian\" there", "did you mean \"main\"?"),
            ("other", "nothing is called \"other\" there", others),
            ("other~1", "nothing is called \"other\" there", others),
            ("", "nothing is called \"\" there", others),
            (&"1".repeat(40), "nothing is called \"1111111111111111111111111111111111111111\" there", others),
            ("HEAD~2", "HEAD is a commit, and \"~2\" leads to none from there", others),
            ("@{-1}", "HEAD is a commit, and \"@{-1}\" leads to none from there", others),
            ("v1^{tree}", "v1 is a commit, and \"^{tree}\" leads to none from there", others),
            ("HEAD:file", "HEAD is a commit, and \":file\" leads to none from there", others),
            (&blob, "it is a blob", others),
            ("v1..main", "it names several commits, and one is built", others),
        ] {
            let error = repository.commit(revision).expect_err(revision);
            let expected =
                format!("there is no commit {revision:?} in {}: {why}", repository.directory().display());
            assert_eq!((error.to_string(), error.hint().expect("told")), (expected, hint.to_owned()));
            assert!(std::error::Error::source(&error).is_none(), "nobody knows the library's words");
        }
    }

    #[test]
    fn references_that_cannot_be_read_are_named_and_none_is_taken_for_gone() {
        let scratch = Scratch::new();
        let id = scratch.commit();
        // As git init --ref-format=reftable says it, which not every git has.
        scratch.git(&["config", "core.repositoryFormatVersion", "1"]);
        scratch.git(&["config", "extensions.refStorage", "files"]);
        assert!(Revision::open(&scratch.top(), "HEAD").is_ok());
        let config = scratch.top().join(".git/config");
        let text = fs::read_to_string(&config).expect("read");
        fs::write(&config, text.replace("refStorage = files", "refStorage = reftable")).expect("written");
        for revision in ["HEAD", &id] {
            let error = Revision::open(&scratch.top(), revision).expect_err("it is not known");
            let told = error.to_string();
            assert!(told.ends_with("keeps its references as \"reftable\", which cannot be read"), "{told}");
            assert!(error.hint().is_some_and(|hint| hint.contains(" refs migrate --ref-format=files ")));
        }
    }

    #[test]
    fn a_time_that_no_clock_has_is_not_another_one() {
        let scratch = Scratch::new();
        scratch.write(&[("file", "1")]);
        scratch.commit();
        let tree = scratch.git(&["rev-parse", "HEAD^{tree}"]);
        for (time, expected) in [
            ("1700000000 +0000", Ok(1_700_000_000)),
            ("-1 +0000", Ok(-1)),
            ("", Ok(0)),
            ("99999999999999999999 +0000", Err("is damaged")),
            ("yesterday", Err("is damaged")),
        ] {
            let who = format!("somebody <a@b> {time}");
            let text = format!("tree {tree}\nauthor {who}\ncommitter {who}\n\nx\n");
            fs::write(scratch.beside("commit"), text).expect("written");
            let arguments = ["hash-object", "-t", "commit", "-w", "--literally", "../commit"];
            let found = scratch.open().commit(&scratch.git(&arguments)).map(|commit| commit.time);
            match expected {
                Ok(seconds) => assert_eq!(found.expect(time), seconds),
                Err(end) => assert!(found.expect_err(time).to_string().ends_with(end), "{time}"),
            }
        }
    }

    #[test]
    fn where_nobody_has_committed_there_is_no_commit_yet() {
        let scratch = Scratch::new();
        let refused = |revision: &str| {
            let error = scratch.open().commit(revision).expect_err("there is none");
            error.to_string().rsplit_once(": ").expect("it says why").1.to_owned()
        };
        for revision in ["HEAD", "HEAD~1", "@", "main"] {
            assert_eq!(refused(revision), "it has no commit yet", "{revision}");
        }
        scratch.commit();
        scratch.git(&["checkout", "-q", "--orphan", "new"]);
        assert_eq!(refused("HEAD"), "HEAD is the branch \"new\", which has no commit yet");
    }

    #[test]
    fn what_is_damaged_or_gone_on_the_way_to_a_commit_is_told_as_that() {
        let scratch = Scratch::new();
        scratch.write(&[("file", "1")]);
        let id = scratch.commit();
        scratch.git(&["tag", "-a", "v1", "-m", "one"]);
        let object = scratch.top().join(".git/objects").join(&id[..2]).join(&id[2..]);
        fs::remove_file(&object).expect("removed");
        for revision in ["HEAD", "v1", "HEAD~1"] {
            let error = scratch.open().commit(revision).expect_err("it is gone");
            assert!(matches!(error, GitError::Missing { .. }), "{revision}: {error}");
        }
        fs::write(&object, "junk").expect("written");
        for revision in ["HEAD", "v1", "@~1"] {
            let error = scratch.open().commit(revision).expect_err("it is damaged");
            assert!(matches!(error, GitError::Damaged { .. }), "{revision}: {error}");
        }
    }

    #[test]
    fn a_parent_that_is_gone_or_left_out_is_told_as_that() {
        let scratch = Scratch::new();
        let commits = [scratch.commit(), scratch.commit(), scratch.commit()];
        let other = format!("file://{}", scratch.top().display());
        git(&scratch.beside(""), &["clone", "-q", "--depth=2", &other, "shallow"]);
        let (clone, _) = Repository::discover(&scratch.beside("shallow")).expect("found");
        assert_eq!(clone.commit("HEAD~1").expect("it came along").id.to_string(), commits[1]);
        for revision in ["HEAD~2", "HEAD^^", "@^1~^0", "main~99999999999999999999", "HEAD~2^{tree}"] {
            let error = clone.commit(revision).expect_err("it was left out");
            let told = format!("the clone is shallow, and {} is the last commit that it has", commits[1]);
            assert!(error.to_string().ends_with(&told), "{revision}: {error}");
            assert!(error.hint().is_some_and(|hint| hint.contains(" fetch --unshallow ")), "{revision}");
        }
        let error = clone.commit("HEAD^{/none}").expect_err("nobody has written that");
        assert!(error.hint().is_some_and(|hint| hint.contains(" fetch --unshallow ")));
        let error = clone.commit("HEAD^2").expect_err("it is no merge");
        assert!(error.to_string().ends_with("\"^2\" leads to none from there"), "{error}");
        let object = scratch.top().join(".git/objects").join(&commits[1][..2]).join(&commits[1][2..]);
        fs::remove_file(&object).expect("removed");
        for revision in ["HEAD~1", "HEAD~2", "HEAD^", "main^0^^", "@{1}"] {
            let error = scratch.open().commit(revision).expect_err("it is gone");
            let told = format!("the commit {} is not in the repository", commits[1]);
            assert!(error.to_string().starts_with(&told), "{revision}: {error}");
        }
        fs::write(&object, "junk").expect("written");
        for revision in ["HEAD~1", "HEAD~2", "@{1}"] {
            let error = scratch.open().commit(revision).expect_err("it is damaged");
            assert!(matches!(error, GitError::Damaged { .. }), "{revision}: {error}");
        }
    }
}
