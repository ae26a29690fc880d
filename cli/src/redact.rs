//! Takes credentials out of text that people or log collectors will read.
//!
//! A URL may carry them as `scheme://user:password@host`; the part before the `@` becomes `***`. Every message,
//! label and task name passes through here at the rim, so that no part of the builder has to think of it (R27).

use std::borrow::Cow;

/// The text with the user information of every URL in it replaced by `***`.
pub fn redact(text: &str) -> Cow<'_, str> {
    if !text.contains("://") {
        return Cow::Borrowed(text);
    }
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(scheme_end) = rest.find("://") {
        let (before, after) = rest.split_at(scheme_end + 3);
        clean.push_str(before);
        rest = &after[user_information(after)..];
        if rest.len() != after.len() {
            clean.push_str("***@");
        }
    }
    clean.push_str(rest);
    Cow::Owned(clean)
}

/// Length of `user:password@` at the start of what follows `://`; 0 where there is none.
fn user_information(after_scheme: &str) -> usize {
    let ends_authority =
        |c: char| matches!(c, '/' | '?' | '#' | '"' | '\'' | '`' | '<' | '>') || c.is_whitespace();
    let authority = after_scheme.split(ends_authority).next().unwrap_or(after_scheme);
    authority.rfind('@').map_or(0, |at| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_user_information_is_taken_out() {
        for (text, want) in [
            ("no address", "no address"),
            ("https://host/a@b", "https://host/a@b"),
            ("get https://me:secret@host/x failed", "get https://***@host/x failed"),
            ("\"http://tok@h\", ssh://git@h/x", "\"http://***@h\", ssh://***@h/x"),
            ("https://a:p@ss@host", "https://***@host"),
            ("proxy=http://u:p@proxy:3128", "proxy=http://***@proxy:3128"),
        ] {
            assert_eq!(redact(text), want);
        }
    }
}
