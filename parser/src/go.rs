//! What Go's `strconv` and `encoding/csv` make of a text, where BuildKit's language is whatever they accept.

/// `strconv.Quote`.
pub(crate) fn quote(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\u{7}' => quoted.push_str("\\a"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{c}' => quoted.push_str("\\f"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{b}' => quoted.push_str("\\v"),
            c if is_print(c) => quoted.push(c),
            c if c < ' ' || c == '\u{7f}' => quoted += &format!("\\x{:02x}", u32::from(c)),
            c if c < '\u{10000}' => quoted += &format!("\\u{:04x}", u32::from(c)),
            c => quoted += &format!("\\U{:08x}", u32::from(c)),
        }
    }
    quoted + "\""
}

/// `strconv.IsPrint`: letters, marks, numbers, punctuation, symbols and the ASCII space. The standard library's own
/// table is asked; only behind another character does it take a combining mark for printable.
fn is_print(c: char) -> bool {
    matches!(c, '\'' | '"' | '\\') || ['a', c].iter().collect::<String>().escape_debug().nth(1) == Some(c)
}

/// `strconv.ParseBool`.
pub(crate) fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// `strconv.ParseUint(text, radix, 32)`: digits alone, no sign and no underscore.
pub(crate) fn unsigned(text: &str, radix: u32) -> Option<u32> {
    let digits = text.chars().all(|c| c.is_digit(radix));
    digits.then(|| u32::from_str_radix(text, radix).ok()).flatten()
}

/// The first record of `encoding/csv`: fields between commas; one that begins with a quote ends with one.
///
/// # Errors
/// What Go says is wrong with it.
pub(crate) fn csv(text: &str) -> Result<Vec<String>, String> {
    if text.is_empty() {
        return Err("EOF".to_owned());
    }
    let mut fields = Vec::new();
    let mut rest = Some(text);
    while let Some(field) = rest {
        let at = text.len() - field.len();
        let (field, after) = if field.starts_with('"') { quoted_field(field) } else { bare_field(field) }
            .map_err(|(offset, problem)| {
                format!("parse error on line 1, column {}: {problem}", at + offset + 1)
            })?;
        fields.push(field);
        rest = after;
    }
    Ok(fields)
}

/// A string of JSON with its quotes, as `encoding/json` reads it: half of a surrogate pair stands for U+FFFD. `None` for
/// escapes that JSON does not have and for control characters.
pub(crate) fn json_string(source: &str) -> Option<String> {
    let mut rest = source.strip_prefix('"')?.strip_suffix('"')?;
    let mut value = String::with_capacity(rest.len());
    while let Some(at) = rest.find('\\') {
        value.push_str(&rest[..at]);
        let (c, after) = json_escape(&rest[at + 1..])?;
        value.push(c);
        rest = after;
    }
    value.push_str(rest);
    (!source.contains(|c: char| c < ' ')).then_some(value)
}

fn json_escape(text: &str) -> Option<(char, &str)> {
    let mut chars = text.chars();
    let c = match chars.next()? {
        c @ ('"' | '\\' | '/') => c,
        'b' => '\u{8}',
        'f' => '\u{c}',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'u' => return unicode_escape(chars.as_str()),
        _ => return None,
    };
    Some((c, chars.as_str()))
}

/// Four hex digits, and the second half of a surrogate pair where they are the first.
fn unicode_escape(text: &str) -> Option<(char, &str)> {
    let unit = |text: &str| {
        let digits = text.get(..4).filter(|digits| digits.chars().all(|c| c.is_ascii_hexdigit()))?;
        u16::from_str_radix(digits, 16).ok()
    };
    let first = unit(text)?;
    let after = &text[4..];
    let second = after.strip_prefix("\\u").and_then(unit);
    let pair = second.and_then(|second| char::decode_utf16([first, second]).next()?.ok());
    match (char::from_u32(first.into()), pair) {
        (Some(c), _) => Some((c, after)),
        (None, Some(c)) => Some((c, &after[6..])),
        (None, None) => Some((char::REPLACEMENT_CHARACTER, after)),
    }
}

