//! Finding out whether a registry takes a name and a password, which decides whether a login is worth keeping.

use std::str::FromStr;

use reqwest::{Method, StatusCode};

use super::{
    Registry, RegistryError, RegistryOptions,
    auth::{Access, Wish},
    credentials::{Credential, CredentialStore, Found, LoginFile, Proof, Secret, normalised},
    http::Call,
};
use crate::reference::{self, DEFAULT_REGISTRY, ReferenceError};

/// What somebody logs in to: a registry, or the repositories below a path of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginName {
    text: String,
}

impl LoginName {
    /// `REGISTRY[/PATH]`, as credential files have it.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// `host[:port]`
    pub fn registry(&self) -> &str {
        self.text.split('/').next().unwrap_or_default()
    }

    fn path(&self) -> &str {
        self.text.split_once('/').map_or("", |(_, path)| path)
    }
}

impl Default for LoginName {
    /// Docker Hub, as with `docker login`.
    fn default() -> Self {
        Self { text: DEFAULT_REGISTRY.to_owned() }
    }
}

impl FromStr for LoginName {
    type Err = ReferenceError;

    /// `[http://|https://]host[:port][/path]`
    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        Ok(Self { text: reference::prefix(&normalised(text))? })
    }
}

/// What a registry says to somebody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Welcome {
    /// It knows them; this proves it from now on.
    Known(Proof),
    /// It has not asked who they are.
    NotAsked,
}

/// Asks a registry whether it takes this name and password. Where its token service gives an identity token for them, that
/// is the better thing to keep.
///
/// # Errors
/// [`RegistryError::Denied`] where it does not.
pub fn verify(
    options: RegistryOptions,
    name: &LoginName,
    user: &str,
    password: &Secret,
) -> Result<Welcome, RegistryError> {
    let credential = Credential::Password { user: user.to_owned(), password: password.clone() };
    let given = Found { credential, source_name: "the command line".to_owned() };
    let client = Registry::with_credentials(options, CredentialStore::Given(given), Wish::Identity)?;
    if !client.is_asked_who(name)? {
        return Ok(Welcome::NotAsked);
    }
    let identity = client.inner.auth.identity().map(Proof::IdentityToken);
    Ok(Welcome::Known(identity.unwrap_or_else(|| Proof::Password(password.clone()))))
}

/// Asks a registry whether it takes what a file or its helper keeps for it. `None` where they keep nothing.
///
/// # Errors
/// [`RegistryError::Credentials`] where it cannot be had.
pub fn verify_kept(
    options: RegistryOptions,
    file: &LoginFile,
    name: &LoginName,
) -> Result<Option<KeptLogin>, RegistryError> {
    let found = file.find(name.registry(), name.path());
    let registry = name.registry().to_owned();
    let failed = |source| RegistryError::Credentials { registry, source: Box::new(source) };
    let Some(credential) = found.map_err(failed)? else { return Ok(None) };
    let user = match &credential {
        Credential::Password { user, .. } => Some(user.clone()),
        Credential::IdentityToken(_) | Credential::RegistryToken(_) => None,
    };
    let given = Found { credential, source_name: file.path().display().to_string() };
    let client = Registry::with_credentials(options, CredentialStore::Given(given), Wish::Access)?;
    match client.is_asked_who(name) {
        Ok(_) => Ok(Some(KeptLogin { user, refusal: None })),
        Err(refusal @ RegistryError::Denied { .. }) => Ok(Some(KeptLogin { user, refusal: Some(refusal) })),
        Err(other) => Err(other),
    }
}

/// A login that is kept.
#[derive(Debug)]
pub struct KeptLogin {
    /// The user name, where it is known.
    pub user: Option<String>,
    /// Why it is good no more.
    pub refusal: Option<RegistryError>,
}

impl Registry {
    /// Whether the registry wants to know who we are, and if so, takes what we say (distribution-spec, "Determining
    /// Support").
    fn is_asked_who(&self, name: &LoginName) -> Result<bool, RegistryError> {
        let access = Access::identity(name.registry(), name.path());
        let inner = &self.inner;
        let ask = async || {
            let url = inner.url(name.registry(), "").await?;
            let response = inner.exchange(&Call::new(Method::GET, url, &access)).await?;
            match response.status() {
                StatusCode::OK => Ok(()),
                _ => Err(inner.failure(response, name.registry(), name.registry()).await),
            }
        };
        self.runtime.block_on(inner.retrying(name.registry(), ask))?;
        Ok(self.runtime.block_on(inner.auth.was_asked(&access)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_credential_files() {
        for (text, want) in [
            ("r.example.com", Some("r.example.com")),
            ("https://r.example.com:5000/v2/", Some("r.example.com:5000")),
            ("http://localhost:5000", Some("localhost:5000")),
            ("r.example.com/team/app", Some("r.example.com/team/app")),
            ("https://index.docker.io/v1/", Some("docker.io")),
            ("docker.io", Some("docker.io")),
            ("", None),
            ("ftp://r", None),
            ("u:p@r.example.com", None),
            ("r.example.com/Team", None),
            ("a b", None),
        ] {
            let name = text.parse::<LoginName>().ok();
            assert_eq!(name.as_ref().map(LoginName::as_str), want, "{text}");
        }
        let name: LoginName = "r:1/a/b".parse().expect("a name");
        assert_eq!((name.registry(), name.path()), ("r:1", "a/b"));
    }
}
