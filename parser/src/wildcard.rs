//! The matching engine under [`crate::glob`] and the pattern operators of [`crate::word`].
//!
//! A wildcard pattern is a list of fixed-length segments with stars between them. A star and a question mark never
//! match the pattern's *barrier* (the slash of a path, the line feed of a value). Since every segment has a fixed
//! length, taking the first place where a segment fits never loses a match, so there is no backtracking: the cost is
//! bounded by text length times pattern length, whatever the pattern.

/// One position of a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Token {
    /// This character.
    Literal(char),
    /// Any one character but the barrier.
    Any,
    /// One character inside (or, negated, outside) of some ranges; may match the barrier, as in Go.
    Class { negated: bool, ranges: Vec<(char, char)> },
    /// Any run of characters without the barrier.
    Many,
}

/// Which end to take when several are possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// As little text as possible.
    Shortest,
    /// As much text as possible.
    Longest,
}

/// A compiled pattern.
#[derive(Debug, Clone)]
pub(crate) struct Wildcard {
    /// What stands between the stars; one more than there are stars.
    segments: Vec<Vec<Token>>,
    barrier: char,
}

impl Wildcard {
    pub(crate) fn new(tokens: Vec<Token>, barrier: char) -> Self {
        let segments = tokens.split(|token| *token == Token::Many).map(<[Token]>::to_vec).collect();
        Self { segments, barrier }
    }

    /// Number of positions, for cost estimates.
    pub(crate) fn len(&self) -> usize {
        self.segments.iter().map(Vec::len).sum::<usize>() + self.segments.len()
    }

    /// Whether the pattern matches all of `text`.
    pub(crate) fn matches(&self, text: &[char]) -> bool {
        let Some((mut at, last)) = self.before_last(text, 0) else {
            return false;
        };
        let Some(last) = last else { return at == text.len() };
        let Some(start) = text.len().checked_sub(last.len()).filter(|start| *start >= at) else {
            return false;
        };
        at = self.barrier_from(text, at);
        start <= at && self.fits(last, text, start)
    }

    /// Where a match that starts at `start` ends.
    pub(crate) fn end(&self, text: &[char], start: usize, extent: Extent) -> Option<usize> {
        let (at, last) = self.before_last(text, start)?;
        let Some(last) = last else { return Some(at) };
        let stop = self.barrier_from(text, at);
        let mut places = at..=stop;
        let place = match extent {
            Extent::Shortest => places.find(|place| self.fits(last, text, *place)),
            Extent::Longest => places.rev().find(|place| self.fits(last, text, *place)),
        };
        place.map(|place| place + last.len())
    }

    /// The leftmost match at or after `from`, as long as possible.
    pub(crate) fn find(&self, text: &[char], from: usize) -> Option<(usize, usize)> {
        let mut start = from;
        while start <= text.len() {
            if let Some(end) = self.end(text, start, Extent::Longest) {
                return Some((start, end));
            }
            // Where the first segment fits but the rest does not, no later start before the barrier can do better.
            let hopeless = self.segments.len() > 1 && self.fits(&self.segments[0], text, start);
            start = if hopeless { self.barrier_from(text, start) + 1 } else { start + 1 };
        }
        None
    }

    /// Places all segments but the last as far left as they go. Gives the position after them and the last
    /// segment, or no segment when there is only one (which is then placed too).
    fn before_last(&self, text: &[char], start: usize) -> Option<(usize, Option<&[Token]>)> {
        let (first, rest) = self.segments.split_first()?;
        if !self.fits(first, text, start) {
            return None;
        }
        let mut at = start + first.len();
        let Some((last, middle)) = rest.split_last() else {
            return Some((at, None));
        };
        for segment in middle {
            let stop = self.barrier_from(text, at);
            at = (at..=stop).find(|place| self.fits(segment, text, *place))? + segment.len();
        }
        Some((at, Some(last)))
    }

    fn barrier_from(&self, text: &[char], at: usize) -> usize {
        let found = text[at..].iter().position(|c| *c == self.barrier);
        found.map_or(text.len(), |offset| at + offset)
    }

    fn fits(&self, segment: &[Token], text: &[char], at: usize) -> bool {
        let Some(window) = text.get(at..at + segment.len()) else {
            return false;
        };
        segment.iter().zip(window).all(|(token, c)| token.accepts(*c, self.barrier))
    }
}

impl Token {
    /// Whether the token, if it stands for one character, accepts `c`.
    pub(crate) fn accepts(&self, c: char, barrier: char) -> bool {
        match self {
            Token::Literal(wanted) => *wanted == c,
            Token::Any => c != barrier,
            Token::Class { negated, ranges } => {
                ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) != *negated
            }
            Token::Many => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wildcard(pattern: &str) -> Wildcard {
        let tokens = pattern.chars().map(|c| match c {
            '*' => Token::Many,
            '?' => Token::Any,
            c => Token::Literal(c),
        });
        Wildcard::new(tokens.collect(), '\n')
    }

    fn chars(text: &str) -> Vec<char> {
        text.chars().collect()
    }

    #[test]
    fn ends_are_shortest_or_longest() {
        let cases = [
            ("a*b", "axbxb", Some(3), Some(5)),
            ("*", "abc", Some(0), Some(3)),
            ("*", "a\nb", Some(0), Some(1)),
            ("a*b", "ax\nb", None, None),
            ("a*x*b", "axbxb", Some(3), Some(5)),
            ("", "abc", Some(0), Some(0)),
            ("abc?", "abc", None, None),
        ];
        for (pattern, text, shortest, longest) in cases {
            let wildcard = wildcard(pattern);
            assert_eq!(
                wildcard.end(&chars(text), 0, Extent::Shortest),
                shortest,
                "{pattern} {text} shortest"
            );
            assert_eq!(wildcard.end(&chars(text), 0, Extent::Longest), longest, "{pattern} {text} longest");
        }
    }

    #[test]
    fn a_hopeless_pattern_costs_linear_time() {
        let text = vec!['a'; 200_000];
        assert_eq!(wildcard("a*b").find(&text, 0), None);
        assert_eq!(wildcard("a*b*c*d").find(&text, 0), None);
        assert!(!wildcard("*a*a*a*a*a*a*a*a*b").matches(&text));
    }

    #[test]
    fn the_leftmost_match_is_found() {
        assert_eq!(wildcard("b*d").find(&chars("abcdbd"), 0), Some((1, 6)));
        assert_eq!(wildcard("b?").find(&chars("abcd"), 2), None);
        assert_eq!(wildcard("b*x").find(&chars("b\nbx"), 0), Some((2, 4)));
    }
}
