//! Which commit a reference is, as the remote says it now.
//!
//! As BuildKit has it: a full hash is taken as it is; a name is a branch before it is a tag; nothing is HEAD. A hash that
//! is cut short is looked for among the remote's branches and tags, which must be fetched for it.

use super::{
    command::{Call, Git, SILENCE},
    error::GitError,
    remote::Remote,
};

/// What a reference stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// Hash of the commit, or of the annotated tag that names it.
    pub object: String,
    /// Hash of the commit, where the object is known to be a tag.
    pub tagged: Option<String>,
    /// The remote's full name for it; `None` for a hash.
    pub name: Option<String>,
}

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Found out already.
    Known(Resolved),
    /// The beginning of a hash that is no name at the remote.
    Prefix(String),
}

impl Resolved {
    /// A commit by its hash.
    pub fn by_hash(hash: &str) -> Self {
        Self { object: hash.to_ascii_lowercase(), tagged: None, name: None }
    }

    /// The commit, as far as that is known without a look at the object.
    pub fn commit(&self) -> &str {
        self.tagged.as_ref().unwrap_or(&self.object)
    }

    /// Checks a hash, or the beginning of one, that the address demands.
    ///
    /// # Errors
    /// [`GitError::Checksum`].
    pub fn verify(&self, expected: Option<&str>) -> Result<(), GitError> {
        let Some(expected) = expected else { return Ok(()) };
        let prefix = expected.to_ascii_lowercase();
        let hashes: Vec<&str> =
            [Some(&self.object), self.tagged.as_ref()].into_iter().flatten().map(String::as_str).collect();
        match hashes.iter().any(|hash| hash.starts_with(&prefix)) {
            true => Ok(()),
            false => Err(GitError::Checksum { expected: expected.to_owned(), found: hashes.join(" or ") }),
        }
    }
}

/// Whether a text is a whole hash: SHA-1 or SHA-256.
pub fn is_hash(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Asks the remote, where it must be asked.
///
/// # Errors
/// The remote cannot be asked, or has no such reference.
pub fn resolve(git: &Git, remote: &Remote, reference: Option<&str>) -> Result<Wanted, GitError> {
    let Some(reference) = reference else { return head(git, remote).map(Wanted::Known) };
    if is_hash(reference) {
        return Ok(Wanted::Known(Resolved::by_hash(reference)));
    }
    let peeled = format!("{reference}^{{}}");
    let arguments = ["ls-remote", "--quiet", "--", &remote.url, reference, &peeled];
    let listed = git.run(Call { silence: Some(SILENCE), ..Call::default() }, &arguments)?;
    if let Some(resolved) = among(&lines(&listed), reference) {
        return Ok(Wanted::Known(resolved));
    }
    let is_prefix = (7..64).contains(&reference.len()) && reference.bytes().all(|b| b.is_ascii_hexdigit());
    match is_prefix {
        true => Ok(Wanted::Prefix(reference.to_ascii_lowercase())),
        false => Err(no_reference(remote, reference)),
    }
}

/// The remote has nothing of that name.
pub fn no_reference(remote: &Remote, reference: &str) -> GitError {
    GitError::NoReference { remote: remote.shown.clone(), reference: reference.to_owned() }
}

fn head(git: &Git, remote: &Remote) -> Result<Resolved, GitError> {
    let arguments = ["ls-remote", "--quiet", "--symref", "--", &remote.url, "HEAD"];
    let listed = git.run(Call { silence: Some(SILENCE), ..Call::default() }, &arguments)?;
    let lines = lines(&listed);
    let branch =
        lines.iter().find_map(|(value, name)| value.strip_prefix("ref: ").filter(|_| name == "HEAD"));
    let hash = lines.iter().find(|(value, name)| name == "HEAD" && is_hash(value));
    let (hash, _) = hash.ok_or_else(|| no_reference(remote, "HEAD"))?;
    let name = branch.unwrap_or("HEAD").to_owned();
    Ok(Resolved { object: hash.clone(), tagged: None, name: Some(name) })
}

/// Pairs of what stands before and behind the tabs.
fn lines(output: &[u8]) -> Vec<(String, String)> {
    let text = String::from_utf8_lossy(output);
    text.lines().filter_map(|line| line.split_once('\t')).map(|(a, b)| (a.to_owned(), b.to_owned())).collect()
}

/// A name is a reference in full, then a branch, then a tag.
fn among(lines: &[(String, String)], reference: &str) -> Option<Resolved> {
    let hash = |name: &str| {
        let found = lines.iter().find(|(hash, found)| found == name && is_hash(hash));
        found.map(|(hash, _)| hash.clone())
    };
    let full = format!("refs/{}", reference.strip_prefix("refs/").unwrap_or(reference));
    let head = format!("refs/heads/{}", reference.strip_prefix("refs/heads/").unwrap_or(reference));
    let tag = format!("refs/tags/{}", reference.strip_prefix("refs/tags/").unwrap_or(reference));
    [full, head, tag].into_iter().find_map(|name| {
        let tagged = hash(&format!("{name}^{{}}"));
        Some(Resolved { object: hash(&name)?, tagged, name: Some(name) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branches_come_before_tags_and_similar_names_do_not_count() {
        let (a, b, c) = ("a".repeat(40), "b".repeat(40), "c".repeat(40));
        let listed = |rows: &[(&String, &str)]| -> Vec<(String, String)> {
            rows.iter().map(|(hash, name)| ((*hash).clone(), (*name).to_owned())).collect()
        };
        let both = listed(&[(&a, "refs/heads/v1"), (&b, "refs/tags/v1"), (&c, "refs/tags/v1^{}")]);
        let found =
            |rows: &[(String, String)], name| among(rows, name).map(|found| (found.object, found.tagged));
        assert_eq!(found(&both, "v1"), Some((a.clone(), None)));
        assert_eq!(found(&both, "refs/tags/v1"), Some((b.clone(), Some(c.clone()))));
        assert_eq!(found(&both, "tags/v1"), Some((b.clone(), Some(c.clone()))));
        assert_eq!(found(&listed(&[(&a, "refs/heads/old/v1")]), "v1"), None);
        assert_eq!(found(&listed(&[(&"--x".to_owned(), "refs/heads/v1")]), "v1"), None);
    }

    #[test]
    fn a_checksum_is_the_beginning_of_tag_or_commit() {
        let (tag, commit) = ("a".repeat(40), "b".repeat(40));
        let resolved = Resolved { object: tag.clone(), tagged: Some(commit.clone()), name: None };
        for good in ["aaaaaaa", "BBBBBBB", &tag, &commit] {
            assert!(resolved.verify(Some(good)).is_ok(), "{good}");
        }
        let error = resolved.verify(Some("ccccccc")).expect_err("another one").to_string();
        assert_eq!(error, format!("expected checksum to match ccccccc, got {tag} or {commit}"));
    }
}
