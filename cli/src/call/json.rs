//! What the answers have in common in JSON: BuildKit's protobuf messages as Go writes them, which leaves zeros out.

use base64::{Engine, engine::general_purpose::STANDARD};
use parser::Span;
use serde::Serialize;

use crate::inputs::Source;

/// Where something stands in the only source there is.
#[derive(Debug, Serialize)]
pub struct Location {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ranges: Vec<Range>,
}

#[derive(Debug, Serialize)]
struct Range {
    start: Position,
    end: Position,
}

#[derive(Debug, Serialize, Clone, Copy)]
struct Position {
    line: usize,
}

impl Location {
    /// The lines of a span; as with BuildKit, whole ones, each a range of its own. What stands nowhere in the source
    /// has none.
    pub fn of(span: Span, source: &Source) -> Self {
        if span == Span::default() {
            return Self { ranges: Vec::new() };
        }
        let last = span.end.saturating_sub(1).max(span.start);
        let range = |line| Range { start: Position { line }, end: Position { line } };
        Self { ranges: (source.line_of(span.start)..=source.line_of(last)).map(range).collect() }
    }
}

/// A text as Go writes bytes.
pub fn bytes(source: &Source) -> String {
    STANDARD.encode(source.text())
}

/// Indented, with a line end.
pub fn pretty(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).expect("plain data with string keys") + "\n"
}
