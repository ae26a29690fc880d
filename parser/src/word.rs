//! Expansion of variables and removal of quotes, as BuildKit's shell lexer does it.
//!
//! A word is read left to right: the escape character takes the meaning from what follows, single quotes from all
//! they enclose, double quotes from all but `$` and the escape character, and `$name` or `${name...}` is replaced by
//! what the lookup says. Nothing here fails on size: nesting and length of the result are bounded, so a hostile
//! Dockerfile costs an error and not the stack or the memory.

mod pattern;

use std::iter::Peekable;
use std::str::Chars;

use crate::wildcard::Extent;

/// How deep `${a:-${b:-...}}` may nest.
pub const MAX_NESTING: usize = 100;

/// Bytes an expanded word may have.
pub const MAX_EXPANDED: usize = 16 << 20;

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

/// A word that cannot be expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("failed to process {word:?}: {problem}")]
pub struct WordError {
    /// The word as written, cut where it is long.
    pub word: String,
    /// What is wrong with it.
    #[source]
    pub problem: WordProblem,
}

/// What can be wrong with a word.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WordProblem {
    /// `${` has no `}`.
    #[error("syntax error: missing '}}'")]
    MissingBrace,
    /// `${name/` has no second slash.
    #[error("syntax error: missing '/' in ${{}}")]
    MissingSlash,
    /// `${}`, `${:...}`, `${{`.
    #[error("syntax error: bad substitution")]
    BadSubstitution,
    /// `${name=...}` and whatever else the shell may know and BuildKit does not.
    #[error("unsupported modifier ({0}) in substitution")]
    UnsupportedModifier(String),
    /// A single quote without its partner.
    #[error("unexpected end of statement while looking for matching single-quote")]
    SingleQuote,
    /// A double quote without its partner.
    #[error("unexpected end of statement while looking for matching double-quote")]
    DoubleQuote,
    /// `${name?message}` of a variable that is not set, or `${name:?message}` of one that is empty.
    #[error("{name}: {message}")]
    Required {
        /// The variable.
        name: String,
        /// What the Dockerfile says about it, or that it is not allowed to be unset or empty.
        message: String,
    },
    /// A pattern that cannot be read.
    #[error("invalid pattern ({pattern}) in substitution: {reason}")]
    InvalidPattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// More than [`MAX_NESTING`] levels of `${`.
    #[error("substitutions nested deeper than {MAX_NESTING} levels")]
    TooDeep,
    /// More than [`MAX_EXPANDED`] bytes.
    #[error("expands to more than {MAX_EXPANDED} bytes")]
    TooLong,
}

/// Looks a variable up; `None` when it is not set.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// One word: quotes removed, escapes resolved, variables replaced, spaces kept.
pub fn expand(word: &str, escape: char, lookup: Lookup<'_>) -> Result<Expanded, WordError> {
    let mut lexer = Lexer::new(word, escape, lookup, Style::PLAIN);
    let value = lexer.run(word, None)?;
    Ok(lexer.expanded(value))
}

/// The same, then split at white space outside of quotes, also at that which a variable brought (EXPOSE).
pub fn expand_to_words(word: &str, escape: char, lookup: Lookup<'_>) -> Result<Vec<String>, WordError> {
    let mut splitter = Splitter::default();
    Lexer::new(word, escape, lookup, Style::PLAIN).run(word, Some(&mut splitter))?;
    Ok(splitter.finish())
}

/// The body of a heredoc: variables are replaced, quotes are ordinary characters, `\` escapes whatever the
/// Dockerfile's escape character is.
pub fn expand_heredoc(content: &str, lookup: Lookup<'_>) -> Result<Expanded, WordError> {
    let style = Style { quotes: Quotes::Ordinary, ..Style::PLAIN };
    let mut lexer = Lexer::new(content, '\\', lookup, style);
    let value = lexer.run(content, None)?;
    Ok(lexer.expanded(value))
}

/// For progress: quotes stay, and so do variables that are not set.
pub fn expand_for_display(text: &str, escape: char, lookup: Lookup<'_>) -> Result<String, WordError> {
    let style = Style { quotes: Quotes::Keep, keep_unset: true, ..Style::PLAIN };
    Lexer::new(text, escape, lookup, style).run(text, None)
}

