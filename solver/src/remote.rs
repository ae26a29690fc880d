//! Addresses of things that are on no disk of ours: git repositories and URLs, as ADD, contexts and named contexts are
//! given them. Only text is looked at here; fetching is the executor's.
//!
//! What is a git repository is BuildKit's to say: `git://` and `ssh://` URLs, `user@host:path`, and `http(s)` URLs whose
//! path ends in `.git`; for contexts also `github.com/...`. No error repeats the user information of an address.

mod url;

use url::{Query, decoded};
pub use url::{redacted, without_logins};

/// A git repository, and what is wanted of it.
///
/// Grammar: <https://docs.docker.com/build/concepts/context/#url-fragments> and `#url-queries` there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct GitAddress {
    /// The address without query and fragment, as `git clone` takes it.
    pub remote: String,
    /// Branch, tag, commit or full reference (`refs/heads/...` for `branch=`, `refs/tags/...` for `tag=`); `None` is
    /// the remote's HEAD.
    pub reference: Option<String>,
    /// The directory in it that stands for the whole, clean and relative.
    pub subdir: Option<String>,
    /// The commit it must be: 7 to 64 hex digits, a prefix.
    pub checksum: Option<String>,
    /// Whether `.git` is kept.
    pub keep_git_dir: bool,
    /// Whether submodules are fetched too.
    pub submodules: bool,
    /// Which times its files have.
    pub times: GitTimes,
    /// Whether the commit of `checksum`, in full, is asked for by itself: `reference` may have moved on, and is not
    /// looked at where the remote gives out the commit.
    pub fetch_by_commit: bool,
}

/// `mtime=` of a git address.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum GitTimes {
    /// That of the checkout.
    #[default]
    Checkout,
    /// That of the commit.
    Commit,
}

/// Why an address cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// `key=` without a value.
    #[error("query {0:?} has no value")]
    NoValue(String),
    /// The same key twice.
    #[error("query {0:?} has multiple values")]
    SeveralValues(String),
    /// A key that means nothing.
    #[error("unexpected query {0:?}")]
    UnknownQuery(String),
    /// A value that the key does not take.
    #[error("invalid {key} value: {value:?}")]
    InvalidValue {
        /// The key.
        key: &'static str,
        /// What it was given.
        value: String,
    },
    /// Two places that disagree.
    #[error("{what} conflicts: {first:?} vs {second:?}")]
    Conflict {
        /// `ref` or `subdir`.
        what: &'static str,
        /// What came first.
        first: String,
        /// What came after it.
        second: String,
    },
    /// `branch=` and `tag=`.
    #[error("branch conflicts with tag")]
    BranchAndTag,
    /// No prefix of a commit.
    #[error("invalid checksum {0:?} for Git URL, expected hex commit hash")]
    NotACommit(String),
    /// `fetch-by-commit` without a whole commit.
    #[error("fetch-by-commit needs a full commit hash in checksum= or commit=")]
    NoCommitToFetch,
    /// Something that git would take for an option, or a character that no address has.
    #[error("the {0} of the git address begins with '-' or holds a control character")]
    Unsafe(&'static str),
    /// Percent signs that mean nothing.
    #[error("invalid URL escape in the {0} of the git address")]
    Escape(&'static str),
}

/// What ADD, `--build-context` and the main context take for a git repository; `None` for anything else.
pub fn parse_git(text: &str) -> Option<Result<GitAddress, AddressError>> {
    Some(read_git(text)?.map(|read| read.address))
}

/// As [`parse_git`], and `github.com/owner/repository`, which only a context may be given as: ADD takes it for a file.
pub fn parse_git_context(text: &str) -> Option<Result<GitAddress, AddressError>> {
    match text.strip_prefix("github.com/") {
        Some(_) => Some(read(&format!("https://{text}"))?.map(|read| read.address)),
        None => parse_git(text),
    }
}

/// Whether a text names one file to download: `http://` or `https://`, and no git repository.
pub fn is_url(text: &str) -> bool {
    is_http(text) && read_git(text).is_none()
}

/// What the file behind a URL is called: the last component of the URL's path, or `__unnamed__`.
pub fn file_name(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let rest = &rest[..rest.find(['?', '#']).unwrap_or(rest.len())];
    let path = rest.split_once('/').map_or("", |(_, path)| path);
    let path = decoded(path).unwrap_or_default();
    match path.trim_end_matches('/').rsplit('/').next().unwrap_or("") {
        "" | "." | ".." => "__unnamed__".to_owned(),
        name if name.contains('\0') => "__unnamed__".to_owned(),
        name => name.to_owned(),
    }
}

/// An address as written, which may or may not say whether `.git` is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReadGit {
    pub(crate) address: GitAddress,
    pub(crate) keep_git_dir: Option<bool>,
}

pub(crate) fn read_git(text: &str) -> Option<Result<ReadGit, AddressError>> {
    let without_fragment = text.split_once('#').map_or(text, |(before, _)| before);
    let address = without_fragment.split_once('?').map_or(without_fragment, |(before, _)| before);
    let is_git = match scheme(text) {
        Some("http" | "https") => decoded(address).is_some_and(|address| address.ends_with(".git")),
        Some("git" | "ssh") => true,
        Some(_) => false,
        None => is_scp_style(address),
    };
    if is_git { read(text) } else { None }
}

