//! Takes credentials out of text that people or log collectors will read.
//!
//! A URL may carry them as `scheme://user:password@host`, and somebody who means a registry may write
//! `user:password@host/image`; the part before the `@` becomes `***`. Every message, label and task name passes through
//! here at the rim, so that no part of the builder has to think of it (R27).

use std::borrow::Cow;

/// The text with the user information of every URL in it, and of what looks like one without its scheme, replaced by
/// `***`.
pub fn redact(text: &str) -> Cow<'_, str> {
    match text.contains('@') {
        true => Cow::Owned(without_scheme(&with_scheme(text))),
        false => Cow::Borrowed(text),
    }
}

fn with_scheme(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(scheme_end) = rest.find("://") {
        let (before, after) = rest.split_at(scheme_end + 3);
        clean.push_str(before);
        let is_layout = before.ends_with("oci-layout://") && is_layout_with_digest(after);
        rest = if is_layout { after } else { &after[user_information(after)..] };
        if rest.len() != after.len() {
            clean.push_str("***@");
        }
    }
    clean + rest
}

fn without_scheme(text: &str) -> String {
    let ends = |c: char| {
        matches!(c, '/' | '=' | ',' | '"' | '\'' | '`' | '<' | '>' | '(' | ')') || c.is_whitespace()
    };
    let hidden = |word: &str| match word.rsplit_once('@') {
        Some((user, host)) if is_name_and_password(user, host) => format!("***@{host}"),
        _ => word.to_owned(),
    };
    text.split_inclusive(ends).map(hidden).collect()
}

/// Whether `user@host` carries a password, and is neither an image with tag and digest nor an address of mail.
fn is_name_and_password(user: &str, host: &str) -> bool {
    let is_digest = host.starts_with("sha256") || host.starts_with("sha512");
    let is_host = host.starts_with(|first: char| first.is_alphanumeric() || first == '[');
    let has_both = |(name, password): (&str, &str)| !matches!(name, "" | "mailto") && !password.is_empty();
    is_host && !is_digest && user.split_once(':').is_some_and(has_both)
}

/// Whether `DIR@sha256:…` or `DIR:TAG@sha256:…` follows, an image of an OCI layout: nobody logs in to a directory. What no tag
/// may be is taken for a password, and what a path follows for a host and its port; a password of a tag's letters cannot be told
/// from a tag, and is left.
fn is_layout_with_digest(after_scheme: &str) -> bool {
    let (place, digest) = after_scheme.split_at(user_information(after_scheme));
    let place = place.strip_suffix('@').unwrap_or_default();
    let is_place = match place.split_once(':') {
        Some((directory, tag)) => !directory.contains('@') && is_tag(tag),
        None => !place.contains('@'),
    };
    let hex = |rest: &str| !rest.trim_start_matches(|c: char| c.is_ascii_hexdigit()).starts_with('/');
    is_place && digest.strip_prefix("sha256:").is_some_and(hex)
}

/// Whether registries and layouts may call an image so.
fn is_tag(text: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.starts_with(is_word)
        && text.len() <= 128
        && text.chars().all(|c| is_word(c) || matches!(c, '.' | '-'))
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
            ("invalid value 'me:secret@h/x'", "invalid value '***@h/x'"),
            ("FROM me:s@cret@h/x AS y@z", "FROM ***@h/x AS y@z"),
            ("oci-layout://out:v1@sha256:abc", "oci-layout://out:v1@sha256:abc"),
            ("oci-layout://out@sha256:abc", "oci-layout://out@sha256:abc"),
            ("oci-layout://a/b:v1@sha256:abc", "oci-layout://a/b:v1@sha256:abc"),
            ("oci-layout://me:secret@host/x", "oci-layout://***@host/x"),
            ("oci-layout://me:secret@sha256:443/x", "oci-layout://***@sha256:443/x"),
            ("oci-layout://me:s3cr+t!@sha256:abc", "oci-layout://***@sha256:abc"),
            ("oci-layout://me:a:b@sha256:abc", "oci-layout://***@sha256:abc"),
            ("oci-layout://me:s@cret@sha256:abc", "oci-layout://***@sha256:abc"),
            ("https://me:secret@sha256:443/x", "https://***@sha256:443/x"),
            ("x=https://me:secret@h/y a:b@h", "x=https://***@h/y ***@h"),
            (
                "h:5000/debian:12@sha256:abc, git@h:x, mailto:me@h, @",
                "h:5000/debian:12@sha256:abc, git@h:x, mailto:me@h, @",
            ),
        ] {
            assert_eq!(redact(text), want);
        }
    }
}
