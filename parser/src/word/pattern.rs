//! The patterns of `${v#p}`, `${v%p}` and `${v/p/r}`: `*` and `?`, no classes; `\` escapes these two and itself.

use super::WordProblem;
use crate::wildcard::{Extent, Token, Wildcard};

/// Text length times pattern length above which an operator is refused: about a second of work.
const MAX_COST: usize = 1 << 30;

/// `${value#pattern}` and, with [`Extent::Longest`], `${value##pattern}`.
pub(super) fn trim_prefix(value: &str, pattern: &str, extent: Extent) -> Result<String, WordProblem> {
    let tokens = compile(pattern)?;
    let text: Vec<char> = value.chars().collect();
    let wildcard = checked(tokens, &text)?;
    let end = wildcard.end(&text, 0, extent).unwrap_or(0);
    Ok(text[end..].iter().collect())
}

/// `${value%pattern}` and `${value%%pattern}`: the same from the other side.
pub(super) fn trim_suffix(value: &str, pattern: &str, extent: Extent) -> Result<String, WordProblem> {
    let mut tokens = compile(pattern)?;
    tokens.reverse();
    let text: Vec<char> = value.chars().rev().collect();
    let wildcard = checked(tokens, &text)?;
    let end = wildcard.end(&text, 0, extent).unwrap_or(0);
    Ok(text[end..].iter().rev().collect())
}

/// `${value/pattern/replacement}`: the leftmost match, as long as possible.
pub(super) fn replace_first(value: &str, pattern: &str, replacement: &str) -> Result<String, WordProblem> {
    let text: Vec<char> = value.chars().collect();
    let wildcard = checked(compile(pattern)?, &text)?;
    let Some((start, end)) = wildcard.find(&text, 0) else {
        return Ok(value.to_owned());
    };
    let (before, after) = (text[..start].iter(), text[end..].iter());
    Ok(before.copied().chain(replacement.chars()).chain(after.copied()).collect())
}

/// `${value//pattern/replacement}`: every match; an empty one right after another match does not count.
pub(super) fn replace_all(value: &str, pattern: &str, replacement: &str) -> Result<String, WordProblem> {
    let text: Vec<char> = value.chars().collect();
    let wildcard = checked(compile(pattern)?, &text)?;
    let mut result = String::new();
    let (mut copied, mut from, mut last_end) = (0, 0, None);
    while let Some((start, end)) = wildcard.find(&text, from) {
        if end > start || last_end != Some(end) {
            result.extend(&text[copied..start]);
            result.push_str(replacement);
            super::bounded(&result)?;
            copied = end;
        }
        last_end = Some(end);
        from = if end > start { end } else { end + 1 };
    }
    result.extend(&text[copied..]);
    Ok(result)
}

fn checked(tokens: Vec<Token>, text: &[char]) -> Result<Wildcard, WordProblem> {
    let wildcard = Wildcard::new(tokens, '\n');
    if wildcard.len().saturating_mul(text.len()) > MAX_COST {
        return Err(WordProblem::TooLong);
    }
    Ok(wildcard)
}

fn compile(pattern: &str) -> Result<Vec<Token>, WordProblem> {
    let mut tokens = Vec::new();
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        tokens.push(match c {
            '*' => Token::Many,
            '?' => Token::Any,
            // These had to be escaped to stand inside of `${}`; the escape is no part of the pattern.
            '\\' if matches!(chars.peek(), Some('}' | '/')) => continue,
            '\\' => match chars.next() {
                Some(c @ ('*' | '?' | '\\')) => Token::Literal(c),
                other => return Err(invalid_escape(pattern, other)),
            },
            c => Token::Literal(c),
        });
    }
    Ok(tokens)
}

fn invalid_escape(pattern: &str, escaped: Option<char>) -> WordProblem {
    let escaped = escaped.map(String::from).unwrap_or_default();
    WordProblem::InvalidPattern {
        pattern: pattern.to_owned(),
        reason: format!("invalid escape '\\{escaped}'"),
    }
}
