//! Cuts a stream of bytes into lines.

/// Longer lines are cut; what is left comes as the next line.
pub const LONGEST_LINE: usize = 64 << 10;

/// The beginning of a line whose end has not come yet.
#[derive(Debug, Default)]
pub struct Lines {
    begun: Vec<u8>,
}

impl Lines {
    /// Takes bytes and hands out every line that is complete with them.
    pub fn feed(&mut self, mut bytes: &[u8], mut line: impl FnMut(&[u8])) {
        while !bytes.is_empty() {
            let room = LONGEST_LINE - self.begun.len();
            let window = &bytes[..bytes.len().min(room)];
            match window.iter().position(|byte| *byte == b'\n') {
                Some(end) => {
                    self.begun.extend_from_slice(&window[..end]);
                    bytes = &bytes[end + 1..];
                }
                None if window.len() == room => {
                    self.begun.extend_from_slice(window);
                    // A line end right behind the cut ends this line, not an empty one after it.
                    bytes = &bytes[room..];
                    bytes = bytes.strip_prefix(b"\n").unwrap_or(bytes);
                }
                None => {
                    self.begun.extend_from_slice(window);
                    return;
                }
            }
            line(&self.begun);
            self.begun.clear();
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
        assert_eq!(lengths(&[&[&long[..LONGEST_LINE], b"\nnext".as_slice()].concat()]), [LONGEST_LINE, 4]);
    }
}
