//! Physical lines to logical lines.
//!
//! Which lines belong to one instruction depends on the escape directive, on comments and empty lines that are
//! dropped in the middle, and on heredoc bodies whose delimiters only the instruction knows: not a context-free
//! grammar, so this part is written by hand and the grammar works on its [`Line`]s. A line keeps, for every piece of
//! its joined text, where that piece stands in the file.

use std::ops::Range;

use crate::ast::{LocalCheck, Span};
use crate::directives;
use crate::grammar::HeredocMarker;

/// An instruction's text with its continuation lines joined by nothing.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    /// The joined text, without leading white space.
    pub(crate) text: String,
    /// From the first character of the text to its last.
    pub(crate) span: Span,
    /// The first empty line among the continuations.
    pub(crate) empty_continuation: Option<Span>,
    /// The lines of comments right above, without an empty line or comment between; empty where there are none.
    pub(crate) comments: Span,
    segments: Vec<Segment>,
}

/// From `joined` on, the text of a line stands at `source` in the file.
#[derive(Debug, Clone, Copy)]
struct Segment {
    joined: usize,
    source: usize,
}

impl Line {
    /// Where a range of the joined text stands in the file, from its first character to its last.
    pub(crate) fn span_of(&self, range: Range<usize>) -> Span {
        let start = self.source(range.start);
        let last = self.text[range.clone()].chars().next_back();
        let end = last.map_or(start, |last| self.source(range.end - last.len_utf8()) + last.len_utf8());
        Span { start, end }
    }

    /// Where a part of the joined text (a slice of it) stands in the file.
    pub(crate) fn span_of_part(&self, part: &str) -> Span {
        let start = nom::Offset::offset(self.text.as_str(), part);
        self.span_of(start..start + part.len())
    }

    fn source(&self, joined: usize) -> usize {
        let behind = self.segments.partition_point(|segment| segment.joined <= joined);
        // The first segment stands at 0, so there is one before every place.
        let segment = self.segments[behind.saturating_sub(1)];
        segment.source + (joined - segment.joined)
    }

    fn append(&mut self, piece: &str, source: usize) {
        if piece.is_empty() {
            return;
        }
        self.segments.push(Segment { joined: self.text.len(), source });
        self.text.push_str(piece);
        self.span.end = source + piece.len();
    }
}

/// The body of a heredoc as it stands in the file.
#[derive(Debug, Clone)]
pub(crate) struct Body<'a> {
    /// All lines up to the delimiter's, with their ends.
    pub(crate) content: &'a str,
    /// Where they stand.
    pub(crate) span: Span,
    /// Where the delimiter's line ends, without its line end.
    pub(crate) end: usize,
    /// Whether the delimiter was found.
    pub(crate) terminated: bool,
}

/// Reads a Dockerfile line by line.
#[derive(Debug)]
pub(crate) struct Lexer<'a> {
    text: &'a str,
    /// Start of the next physical line.
    at: usize,
    escape: char,
    words: usize,
    local_checks: Vec<LocalCheck>,
}

impl<'a> Lexer<'a> {
    /// A reader of what begins at `start`, which is the beginning of a line.
    pub(crate) fn new(text: &'a str, start: usize, escape: char) -> Self {
        Self { text, at: start.max(skip_bom(text)), escape, words: 0, local_checks: Vec::new() }
    }

    /// `# check=` above the instructions so far.
    pub(crate) fn into_local_checks(self) -> Vec<LocalCheck> {
        self.local_checks
    }

    /// The escape character.
    pub(crate) fn escape(&self) -> char {
        self.escape
    }

