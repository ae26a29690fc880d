//! Failures as text: the place in the Dockerfile with its line and a caret, the last lines of the step that failed,
//! what happened, and what to do about it.
//!
//! The text may hold colours; the stream it is written to takes them out where they do not belong. Credentials in URLs
//! are taken out here.

use std::fmt::Write;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use parser::{Diagnostic, Severity, Span};
use solver::VertexId;

use crate::{
    failure::{Failure, chain},
    progress::Board,
    redact::redact,
    request::Source,
};

/// Lines around the one that failed.
const CONTEXT_LINES: usize = 2;
const ERROR: &str = "\x1b[1m\x1b[91merror\x1b[0m";
const HINT: &str = "\x1b[1m\x1b[96mhint\x1b[0m";

/// What a failure is told with.
#[derive(Default)]
pub struct Evidence<'a> {
    /// The Dockerfile, once it is read.
    pub source: Option<&'a Source>,
    /// What the progress knew at the end.
    pub board: Option<&'a Board>,
    /// How many of a failed step's last lines are shown.
    pub tail: usize,
}

/// The text of a failure, with a line end.
pub fn render(failure: &Failure, evidence: &Evidence<'_>) -> String {
    let text = match (failure, evidence.source) {
        (Failure::Dockerfile { diagnostics }, Some(source)) => render_diagnostics(diagnostics, source),
        (Failure::Image { span, failure: image }, Some(source)) => {
            let found =
                Diagnostic { hint: image.hint.clone(), ..Diagnostic::error(*span, chain(image.as_ref())) };
            render_diagnostics(&[found], source)
        }
        (Failure::Step { vertex, label, span, .. }, Some(source)) => {
            let mut text = output_of(*vertex, label, evidence);
            if let Some(span) = span {
                text.push_str(&excerpt(source, *span));
            }
            text + &message(failure)
        }
        _ => message(failure),
    };
    redact(&text).into_owned()
}

/// One line of a finding that does not stop the build: `JSONArgsRecommended: ... (Dockerfile:3)`.
pub fn warning_line(found: &Diagnostic, source: &Source) -> String {
    let line = line_of(&source.text, found.span.start);
    let rule = found.rule.map(|rule| format!("{rule}: ")).unwrap_or_default();
    format!("{rule}{} ({}:{line})", found.message, source.name)
}

fn message(failure: &Failure) -> String {
    simple(&chain(failure), failure.hint())
}

/// An error that has no place in a file.
pub fn simple(message: &str, hint: Option<&str>) -> String {
    let mut text = format!("{ERROR}: {message}\n");
    if let Some(hint) = hint {
        let _ = writeln!(text, "{HINT}: {hint}");
    }
    text
}

/// Errors first come first; findings that are only doubtful have been told as warnings.
fn render_diagnostics(diagnostics: &[Diagnostic], source: &Source) -> String {
    let errors = diagnostics.iter().filter(|found| found.severity == Severity::Error);
    errors.map(|found| render_diagnostic(found, source)).collect::<Vec<_>>().join("\n")
}

fn render_diagnostic(found: &Diagnostic, source: &Source) -> String {
    let span = inside(&source.text, found.span);
    let snippet = Snippet::source(&source.text)
        .path(&source.name)
        .annotation(AnnotationKind::Primary.span(span.start..span.end));
    let group = Level::ERROR.primary_title(&found.message).element(snippet);
    let group = match &found.hint {
        Some(hint) => group.element(Level::HELP.with_name("hint").message(hint)),
        None => group,
    };
    Renderer::styled().render(&[group]) + "\n"
}

/// The span cut to the text and to its first line, which is where the mistake is: a heredoc's body says no more.
fn inside(text: &str, span: Span) -> Span {
    let start = floor_boundary(text, span.start.min(text.len()));
    let end = floor_boundary(text, span.end.clamp(start, text.len()));
    let first_line = text[start..end].find('\n').map_or(end, |at| start + at);
    Span { start, end: first_line }
}

