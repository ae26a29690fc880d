//! The text of a Dockerfile with its lines: thousands of findings each ask which line they are in.

/// A Dockerfile.
#[derive(Debug, Clone)]
pub struct Source {
    /// How messages call it.
    pub name: String,
    text: String,
    /// Where each line begins.
    line_starts: Vec<usize>,
}

impl Source {
    /// A Dockerfile of this name and text.
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        let text = text.into();
        let line_starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { name: name.into(), text, line_starts }
    }

    /// Its text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// How many lines there are; what comes behind the last line end is one only if there is something.
    pub fn line_count(&self) -> usize {
        self.line_starts.len() - usize::from(self.text.ends_with('\n'))
    }

    /// The number of the line a byte is in, from 1.
    pub fn line_of(&self, byte: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= byte.min(self.text.len()))
    }

    /// Where a line begins; lines are counted from 1.
    pub fn line_start(&self, number: usize) -> usize {
        self.line_starts.get(number.saturating_sub(1)).copied().unwrap_or(self.text.len())
    }

    /// A line without its end; empty where there is none of this number.
    pub fn line(&self, number: usize) -> &str {
        let line = &self.text[self.line_start(number)..self.line_start(number + 1)];
        let line = line.strip_suffix('\n').unwrap_or(line);
        line.strip_suffix('\r').unwrap_or(line)
    }
}

#[cfg(test)]
mod tests {
    use super::Source;

    #[test]
    fn lines_are_found_by_byte_and_by_number() {
        let source = Source::new("Dockerfile", "a\r\n\nb\n");
        assert_eq!([0, 2, 3, 4, 5, 6, 99].map(|byte| source.line_of(byte)), [1, 1, 2, 3, 3, 4, 4]);
        assert_eq!([1, 2, 3, 4, 5].map(|number| source.line(number)), ["a", "", "b", "", ""]);
        assert_eq!((source.line_count(), Source::new("", "a\nb").line_count()), (3, 2));
    }
}
