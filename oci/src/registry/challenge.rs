//! Reading `WWW-Authenticate` (RFC 9110, section 11.6.1): one header may hold several challenges, and several headers one.

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

/// What a registry wants to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// A token, to be fetched from a realm.
    Bearer(Bearer),
    /// User name and password.
    Basic,
}

/// Where a token is to be had (distribution's token specification).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bearer {
    /// URL of the token service.
    pub realm: String,
    /// What the token is for.
    pub service: Option<String>,
    /// What it must allow, space-separated.
    pub scope: Option<String>,
    /// What is wrong with the one that was shown (RFC 6750, section 3.1).
    pub error: Option<String>,
}

impl Challenge {
    /// The challenge to answer: a bearer token where one is asked for, else basic.
    pub fn in_headers(headers: &HeaderMap) -> Option<Self> {
        let texts = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let challenges: Vec<_> = texts.flat_map(parse).collect();
        let bearer = challenges.iter().find_map(|challenge| {
            let realm = challenge.parameter("realm").filter(|_| challenge.scheme == "bearer")?;
            let (service, scope) = (challenge.parameter("service"), challenge.parameter("scope"));
            let error = challenge.parameter("error");
            Some(Self::Bearer(Bearer { realm, service, scope, error }))
        });
        let basic = || challenges.iter().any(|challenge| challenge.scheme == "basic").then_some(Self::Basic);
        bearer.or_else(basic)
    }
}

impl Challenge {
    /// Whether the token that was shown is a good one, but not for this.
    pub fn wants_another_scope(&self) -> bool {
        matches!(self, Self::Bearer(Bearer { error: Some(error), .. }) if error == "insufficient_scope")
    }
}

#[derive(Debug, PartialEq, Eq)]
struct RawChallenge {
    /// In lower case.
    scheme: String,
    /// Names in lower case.
    parameters: Vec<(String, String)>,
}

impl RawChallenge {
    fn parameter(&self, name: &str) -> Option<String> {
        let found = self.parameters.iter().find(|(own, _)| own == name);
        found.map(|(_, value)| value.clone()).filter(|value| !value.is_empty())
    }
}

/// A word that is followed by `=` is a parameter of the challenge before it; any other begins a challenge.
fn parse(text: &str) -> Vec<RawChallenge> {
    let mut challenges: Vec<RawChallenge> = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find(|c: char| !is_token(c)).unwrap_or(rest.len());
        if end == 0 {
            return challenges;
        }
        let (word, after) = rest.split_at(end);
        let word = word.to_ascii_lowercase();
        match after.trim_start().strip_prefix('=') {
            Some(value) => {
                let (value, after) = parse_value(value.trim_start());
                rest = after;
                if let Some(challenge) = challenges.last_mut() {
                    challenge.parameters.push((word, value));
                }
            }
            None => {
                rest = after;
                challenges.push(RawChallenge { scheme: word, parameters: Vec::new() });
            }
        }
    }
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

/// A token, or a quoted string with its escapes resolved; and what comes after it.
fn parse_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            plain => value.push(plain),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge(headers: &[&str]) -> Option<Challenge> {
        let mut map = HeaderMap::new();
        for header in headers {
            map.append(WWW_AUTHENTICATE, header.parse().expect("a header value"));
        }
        Challenge::in_headers(&map)
    }

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Option<Challenge> {
        let (service, scope) = (service.map(str::to_owned), scope.map(str::to_owned));
        Some(Challenge::Bearer(Bearer { realm: realm.to_owned(), service, scope, error: None }))
    }

    #[test]
    fn challenges_are_found_however_they_are_written() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#;
        let want = bearer(
            "https://auth.docker.io/token",
            Some("registry.docker.io"),
            Some("repository:a/b:pull,push"),
        );
        assert_eq!(challenge(&[hub]), want);
        assert_eq!(
            challenge(&[r#"Basic realm="x, y", bearer REALM = "https://a/t" "#]),
            bearer("https://a/t", None, None)
        );
        assert_eq!(
            challenge(&["Basic realm=x", r#"Bearer realm="https://a/\"t""#]),
            bearer("https://a/\"t", None, None)
        );
        assert_eq!(challenge(&[r#"BASIC realm="Registry""#]), Some(Challenge::Basic));
        assert_eq!(challenge(&["basic"]), Some(Challenge::Basic));
        assert_eq!(challenge(&["Bearer service=x"]), None, "a token from nowhere");
        let insufficient = r#"Bearer realm="https://a/t",error="insufficient_scope""#;
        assert!(challenge(&[insufficient]).is_some_and(|challenge| challenge.wants_another_scope()));
        for other in [r#"Bearer realm="https://a/t",error="invalid_token""#, hub, "Basic"] {
            assert!(challenge(&[other]).is_some_and(|challenge| !challenge.wants_another_scope()));
        }
        for nothing in ["", ",,,", "Negotiate", "=", "\"", r#"realm="x"#] {
            assert_eq!(challenge(&[nothing]), None, "{nothing}");
        }
    }
}
