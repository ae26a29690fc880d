//! Asking token services, and reading what they answer (distribution, "Token Authentication Specification" and "Oauth2
//! Token Authentication").

use std::time::Duration;

use bytes::Bytes;
use reqwest::{
    Method, Response, StatusCode, Url,
    header::{CONTENT_TYPE, HeaderMap, HeaderValue},
};
use serde::Deserialize;

use super::{Access, Wish, basic};
use crate::registry::{
    challenge::Bearer,
    clock,
    credentials::Secret,
    error::{RegistryError, shown},
    http::{Inner, Payload},
};

/// Longest answer of a token service that is read.
const MAX_TOKEN_ANSWER: u64 = 1 << 20;
/// How long a token lasts that does not say so.
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// Longer than that nobody keeps one.
const LONGEST_LIFE: Duration = Duration::from_secs(365 * 86_400);
/// What we call ourselves.
const CLIENT_ID: &str = "layerwright";

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

/// `GET realm?service=...&scope=...`, with a name and a password where there are some.
pub(super) async fn get(
    http: &Inner,
    mut realm: Url,
    access: &Access,
    bearer: &Bearer,
    user: Option<(&str, &Secret)>,
    wish: Wish,
) -> Result<Response, RegistryError> {
    let scopes = scopes(access, bearer);
    let service = bearer.service.iter().map(|service| ("service", service.as_str()));
    realm.query_pairs_mut().extend_pairs(service.chain(scopes.iter().map(|scope| ("scope", scope.as_str()))));
    if let (Wish::Identity, Some((user, _))) = (wish, user) {
        let identity = [("account", user), ("client_id", CLIENT_ID), ("offline_token", "true")];
        realm.query_pairs_mut().extend_pairs(identity);
    }
    let authorization = user.map(|(user, password)| basic(user, password));
    http.send(&Method::GET, &realm, &HeaderMap::new(), authorization.as_ref(), &Payload::Empty).await
}

/// `POST realm` with a refresh token.
pub(super) async fn refresh(
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
    // Some take a scope that is there and empty for a mistake.
    encoded.query_pairs_mut().extend_pairs(form.iter().filter(|(_, value)| !value.is_empty()));
    let body = Bytes::from(encoded.query().unwrap_or_default().to_owned());
    let headers =
        HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"))]);
    http.send(&Method::POST, &realm, &headers, None, &Payload::Bytes(body)).await
}

/// What a token service gives.
pub(super) struct Token {
    pub text: Secret,
    /// How long it is good for.
    pub life: Duration,
    /// An identity token to be kept.
    pub identity: Option<Secret>,
    /// How far the service's clock is ahead of ours, in seconds.
    pub ahead: Option<i64>,
}

impl Token {
    pub async fn read(http: &Inner, mut response: Response, access: &Access) -> Result<Self, RegistryError> {
        #[derive(Deserialize)]
        struct Answer {
            token: Option<String>,
            access_token: Option<String>,
            expires_in: Option<u64>,
            issued_at: Option<String>,
            refresh_token: Option<String>,
        }
        if response.status() != StatusCode::OK {
            // A realm that does not exist is no image that does not exist.
            let url = shown(response.url());
            return Err(match http.failure(response, &access.registry, &access.name()).await {
                RegistryError::NotFound { reason, .. } => {
                    let (status, codes) = (404, Vec::new());
                    RegistryError::Status { url, status, codes, reason, retry_after: None }
                }
                other => other,
            });
        }
        let url = shown(response.url());
        let protocol = |reason: &str| RegistryError::Protocol { url: url.clone(), reason: reason.to_owned() };
        let date = clock::ahead(response.headers());
        let body = http.body(&mut response, MAX_TOKEN_ANSWER).await?;
        let body = body.ok_or_else(|| protocol("its token is too long"))?;
        let answer: Answer = serde_json::from_slice(&body).map_err(|_| protocol("its token is not JSON"))?;
        let text = answer.token.or(answer.access_token).filter(|text| !text.is_empty());
        Ok(Self {
            text: Secret::new(text.ok_or_else(|| protocol("it sends no token"))?),
            life: answer.expires_in.map_or(DEFAULT_LIFE, Duration::from_secs).min(LONGEST_LIFE),
            identity: answer.refresh_token.filter(|token| !token.is_empty()).map(Secret::new),
            ahead: answer.issued_at.as_deref().and_then(clock::ahead_at).or(date),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_joins_what_is_needed_and_what_is_wanted() {
        let scopes = |wanted: Option<&str>| {
            let bearer =
                Bearer { realm: String::new(), service: None, scope: wanted.map(str::to_owned), error: None };
            scopes(&Access::push("r", "b").and_pull("a"), &bearer).join(" ")
        };
        let both = "repository:a:pull repository:b:pull,push";
        assert_eq!(scopes(None), both);
        assert_eq!(scopes(Some("repository:b:push  repository:a:pull")), both);
        assert_eq!(scopes(Some("repository:b:delete")), format!("{both} repository:b:delete"));
    }
}