type Field<'a> = Result<(String, Option<&'a str>), (usize, &'static str)>;

fn bare_field(text: &str) -> Field<'_> {
    let end = text.find(',').unwrap_or(text.len());
    match text[..end].find('"') {
        Some(at) => Err((at, "bare \" in non-quoted-field")),
        None => Ok((text[..end].to_owned(), text.get(end + 1..))),
    }
}

/// Two quotes stand for one.
fn quoted_field(text: &str) -> Field<'_> {
    let problem = "extraneous or missing \" in quoted-field";
    let mut field = String::new();
    let mut at = 1;
    loop {
        let end = at + text[at..].find('"').ok_or((text.len(), problem))?;
        field.push_str(&text[at..end]);
        at = end + 1;
        match text[at..].chars().next() {
            Some('"') => field.push('"'),
            Some(',') => return Ok((field, text.get(at + 1..))),
            None => return Ok((field, None)),
            Some(_) => return Err((end, problem)),
        }
        at += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_quoted_as_in_go() {
        let cases = [
            ("a'b", r#""a'b""#),
            ("\"\\", r#""\"\\""#),
            ("\u{7}\u{8}\u{c}\n\r\t\u{b}", r#""\a\b\f\n\r\t\v""#),
            ("\u{1}\u{7f}\u{85}\u{a0}\u{2028}", r#""\x01\x7f\u0085\u00a0\u2028""#),
            ("é\u{301}日😀", "\"é\u{301}日😀\""),
            ("\u{feff}\u{e0001}", r#""\ufeff\U000e0001""#),
        ];
        for (text, expected) in cases {
            assert_eq!(quote(text), expected);
        }
    }

    #[test]
    fn strings_of_json_are_read_as_in_go() {
        let cases = [
            (r#""""#, Some("")),
            (r#""a\"b\\c\/\b\f\n\r\t""#, Some("a\"b\\c/\u{8}\u{c}\n\r\t")),
            (r#""\u00e9\ud83d\ude00""#, Some("é😀")),
            (r#""\ud800x\udc00\ud800\u0041""#, Some("\u{fffd}x\u{fffd}\u{fffd}A")),
            (r#""\x""#, None),
            (r#""\u12g4""#, None),
            (r#""\u12é""#, None),
            ("\"a\tb\"", None),
            ("\"a\\\"", None),
        ];
        for (source, expected) in cases {
            assert_eq!(json_string(source).as_deref(), expected, "{source}");
        }
    }

    #[test]
    fn numbers_have_digits_only() {
        assert_eq!(unsigned("0755", 8), Some(0o755));
        assert_eq!(["", "+1", "8", "1_0", "40000000000"].map(|text| unsigned(text, 8)), [None; 5]);
        assert_eq!([unsigned("4294967295", 10), unsigned("4294967296", 10)], [Some(u32::MAX), None]);
    }

    #[test]
    fn records_are_read_as_in_go() {
        let fields = |text| csv(text).map(|fields| fields.join("|"));
        assert_eq!(fields("a=1,b").as_deref(), Ok("a=1|b"));
        assert_eq!(fields("a,").as_deref(), Ok("a|"));
        assert_eq!(fields(r#""x=""1"",2",b"#).as_deref(), Ok(r#"x="1",2|b"#));
        let error = |text| csv(text).expect_err("not a record");
        assert_eq!(error(""), "EOF");
        assert_eq!(error(r#"a=1,b="2""#), "parse error on line 1, column 7: bare \" in non-quoted-field");
        assert_eq!(
            error(r#""a"b"#),
            "parse error on line 1, column 3: extraneous or missing \" in quoted-field"
        );
        assert_eq!(
            error(r#""a"#),
            "parse error on line 1, column 3: extraneous or missing \" in quoted-field"
        );
    }
}
