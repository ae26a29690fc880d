//! One pattern of moby/patternmatcher. Most are plain names and decided by comparing strings; the others run as a
//! set of states over the path, so that no pattern costs more than its length times that of the path.

use std::iter::Peekable;
use std::str::Chars;

use crate::glob::{self, BadPattern};
use crate::wildcard::Token;

/// A compiled pattern, without its `!`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Pattern {
    /// No wildcard: this path.
    Exact(String),
    /// `text**`: whatever starts with the text.
    Prefix(String),
    /// `**text`: whatever ends with the text; `**/text` also `text` itself.
    Suffix(String),
    /// Anything else.
    Steps(Vec<Step>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// One character, or `*`.
    Token(Token),
    /// `**` or `**/` with something after it: nothing, or anything that ends with a slash.
    Directories,
    /// `**` at the end: anything.
    Rest,
}

impl Pattern {
    pub(super) fn new(text: &str) -> Result<Pattern, BadPattern> {
        let bad = || BadPattern { pattern: text.to_owned() };
        glob::Pattern::new(text)?;
        let plain = |text: &str| !glob::has_wildcards(text);
        if plain(text) {
            return Ok(Pattern::Exact(text.to_owned()));
        }
        match (text.strip_prefix("**"), text.strip_suffix("**")) {
            (Some(rest), _) if plain(rest) => Ok(Pattern::Suffix(rest.to_owned())),
            (_, Some(rest)) if plain(rest) => Ok(Pattern::Prefix(rest.to_owned())),
            _ => steps(text).map(Pattern::Steps).ok_or_else(bad),
        }
    }

    pub(super) fn matches(&self, path: &str) -> bool {
        match self {
            Pattern::Exact(text) => path == text,
            Pattern::Prefix(text) => path.starts_with(text.as_str()),
            Pattern::Suffix(text) => path.ends_with(text.as_str()) || text.strip_prefix('/') == Some(path),
            Pattern::Steps(steps) => States::after(steps, path).finished(steps),
        }
    }

    /// Whether some path that starts with `directory` (which ends with a slash) can match.
    pub(super) fn may_match_below(&self, directory: &str) -> bool {
        match self {
            Pattern::Exact(text) => text.starts_with(directory),
            Pattern::Prefix(text) => text.starts_with(directory) || directory.starts_with(text.as_str()),
            Pattern::Suffix(_) => true,
            Pattern::Steps(steps) => States::after(steps, directory).alive(steps),
        }
    }
}

fn steps(text: &str) -> Option<Vec<Step>> {
    let mut chars = text.chars().peekable();
    let mut steps = Vec::new();
    while let Some(c) = chars.next() {
        steps.push(match c {
            '*' if chars.next_if_eq(&'*').is_some() => double_star(&mut chars),
            '*' => Step::Token(Token::Many),
            '?' => Step::Token(Token::Any),
            '[' => Step::Token(glob::class(&mut chars)?),
            '\\' => Step::Token(Token::Literal(chars.next()?)),
            c => Step::Token(Token::Literal(c)),
        });
    }
    Some(steps)
}

fn double_star(chars: &mut Peekable<Chars<'_>>) -> Step {
    chars.next_if_eq(&'/');
    if chars.peek().is_some() { Step::Directories } else { Step::Rest }
}

/// The places of a pattern that can have been reached. Place `n` stands before step `n`; `inside[n]` means in the
/// middle of a [`Step::Directories`], where only a slash leads on.
struct States {
    before: Vec<bool>,
    inside: Vec<bool>,
}

impl States {
    fn after(steps: &[Step], text: &str) -> States {
        let empty = || States { before: vec![false; steps.len() + 1], inside: vec![false; steps.len()] };
        let mut states = empty();
        states.reach(steps, 0);
        for c in text.chars() {
            let mut next = empty();
            for (place, step) in steps.iter().enumerate() {
                states.advance(steps, place, step, c, &mut next);
            }
            states = next;
        }
        states
    }

    fn advance(&self, steps: &[Step], place: usize, step: &Step, c: char, next: &mut States) {
        match step {
            Step::Token(Token::Many) if self.before[place] && c != '/' => next.reach(steps, place),
            Step::Token(token) if self.before[place] && token.accepts(c, '/') => next.reach(steps, place + 1),
            Step::Rest if self.before[place] => next.reach(steps, place),
            Step::Directories if self.before[place] || self.inside[place] => {
                next.inside[place] = true;
                if c == '/' {
                    next.reach(steps, place + 1);
                }
            }
            _ => {}
        }
    }

    /// Marks a place and those behind it that need no character to get to.
    fn reach(&mut self, steps: &[Step], place: usize) {
        self.before[place] = true;
        let passable =
            matches!(steps.get(place), Some(Step::Token(Token::Many) | Step::Directories | Step::Rest));
        if passable && !self.before[place + 1] {
            self.reach(steps, place + 1);
        }
    }

    fn finished(&self, steps: &[Step]) -> bool {
        self.before[steps.len()]
    }

    /// Whether more text can still lead to a match.
    fn alive(&self, steps: &[Step]) -> bool {
        self.before[..steps.len()].contains(&true) || self.inside.contains(&true)
    }
}
