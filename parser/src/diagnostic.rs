//! What is wrong with a Dockerfile, and where: every mistake is collected, none stops the others from being found.

use crate::ast::Span;
use crate::lint;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The build goes on; a lint rule of BuildKit's name says what is doubtful.
    Warning,
    /// Nothing is built.
    Error,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// Name of the lint rule, for example `MaintainerDeprecated`; `None` for errors, and for what is doubtful about the
    /// command line.
    pub rule: Option<&'static str>,
    /// What is wrong, in one line without a period.
    pub message: String,
    /// Where.
    pub span: Span,
    /// What to do about it, if we know.
    pub hint: Option<String>,
}

impl Diagnostic {
    /// An error without a hint.
    pub fn error(span: Span, message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, rule: None, message: message.into(), span, hint: None }
    }

    /// A finding of a lint rule, with the advice that [`lint::RULES`] has for it.
    pub fn warning(rule: &'static str, span: Span, message: impl Into<String>) -> Self {
        let hint = lint::rule(rule).map(|rule| rule.mend.to_owned());
        Self { severity: Severity::Warning, rule: Some(rule), message: message.into(), span, hint }
    }

    /// A doubt about what the command line says: no rule, and no place in the Dockerfile.
    pub fn notice(message: impl Into<String>) -> Self {
        let (severity, span) = (Severity::Warning, Span::default());
        Self { severity, rule: None, message: message.into(), span, hint: None }
    }

    /// The same finding with advice.
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

/// Line and column, both counted from 1, of a span's first character. Columns count characters; a byte-order mark is
/// none.
pub fn line_column(text: &str, span: Span) -> (usize, usize) {
    let before = &text[..text.floor_char_boundary(span.start)];
    let line_start = before.rfind('\n').map_or(0, |end| end + 1);
    let line = before.matches('\n').count() + 1;
    let column = before[line_start..].trim_start_matches('\u{feff}').chars().count() + 1;
    (line, column)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_columns_count_from_one() {
        let text = "\u{feff}aé\nb\r\n\nc";
        let place = |start| line_column(text, Span { start, end: start });
        assert_eq!([0, 3, 4, 6, 7].map(place), [(1, 1), (1, 1), (1, 2), (1, 3), (2, 1)]);
        assert_eq!([10, 11, 12, 99].map(place), [(3, 1), (4, 1), (4, 2), (4, 2)]);
    }
}