/// The words of an instruction's text with quotes, escapes and variables left as they are; white space after `<<`
/// belongs to the word. This is how heredocs are looked for.
pub(crate) fn raw_words(text: &str) -> Result<Vec<String>, WordError> {
    split(text, Style { quotes: Quotes::Keep, keep_escapes: true, keep_unset: true, join_heredoc: true })
}

/// A heredoc's delimiter: its name, and whether any of it was quoted. `None` when `text` is not one word.
pub(crate) fn delimiter(text: &str) -> Result<Option<(String, bool)>, WordError> {
    let unquoted = split(text, Style { keep_unset: true, ..Style::PLAIN })?;
    let quoted = split(text, Style { keep_unset: true, quotes: Quotes::Keep, ..Style::PLAIN })?;
    let [name] = unquoted.as_slice() else {
        return Ok(None);
    };
    let has_quotes = quoted.first().is_some_and(|word| word.len() > name.len());
    Ok(Some((name.clone(), has_quotes)))
}

fn split(text: &str, style: Style) -> Result<Vec<String>, WordError> {
    let mut splitter = Splitter::default();
    Lexer::new(text, '\\', &|_| None, style).run(text, Some(&mut splitter))?;
    Ok(splitter.finish())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quotes {
    Remove,
    Keep,
    Ordinary,
}

#[derive(Debug, Clone, Copy)]
struct Style {
    quotes: Quotes,
    keep_escapes: bool,
    keep_unset: bool,
    join_heredoc: bool,
}

impl Style {
    const PLAIN: Style =
        Style { quotes: Quotes::Remove, keep_escapes: false, keep_unset: false, join_heredoc: false };
}

struct Lexer<'a> {
    chars: Peekable<Chars<'a>>,
    escape: char,
    lookup: Lookup<'a>,
    style: Style,
    depth: usize,
    matched: Vec<String>,
    unmatched: Vec<String>,
}

impl<'a> Lexer<'a> {
    fn new(text: &'a str, escape: char, lookup: Lookup<'a>, style: Style) -> Self {
        let chars = text.chars().peekable();
        Self { chars, escape, lookup, style, depth: 0, matched: Vec::new(), unmatched: Vec::new() }
    }

    fn run(&mut self, source: &str, splitter: Option<&mut Splitter>) -> Result<String, WordError> {
        self.until(None, self.style.keep_escapes, splitter).map_err(|problem| {
            let cut: String = source.chars().take(200).collect();
            let word = if cut.len() < source.len() { cut + "…" } else { cut };
            WordError { word, problem }
        })
    }

    fn expanded(self, value: String) -> Expanded {
        Expanded { value, matched: self.matched, unmatched: self.unmatched }
    }

    /// Reads up to `stop` (which is taken) or to the end.
    fn until(
        &mut self,
        stop: Option<char>,
        keep_escapes: bool,
        mut splitter: Option<&mut Splitter>,
    ) -> Result<String, WordProblem> {
        let mut result = String::new();
        while let Some(&c) = self.chars.peek() {
            if Some(c) == stop {
                self.chars.next();
                return Ok(result);
            }
            let (piece, splits) = self.piece(c, stop, keep_escapes)?;
            result.push_str(&piece);
            bounded(&result)?;
            if let Some(splitter) = splitter.as_deref_mut() {
                splitter.add(&piece, splits);
            }
        }
        match stop {
            Some(_) => Err(WordProblem::MissingBrace),
            None => Ok(result),
        }
    }

    /// The next piece, which starts with `c`, and whether white space in it separates words.
    fn piece(
        &mut self,
        c: char,
        stop: Option<char>,
        keep_escapes: bool,
    ) -> Result<(String, Splits), WordProblem> {
        let quotes = self.style.quotes != Quotes::Ordinary;
        match c {
            '$' => Ok((self.dollar()?, Splits::AtSpace)),
            '\'' if quotes => Ok((self.single_quoted()?, Splits::Nowhere)),
            '"' if quotes => Ok((self.double_quoted(keep_escapes)?, Splits::Nowhere)),
            '<' if self.style.join_heredoc => Ok((self.heredoc_marker(), Splits::Nowhere)),
            c if c == self.escape => Ok((self.escaped(keep_escapes), Splits::Nowhere)),
            _ => Ok((self.plain(stop), Splits::AtSpace)),
        }
    }

    /// Characters without a meaning of their own.
    fn plain(&mut self, stop: Option<char>) -> String {
        let escape = self.escape;
        let mut run: String = self.chars.next().into_iter().collect();
        let ordinary = |c: char| !matches!(c, '$' | '\'' | '"' | '<') && c != escape && Some(c) != stop;
        while let Some(c) = self.chars.next_if(|c| ordinary(*c)) {
            run.push(c);
        }
        run
    }

