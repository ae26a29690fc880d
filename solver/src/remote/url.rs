//! The parts of a URL that addresses are made of.

use std::collections::BTreeMap;

use super::AddressError;

/// The settings after `?`, each of which is taken once.
pub(super) struct Query(BTreeMap<String, Option<String>>);

impl Query {
    pub(super) fn parse(text: &str) -> Result<Self, AddressError> {
        let mut settings = BTreeMap::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let plain = |text: &str| decoded(&text.replace('+', " ")).ok_or(AddressError::Escape("query"));
            let (key, value) = (plain(key)?, plain(value)?);
            let value = Some(value).filter(|value| !value.is_empty());
            if settings.insert(key.clone(), value).is_some() {
                return Err(AddressError::SeveralValues(key));
            }
        }
        Ok(Self(settings))
    }

    /// Takes a setting that needs a value.
    pub(super) fn value(&mut self, key: &'static str) -> Result<Option<String>, AddressError> {
        match self.0.remove(key) {
            Some(None) => Err(AddressError::NoValue(key.to_owned())),
            value => Ok(value.flatten()),
        }
    }

    /// Takes a setting that is on when it is only named. The words are those of Go's `strconv.ParseBool`.
    pub(super) fn flag(&mut self, key: &'static str) -> Result<Option<bool>, AddressError> {
        let Some(value) = self.0.remove(key) else { return Ok(None) };
        match value.as_deref() {
            None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(Some(true)),
            Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(Some(false)),
            Some(other) => Err(AddressError::InvalidValue { key, value: other.to_owned() }),
        }
    }

    /// Refuses what nobody has taken.
    pub(super) fn nothing_left(self) -> Result<(), AddressError> {
        match self.0.into_keys().next() {
            Some(key) => Err(AddressError::UnknownQuery(key)),
            None => Ok(()),
        }
    }
}

/// A text with its `%XX` replaced; `None` where one of them means nothing, or the result is no text.
pub(super) fn decoded(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut plain = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            plain.push(byte);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        plain.push(u8::try_from(digit()? * 16 + digit()?).expect("two hexadecimal digits are a byte"));
    }
    String::from_utf8(plain).ok()
}

/// A URL, or a text that holds URLs, for people and images: who logs in is `xxxxx`, with a password `xxxxx:xxxxx`, since a token
/// may be either. Of `ssh:` the user stays, who is no secret and a part of the address.
pub fn redacted(text: &str) -> String {
    with_logins(text, |user, password| match (user, password) {
        (Login::Address(user), false) => user.to_owned(),
        (Login::Address(user), true) => format!("{user}:xxxxx"),
        (Login::Secret, false) => "xxxxx".to_owned(),
        (Login::Secret, true) => "xxxxx:xxxxx".to_owned(),
    } + "@")
}

/// The same without who logs in, but for the user of `ssh:`.
pub fn without_logins(text: &str) -> String {
    with_logins(text, |user, _| match user {
        Login::Address(user) => format!("{user}@"),
        Login::Secret => String::new(),
    })
}

/// Who logs in.
enum Login<'a> {
    /// A part of the address.
    Address(&'a str),
    /// Somebody's own.
    Secret,
}

/// What is before the host of each URL, with its `@`, replaced; `shown` gets the user, and whether there is a password.
fn with_logins(text: &str, shown: impl Fn(Login<'_>, bool) -> String) -> String {
    let (mut done, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(start) = rest.find("://").map(|colon| colon + "://".len()) {
        let is_ssh = rest[..start].ends_with("ssh://");
        done.push_str(&rest[..start]);
        rest = &rest[start..];
        let authority =
            &rest[..rest.find(|c: char| "/?#\"'".contains(c) || c.is_whitespace()).unwrap_or(rest.len())];
        if let Some((login, _)) = authority.rsplit_once('@') {
            let (user, password) = login.split_once(':').map_or((login, false), |(user, _)| (user, true));
            done += &shown(if is_ssh { Login::Address(user) } else { Login::Secret }, password);
            rest = &rest[login.len() + "@".len()..];
        }
    }
    done + rest
}
