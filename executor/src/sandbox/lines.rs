//! Cuts a stream of bytes into lines.

/// Longer lines are cut; what is left comes as the next line.
pub const LONGEST_LINE: usize = 64 << 10;

/// The beginning of a line whose end has not come yet.
#[derive(Debug, Default)]
pub struct Lines {
    begun: Vec<u8>,
    just_cut: bool,
}

impl Lines {
    /// Takes bytes and hands out every line that is complete with them.
    pub fn feed(&mut self, mut bytes: &[u8], mut line: impl FnMut(&[u8])) {
        while !bytes.is_empty() {
            // A line end right behind a cut ends the line that was cut, not an empty one after it.
            if std::mem::take(&mut self.just_cut) && bytes[0] == b'\n' {
                bytes = &bytes[1..];
                continue;
            }
            let window = &bytes[..bytes.len().min(LONGEST_LINE - self.begun.len())];
            let end = window.iter().position(|byte| *byte == b'\n');
            self.begun.extend_from_slice(&window[..end.unwrap_or(window.len())]);
            bytes = &bytes[end.map_or(window.len(), |end| end + 1)..];
            self.just_cut = end.is_none() && self.begun.len() == LONGEST_LINE;
            if end.is_some() || self.just_cut {
                line(&self.begun);
                self.begun.clear();
            }
        }
    }

    /// Hands out what has come without a line end.
    pub fn finish(&mut self, mut line: impl FnMut(&[u8])) {
        if !self.begun.is_empty() {
            line(&self.begun);
            self.begun.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(pieces: &[&[u8]]) -> Vec<Vec<u8>> {
        let (mut lines, mut all) = (Lines::default(), Vec::new());
        for piece in pieces {
            lines.feed(piece, |line| all.push(line.to_vec()));
        }
        lines.finish(|line| all.push(line.to_vec()));
        all
    }

    #[test]
    fn pieces_do_not_matter() {
        // Pieces and lines, each separated by commas.
        let cases =
            [("a\nb\n", "a,b"), ("a,b\n\n,c", "ab,,c"), ("\r\n", "\r"), (",", ""), ("no end", "no end")];
        for (pieces, expected) in cases {
            let pieces: Vec<&[u8]> = pieces.split(',').map(str::as_bytes).collect();
            assert_eq!(split(&pieces).join(&b','), expected.as_bytes(), "{pieces:?}");
        }
    }

    #[test]
    fn long_lines_are_cut_and_nothing_is_lost() {
        let long = vec![b'x'; 3 * LONGEST_LINE + 7];
        let lengths = |pieces: &[&[u8]]| split(pieces).iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(lengths(&[&long]), [LONGEST_LINE, LONGEST_LINE, LONGEST_LINE, 7]);
        assert_eq!(lengths(&[&long[..100], &long[100..]]), [LONGEST_LINE, LONGEST_LINE, LONGEST_LINE, 7]);
        assert_eq!(lengths(&[&[&long[..LONGEST_LINE], b"\nnext"].concat()]), [LONGEST_LINE, 4]);
        assert_eq!(lengths(&[&long[..LONGEST_LINE], b"\n", b"\nnext"]), [LONGEST_LINE, 0, 4]);
    }
}
