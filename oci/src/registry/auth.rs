//! Who we are to a registry: what it challenges is answered from the credential files, and the answer kept.
//!
//! Nothing is guessed: the first request of a kind goes out bare, and the challenge of its answer says what is wanted. A
//! token is kept for its registry and scopes until shortly before it expires; a request that is challenged all the same
//! gets a fresh one, from credentials that are looked up anew. Of many requests that need a token, one fetches it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use reqwest::{
    Method, Response, StatusCode, Url,
    header::{CONTENT_TYPE, HeaderMap, HeaderValue},
};
use serde::Deserialize;

use super::{
    address::{Reach, are_related},
    challenge::{Bearer, Challenge},
    credentials::{Credential, CredentialStore, Found, Secret},
    error::{RegistryError, shown},
    http::{Inner, Payload},
};

/// Longest answer of a token service that is read.
const MAX_TOKEN_ANSWER: u64 = 1 << 20;
/// How long a token lasts that does not say so (distribution's token specification).
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// What we call ourselves to an OAuth2 token service.
const CLIENT_ID: &str = "layerwright";

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

    /// To write to this repository what is read from another one of the registry.
    pub fn and_pull(mut self, repository: &str) -> Self {
        self.scopes.push(format!("repository:{repository}:pull"));
        self.scopes.sort();
        self
    }

    /// What errors call it.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
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
    pub fn new(credentials: CredentialStore, trusted_realms: Vec<String>) -> Self {
        let (slots, shown) = (Mutex::default(), Mutex::default());
        Self { credentials: Arc::new(credentials), trusted_realms, slots, shown }
    }

    /// Whose name was refused and what to do about it, for the full name of something in a registry.
    pub fn hint(&self, name: &str) -> String {
        let registry = name.split_once('/').map_or(name, |(registry, _)| registry);
        match self.shown.lock().unwrap_or_else(PoisonError::into_inner).get(registry) {
            Some(source) => format!(
                "the credentials from {source} were sent: log in anew, or check what the account may do"
            ),
            None => format!("no credentials were sent: log in with `docker login {registry}`"),
        }
    }

    fn note_shown(&self, access: &Access, source_name: String) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.insert(access.registry.clone(), source_name);
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
                let found = self.credential(access).await?.map(|found| (found.credential, found.source_name));
                let Some((Credential::Password { user, password }, source_name)) = found else {
                    return Ok(false);
                };
                self.note_shown(access, source_name);
                slot.set(basic(&user, &password), None);
                Ok(slot.header != used)
            }
            Some(Challenge::Bearer(bearer)) => {
                self.fetch(http, access, &bearer, &mut slot).await?;
                Ok(slot.header != used)
            }
        }
    }

    fn slot(&self, access: &Access) -> Arc<tokio::sync::Mutex<Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).entry(access.clone()).or_default().clone()
    }

    /// Looks a credential up, off the threads that move bytes: a helper may take its time.
    async fn credential(&self, access: &Access) -> Result<Option<Found>, RegistryError> {
        let (store, own) = (self.credentials.clone(), access.clone());
        let found = tokio::task::spawn_blocking(move || store.find(&own.registry, &own.repository)).await;
        let found =
            found.map_err(|error| RegistryError::Setup { what: "credentials", source: error.into() })?;
        found.map_err(|source| RegistryError::Credentials { registry: access.registry.clone(), source })
    }

    /// Gets a token from the realm of a challenge.
    async fn fetch(
        &self,
        http: &Inner,
        access: &Access,
        bearer: &Bearer,
        slot: &mut Slot,
    ) -> Result<(), RegistryError> {
        let (credential, source_name) =
            self.credential(access).await?.map(|found| (found.credential, found.source_name)).unzip();
        if let Some(Credential::RegistryToken(token)) = &credential {
            slot.set(bearer_header(token.expose(), &access.name())?, None);
            source_name.into_iter().for_each(|source_name| self.note_shown(access, source_name));
            return Ok(());
        }
        let registry = http.url(&access.registry, "").await?;
        let realm = self.realm(&registry, access, bearer, credential.is_some())?;
        source_name.into_iter().for_each(|source_name| self.note_shown(access, source_name));
        let asked = Instant::now();
        let response = match credential {
            Some(Credential::IdentityToken(token)) => refresh(http, realm, access, bearer, &token).await?,
            Some(Credential::Password { user, password }) => {
                get(http, realm, access, bearer, Some(basic(&user, &password))).await?
            }
            _ => get(http, realm, access, bearer, None).await?,
        };
        let token = Token::read(http, response, access).await?;
        let life = token.expires_in.map_or(DEFAULT_LIFE, Duration::from_secs);
        // A tenth early: clocks differ, and requests take time.
        let renewal = (asked + life.mul_f64(0.9), bearer.clone());
        slot.set(bearer_header(&token.text, &access.name())?, Some(renewal));
        Ok(())
    }

    /// The URL of a token service, if it may be asked (RELIABILITY R26).
    fn realm(
        &self,
        registry: &Url,
        access: &Access,
        bearer: &Bearer,
        shows_credentials: bool,
    ) -> Result<Url, RegistryError> {
        let refuse = |realm: &str, reason| RegistryError::Realm {
            registry: access.registry.clone(),
            realm: realm.to_owned(),
            reason,
        };
        let mut realm = Url::parse(&bearer.realm).map_err(|_| refuse("no URL", "its realm is not a URL"))?;
        // A realm without a host has no user information either, and is refused just below.
        let _ = realm.set_username("");
        let _ = realm.set_password(None);
        let refuse = |reason| Err(refuse(&shown(&realm), reason));
        let (own, host) = (registry.host_str().unwrap_or_default(), realm.host_str().unwrap_or_default());
        let both_loopback = Reach::of(own) == Reach::Loopback && Reach::of(host) == Reach::Loopback;
        let same_host = own.eq_ignore_ascii_case(host) || both_loopback;
        match realm.scheme() {
            "https" => {}
            "http" if registry.scheme() == "http" && same_host => {}
            "http" => return refuse("that is not HTTPS"),
            _ => return refuse("only HTTP is spoken to token services"),
        }
        let trusted = self.trusted_realms.iter().any(|name| name.eq_ignore_ascii_case(host));
        let in_reach = match Reach::of(host) {
            Reach::Public => true,
            Reach::Private => Reach::of(own) != Reach::Public,
            Reach::Link | Reach::Loopback => same_host,
        };
        if !in_reach && !trusted {
            return refuse("that is an address inside a private network");
        }
        if shows_credentials && !same_host && !trusted && !are_one_owner(own, host) {
            return refuse("that is somebody else's host; name it as a trusted realm if it is right");
        }
        Ok(realm)
    }
}

