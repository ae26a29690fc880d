//! Which paths `.dockerignore` (and `COPY --exclude`) takes out: the pattern language of moby/patternmatcher.
//!
//! Patterns are relative to the root, whatever they look like; `*` and `?` stop at a slash, `**` does not; a leading
//! `!` takes back what an earlier pattern excluded; the last pattern that matches a path *or one of its parents*
//! decides. What matched a directory is carried down to what lies in it, as BuildKit does while it walks a context:
//! a pattern that had nothing to decide at the directory is not asked about that directory again further down.

mod pattern;

use crate::glob::BadPattern;
use pattern::Pattern;

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
pub struct Matcher {
    rules: Vec<Rule>,
}

#[derive(Debug, Clone)]
struct Rule {
    /// Place in the list given to [`Matcher::new`].
    index: usize,
    /// `!`: takes back instead of excluding.
    exception: bool,
    pattern: Pattern,
}

/// What the patterns say about one path, kept to decide about what lies below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// For each rule, whether it matched here or further up.
    matched: Vec<bool>,
    /// The rule that excludes the path.
    decided_by: Option<usize>,
}

impl Verdict {
    /// Whether the path is excluded.
    pub fn excluded(&self) -> bool {
        self.decided_by.is_some()
    }
}

impl Matcher {
    /// Compiles `patterns`, in order. Empty ones are skipped.
    pub fn new(patterns: &[String]) -> Result<Matcher, IgnoreError> {
        let mut rules = Vec::new();
        for (index, text) in patterns.iter().enumerate() {
            if text.trim().is_empty() {
                continue;
            }
            let cleaned = clean(text.trim());
            let (exception, text) = match cleaned.strip_prefix('!') {
                Some("") => return Err(IgnoreError::LoneExclamation),
                Some(rest) => (true, rest),
                None => (false, cleaned.as_str()),
            };
            rules.push(Rule { index, exception, pattern: Pattern::new(text)? });
        }
        Ok(Matcher { rules })
    }

    /// Whether `path` (slash-separated, relative) is excluded. The root itself (`.`) never is.
    pub fn matches(&self, path: &str) -> bool {
        self.judge(path).excluded()
    }

    /// Index, in the list given to [`Matcher::new`], of the pattern that excludes `path`; `None` when nothing does.
    pub fn decide(&self, path: &str) -> Option<usize> {
        self.judge(path).decided_by.map(|rule| self.rules[rule].index)
    }

    /// The verdict on the root, where a walk begins.
    pub fn root(&self) -> Verdict {
        Verdict { matched: vec![false; self.rules.len()], decided_by: None }
    }

    /// The verdict on `path`, given that on its parent: one step of a walk.
    pub fn enter(&self, parent: &Verdict, path: &str) -> Verdict {
        let mut verdict = self.root();
        for (number, rule) in self.rules.iter().enumerate() {
            // An exclusion has nothing to add to an excluded path, nor an exception to one that is not.
            let idle = verdict.excluded() != rule.exception;
            let matched = parent.matched[number] || (!idle && rule.pattern.matches(path));
            verdict.matched[number] = matched;
            if matched {
                verdict.decided_by = if rule.exception { None } else { verdict.decided_by.or(Some(number)) };
            }
        }
        verdict
    }

    /// Whether `directory` is excluded and no exception can bring back anything below it.
    pub fn can_prune(&self, directory: &str) -> bool {
        self.can_prune_at(&self.judge(directory), directory)
    }

    /// [`Matcher::can_prune`] for a walk that has the verdict on the directory already.
    pub fn can_prune_at(&self, verdict: &Verdict, directory: &str) -> bool {
        let Some(decider) = verdict.decided_by else {
            return false;
        };
        let below = format!("{}/", directory.trim_end_matches('/'));
        !self.rules[decider..].iter().any(|rule| rule.exception && rule.pattern.may_match_below(&below))
    }

    fn judge(&self, path: &str) -> Verdict {
        let path = path.strip_prefix("./").unwrap_or(path);
        let root = self.root();
        if path.is_empty() || path == "." {
            return root;
        }
        let path = path.trim_end_matches('/');
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        ends.fold(root, |parent, end| self.enter(&parent, &path[..end]))
    }
}

/// The patterns of a `.dockerignore` file's text.
pub fn read(text: &str) -> Vec<String> {
    read_lines(text).into_iter().map(|(_, pattern)| pattern).collect()
}

/// The same with the number of the line each pattern stands in, counted from 1.
pub fn read_lines(text: &str) -> Vec<(usize, String)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines = text.lines().enumerate().filter(|(_, line)| !line.starts_with('#'));
    lines.filter_map(|(index, line)| Some((index + 1, read_pattern(line)?))).collect()
}

fn read_pattern(line: &str) -> Option<String> {
    let line = line.trim();
    let (mark, path) = match line.strip_prefix('!') {
        Some(rest) => ("!", rest.trim()),
        None if line.is_empty() => return None,
        None => ("", line),
    };
    if path.is_empty() {
        return Some(mark.to_owned());
    }
    let path = clean(path);
    let relative = path.strip_prefix('/').filter(|rest| !rest.is_empty()).unwrap_or(&path);
    Some(format!("{mark}{relative}"))
}

/// Go's `path.Clean`: no empty and no `.` elements, `..` takes the element before it, never an empty result.
fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut kept: Vec<&str> = Vec::new();
    for element in path.split('/') {
        match element {
            "" | "." => {}
            ".." if kept.last().is_some_and(|last| *last != "..") => drop(kept.pop()),
            ".." if rooted => {}
            element => kept.push(element),
        }
    }
    let joined = kept.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => String::from("."),
        (false, false) => joined,
    }
}

#[cfg(test)]
mod tests;