    /// The text of a place in the file.
    pub(crate) fn text(&self, span: Span) -> &'a str {
        &self.text[span.start..span.end]
    }

    /// How many words the lines so far can have had, at most.
    pub(crate) fn words(&self) -> usize {
        self.words
    }

    /// The next instruction's line; comments and empty lines before it are skipped.
    pub(crate) fn next_line(&mut self) -> Option<Line> {
        let mut comments = Span::default();
        loop {
            let (start, physical) = self.physical()?;
            let content = physical.trim_start();
            if let Some(comment) = content.strip_prefix('#') {
                let above = if comments.end == start { comments.start } else { start };
                let start = if comment.trim().is_empty() { self.at } else { above };
                comments = Span { start, end: self.at };
                continue;
            }
            if content.is_empty() {
                continue;
            }
            let mut line = self.logical(start + physical.len() - content.len(), content);
            line.comments = if comments.end == start { comments } else { Span { start, end: start } };
            if let Some(check) = directives::check_above(self.text(line.comments)) {
                self.local_checks.push(LocalCheck { instruction: line.span, check: check.to_owned() });
            }
            let separators = line.text.bytes().filter(|byte| byte.is_ascii_whitespace() || *byte == b',');
            self.words += separators.count() + 1;
            return Some(line);
        }
    }

    fn logical(&mut self, start: usize, first: &str) -> Line {
        let (piece, mut continues) = self.without_continuation(first);
        let segments = vec![Segment { joined: 0, source: start }];
        let span = Span { start, end: start };
        let mut line = Line { text: String::new(), span, empty_continuation: None, comments: span, segments };
        line.append(piece, start);
        while continues {
            let Some((start, physical)) = self.physical() else { break };
            let content = physical.trim_start();
            if content.starts_with('#') {
                continue;
            }
            if content.is_empty() {
                line.empty_continuation.get_or_insert(Span { start, end: start + physical.len() });
                continue;
            }
            let piece;
            (piece, continues) = self.without_continuation(physical);
            line.append(piece, start);
        }
        line
    }

    /// Takes the escape character off the end of a line that goes on. A doubled one does not continue a line.
    fn without_continuation<'t>(&self, line: &'t str) -> (&'t str, bool) {
        let trimmed = line.trim_end_matches([' ', '\t']);
        match trimmed.strip_suffix(self.escape) {
            Some(rest) if !rest.ends_with(self.escape) => (rest, true),
            _ => (line, false),
        }
    }

    /// Everything up to the line that is the marker's delimiter.
    pub(crate) fn heredoc(&mut self, marker: &HeredocMarker) -> Body<'a> {
        let start = self.at;
        loop {
            let content = &self.text[start..self.at];
            let body = |end, terminated| {
                let span = Span { start, end: start + content.len() };
                Body { content, span, end, terminated }
            };
            let Some((line_start, line)) = self.physical() else { return body(self.at, false) };
            let candidate = if marker.chomp { line.trim_start_matches('\t') } else { line };
            if candidate == marker.name {
                return body(line_start + line.len(), true);
            }
        }
    }

    /// Where reading goes on.
    pub(crate) fn position(&self) -> usize {
        self.at
    }

    /// The next physical line: its start, and its text without the line end.
    fn physical(&mut self) -> Option<(usize, &'a str)> {
        let start = self.at;
        let rest = &self.text[start..];
        if rest.is_empty() {
            return None;
        }
        let length = rest.find('\n').map_or(rest.len(), |at| at + 1);
        self.at = start + length;
        Some((start, rest[..length].trim_end_matches(['\r', '\n'])))
    }
}

/// Where the text begins after a byte-order mark.
pub(crate) fn skip_bom(text: &str) -> usize {
    if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        let mut lexer = Lexer::new(text, 0, '\\');
        std::iter::from_fn(|| lexer.next_line()).map(|line| line.text).collect()
    }

    #[test]
    fn lines_are_joined() {
        let cases: [(&str, &[&str]); 10] = [
            ("A\nB\n", &["A", "B"]),
            ("\u{feff}A\r\n\r\nB", &["A", "B"]),
            ("A \\\n  b\\\nc\n", &["A   bc"]),
            ("A \\  \t\n b", &["A  b"]),
            ("A \\\\\nB", &["A \\\\", "B"]),
            ("A \\\n# comment \\\n\n   # comment\n b\nC", &["A  b", "C"]),
            ("  # comment\n\t A", &["A"]),
            ("A \\", &["A "]),
            ("\\\nA", &["A"]),
            ("A \\\r\nb\r\nC", &["A b", "C"]),
        ];
        for (text, expected) in cases {
            assert_eq!(lines(text), expected, "{text:?}");
        }
    }

    #[test]
    fn spans_point_into_the_file() {
        let text = "# x\n  RUN aé\\\n\n# c\n  bb\n";
        let line = Lexer::new(text, 0, '\\').next_line().expect("there is one");
        assert_eq!(line.text, "RUN aé  bb");
        assert_eq!(&text[line.span.start..line.span.end], "RUN aé\\\n\n# c\n  bb");
        let span = line.span_of_part(&line.text[4..7]);
        assert_eq!(&text[span.start..span.end], "aé");
        let across = line.span_of(5..10);
        assert_eq!(&text[across.start..across.end], "é\\\n\n# c\n  b");
        assert_eq!(line.empty_continuation, Some(Span { start: 15, end: 15 }));
    }

    #[test]
    fn bodies_end_at_their_delimiter() {
        let marker = |chomp| HeredocMarker { fd: 0, chomp, name: "E".to_owned(), quoted: false };
        let mut lexer = Lexer::new("RUN <<-E\n\ta\r\nE \n\t\tE\r\nX\n", 0, '\\');
        lexer.next_line();
        let body = lexer.heredoc(&marker(true));
        assert_eq!((body.content, body.terminated), ("\ta\r\nE \n", true));
        assert_eq!(lexer.next_line().map(|line| line.text), Some("X".to_owned()));
        let body = Lexer::new("a\nb", 0, '\\').heredoc(&marker(false));
        assert_eq!((body.content, body.terminated), ("a\nb", false));
    }
}