/// Whether a token service belongs to the registry: by its name, or as the registry's documentation says.
fn are_one_owner(registry: &str, realm: &str) -> bool {
    const KNOWN: [(&str, &str); 2] =
        [("registry.redhat.io", "sso.redhat.com"), ("registry.connect.redhat.com", "sso.redhat.com")];
    are_related(registry, realm) || KNOWN.contains(&(registry, realm))
}

fn basic(user: &str, password: &Secret) -> HeaderValue {
    let encoded = BASE64_STANDARD.encode(format!("{user}:{}", password.expose()));
    sensitive(format!("Basic {encoded}")).expect("base64 is a valid header value")
}

fn bearer_header(token: &str, name: &str) -> Result<HeaderValue, RegistryError> {
    let protocol = || RegistryError::Protocol {
        url: name.to_owned(),
        reason: "its token is not a header value".to_owned(),
    };
    sensitive(format!("Bearer {token}")).ok_or_else(protocol)
}

fn sensitive(text: String) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// What we want, and what the challenge wants besides.
fn scopes(access: &Access, bearer: &Bearer) -> Vec<String> {
    let asked = bearer.scope.iter().flat_map(|scope| scope.split(' ')).filter(|scope| !scope.is_empty());
    let covered = |scope: &str| access.scopes.iter().any(|own| covers(own, scope));
    let extra = asked.filter(|scope| !covered(scope)).map(str::to_owned);
    access.scopes.iter().cloned().chain(extra).collect()
}

/// Whether scope `own` allows everything that `other` does.
fn covers(own: &str, other: &str) -> bool {
    match (own.rsplit_once(':'), other.rsplit_once(':')) {
        (Some((own_name, own_actions)), Some((name, actions))) => {
            own_name == name
                && actions.split(',').all(|action| own_actions.split(',').any(|own| own == action))
        }
        _ => own == other,
    }
}

/// `GET realm?service=...&scope=...` (distribution, "Token Authentication Specification").
async fn get(
    http: &Inner,
    mut realm: Url,
    access: &Access,
    bearer: &Bearer,
    authorization: Option<HeaderValue>,
) -> Result<Response, RegistryError> {
    let service = bearer.service.iter().map(|service| ("service", service.as_str()));
    let scopes = scopes(access, bearer);
    realm.query_pairs_mut().extend_pairs(service.chain(scopes.iter().map(|scope| ("scope", scope.as_str()))));
    http.send(&Method::GET, &realm, &HeaderMap::new(), authorization.as_ref(), &Payload::Empty).await
}

