//! Text for people: times, sizes, and step output that is made safe for a terminal.

use std::time::Duration;

use unicode_width::UnicodeWidthChar;

/// `3.2s`
pub fn seconds(time: Duration) -> String {
    format!("{:.1}s", time.as_secs_f64())
}

/// `12.30MB`, decimal as BuildKit has it.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if count < 1000 {
        return format!("{count}B");
    }
    let mut value = count as f64 / 1e3;
    let mut unit = 0;
    while value >= 999.995 && unit + 1 < UNITS.len() {
        value /= 1e3;
        unit += 1;
    }
    format!("{value:.2}{}", UNITS[unit])
}

/// `1.20MB / 12.30MB`, or only the first while the whole is unknown.
pub fn progress((done, total): (u64, u64)) -> String {
    match total {
        0 => bytes(done),
        total => format!("{} / {}", bytes(done), bytes(total)),
    }
}

/// How many columns a text takes.
pub fn width(text: &str) -> usize {
    text.chars().filter_map(UnicodeWidthChar::width).sum()
}

/// The beginning of a text that fits into so many columns, in which no control character is left.
pub fn fit(text: &str, columns: usize) -> String {
    let mut fitting = String::new();
    let mut used = 0;
    for c in text.chars() {
        let c = if c == '\t' || c == '\n' { ' ' } else { c };
        let Some(width) = c.width() else { continue };
        if used + width > columns {
            break;
        }
        fitting.push(c);
        used += width;
    }
    fitting
}

/// Whether colours written by a step reach the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    /// They do.
    Kept,
    /// They do not.
    Dropped,
}

/// A line of a step's output that cannot move the cursor, clear the screen or change the terminal's modes, cut to so
/// many columns: of all control sequences only colours are left, and are reset at the end.
///
/// A carriage return begins the line anew, as it does on a terminal.
pub fn harmless(line: &[u8], columns: usize, colour: Colour) -> String {
    let text = String::from_utf8_lossy(line);
    let visible = text.trim_end_matches('\r').rsplit('\r').next().unwrap_or_default();
    let mut out = String::new();
    let (mut used, mut coloured) = (0, false);
    let mut rest = visible;
    while let Some(c) = rest.chars().next() {
        if c == '\x1b' {
            let (sequence, after) = escape_sequence(rest);
            if colour == Colour::Kept && is_colour(sequence) {
                out.push_str(sequence);
                coloured = true;
            }
            rest = after;
            continue;
        }
        rest = &rest[c.len_utf8()..];
        let (shown, width) = match c {
            '\t' => (' ', 8 - used % 8),
            c => match c.width() {
                Some(width) => (c, width),
                None => continue,
            },
        };
        if used + width > columns {
            break;
        }
        for _ in 0..if c == '\t' { width } else { 1 } {
            out.push(shown);
        }
        used += width;
    }
    if coloured {
        out.push_str("\x1b[0m");
    }
    out
}

/// Splits a text that begins with ESC after its control sequence (ECMA-48: CSI, the string types, two-byte ones).
fn escape_sequence(text: &str) -> (&str, &str) {
    let bytes = text.as_bytes();
    let end = match bytes.get(1) {
        Some(b'[') => bytes[2..].iter().position(|byte| (0x40..=0x7e).contains(byte)).map(|at| at + 3),
        Some(b']' | b'P' | b'X' | b'^' | b'_') => string_end(text),
        Some(_) => text.char_indices().nth(2).map(|(at, _)| at).or(Some(text.len())),
        None => None,
    };
    match end {
        Some(end) if text.is_char_boundary(end) => text.split_at(end),
        _ => (text, ""),
    }
}

/// A string sequence ends with BEL or with ESC and a backslash.
fn string_end(text: &str) -> Option<usize> {
    let bell = text.find('\x07').map(|at| at + 1);
    let terminator = text.find("\x1b\\").map(|at| at + 2);
    [bell, terminator].into_iter().flatten().min()
}

/// `ESC [ digits and separators m`
fn is_colour(sequence: &str) -> bool {
    let inner = sequence.strip_prefix("\x1b[").and_then(|inner| inner.strip_suffix('m'));
    inner.is_some_and(|inner| inner.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b';' | b':')))
}

/// `2025-01-01T00:00:00.123Z`: time since 1970 as RFC 3339 writes it, with milliseconds.
pub fn rfc3339(since_epoch: Duration) -> String {
    let seconds = exporter::assemble::rfc3339(i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX));
    format!("{}.{:03}Z", seconds.trim_end_matches('Z'), since_epoch.subsec_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_decimal() {
        for (count, want) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1.00kB"),
            (999_999, "1.00MB"),
            (12_300_000, "12.30MB"),
            (5_000_000_000_000, "5.00TB"),
        ] {
            assert_eq!(bytes(count), want);
        }
    }

    #[test]
    fn a_steps_output_cannot_wreck_the_terminal() {
        for (line, want) in [
            (&b"plain"[..], "plain"),
            (b"a\tb", "a       b"),
            (b"10%\r20%\r", "20%"),
            (b"\x1b[31mred\x1b[2J\x1b[Hx", "\x1b[31mredx\x1b[0m"),
            (b"\x1b]0;title\x07after", "after"),
            (b"\x1b]0;never ended", ""),
            (b"\x1bcreset\x08\x07", "reset"),
            (b"\x1b[?1049h\x1b[1;5r.", "."),
            (b"\x1b[>4;1m.", "."),
            (b"\xff\xfe", "\u{fffd}\u{fffd}"),
            ("a\u{9b}31mb".as_bytes(), "a31mb"),
            (b"\x1b", ""),
        ] {
            assert_eq!(harmless(line, 80, Colour::Kept), want, "{line:?}");
        }
        assert_eq!(harmless(b"\x1b[31mred", 80, Colour::Dropped), "red");
        assert_eq!(harmless(b"0123456789", 4, Colour::Kept), "0123");
        assert_eq!(harmless("日本語".as_bytes(), 5, Colour::Kept), "日本");
    }

    #[test]
    fn text_is_cut_by_columns() {
        assert_eq!(fit("日本語", 4), "日本");
        assert_eq!(fit("a\x1b[2Jb\nc", 10), "a[2Jb c");
        assert_eq!(width("日本a"), 5);
    }

    #[test]
    fn times_have_milliseconds() {
        assert_eq!(rfc3339(Duration::from_millis(951_782_400_007)), "2000-02-29T00:00:00.007Z");
    }
}
