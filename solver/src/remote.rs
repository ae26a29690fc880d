//! Addresses of things that are on no disk of ours: git repositories and URLs, as ADD, contexts and named contexts are
//! given them. Only text is looked at here; fetching is the executor's.

/// A git repository, and what is wanted of it.
///
/// Grammar: <https://docs.docker.com/build/concepts/context/#url-fragments> and `#url-queries` there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct GitAddress {
    /// The address without query and fragment, as `git clone` takes it.
    pub remote: String,
    /// Branch, tag, commit or full reference; `None` is the remote's HEAD.
    pub reference: Option<String>,
    /// The directory in it that stands for the whole, clean and relative.
    pub subdir: Option<String>,
    /// The commit it must be: 7 to 64 hex digits, a prefix.
    pub checksum: Option<String>,
    /// Whether `.git` is kept.
    pub keep_git_dir: bool,
    /// Whether submodules are fetched too.
    pub submodules: bool,
}
