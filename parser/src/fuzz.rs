//! What a fuzzer runs: each function takes any bytes, does with them what a build does with text of that kind, and
//! panics where a promise of the crate is broken. `fuzz/` gives them to libFuzzer, `examples/fuzz.rs` to a driver that
//! needs no nightly compiler.
//!
//! Each returns a signature of what happened: inputs of an equal signature teach nothing new.

use std::hash::{DefaultHasher, Hash, Hasher};

use crate::ast::{CopySource, Heredoc, InstructionKind, Span};
use crate::{Diagnostic, Dockerfile, Instruction, Parsed, Severity, dump, ignore, mount, parse, word};

/// A harness.
pub type Harness = fn(&[u8]) -> u64;

/// Every harness by its name.
pub const TARGETS: [(&str, Harness); 4] =
    [("dockerfile", dockerfile), ("heredoc", heredoc), ("ignore", ignore_file), ("word", expansion)];

/// A whole Dockerfile: the tree, its findings, and the raw dump.
pub fn dockerfile(bytes: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(bytes);
    let parsed = parse(&text);
    check_findings(&text, &parsed);
    let dumped = dump::dump(&text);
    if parsed.dockerfile.is_some() {
        assert!(dumped.is_ok(), "the raw parser takes all that the parser takes: {dumped:?}");
    }
    signature(&parsed)
}

/// A RUN or COPY with what follows it, which may be bodies of heredocs.
pub fn heredoc(bytes: &[u8]) -> u64 {
    let rest = String::from_utf8_lossy(bytes);
    let keyword = if bytes.len().is_multiple_of(2) { "RUN" } else { "COPY" };
    let text = format!("FROM a\n{keyword} <<{rest}");
    let parsed = parse(&text);
    check_findings(&text, &parsed);
    for heredoc in parsed.dockerfile.iter().flat_map(heredocs) {
        let written = heredoc.written.as_ref().unwrap_or(&heredoc.content);
        assert_eq!(&text[heredoc.span.start..heredoc.span.end], written, "a body is a part of the text");
        assert!(written.is_empty() || written.ends_with('\n'), "a body ends before its delimiter's line");
        if heredoc.expand {
            let _ = word::expand_heredoc(&heredoc.content, &variable);
        }
    }
    signature(&parsed)
}

/// The lines of an ignore file up to an empty one, then paths.
pub fn ignore_file(bytes: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(bytes);
    let (patterns, paths) = text.split_once("\n\n").unwrap_or((&text, "a/b"));
    let Ok(matcher) = ignore::Matcher::new(&ignore::read(patterns)) else { return 0 };
    let mut hasher = DefaultHasher::new();
    for path in paths.lines().take(16) {
        let excluded = matcher.matches(path);
        assert_eq!(excluded, matcher.decide(path).is_some(), "{path:?}");
        let pruned = matcher.can_prune(path);
        let below = format!("{}/x", path.trim_end_matches('/'));
        assert!(!pruned || matcher.matches(&below), "{below:?} comes back below a pruned directory");
        (excluded, pruned).hash(&mut hasher);
    }
    patterns.lines().take(8).for_each(|line| shape(line).hash(&mut hasher));
    hasher.finish()
}

/// A word, expanded in every way that there is; also as the value of `--mount`.
pub fn expansion(bytes: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(bytes);
    let escape = if bytes.first() == Some(&b'`') { '`' } else { '\\' };
    let expanded = word::expand(&text, escape, &variable);
    if let Ok(expanded) = &expanded {
        assert!(expanded.value.len() <= word::MAX_EXPANDED, "{} bytes", expanded.value.len());
    }
    let words = word::expand_to_words(&text, escape, &variable);
    assert_eq!(words.is_ok(), expanded.is_ok(), "splitting changes no mistake: {text:?}");
    let _ = word::expand_heredoc(&text, &variable);
    let _ = word::expand_for_display(&text, escape, &variable);
    let mut hasher = DefaultHasher::new();
    match &expanded {
        Ok(expanded) => (expanded.matched.len(), expanded.unmatched.len()).hash(&mut hasher),
        Err(error) => std::mem::discriminant(&error.problem).hash(&mut hasher),
    }
    mount::parse(&text).is_ok().hash(&mut hasher);
    shape(&text).hash(&mut hasher);
    hasher.finish()
}

fn variable(name: &str) -> Option<String> {
    match name {
        "a" => Some("value".to_owned()),
        "b" => Some(String::new()),
        "long" => Some("x/y.z ".repeat(50)),
        _ => None,
    }
}

fn check_findings(text: &str, parsed: &Parsed) {
    let has_error = parsed.diagnostics.iter().any(|found| found.severity == Severity::Error);
    assert_eq!(parsed.dockerfile.is_none(), has_error, "a tree is given exactly when there is no mistake");
    let inside = |span: Span| {
        assert!(text.get(span.start..span.end).is_some(), "{span:?} is no part of the text");
    };
    parsed.diagnostics.iter().for_each(|found| inside(found.span));
    let stages = parsed.dockerfile.iter().flat_map(|dockerfile| &dockerfile.stages);
    for stage in stages {
        inside(stage.span);
        stage.instructions.iter().for_each(|instruction| inside(instruction.span));
    }
}

fn heredocs(dockerfile: &Dockerfile) -> Vec<&Heredoc> {
    dockerfile.stages.iter().flat_map(|stage| &stage.instructions).flat_map(heredocs_of).collect()
}

fn heredocs_of(instruction: &Instruction) -> Vec<&Heredoc> {
    match &instruction.kind {
        InstructionKind::Run(run) => run.heredocs.iter().collect(),
        InstructionKind::Copy(copy) | InstructionKind::Add(copy) => {
            copy.sources.iter().filter_map(inline).collect()
        }
        _ => Vec::new(),
    }
}

fn inline(source: &CopySource) -> Option<&Heredoc> {
    match source {
        CopySource::Heredoc(heredoc) => Some(heredoc),
        CopySource::Path(_) => None,
    }
}

/// Kinds of instructions and of findings, in order.
fn signature(parsed: &Parsed) -> u64 {
    let mut hasher = DefaultHasher::new();
    let stages = parsed.dockerfile.iter().flat_map(|dockerfile| &dockerfile.stages);
    for instruction in stages.flat_map(|stage| &stage.instructions).take(8) {
        std::mem::discriminant(&instruction.kind).hash(&mut hasher);
    }
    let found = |found: &Diagnostic| (found.rule, shape(&found.message));
    parsed.diagnostics.iter().take(4).map(found).for_each(|found| found.hash(&mut hasher));
    hasher.finish()
}

/// The first kinds of characters of a text, runs of letters and digits as one.
fn shape(text: &str) -> String {
    let mut shape = String::new();
    for c in text.chars().map(|c| if c.is_alphanumeric() { 'a' } else { c }).take(64) {
        if c != 'a' || !shape.ends_with('a') {
            shape.push(c);
        }
    }
    shape.truncate(shape.floor_char_boundary(12));
    shape
}
