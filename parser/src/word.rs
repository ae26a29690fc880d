//! Expansion of variables and removal of quotes, as BuildKit's shell lexer does it.

/// An expanded word.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Expanded {
    /// The result.
    pub value: String,
    /// Names that were asked for and are set, in order of first use.
    pub matched: Vec<String>,
    /// Names that were asked for and are not set, in order of first use.
    pub unmatched: Vec<String>,
}

/// Why a word cannot be expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WordError {
    /// `${...}` is not well formed.
    #[error("syntax error: bad substitution")]
    BadSubstitution,
}

/// Looks a variable up.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// One word: quotes removed, escapes resolved, variables replaced, spaces kept.
pub fn expand(_word: &str, _escape: char, _lookup: Lookup<'_>) -> Result<Expanded, WordError> {
    Err(WordError::BadSubstitution)
}

/// The same, then split at unquoted white space (EXPOSE).
pub fn expand_to_words(_word: &str, _escape: char, _lookup: Lookup<'_>) -> Result<Vec<String>, WordError> {
    Err(WordError::BadSubstitution)
}

/// The body of a heredoc: variables are replaced, quotes are ordinary characters, `\` escapes.
pub fn expand_heredoc(_content: &str, _lookup: Lookup<'_>) -> Result<Expanded, WordError> {
    Err(WordError::BadSubstitution)
}

/// For progress and history: quotes stay, and so do variables that are not set.
pub fn expand_for_display(_text: &str, _escape: char, _lookup: Lookup<'_>) -> Result<String, WordError> {
    Err(WordError::BadSubstitution)
}