fn floor_boundary(text: &str, at: usize) -> usize {
    (0..=at).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// The last lines a step has written, set apart from everything else.
fn output_of(vertex: VertexId, label: &str, evidence: &Evidence<'_>) -> String {
    let step = evidence.board.and_then(|board| board.step(vertex));
    let Some(step) = step.filter(|step| !step.tail.is_empty()) else { return String::new() };
    let shown = step.tail.len().min(evidence.tail);
    let mut text = format!("------\n > {label}:\n");
    if step.lines > shown as u64 {
        let _ = writeln!(text, "({} earlier lines are not repeated)", step.lines - shown as u64);
    }
    for line in step.tail.iter().skip(step.tail.len() - shown) {
        let _ = writeln!(text, "{:.3} {}", line.at.as_secs_f64(), line.harmless());
    }
    text + "------\n"
}

/// The lines of an instruction, marked, and those around it.
fn excerpt(source: &Source, span: Span) -> String {
    let span = Span { start: span.start.min(source.text.len()), end: span.end.min(source.text.len()) };
    let last_byte = span.end.saturating_sub(1).max(span.start);
    let (first, last) = (line_of(&source.text, span.start), line_of(&source.text, last_byte));
    let mut text = format!("{}:{first}\n--------------------\n", source.name);
    for (index, line) in source.text.lines().enumerate() {
        let number = index + 1;
        if number + CONTEXT_LINES < first || number > last + CONTEXT_LINES {
            continue;
        }
        let mark = if (first..=last).contains(&number) { ">>>" } else { "   " };
        let _ = writeln!(text, "{}", format!(" {number:3} | {mark} {line}").trim_end());
    }
    text + "--------------------\n"
}

/// The number of the line a byte is in, from 1.
fn line_of(text: &str, byte: usize) -> usize {
    text.as_bytes()[..byte.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use solver::{Event, FailureKind, StepFailure, Stream};

    use super::*;

    fn source(text: &str) -> Source {
        Source { name: "Dockerfile".to_owned(), text: text.to_owned() }
    }

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn all_mistakes_are_told_with_their_places() {
        let source = source("FROM a\nRUNN make\nCOPY x\n");
        let diagnostics = vec![
            Diagnostic::error(Span { start: 7, end: 11 }, "unknown instruction: RUNN")
                .hint("did you mean RUN?"),
            Diagnostic::warning("Some", Span { start: 0, end: 1 }, "not told here"),
            Diagnostic::error(Span { start: 17, end: 99 }, "COPY requires at least two arguments"),
        ];
        let failure = Failure::Dockerfile { diagnostics };
        let text = plain(&render(&failure, &Evidence { source: Some(&source), ..Evidence::default() }));
        assert!(text.contains("error: unknown instruction: RUNN\n --> Dockerfile:2:1\n"), "{text}");
        assert!(text.contains("^^^^") && text.contains("= hint: did you mean RUN?"), "{text}");
        assert!(text.contains(" --> Dockerfile:3:1\n") && !text.contains("not told here"), "{text}");
        assert_eq!(failure.exit_code(), 2);
    }

    #[test]
    fn spans_outside_the_text_do_not_end_the_process() {
        for (start, end) in [(0, 0), (50, 60), (3, 2), (4, 4)] {
            let source = source("FRÖM");
            let failure =
                Failure::Dockerfile { diagnostics: vec![Diagnostic::error(Span { start, end }, "bad")] };
            let text = render(&failure, &Evidence { source: Some(&source), ..Evidence::default() });
            assert!(plain(&text).starts_with("error: bad"), "{text}");
        }
    }

    #[test]
    fn a_failed_step_is_told_with_its_output_and_its_lines() {
        let source = source("FROM a\n\nRUN make \\\n  all\nCMD x\nUSER y\nENV z=1\n");
        let mut board = Board::default();
        let step = VertexId(0);
        board.apply(Duration::ZERO, &Event::Planned(vec![(step, "[2/2] RUN make   all".to_owned())]));
        board.apply(Duration::ZERO, &Event::Started(step));
        for line in ["one", "two", "\x1b[2Jthree"] {
            board.apply(Duration::from_millis(1500), &Event::Log(step, Stream::Stdout, line.into()));
        }
        board.apply(Duration::from_millis(1600), &Event::Failed(step, "exit code: 2".to_owned()));
        let mut failure =
            StepFailure::new(FailureKind::Build, "process \"make\" did not succeed: exit code: 2");
        failure.hint = Some("see https://me:secret@host/".to_owned());
        let span = Some(Span { start: 8, end: 24 });
        let failure = Failure::Step {
            vertex: step,
            label: "[2/2] RUN make   all".to_owned(),
            span,
            failure: Box::new(failure),
        };
        let evidence = Evidence { source: Some(&source), board: Some(&board), tail: 2 };
        let want = "------\n > [2/2] RUN make   all:\n(1 earlier lines are not repeated)\n1.500 two\n1.500 three\n------\n\
                    Dockerfile:3\n--------------------\n   1 |     FROM a\n   2 |\n   3 | >>> RUN make \\\n   4 | >>>   all\n\
                    \u{20}  5 |     CMD x\n   6 |     USER y\n--------------------\n\
                    error: process \"make\" did not succeed: exit code: 2\nhint: see https://***@host/\n";
        assert_eq!(plain(&render(&failure, &evidence)), want);
        assert_eq!(failure.exit_code(), 1);
    }

    #[test]
    fn a_warning_is_one_line() {
        let source = source("FROM a\nMAINTAINER me\n");
        let found = Diagnostic::warning("MaintainerDeprecated", Span { start: 7, end: 17 }, "use a label");
        assert_eq!(warning_line(&found, &source), "MaintainerDeprecated: use a label (Dockerfile:2)");
    }
}
