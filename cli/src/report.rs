//! Failures as text: the place in the Dockerfile with its line and a caret, the last lines of the step that failed,
//! what happened, and what to do about it.
//!
//! The text may hold colours; the stream it is written to takes them out where they do not belong. Credentials in URLs
//! are taken out here.

use std::{
    fmt::Write as _,
    io::{self, Write},
};

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use parser::{Diagnostic, Severity, Span};

use crate::{
    failure::{Failure, chain},
    inputs::Source,
    progress::{Earlier, Gap, Line, Piece, Step},
    redact::redact,
};

/// How many last lines of a failed step are repeated where they have been shown already.
const REPEATED_LINES: usize = 20;
/// Lines around the one that failed.
const CONTEXT_LINES: usize = 2;
/// Lines of an instruction that are shown besides its first.
const MARKED_LINES: usize = 200;
const ERROR: &str = "\x1b[1m\x1b[91merror\x1b[0m";
const HINT: &str = "\x1b[1m\x1b[96mhint\x1b[0m";

/// The text of a failure, with a line end.
pub fn render(failure: &Failure, source: Option<&Source>) -> String {
    let text = match (failure, source) {
        (Failure::Dockerfile { diagnostics } | Failure::Checked { diagnostics, .. }, Some(source)) => {
            render_diagnostics(diagnostics, source)
        }
        (Failure::Image { span, failure: image }, Some(source)) => {
            let found =
                Diagnostic { hint: image.hint.clone(), ..Diagnostic::error(*span, chain(image.as_ref())) };
            render_diagnostics(&[found], source)
        }
        (Failure::Step { span: Some(span), .. }, Some(source)) => excerpt(source, *span) + &message(failure),
        (Failure::Step { label, .. }, _) => simple(&format!("{label}: {}", chain(failure)), failure.hint()),
        _ => message(failure),
    };
    redact(&text).into_owned()
}

/// One line of a finding that does not stop the build: `JSONArgsRecommended: ... (Dockerfile:3)`. What is about the command
/// line alone has neither a rule nor a place.
pub fn warning_line(found: &Diagnostic, source: &Source) -> String {
    let place = || format!("({}:{})", source.name, source.line_of(found.span.start));
    match found.rule {
        Some(rule) => format!("{rule}: {} {}", found.message, place()),
        None if found.span != Span::default() => format!("{} {}", found.message, place()),
        None => found.message.clone(),
    }
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
    let (number, span) = in_line(source, found.span);
    let snippet = Snippet::source(source.line(number))
        .line_start(number)
        .path(&source.name)
        .annotation(AnnotationKind::Primary.span(span.start..span.end));
    let group = Level::ERROR.primary_title(&found.message).element(snippet);
    let group = match &found.hint {
        Some(hint) => group.element(Level::HELP.with_name("hint").message(hint)),
        None => group,
    };
    Renderer::styled().render(&[group]) + "\n"
}

/// The first line of a span, which is where the mistake is (a heredoc's body says no more), and the part of it in that
/// line. What is at the end of the text is shown behind its last line.
fn in_line(source: &Source, span: Span) -> (usize, Span) {
    let number = source.line_of(span.start).min(source.line_count().max(1));
    let (start, line) = (source.line_start(number), source.line(number));
    let inside = |byte: usize| floor_boundary(line, byte.saturating_sub(start).min(line.len()));
    (number, Span { start: inside(span.start), end: inside(span.end.max(span.start)) })
}

