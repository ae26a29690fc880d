//! What `config.json` and `auth.json` say about credentials, and under which names they keep them.

use std::collections::BTreeMap;

use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde::{Deserialize, Deserializer};

use super::{
    Credential, CredentialError, DOCKER_HUB_SERVER, Secret,
    helper::{Helper, Leash},
};
use crate::reference::DEFAULT_REGISTRY;

/// What we read of the file.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct CredentialFile {
    #[serde(deserialize_with = "or_nothing")]
    pub auths: BTreeMap<String, Entry>,
    #[serde(deserialize_with = "or_nothing")]
    pub cred_helpers: BTreeMap<String, String>,
    #[serde(deserialize_with = "or_nothing")]
    pub creds_store: String,
}

/// Programs written in Go write `null` for what is empty.
fn or_nothing<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(value: D) -> Result<T, D::Error> {
    Option::deserialize(value).map(Option::unwrap_or_default)
}

/// What it says about one registry.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

impl CredentialFile {
    /// A helper named for the registry, else the store for all of them, else what the file itself holds. A helper that
    /// fails is an error: what it guards must not be sought elsewhere.
    pub fn find(
        &self,
        registry: &str,
        repository: &str,
        source_name: &str,
        leash: &Leash,
    ) -> Result<Option<Credential>, CredentialError> {
        let keys = keys(registry, repository);
        if let Some(name) = self.helper(&keys)
            && let Some(credential) = Helper::new(name, source_name, leash.clone())?.get(registry)?
        {
            return Ok(Some(credential));
        }
        let Some(entry) = best(&self.auths, &keys) else { return Ok(None) };
        entry.credential().map_err(|reason| CredentialError::Malformed {
            source_name: source_name.to_owned(),
            reason: format!("the entry for {registry} {reason}"),
        })
    }

    /// The helper that keeps what is known by these names.
    pub fn helper(&self, keys: &[String]) -> Option<&str> {
        let own = best(&self.cred_helpers, keys).or(Some(&self.creds_store));
        own.map(String::as_str).filter(|name| !name.is_empty())
    }
}

impl Entry {
    fn credential(&self) -> Result<Option<Credential>, &'static str> {
        if !self.registrytoken.is_empty() {
            return Ok(Some(Credential::RegistryToken(Secret::new(self.registrytoken.clone()))));
        }
        if !self.identitytoken.is_empty() {
            return Ok(Some(Credential::IdentityToken(Secret::new(self.identitytoken.clone()))));
        }
        if self.auth.is_empty() {
            let (user, password) = (self.username.clone(), Secret::new(self.password.clone()));
            return Ok((!user.is_empty()).then_some(Credential::Password { user, password }));
        }
        let lenient = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
        let decoded = GeneralPurpose::new(&STANDARD, lenient).decode(self.auth.trim());
        let decoded = decoded.map_err(|_| "is not base64")?;
        let text = String::from_utf8(decoded).map_err(|_| "is not UTF-8")?;
        let (user, password) = text.split_once(':').ok_or("is not user:password")?;
        let (user, password) = (user.to_owned(), Secret::new(password.trim_end_matches('\0').to_owned()));
        Ok((!user.is_empty()).then_some(Credential::Password { user, password }))
    }
}

/// The names a repository's entry may have, the most specific first. Without a repository: those of the registry.
pub(super) fn keys(registry: &str, repository: &str) -> Vec<String> {
    let mut keys = Vec::new();
    let mut path = repository;
    while !path.is_empty() {
        keys.push(format!("{registry}/{path}"));
        path = path.rsplit_once('/').map_or("", |(parent, _)| parent);
    }
    keys.push(registry.to_owned());
    keys
}

/// The entry with the most specific of these names. Of several spellings of one name the one that logins write goes first.
fn best<'a, T>(entries: &'a BTreeMap<String, T>, keys: &[String]) -> Option<&'a T> {
    let spelled =
        |key: &String| entries.iter().find(|(name, _)| normalised(name) == *key).map(|(_, entry)| entry);
    keys.iter().find_map(|key| entries.get(written(key)).or_else(|| spelled(key)))
}

/// How Docker writes a name.
pub(super) fn written(key: &str) -> &str {
    if key == DEFAULT_REGISTRY { DOCKER_HUB_SERVER } else { key }
}

/// `host[:port][/path]` of a key, which may be a URL of one of the registry's old APIs.
pub(in crate::registry) fn normalised(key: &str) -> String {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let bare = bare.trim_end_matches('/');
    let (host, path) = bare.split_once('/').map_or((bare, None), |(host, path)| (host, Some(path)));
    let host = match host {
        "index.docker.io" | "registry-1.docker.io" => DEFAULT_REGISTRY,
        host => host,
    };
    match path {
        None | Some("v1" | "v2") => host.to_owned(),
        Some(path) => format!("{host}/{path}"),
    }
}
