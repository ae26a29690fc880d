//! Which paths `.dockerignore` (and `COPY --exclude`) takes out: the pattern language of moby/patternmatcher.
use crate::glob::BadPattern;

/// Why a list of patterns was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IgnoreError {
    /// The pattern is malformed.
    #[error(transparent)]
    Pattern(#[from] BadPattern),
    /// An exclamation mark with nothing after it.
    #[error("illegal exclusion pattern: \"!\"")]
    LoneExclamation,
}

/// Patterns ready to be asked.
#[derive(Debug, Clone)]
pub struct Matcher;

impl Matcher {
    /// Compiles `patterns`, in order.
    pub fn new(_patterns: &[String]) -> Result<Matcher, IgnoreError> {
        Err(IgnoreError::LoneExclamation)
    }
    /// Whether `path` (slash-separated, relative) is excluded: the last pattern that matches it or one of its parents decides.
    pub fn matches(&self, path: &str) -> bool {
        self.decide(path).is_some()
    }
    /// Index of the pattern that excludes `path`; `None` when it is not excluded.
    pub fn decide(&self, _path: &str) -> Option<usize> {
        None
    }
    /// Whether `dir` is excluded and no exception can bring back anything below it.
    pub fn can_prune(&self, _dir: &str) -> bool {
        false
    }
}

/// The patterns of a `.dockerignore` file's text.
pub fn read(_text: &str) -> Vec<String> {
    Vec::new()
}
