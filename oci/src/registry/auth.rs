//! Who we are to a registry: what it challenges is answered from the credential files, and the answer kept.
//!
//! Nothing is guessed: the first request of a kind goes out bare, and the challenge of its answer says what is wanted. A
//! token is kept for its registry and scopes until shortly before it expires; a request that is challenged all the same
//! gets a fresh one, from credentials that are looked up anew. Of many requests that need a token, one fetches it.

mod realm;
mod token;

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use reqwest::header::HeaderValue;

use self::token::Token;
use super::{
    challenge::{Bearer, Challenge},
    clock,
    credentials::{Credential, CredentialStore, Found, Leash, Secret},
    error::RegistryError,
    http::Inner,
};

/// So many secrets are remembered, to be taken out of what servers write.
const REMEMBERED: usize = 256;
/// Shorter ones are in every text.
const SHORTEST_SECRET: usize = 4;

/// What a request needs to be allowed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Access {
    pub registry: String,
    /// The repository whose credentials are used.
    pub repository: String,
    /// `repository:NAME:ACTIONS`, sorted.
    pub scopes: Vec<String>,
}

impl Access {
    /// To read a repository.
    pub fn pull(registry: &str, repository: &str) -> Self {
        let scopes = vec![format!("repository:{repository}:pull")];
        Self { registry: registry.to_owned(), repository: repository.to_owned(), scopes }
    }

    /// To write to a repository.
    pub fn push(registry: &str, repository: &str) -> Self {
        let scopes = vec![format!("repository:{repository}:pull,push")];
        Self { registry: registry.to_owned(), repository: repository.to_owned(), scopes }
    }

    /// To remove things from a repository.
    pub fn delete(registry: &str, repository: &str) -> Self {
        let scopes = vec![format!("repository:{repository}:delete")];
        Self { registry: registry.to_owned(), repository: repository.to_owned(), scopes }
    }

    /// To write to this repository what is read from another one of the registry.
    pub fn and_pull(mut self, repository: &str) -> Self {
        self.scopes.push(format!("repository:{repository}:pull"));
        self.scopes.sort();
        self
    }

    /// To be somebody to a registry, whatever one may do there. The path is that of the credentials, and may be empty.
    pub fn identity(registry: &str, path: &str) -> Self {
        Self { registry: registry.to_owned(), repository: path.to_owned(), scopes: Vec::new() }
    }

    /// What errors call it.
    pub fn name(&self) -> String {
        match self.scopes.is_empty() {
            true => self.registry.clone(),
            false => format!("{}/{}", self.registry, self.repository),
        }
    }
}

/// Answers challenges.
#[derive(Debug)]
pub(super) struct Auth {
    credentials: Arc<CredentialStore>,
    trusted_realms: Vec<String>,
    slots: Mutex<HashMap<Access, Arc<tokio::sync::Mutex<Slot>>>>,
    /// Where the credentials came from that were shown last, by registry.
    shown: Mutex<HashMap<String, String>>,
    /// What nobody may read in what servers write.
    secrets: Mutex<VecDeque<Secret>>,
    /// How far the clocks of token services are ahead of ours, in seconds, by registry.
    clocks: Mutex<HashMap<String, i64>>,
    wish: Wish,
    /// The identity token that a token service gave for a password.
    identity: Mutex<Option<Secret>>,
}

/// What token services are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// Tokens for the requests at hand.
    Access,
    /// An identity token too, to be kept in place of the password.
    Identity,
}

/// What is known for one access. Its lock is held while a token is fetched: who needs the same one waits for it.
#[derive(Debug, Default)]
struct Slot {
    header: Option<HeaderValue>,
    /// When to fetch a new token, and how. `None` for what does not expire.
    renewal: Option<(Instant, Bearer)>,
}

impl Slot {
    fn set(&mut self, header: HeaderValue, renewal: Option<(Instant, Bearer)>) {
        self.header = Some(header);
        self.renewal = renewal;
    }
}

impl Auth {
    pub fn new(credentials: CredentialStore, trusted_realms: Vec<String>, wish: Wish) -> Self {
        Self {
            credentials: Arc::new(credentials),
            trusted_realms,
            slots: Mutex::default(),
            shown: Mutex::default(),
            secrets: Mutex::default(),
            clocks: Mutex::default(),
            wish,
            identity: Mutex::default(),
        }
    }

    /// The identity token that came with an access token, if one was wished for and given.
    pub fn identity(&self) -> Option<Secret> {
        locked(&self.identity).clone()
    }

    /// Whose name was refused by a registry, and what to do about it. `ahead` is how far its clock is ahead of ours.
    pub fn hint(&self, registry: &str, ahead: Option<i64>) -> String {
        let about_clocks = clock::told(registry, ahead, locked(&self.clocks).get(registry).copied());
        let about_login = match locked(&self.shown).get(registry) {
            _ if self.wish == Wish::Identity => "check the user name and the password".to_owned(),
            Some(source) => format!(
                "the credentials from {source} were sent: log in anew, or check what the account may do"
            ),
            None => format!("no credentials were sent: log in with `layerwright login {registry}`"),
        };
        [Some(about_login), about_clocks].into_iter().flatten().collect::<Vec<_>>().join("; ")
    }

    /// A text of a server without what nobody may read of us in it.
    pub fn scrub(&self, text: &str) -> String {
        let secrets = locked(&self.secrets);
        secrets.iter().fold(text.to_owned(), |text, secret| text.replace(secret.expose(), "***"))
    }

    /// Whether the registry has wanted to know who we are for this, and been told.
    pub async fn was_asked(&self, access: &Access) -> bool {
        self.slot(access).lock().await.header.is_some()
    }

