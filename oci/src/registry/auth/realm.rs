//! Which token services may be asked, and shown credentials (RELIABILITY R26).

use reqwest::Url;

use super::Access;
use crate::registry::{
    address::{Reach, are_related},
    challenge::Bearer,
    error::{RegistryError, one_line, shown},
};

/// The URL of a token service, if it may be asked (RELIABILITY R26).
pub(super) fn realm_url(
    trusted_realms: &[String],
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
    let refuse = |reason| Err(refuse(&one_line(&shown(&realm)), reason));
    let (own, host) = (registry.host_str().unwrap_or_default(), realm.host_str().unwrap_or_default());
    let both_loopback = Reach::of(own) == Reach::Loopback && Reach::of(host) == Reach::Loopback;
    let same_host = own.eq_ignore_ascii_case(host) || both_loopback;
    match realm.scheme() {
        "https" => {}
        "http" if registry.scheme() == "http" && same_host => {}
        "http" => return refuse("that is not HTTPS"),
        _ => return refuse("only HTTP is spoken to token services"),
    }
    let trusted = trusted_realms.iter().any(|name| name.eq_ignore_ascii_case(host));
    let in_reach = match Reach::of(host) {
        Reach::Public => true,
        Reach::Private => Reach::of(own) != Reach::Public,
        Reach::Link | Reach::Loopback => same_host,
    };
    if !in_reach && !trusted {
        return refuse("that is an address inside a private network");
    }
    if shows_credentials && !same_host && !trusted && !are_one_owner(own, host) {
        return refuse("that is somebody else's host: --trusted-realm allows it, if it is right");
    }
    Ok(realm)
}

/// Whether a token service belongs to the registry: by its name, or as the registry's documentation says.
fn are_one_owner(registry: &str, realm: &str) -> bool {
    const KNOWN: [(&str, &str); 2] =
        [("registry.redhat.io", "sso.redhat.com"), ("registry.connect.redhat.com", "sso.redhat.com")];
    are_related(registry, realm) || KNOWN.contains(&(registry, realm))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_go_to_token_services_of_the_same_owner() {
        let trusted = vec!["auth.friend.example".to_owned()];
        let asked = |registry: &str, realm: &str, shows_credentials| {
            let registry = Url::parse(registry).expect("a URL");
            let access = Access::pull(registry.host_str().expect("a host"), "app");
            let bearer = Bearer { realm: realm.to_owned(), service: None, scope: None, error: None };
            realm_url(&trusted, &registry, &access, &bearer, shows_credentials).is_ok()
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
}