    fn escaped(&mut self, keep_escapes: bool) -> String {
        let escape = self.chars.next().filter(|_| keep_escapes);
        // An escape character at the very end stands for nothing.
        escape.into_iter().chain(self.chars.next()).collect()
    }

    fn heredoc_marker(&mut self) -> String {
        let mut marker = String::from('<');
        self.chars.next();
        if self.chars.next_if_eq(&'<').is_some() {
            marker.push('<');
            while let Some(space) = self.chars.next_if(|c| c.is_whitespace()) {
                marker.push(space);
            }
        }
        marker
    }

    fn single_quoted(&mut self) -> Result<String, WordProblem> {
        let mut result = self.quote();
        loop {
            match self.chars.peek() {
                None => return Err(WordProblem::SingleQuote),
                Some('\'') => return Ok(result + &self.quote()),
                Some(&c) => result.push(c),
            }
            self.chars.next();
        }
    }

    fn double_quoted(&mut self, keep_escapes: bool) -> Result<String, WordProblem> {
        let mut result = self.quote();
        loop {
            match self.chars.peek() {
                None => return Err(WordProblem::DoubleQuote),
                Some('"') => return Ok(result + &self.quote()),
                Some('$') => result.push_str(&self.dollar()?),
                Some(&c) if c == self.escape => self.escaped_in_quotes(keep_escapes, &mut result),
                Some(&c) => {
                    self.chars.next();
                    result.push(c);
                }
            }
            bounded(&result)?;
        }
    }

    /// In double quotes the escape character means itself unless a quote, a dollar or another one follows.
    fn escaped_in_quotes(&mut self, keep_escapes: bool, result: &mut String) {
        self.chars.next();
        match self.chars.peek() {
            None => {}
            Some(&c) if c == '"' || c == '$' || c == self.escape => {
                if keep_escapes {
                    result.push(self.escape);
                }
                self.chars.next();
                result.push(c);
            }
            Some(_) => result.push(self.escape),
        }
    }

    /// Takes a quote and gives it back where quotes are kept.
    fn quote(&mut self) -> String {
        let quote = self.chars.next();
        quote.filter(|_| self.style.quotes == Quotes::Keep).into_iter().collect()
    }

    fn dollar(&mut self) -> Result<String, WordProblem> {
        self.chars.next();
        if self.chars.peek() == Some(&'{') {
            self.depth += 1;
            if self.depth > MAX_NESTING {
                return Err(WordProblem::TooDeep);
            }
            let result = self.braced();
            self.depth -= 1;
            return result;
        }
        let name = self.name();
        if name.is_empty() {
            return Ok(String::from('$'));
        }
        match self.variable(&name) {
            None if self.style.keep_unset => Ok(format!("${name}")),
            value => Ok(value.unwrap_or_default()),
        }
    }

    fn braced(&mut self) -> Result<String, WordProblem> {
        self.chars.next();
        match self.chars.peek() {
            None => return Err(WordProblem::MissingBrace),
            Some('{' | '}' | ':') => return Err(WordProblem::BadSubstitution),
            Some(_) => {}
        }
        let name = self.name();
        match self.chars.next() {
            None => Err(WordProblem::MissingBrace),
            Some('}') => match self.variable(&name) {
                None if self.style.keep_unset => Ok(format!("${{{name}}}")),
                value => Ok(value.unwrap_or_default()),
            },
            Some('/') => self.replacement(&name),
            Some(':') => {
                let operator = self.chars.next().ok_or(WordProblem::MissingBrace)?;
                self.operation(&name, operator, Unset::OrEmpty)
            }
            Some(operator @ ('+' | '-' | '?' | '#' | '%')) => self.operation(&name, operator, Unset::Only),
            Some(other) => Err(WordProblem::UnsupportedModifier(other.into())),
        }
    }