    fn remember(&self, secret: &str) {
        let mut secrets = locked(&self.secrets);
        if secret.len() < SHORTEST_SECRET || secrets.iter().any(|own| own.expose() == secret) {
            return;
        }
        secrets.push_front(Secret::new(secret.to_owned()));
        secrets.truncate(REMEMBERED);
    }

    /// Takes note of what is about to be shown.
    fn note_shown(&self, access: &Access, found: &Found) {
        match &found.credential {
            Credential::Password { user, password } => {
                self.remember(password.expose());
                self.remember(&encoded(user, password));
            }
            Credential::IdentityToken(token) | Credential::RegistryToken(token) => {
                self.remember(token.expose());
            }
        }
        locked(&self.shown).insert(access.registry.clone(), found.source_name.clone());
    }

    /// The header to send: what was answered to an earlier challenge.
    pub async fn current(&self, http: &Inner, access: &Access) -> Result<Option<HeaderValue>, RegistryError> {
        let slot = self.slot(access);
        let mut slot = slot.lock().await;
        if let Some((expires, bearer)) = slot.renewal.clone()
            && expires <= Instant::now()
        {
            self.fetch(http, access, &bearer, &mut slot).await?;
        }
        Ok(slot.header.clone())
    }

    /// Answers a challenge to a request that went out with the header `used`. `false` when there is nothing else we could
    /// say.
    pub async fn answer(
        &self,
        http: &Inner,
        access: &Access,
        challenge: Option<Challenge>,
        used: Option<HeaderValue>,
    ) -> Result<bool, RegistryError> {
        let slot = self.slot(access);
        let mut slot = slot.lock().await;
        if slot.header != used {
            return Ok(true);
        }
        match challenge {
            None => Ok(false),
            Some(Challenge::Basic) => {
                let found = self.credential(access).await?;
                let Some(Found { credential: Credential::Password { user, password }, .. }) = &found else {
                    return Ok(false);
                };
                found.iter().for_each(|found| self.note_shown(access, found));
                slot.set(basic(user, password), None);
                Ok(slot.header != used)
            }
            Some(Challenge::Bearer(bearer)) => {
                self.fetch(http, access, &bearer, &mut slot).await?;
                Ok(slot.header != used)
            }
        }
    }

    fn slot(&self, access: &Access) -> Arc<tokio::sync::Mutex<Slot>> {
        locked(&self.slots).entry(access.clone()).or_default().clone()
    }

    /// Looks a credential up, off the threads that move bytes: a helper may take its time. It ends with the wait for it.
    async fn credential(&self, access: &Access) -> Result<Option<Found>, RegistryError> {
        let waiting = Waiting::default();
        let (store, own, leash) = (self.credentials.clone(), access.clone(), waiting.0.clone());
        let look_up = move || store.find(&own.registry, &own.repository, &leash);
        let found = tokio::task::spawn_blocking(look_up).await;
        let found =
            found.map_err(|error| RegistryError::Setup { what: "credentials", source: error.into() })?;
        let failed = |source| RegistryError::Credentials {
            registry: access.registry.clone(),
            source: Box::new(source),
        };
        found.map_err(failed)
    }

    /// Gets a token from the realm of a challenge.
    async fn fetch(
        &self,
        http: &Inner,
        access: &Access,
        bearer: &Bearer,
        slot: &mut Slot,
    ) -> Result<(), RegistryError> {
        let found = self.credential(access).await?;
        let credential = found.as_ref().map(|found| &found.credential);
        if let Some(Credential::RegistryToken(token)) = credential {
            found.iter().for_each(|found| self.note_shown(access, found));
            slot.set(bearer_header(token, &access.name())?, None);
            return Ok(());
        }
        let registry = http.home(access).await?;
        let realm = realm::realm_url(&self.trusted_realms, &registry, access, bearer, credential.is_some())?;
        found.iter().for_each(|found| self.note_shown(access, found));
        let asked = Instant::now();
        let response = match credential {
            Some(Credential::IdentityToken(own)) => token::refresh(http, realm, access, bearer, own).await?,
            Some(Credential::Password { user, password }) => {
                token::get(http, realm, access, bearer, Some((user, password)), self.wish).await?
            }
            _ => token::get(http, realm, access, bearer, None, self.wish).await?,
        };
        let Token { text, life, identity, ahead } = Token::read(http, response, access).await?;
        self.remember(text.expose());
        identity.iter().for_each(|identity| self.remember(identity.expose()));
        *locked(&self.identity) = identity;
        ahead.map(|ahead| locked(&self.clocks).insert(access.registry.clone(), ahead));
        // A tenth early: requests take time. By a clock that nobody sets.
        let renewal = (asked + life.mul_f64(0.9), bearer.clone());
        slot.set(bearer_header(&text, &access.name())?, Some(renewal));
        Ok(())
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whoever waits for a helper: its end is the helper's.
#[derive(Default)]
struct Waiting(Leash);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.cut();
    }
}

fn encoded(user: &str, password: &Secret) -> String {
    BASE64_STANDARD.encode(format!("{user}:{}", password.expose()))
}

fn basic(user: &str, password: &Secret) -> HeaderValue {
    sensitive(format!("Basic {}", encoded(user, password))).expect("base64 is a valid header value")
}

fn bearer_header(token: &Secret, name: &str) -> Result<HeaderValue, RegistryError> {
    let protocol = || RegistryError::Protocol {
        url: name.to_owned(),
        reason: "its token is not a header value".to_owned(),
    };
    sensitive(format!("Bearer {}", token.expose())).ok_or_else(protocol)
}

fn sensitive(text: String) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&text).ok()?;
    value.set_sensitive(true);
    Some(value)
}