/// `POST realm` with a refresh token (distribution, "Oauth2 Token Authentication").
async fn refresh(
    http: &Inner,
    realm: Url,
    access: &Access,
    bearer: &Bearer,
    token: &Secret,
) -> Result<Response, RegistryError> {
    let scope = scopes(access, bearer).join(" ");
    let service = bearer.service.as_deref().unwrap_or_default();
    let form = [
        ("grant_type", "refresh_token"),
        ("service", service),
        ("client_id", CLIENT_ID),
        ("scope", &scope),
        ("refresh_token", token.expose()),
    ];
    let mut encoded = Url::parse("form:").expect("a constant");
    encoded.query_pairs_mut().extend_pairs(form);
    let body = Bytes::from(encoded.query().unwrap_or_default().to_owned());
    let headers =
        HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"))]);
    http.send(&Method::POST, &realm, &headers, None, &Payload::Bytes(body)).await
}

struct Token {
    text: String,
    expires_in: Option<u64>,
}

impl Token {
    async fn read(http: &Inner, mut response: Response, access: &Access) -> Result<Self, RegistryError> {
        #[derive(Deserialize)]
        struct Answer {
            token: Option<String>,
            access_token: Option<String>,
            expires_in: Option<u64>,
        }
        if response.status() != StatusCode::OK {
            // A realm that does not exist is no image that does not exist.
            let url = shown(response.url());
            return Err(match http.failure(response, &access.name()).await {
                RegistryError::NotFound { reason, .. } => {
                    let (status, codes) = (404, Vec::new());
                    RegistryError::Status { url, status, codes, reason, retry_after: None }
                }
                other => other,
            });
        }
        let url = shown(response.url());
        let protocol = |reason: &str| RegistryError::Protocol { url: url.clone(), reason: reason.to_owned() };
        let body = http.body(&mut response, MAX_TOKEN_ANSWER).await?;
        let body = body.ok_or_else(|| protocol("its token is too long"))?;
        let answer: Answer = serde_json::from_slice(&body).map_err(|_| protocol("its token is not JSON"))?;
        let text = answer.token.or(answer.access_token).filter(|text| !text.is_empty());
        Ok(Self { text: text.ok_or_else(|| protocol("it sends no token"))?, expires_in: answer.expires_in })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_go_to_token_services_of_the_same_owner() {
        let auth = Auth::new(CredentialStore::new(&[], &|_| None), vec!["auth.friend.example".to_owned()]);
        let asked = |registry: &str, realm: &str, shows_credentials| {
            let registry = Url::parse(registry).expect("a URL");
            let access = Access::pull(registry.host_str().expect("a host"), "app");
            let bearer = Bearer { realm: realm.to_owned(), service: None, scope: None };
            auth.realm(&registry, &access, &bearer, shows_credentials).is_ok()
        };
        // Registry, realm, whether it may see credentials, whether it may be asked without.
        for (registry, realm, with, without) in [
            ("https://registry-1.docker.io/", "https://auth.docker.io/token", true, true),
            ("https://registry.gitlab.com/", "https://gitlab.com/jwt/auth", true, true),
            ("https://registry.redhat.io/", "https://sso.redhat.com/auth", true, true),
            ("https://r.example.com:5000/", "https://r.example.com:5001/token", true, true),
            ("https://r.example.com/", "https://auth.friend.example/token", true, true),
            ("https://r.example.com/", "https://auth.evil.example/token", false, true),
            ("https://r.example.com/", "http://r.example.com/token", false, false),
            ("https://r.example.com/", "https://169.254.169.254/", false, false),
            ("https://r.example.com/", "https://10.0.0.1/", false, false),
            ("https://r.example.com/", "https://localhost/", false, false),
            ("https://10.0.0.1/", "https://10.0.0.2/", false, true),
            ("https://10.0.0.1/", "https://127.0.0.1/", false, false),
            ("http://127.0.0.1:5000/", "https://169.254.169.254/", false, false),
            ("http://127.0.0.1:5000/", "http://localhost:5001/token", true, true),
            ("http://10.0.0.1:5000/", "http://10.0.0.1:5001/token", true, true),
            ("http://10.0.0.1:5000/", "http://10.0.0.2:5001/token", false, false),
        ] {
            assert_eq!(asked(registry, realm, true), with, "{registry} {realm} with credentials");
            assert_eq!(asked(registry, realm, false), without, "{registry} {realm} without");
        }
    }

    #[test]
    fn what_is_asked_for_joins_what_is_needed_and_what_is_wanted() {
        let scopes = |wanted: Option<&str>| {
            let bearer = Bearer { realm: String::new(), service: None, scope: wanted.map(str::to_owned) };
            scopes(&Access::push("r", "b").and_pull("a"), &bearer).join(" ")
        };
        let both = "repository:a:pull repository:b:pull,push";
        assert_eq!(scopes(None), both);
        assert_eq!(scopes(Some("repository:b:push  repository:a:pull")), both);
        assert_eq!(scopes(Some("repository:b:delete")), format!("{both} repository:b:delete"));
    }
}
