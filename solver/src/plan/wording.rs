//! BuildKit's words for history entries: what Go's `fmt` makes of the values of an instruction.

/// `%q` of a list of strings: `["a" "b"]`.
pub(super) fn quoted_list(items: &[String]) -> String {
    let quoted: Vec<String> = items.iter().map(|item| quoted(item)).collect();
    format!("[{}]", quoted.join(" "))
}

/// `%v` of a list of strings: `[a b]`.
pub(super) fn list(items: &[String]) -> String {
    format!("[{}]", items.join(" "))
}

/// `%q` of a string, with Go's escapes.
pub(super) fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{7}' => quoted.push_str("\\a"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{b}' => quoted.push_str("\\v"),
            '\u{c}' => quoted.push_str("\\f"),
            control if control.is_ascii_control() => quoted.push_str(&format!("\\x{:02x}", control as u32)),
            hidden
                if hidden.is_control() || matches!(hidden, '\u{a0}' | '\u{ad}' | '\u{2028}' | '\u{feff}') =>
            {
                quoted.push_str(&format!("\\u{:04x}", hidden as u32));
            }
            plain => quoted.push(plain),
        }
    }
    quoted.push('"');
    quoted
}

/// `%v` of a `time.Duration` in nanoseconds: `1h0m0s`, `1.5s`, `100ms`, `0s`.
pub(super) fn duration(nanoseconds: i64) -> String {
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let total = nanoseconds.unsigned_abs();
    let fraction = |value: u64, unit: u64, name: &str| {
        let digits = unit.ilog10() as usize;
        let rest = format!("{:0digits$}", value % unit);
        let rest = rest.trim_end_matches('0');
        let point = if rest.is_empty() { "" } else { "." };
        format!("{}{point}{rest}{name}", value / unit)
    };
    let text = match total {
        0 => "0s".to_owned(),
        1..1_000 => format!("{total}ns"),
        1_000..1_000_000 => fraction(total, 1_000, "µs"),
        1_000_000..1_000_000_000 => fraction(total, 1_000_000, "ms"),
        _ => {
            let (minutes, rest) = (total / 60_000_000_000, total % 60_000_000_000);
            let seconds = fraction(rest, 1_000_000_000, "s");
            match (minutes / 60, minutes % 60) {
                (0, 0) => seconds,
                (0, minutes) => format!("{minutes}m{seconds}"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}"),
            }
        }
    };
    format!("{sign}{text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_quoted_as_go_does() {
        for (text, want) in [
            ("a b", r#""a b""#),
            ("say \"hi\"", r#""say \"hi\"""#),
            ("tab\tline\n", r#""tab\tline\n""#),
            ("\u{1b}[0m", r#""\x1b[0m""#),
            ("☃", "\"☃\""),
        ] {
            assert_eq!(quoted(text), want);
        }
        assert_eq!(quoted_list(&["sh".to_owned(), "-c".to_owned()]), r#"["sh" "-c"]"#);
    }

    #[test]
    fn durations_are_written_as_go_does() {
        for (nanoseconds, want) in [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1.5µs"),
            (100_000_000, "100ms"),
            (30_000_000_000, "30s"),
            (1_500_000_000, "1.5s"),
            (60_000_000_000, "1m0s"),
            (3_600_000_000_000, "1h0m0s"),
            (5_400_250_000_000, "1h30m0.25s"),
        ] {
            assert_eq!(duration(nanoseconds), want);
        }
    }
}
