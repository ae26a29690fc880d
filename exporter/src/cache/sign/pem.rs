//! One block of PEM (RFC 7468, section 3, the strict form): what stands between its lines, or what is wrong in words.

use base64::{Engine, prelude::BASE64_STANDARD};

use super::KeyKind;

const BEGIN: &str = "-----BEGIN ";
const END: &str = "-----END ";
const DASHES: &str = "-----";

/// The bytes of the only block of a text, which must be of this kind.
pub(super) fn decode(text: &str, wanted: KeyKind) -> Result<Vec<u8>, String> {
    let mut lines = text.lines().map(str::trim_end);
    let first = lines.find(|line| !line.is_empty()).ok_or("it is empty")?;
    let label = first.strip_prefix(BEGIN).and_then(|line| line.strip_suffix(DASHES));
    let label = label.ok_or_else(|| format!("it does not begin with {BEGIN}{}{DASHES}", wanted.label()))?;
    if label != wanted.label() {
        return Err(other(label));
    }
    let end = format!("{END}{label}{DASHES}");
    let body: String = lines.by_ref().take_while(|line| *line != end).collect();
    // The line that ended it has been taken; a text without one has no more lines either.
    if !text.lines().any(|line| line.trim_end() == end) {
        return Err(format!("it has no line {end}"));
    }
    if lines.any(|line| !line.is_empty()) {
        return Err("something follows its end".to_owned());
    }
    BASE64_STANDARD.decode(body).map_err(|error| format!("it is not base64 ({error})"))
}

/// What a file holds that somebody took for a key.
fn other(label: &str) -> String {
    match label {
        "PRIVATE KEY" => "it holds a private key".to_owned(),
        "PUBLIC KEY" => "it holds a public key".to_owned(),
        "ENCRYPTED PRIVATE KEY" => "it is encrypted".to_owned(),
        "OPENSSH PRIVATE KEY" => "it is a key of OpenSSH".to_owned(),
        "CERTIFICATE" => "it is a certificate".to_owned(),
        _ => format!("it is of type {label:?}"),
    }
}

impl KeyKind {
    fn label(self) -> &'static str {
        match self {
            Self::Private => "PRIVATE KEY",
            Self::Public => "PUBLIC KEY",
        }
    }
}

impl std::fmt::Display for KeyKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Private => "private key",
            Self::Public => "public key",
        })
    }
}