fn floor_boundary(text: &str, at: usize) -> usize {
    (0..=at).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// What a failed step has written, set apart from everything else: all of it, but for earlier lines that the progress
/// has shown already.
///
/// # Errors
/// Nobody is there to read it.
pub fn write_output(out: &mut dyn Write, step: Step) -> io::Result<()> {
    let Step { label, tail, earlier, .. } = step;
    if tail.is_empty() {
        return Ok(());
    }
    writeln!(out, "------\n > {label}:")?;
    let skipped = match earlier {
        Earlier::Kept(spool) => {
            let kept = spool.drain(|piece| match piece {
                Piece::Line(line) => write_line(out, &line),
                Piece::Gap(gap) => write_gap(out, &gap),
            });
            kept.or_else(|error| writeln!(out, "(earlier lines could not be kept: {error})"))?;
            0
        }
        Earlier::Shown(lines) => {
            let repeated = tail.len().min(REPEATED_LINES);
            let skipped = tail.len() - repeated;
            match lines + skipped as u64 {
                0 => {}
                1 => writeln!(out, "(an earlier line is not repeated)")?,
                lines => writeln!(out, "({lines} earlier lines are not repeated)")?,
            }
            skipped
        }
    };
    tail.iter().skip(skipped).try_for_each(|line| write_line(out, line))?;
    writeln!(out, "------")
}

/// What is missing between a step's first lines and its last.
fn write_gap(out: &mut dyn Write, Gap { lines, error }: &Gap) -> io::Result<()> {
    match error {
        Some(error) => writeln!(out, "({lines} earlier lines could not be kept: {error})"),
        None => {
            writeln!(out, "({lines} lines are left out: only the beginning and the end of so much are kept)")
        }
    }
}

fn write_line(out: &mut dyn Write, line: &Line) -> io::Result<()> {
    writeln!(out, "{:.3} {}", line.at.as_secs_f64(), line.harmless())
}

/// The lines of an instruction, marked, and those around it.
pub fn excerpt(source: &Source, span: Span) -> String {
    let last_byte = span.end.saturating_sub(1).max(span.start);
    let (first, last) = (source.line_of(span.start), source.line_of(last_byte));
    let mut text = format!("{}:{first}\n--------------------\n", source.name);
    let shown = last.min(first + MARKED_LINES);
    let to = (shown + CONTEXT_LINES).min(source.line_count());
    for number in first.saturating_sub(CONTEXT_LINES).max(1)..=to {
        let mark = if (first..=last).contains(&number) { ">>>" } else { "   " };
        let _ = writeln!(text, "{}", format!(" {number:3} | {mark} {}", source.line(number)).trim_end());
    }
    if to < last {
        let _ = writeln!(text, "       ({} more lines)", last - to);
    }
    text + "--------------------\n"
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use solver::{Event, FailureKind, StepFailure, Stream, VertexId};

    use super::*;
    use crate::progress::Board;

    fn source(text: &str) -> Source {
        Source::new("Dockerfile", text)
    }

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn a_warning_says_its_line_where_it_has_one() {
        let source = source("FROM a\nARG b\n");
        let span = Span { start: 7, end: 12 };
        assert_eq!(warning_line(&Diagnostic::warning("R", span, "m"), &source), "R: m (Dockerfile:2)");
        assert_eq!(warning_line(&Diagnostic::notice("m"), &source), "m");
        assert_eq!(
            warning_line(&Diagnostic { span, ..Diagnostic::notice("m") }, &source),
            "m (Dockerfile:2)"
        );
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
        let text = plain(&render(&failure, Some(&source)));
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
            let text = render(&failure, Some(&source));
            assert!(plain(&text).starts_with("error: bad"), "{text}");
        }
    }

    /// A board whose only step has written these lines and failed.
    fn failed_step(mut board: Board, lines: usize) -> Step {
        let step = VertexId(0);
        board.apply(Duration::ZERO, &Event::Planned(vec![(step, "[2/2] RUN make".to_owned())]));
        board.apply(Duration::ZERO, &Event::Started(step));
        for line in 1..=lines {
            let text = format!("\x1b[2Jline {line}").into_bytes();
            board.apply(Duration::from_millis(1500), &Event::Log(step, Stream::Stdout, text));
        }
        board.apply(Duration::from_millis(1600), &Event::Failed(step, "exit code: 2".to_owned()));
        board.take_step(step).expect("it is there")
    }

    fn output(step: Step) -> String {
        let mut text = Vec::new();
        write_output(&mut text, step).expect("memory does not fail");
        plain(&String::from_utf8(text).expect("UTF-8"))
    }

    #[test]
    fn a_failed_step_is_told_with_its_lines_in_the_dockerfile() {
        let source = source("FROM a\n\nRUN make \\\n  all\nCMD x\nUSER y\nENV z=1\n");
        let failure = StepFailure::new(FailureKind::Build, "process \"make\" did not succeed: exit code: 2");
        let failure = Box::new(failure.hint("see https://me:secret@host/"));
        let span = Some(Span { start: 8, end: 24 });
        let failure = Failure::Step { vertex: VertexId(0), label: String::new(), span, failure };
        let want = "Dockerfile:3\n--------------------\n   1 |     FROM a\n   2 |\n   3 | >>> RUN make \\\n   4 | >>>   all\n\
                    \u{20}  5 |     CMD x\n   6 |     USER y\n--------------------\n\
                    error: process \"make\" did not succeed: exit code: 2\nhint: see https://***@host/\n";
        assert_eq!(plain(&render(&failure, Some(&source))), want);
        assert_eq!(failure.exit_code(), 1);
    }

    #[test]
    fn what_was_shown_is_repeated_only_at_its_end() {
        let short = "------\n > [2/2] RUN make:\n1.500 line 1\n1.500 line 2\n------\n";
        assert_eq!(output(failed_step(Board::default(), 2)), short);
        let long = output(failed_step(Board::default(), 1000));
        assert!(long.contains("(980 earlier lines are not repeated)\n1.500 line 981\n"), "{long}");
        assert_eq!(output(failed_step(Board::default(), 0)), "");
    }

    #[test]
    fn what_was_not_shown_is_told_from_the_first_line_on() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let text = output(failed_step(Board::keeping_lines(directory.path().to_owned()), 1000));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((lines.len(), lines[2], lines[1001]), (1003, "1.500 line 1", "1.500 line 1000"));
        let nowhere = Board::keeping_lines(directory.path().join("gone"));
        let text = output(failed_step(nowhere, 100_000));
        let (before, after) =
            text.split_once(" earlier lines could not be kept: No such file").expect("it is told");
        let (head, lost) = before.rsplit_once('(').expect("a number");
        let told = |text: &str| text.lines().filter(|line| line.starts_with("1.500 line ")).count();
        assert_eq!(told(head) + lost.parse::<usize>().expect("a number") + told(after), 100_000, "{lost}");
        assert!(
            head.contains("1.500 line 1000\n") && after.contains("1.500 line 99000\n"),
            "both ends are there"
        );
    }

    #[test]
    fn a_warning_is_one_line() {
        let source = source("FROM a\nMAINTAINER me\n");
        let found = Diagnostic::warning("MaintainerDeprecated", Span { start: 7, end: 17 }, "use a label");
        assert_eq!(warning_line(&found, &source), "MaintainerDeprecated: use a label (Dockerfile:2)");
        assert_eq!(warning_line(&Diagnostic::notice("--no-cache-filter x"), &source), "--no-cache-filter x");
    }
}