fn is_http(text: &str) -> bool {
    matches!(scheme(text), Some("http" | "https"))
}

fn scheme(text: &str) -> Option<&str> {
    let (scheme, _) = text.split_once("://")?;
    scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()).then_some(scheme)
}

/// `user@host:path`
fn is_scp_style(address: &str) -> bool {
    let Some((login, _)) = address.split_once(':') else { return false };
    let Some((user, host)) = login.split_once('@') else { return false };
    let word = |text: &str, extra: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || extra.contains(c))
    };
    word(user, "_") && word(host, ".")
}

fn read(text: &str) -> Option<Result<ReadGit, AddressError>> {
    let (text, fragment) = text.split_once('#').unwrap_or((text, ""));
    let (remote, query) = text.split_once('?').unwrap_or((text, ""));
    Some(Query::parse(query).and_then(|query| address(remote, fragment, query)))
}

fn address(remote: &str, fragment: &str, mut query: Query) -> Result<ReadGit, AddressError> {
    let fragment = decoded(fragment).ok_or(AddressError::Escape("fragment"))?;
    let (reference, subdir) = fragment.split_once(':').unwrap_or((&fragment, ""));
    let reference = agreed("ref", some(reference), query.value("ref")?)?;
    let subdir = agreed("subdir", some(subdir), query.value("subdir")?)?;
    let reference = typed_reference(reference, query.value("tag")?, query.value("branch")?)?;
    // Both names at once: the later one wins in BuildKit by chance; here they must agree.
    let checksum = agreed("checksum", query.value("checksum")?, query.value("commit")?)?;
    let keep_git_dir = query.flag("keep-git-dir")?;
    let submodules = query.flag("submodules")?.unwrap_or(true);
    let fetch_by_commit = query.flag("fetch-by-commit")?.unwrap_or(false);
    let times = match query.value("mtime")?.as_deref() {
        None | Some("checkout") => GitTimes::Checkout,
        Some("commit") => GitTimes::Commit,
        Some(other) => return Err(AddressError::InvalidValue { key: "mtime", value: other.to_owned() }),
    };
    query.nothing_left()?;
    if let Some(checksum) = &checksum {
        check_commit(checksum)?;
    }
    if fetch_by_commit && !checksum.as_ref().is_some_and(|commit| is_whole_commit(commit)) {
        return Err(AddressError::NoCommitToFetch);
    }
    let address = GitAddress {
        remote: remote.to_owned(),
        reference: reference.or_else(|| checksum.clone()),
        subdir: subdir.map(|subdir| crate::plan::clean_relative(&subdir)).filter(|path| !path.is_empty()),
        checksum,
        keep_git_dir: keep_git_dir.unwrap_or(false),
        submodules,
        times,
        fetch_by_commit,
    };
    check_safe(&address)?;
    Ok(ReadGit { address, keep_git_dir })
}

/// Refuses what is no beginning of a commit's hash.
pub(crate) fn check_commit(checksum: &str) -> Result<(), AddressError> {
    let is_hash = (7..=64).contains(&checksum.len()) && checksum.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_hash { Ok(()) } else { Err(AddressError::NotACommit(checksum.to_owned())) }
}

fn is_whole_commit(checksum: &str) -> bool {
    matches!(checksum.len(), 40 | 64)
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// What two places say, if they do not contradict each other.
fn agreed(
    what: &'static str,
    first: Option<String>,
    second: Option<String>,
) -> Result<Option<String>, AddressError> {
    match (first, second) {
        (Some(first), Some(second)) if first != second => Err(AddressError::Conflict { what, first, second }),
        (first, second) => Ok(first.or(second)),
    }
}

/// The reference with what `tag=` and `branch=` make of it.
fn typed_reference(
    reference: Option<String>,
    tag: Option<String>,
    branch: Option<String>,
) -> Result<Option<String>, AddressError> {
    let full = |kind: &str, name: String| if name.starts_with(kind) { name } else { format!("{kind}{name}") };
    match (tag, branch) {
        (Some(_), Some(_)) => Err(AddressError::BranchAndTag),
        (Some(tag), None) => agreed("ref", reference, Some(full("refs/tags/", tag))),
        (None, Some(branch)) => agreed("ref", reference, Some(full("refs/heads/", branch))),
        (None, None) => Ok(reference),
    }
}

/// The parts of an address become arguments of `git`, which must not take them for anything else.
fn check_safe(address: &GitAddress) -> Result<(), AddressError> {
    let host = address.remote.split_once("://").map_or(address.remote.as_str(), |(_, rest)| rest);
    let host = host.split_once('@').map_or(host, |(_, host)| host);
    let parts = [
        ("address", Some(address.remote.as_str())),
        ("host", Some(host)),
        ("reference", address.reference.as_deref()),
        ("subdir", address.subdir.as_deref().map(|path| path.trim_start_matches('-'))),
    ];
    let unsafe_part = |text: &str| text.starts_with('-') || text.chars().any(char::is_control);
    match parts.iter().find(|(_, text)| text.is_some_and(unsafe_part)) {
        Some((what, _)) => Err(AddressError::Unsafe(what)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