    fn operation(&mut self, name: &str, operator: char, unset: Unset) -> Result<String, WordProblem> {
        let keep_escapes = matches!(operator, '#' | '%');
        let word = self.operand('}', keep_escapes, WordProblem::MissingBrace)?;
        let value = self.variable(name);
        if self.style.keep_unset && value.is_none() {
            let colon = if unset == Unset::OrEmpty { ":" } else { "" };
            return Ok(format!("${{{name}{colon}{operator}{word}}}"));
        }
        let is_set = value.is_some();
        let present = value.filter(|value| unset == Unset::Only || !value.is_empty());
        match operator {
            '-' => Ok(present.unwrap_or(word)),
            '+' => Ok(if present.is_some() { word } else { String::new() }),
            '?' => present.ok_or_else(|| required(name, word, is_set)),
            '#' | '%' => trim(&present.unwrap_or_default(), &word, operator),
            other => Err(WordProblem::UnsupportedModifier(format!(":{other}"))),
        }
    }

    fn replacement(&mut self, name: &str) -> Result<String, WordProblem> {
        let all = self.chars.next_if_eq(&'/').is_some();
        let pattern = self.operand('/', true, WordProblem::MissingSlash)?;
        let replacement = self.operand('}', true, WordProblem::MissingBrace)?;
        match self.variable(name) {
            None if self.style.keep_unset => Ok(format!("${{{name}/{pattern}/{replacement}}}")),
            value if all => pattern::replace_all(&value.unwrap_or_default(), &pattern, &replacement),
            value => pattern::replace_first(&value.unwrap_or_default(), &pattern, &replacement),
        }
    }

    /// What stands between an operator and `stop`. Where the text ended inside, that is what is reported, whatever
    /// was open at the time.
    fn operand(
        &mut self,
        stop: char,
        keep_escapes: bool,
        missing: WordProblem,
    ) -> Result<String, WordProblem> {
        self.until(Some(stop), keep_escapes, None).map_err(|problem| {
            let about_limits = matches!(problem, WordProblem::TooDeep | WordProblem::TooLong);
            if self.chars.peek().is_none() && !about_limits { missing } else { problem }
        })
    }

    /// A name: letters, digits and underscores, or only digits, or one special parameter of the shell.
    fn name(&mut self) -> String {
        match self.chars.peek() {
            Some(c) if c.is_ascii_digit() => self.take_while(|c| c.is_ascii_digit()),
            Some('@' | '*' | '#' | '?' | '-' | '$' | '!') => self.chars.next().into_iter().collect(),
            _ => self.take_while(|c| c.is_alphabetic() || c.is_ascii_digit() || c == '_'),
        }
    }

    fn take_while(&mut self, accept: impl Fn(char) -> bool) -> String {
        std::iter::from_fn(|| self.chars.next_if(|c| accept(*c))).collect()
    }

    fn variable(&mut self, name: &str) -> Option<String> {
        let value = (self.lookup)(name);
        let names = if value.is_some() { &mut self.matched } else { &mut self.unmatched };
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
        value
    }
}

/// What `:` before an operator changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unset {
    /// Only a variable that is not set counts as unset.
    Only,
    /// So does an empty one.
    OrEmpty,
}

fn required(name: &str, word: String, is_set: bool) -> WordProblem {
    let default = if is_set { "is not allowed to be empty" } else { "is not allowed to be unset" };
    let message = if word.is_empty() { default.to_owned() } else { word };
    WordProblem::Required { name: name.to_owned(), message }
}

fn trim(value: &str, word: &str, operator: char) -> Result<String, WordProblem> {
    let (pattern, extent) = match word.strip_prefix(operator) {
        Some(pattern) => (pattern, Extent::Longest),
        None => (word, Extent::Shortest),
    };
    match operator {
        '#' => pattern::trim_prefix(value, pattern, extent),
        _ => pattern::trim_suffix(value, pattern, extent),
    }
}

fn bounded(result: &str) -> Result<(), WordProblem> {
    if result.len() > MAX_EXPANDED { Err(WordProblem::TooLong) } else { Ok(()) }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Splits {
    AtSpace,
    Nowhere,
}

/// Collects words; quotes alone make no word, as in BuildKit.
#[derive(Debug, Default)]
struct Splitter {
    words: Vec<String>,
    word: String,
}

impl Splitter {
    fn add(&mut self, piece: &str, splits: Splits) {
        if splits == Splits::Nowhere {
            return self.word.push_str(piece);
        }
        for c in piece.chars() {
            if c.is_whitespace() { self.end_word() } else { self.word.push(c) }
        }
    }

    fn end_word(&mut self) {
        if !self.word.is_empty() {
            self.words.push(std::mem::take(&mut self.word));
        }
    }

    fn finish(mut self) -> Vec<String> {
        self.end_word();
        self.words
    }
}

#[cfg(test)]
mod tests;
