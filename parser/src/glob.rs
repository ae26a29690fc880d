//! Go's `filepath.Match` over slash-separated paths: what the wildcards of COPY and ADD mean.
//!
//! `*` and `?` do not match a slash, `[a-z]` and `[^a-z]` are classes, `\` escapes. A malformed pattern is an error
//! wherever the mistake is, also when the path could have been told apart before it.

use std::iter::Peekable;
use std::str::Chars;

use crate::wildcard::{Token, Wildcard};

/// The pattern is malformed, in Go's sense: an unclosed or empty class, a range without an end, a trailing backslash.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("syntax error in pattern {pattern:?}")]
pub struct BadPattern {
    /// The pattern as given.
    pub pattern: String,
}

/// Whether `pattern` matches all of `path`.
pub fn matches(pattern: &str, path: &str) -> Result<bool, BadPattern> {
    Ok(Pattern::new(pattern)?.matches(path))
}

/// Whether `text` holds anything that is special in a pattern.
pub fn has_wildcards(text: &str) -> bool {
    text.contains(['*', '?', '[', '\\'])
}

/// A pattern to be asked about many paths.
#[derive(Debug, Clone)]
pub struct Pattern {
    wildcard: Wildcard,
}

impl Pattern {
    /// Reads a pattern.
    pub fn new(pattern: &str) -> Result<Pattern, BadPattern> {
        let tokens = tokens(pattern).ok_or_else(|| BadPattern { pattern: pattern.to_owned() })?;
        Ok(Pattern { wildcard: Wildcard::new(tokens, '/') })
    }

    /// Whether the pattern matches all of `path`.
    pub fn matches(&self, path: &str) -> bool {
        let path: Vec<char> = path.chars().collect();
        self.wildcard.matches(&path)
    }
}

fn tokens(pattern: &str) -> Option<Vec<Token>> {
    let mut chars = pattern.chars().peekable();
    let mut tokens = Vec::new();
    while let Some(c) = chars.next() {
        tokens.push(match c {
            '*' => Token::Many,
            '?' => Token::Any,
            '[' => class(&mut chars)?,
            '\\' => Token::Literal(chars.next()?),
            c => Token::Literal(c),
        });
    }
    Some(tokens)
}

/// A class whose `[` has been read; `None` when it is malformed.
pub(crate) fn class(chars: &mut Peekable<Chars<'_>>) -> Option<Token> {
    let negated = chars.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    while ranges.is_empty() || chars.next_if_eq(&']').is_none() {
        let low = class_member(chars)?;
        let high = match chars.next_if_eq(&'-') {
            Some(_) => class_member(chars)?,
            None => low,
        };
        ranges.push((low, high));
    }
    Some(Token::Class { negated, ranges })
}

fn class_member(chars: &mut Peekable<Chars<'_>>) -> Option<char> {
    let member = match chars.next()? {
        '-' | ']' => return None,
        '\\' => chars.next()?,
        c => c,
    };
    chars.peek().map(|_| member)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_as_go() {
        let cases = [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*c", "abc", true),
            ("a*", "a", true),
            ("a*", "ab/c", false),
            ("a*/b", "abc/b", true),
            ("a*/b", "a/c/b", false),
            ("a*b*c*d*e*/f", "axbxcxdxexxx/f", true),
            ("a*b*c*d*e*/f", "axbxcxdxe/xxx/f", false),
            ("a*b?c*x", "abxbbxdbxebxczzx", true),
            ("a*b?c*x", "abxbbxdbxebxczzy", false),
            ("ab[c]", "abc", true),
            ("ab[b-d]", "abc", true),
            ("ab[^e-g]", "abc", true),
            ("ab[^b-d]", "abc", false),
            ("a\\*b", "a*b", true),
            ("a\\*b", "ab", false),
            ("a?b", "a☺b", true),
            ("a[^a]b", "a☺b", true),
            ("a???b", "a☺b", false),
            ("[a-ζ]*", "α", true),
            ("*[a-ζ]", "A", false),
            ("a?b", "a/b", false),
            ("a*b", "a/b", false),
            ("[\\]a]", "]", true),
            ("[\\-x]", "-", true),
            ("*x", "xxx", true),
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("**", "a", true),
            ("[^a]b", "/b", true),
        ];
        for (pattern, path, expected) in cases {
            assert_eq!(matches(pattern, path), Ok(expected), "{pattern} {path}");
        }
    }

    #[test]
    fn malformed_patterns_are_refused_wherever_the_mistake_is() {
        for pattern in ["[]a]", "[-]", "[x-]", "[-x]", "\\", "[a-b-c]", "[", "[^", "[^bc", "a[", "b*[", "x\\"]
        {
            assert_eq!(matches(pattern, "ab"), Err(BadPattern { pattern: pattern.into() }), "{pattern}");
        }
    }
}
