//! Input that nobody writes by accident: it must be answered with an error, soon, and without a panic.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use crate::ast::{CopySource, InstructionKind, Span, Word};
use crate::{Dockerfile, MAX_BYTES, MAX_ERRORS, MAX_INSTRUCTIONS, MAX_WORDS, Parsed, parse};

/// Generous for a debug build on a busy machine; what it guards against takes hours.
const LIMIT: Duration = Duration::from_secs(30);

fn timed(text: &str) -> Parsed {
    let start = Instant::now();
    let parsed = parse(text);
    assert!(start.elapsed() < LIMIT, "took {:?}", start.elapsed());
    parsed
}

fn first_error(text: &str) -> String {
    let parsed = timed(text);
    assert!(parsed.dockerfile.is_none());
    parsed.diagnostics.into_iter().map(|diagnostic| diagnostic.message).next().expect("there is an error")
}

#[test]
fn what_is_too_large_is_refused() {
    let large = format!("FROM x\nRUN {}", "a".repeat(MAX_BYTES));
    assert_eq!(first_error(&large), "the Dockerfile is larger than 16 MiB");
    let many = format!("FROM x\n{}", "RUN\n".repeat(MAX_INSTRUCTIONS));
    assert_eq!(first_error(&many), "the Dockerfile has more than 100000 instructions");
    for words in ["ARG a a ", "COPY [\"a\",\"a\"", "ENV a=b a=b "] {
        let unit = &words[words.len() / 2..];
        let many = format!("FROM x\n{words}{}\n", unit.repeat(MAX_WORDS));
        assert_eq!(first_error(&many), "the Dockerfile has more than 500000 words");
    }
}

#[test]
fn nul_bytes_are_refused() {
    assert_eq!(first_error("FROM x\nRUN a\0b\n"), "the Dockerfile holds a NUL byte");
}

#[test]
fn mistakes_are_counted() {
    let parsed = timed(&format!("FROM x\n{}", "FOO\n".repeat(500_000)));
    assert_eq!(parsed.diagnostics.len(), MAX_ERRORS + 1);
    let last = parsed.diagnostics.last().map(|diagnostic| diagnostic.message.as_str());
    assert_eq!(last, Some("too many mistakes; the rest is left out"));
    let stages = timed(&"FROM x AS A\n".repeat(10_000));
    assert!(stages.dockerfile.is_some() && stages.diagnostics.len() > MAX_ERRORS, "warnings are no mistakes");
    let gaps = timed(&format!("FROM x\n{}", "RUN a \\\n\nb\n".repeat(1_000)));
    assert!(gaps.dockerfile.is_some() && gaps.diagnostics.len() == 1_000, "warnings are no mistakes");
}

#[test]
fn an_open_heredoc_is_an_error() {
    let body = "line\n".repeat(1 << 20);
    assert_eq!(first_error(&format!("FROM x\nRUN <<EOF\n{body}")), "unterminated heredoc");
    let many = "<<A ".repeat(100_000);
    assert_eq!(first_error(&format!("FROM x\nRUN {many}\n")), "unterminated heredoc");
}

#[test]
fn large_but_lawful_files_are_read() {
    let arguments: String = (0..200_000).map(|number| format!(" A{number}=x")).collect();
    assert!(timed(&format!("ARG{arguments}\nFROM x\n")).dockerfile.is_some());
    let continued = "a \\\n".repeat(400_000);
    assert!(timed(&format!("FROM x\nRUN {continued}b\n")).dockerfile.is_some());
    let deep = "${a:-".repeat(100_000);
    assert!(timed(&format!("FROM x\nENV a={deep}\nRUN cat <<E {deep}\nE\n")).dockerfile.is_none());
    let array = "[".repeat(1_000_000);
    assert!(timed(&format!("FROM x\nRUN {array}\n")).dockerfile.is_some());
    let stages: String = (0..10_000).map(|number| format!("FROM x AS s{number}\n")).collect();
    assert!(timed(&stages).dockerfile.is_some());
}

fn words(dockerfile: &Dockerfile) -> Vec<&Word> {
    let instructions = dockerfile.stages.iter().flat_map(|stage| &stage.instructions);
    let own = instructions.flat_map(|instruction| match &instruction.kind {
        InstructionKind::Arg(names) => names.iter().map(|name| &name.name).collect(),
        InstructionKind::Env(values) | InstructionKind::Label(values) => {
            values.pairs.iter().flat_map(|(key, value)| [key, value]).collect()
        }
        InstructionKind::Copy(copy) | InstructionKind::Add(copy) => {
            let paths = copy.sources.iter().filter_map(|source| match source {
                CopySource::Path(word) => Some(word),
                CopySource::Heredoc(_) => None,
            });
            paths.chain([&copy.destination]).chain(&copy.from).collect()
        }
        InstructionKind::Expose(words) | InstructionKind::Volume(words) => words.iter().collect(),
        InstructionKind::User(word) | InstructionKind::Workdir(word) => vec![word],
        _ => Vec::new(),
    });
    own.chain(dockerfile.stages.iter().map(|stage| &stage.base)).collect()
}

fn check_spans(text: &str) {
    let parsed = parse(text);
    let has_error = parsed.diagnostics.iter().any(|diagnostic| diagnostic.severity == crate::Severity::Error);
    assert_eq!(parsed.dockerfile.is_none(), has_error);
    let inside = |span: Span| {
        assert!(span.start <= span.end, "{span:?}");
        assert!(text.get(span.start..span.end).is_some(), "{span:?} is not a part of {text:?}");
    };
    parsed.diagnostics.iter().for_each(|diagnostic| inside(diagnostic.span));
    let Some(dockerfile) = &parsed.dockerfile else { return };
    for stage in &dockerfile.stages {
        inside(stage.span);
        stage.instructions.iter().for_each(|instruction| inside(instruction.span));
    }
    for word in words(dockerfile) {
        inside(word.span);
        // Where a word was not broken over lines and is no JSON, its span is exactly its text.
        let source = &text[word.span.start..word.span.end];
        assert!(
            source.contains(['\n', '"']) || source.trim() == word.value,
            "{source:?} is not {:?}",
            word.value
        );
    }
}

proptest! {
    #[test]
    fn any_text_is_parsed_or_refused(text in "(.|\n|\r){0,80}") {
        check_spans(&text);
    }

    #[test]
    fn anything_like_a_dockerfile_is_parsed_or_refused(
        lines in prop::collection::vec(
            "(FROM a|from b as B|RUN|COPY|ADD|ENV|LABEL|ARG|EXPOSE|VOLUME|USER|WORKDIR|CMD|HEALTHCHECK|ONBUILD|SHELL|\
             E|# escape=`|#)( --[a-z]{1,4}(=[a-z\"' \\\\]{0,3})?)?([ a-z=/:$é\"'\\\\`\\[\\],<\t-]|<<E|\\\\\n){0,12}[\\\\` \r]?",
            0..6,
        ),
    ) {
        check_spans(&lines.join("\n"));
        check_spans(&format!("FROM a\n{}\n", lines.join("\n")));
    }
}
