//! What a repository holds, and what is taken out of it: the calls of distribution-spec 1.1 that no build needs ("Listing
//! Tags", "Deleting Manifests").

use reqwest::{
    Method, Response, StatusCode, Url,
    header::{HeaderMap, LINK},
};
use serde::Deserialize;

use super::{
    address::Origin,
    auth::Access,
    error::{RegistryError, shown},
    http::{Call, Inner},
};
use crate::{digest::Sha256Digest, reference::Reference};

/// Tags that a registry is asked for at once; some give fewer, some all there are.
const PAGE: &str = "n=1000";
/// Longest answer that is read, in bytes.
const MAX_PAGE: u64 = 32 << 20;
/// More tags than anybody has.
const MAX_TAGS: usize = 1 << 20;

/// All tags of the repository, sorted.
pub(super) async fn list(inner: &Inner, reference: &Reference) -> Result<Vec<String>, RegistryError> {
    let access = Access::pull(&reference.registry, &reference.repository);
    let path = format!("{}/tags/list", reference.repository);
    let mut asked = inner.url(&reference.registry, &path).await?;
    asked.set_query(Some(PAGE));
    let mut tags = Vec::new();
    loop {
        let response = inner.exchange(&Call::new(Method::GET, asked.clone(), &access)).await?;
        match response.status() {
            StatusCode::OK => {}
            _ => return Err(inner.failure(response, &reference.registry, &access.name()).await),
        }
        let url = inner.spoken(&reference.registry, &asked).await?;
        let next = next_page(&url, response.headers())?;
        let page = page(inner, &url, response).await?;
        let is_progress = !page.is_empty();
        tags.extend(page);
        if tags.len() > MAX_TAGS {
            return Err(wrong(&url, format!("it lists more than {MAX_TAGS} tags")));
        }
        match next {
            Some(next) if is_progress => asked = next,
            _ => break,
        }
    }
    tags.sort_unstable();
    tags.dedup();
    Ok(tags)
}

/// Takes a manifest out of the repository, and with it the tags that stand for it. `false` where there was none.
pub(super) async fn delete(
    inner: &Inner,
    reference: &Reference,
    digest: &Sha256Digest,
) -> Result<bool, RegistryError> {
    let access = Access::delete(&reference.registry, &reference.repository);
    let path = format!("{}/manifests/{digest}", reference.repository);
    let url = inner.url(&reference.registry, &path).await?;
    let response = inner.exchange(&Call::new(Method::DELETE, url, &access)).await?;
    match response.status() {
        StatusCode::NOT_FOUND => Ok(false),
        status if status.is_success() => Ok(true),
        _ => {
            let name = format!("{}@{digest}", access.name());
            Err(inner.failure(response, &reference.registry, &name).await)
        }
    }
}

#[derive(Deserialize)]
struct Page {
    /// Some write `null` for an empty list.
    tags: Option<Vec<String>>,
}

async fn page(inner: &Inner, url: &Url, mut response: Response) -> Result<Vec<String>, RegistryError> {
    let body = inner.body(&mut response, MAX_PAGE).await?;
    let body = body.ok_or_else(|| wrong(url, format!("its list has more than {MAX_PAGE} bytes")))?;
    let page: Page = serde_json::from_slice(&body)
        .map_err(|error| wrong(url, format!("what it sent is no list of tags: {error}")))?;
    Ok(page.tags.unwrap_or_default())
}

/// Where the list goes on: a `Link` (RFC 8288) with the relation `next`, at the registry that was asked.
fn next_page(url: &Url, headers: &HeaderMap) -> Result<Option<Url>, RegistryError> {
    let links = headers.get_all(LINK).iter().filter_map(|value| value.to_str().ok());
    let Some(target) = links.flat_map(|value| value.split(',')).find_map(next_target) else {
        return Ok(None);
    };
    let next = url.join(target).map_err(|_| wrong(url, "its Link is not a URL".to_owned()))?;
    if Origin::of(&next) != Origin::of(url) {
        return Err(wrong(url, "its Link leads to another server".to_owned()));
    }
    Ok(Some(next))
}

/// `</v2/app/tags/list?last=b&n=2>; rel="next"`
fn next_target(link: &str) -> Option<&str> {
    let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
    let is_next = |parameter: &str| {
        let relation = parameter.trim().strip_prefix("rel=");
        relation.is_some_and(|relation| relation.trim_matches('"').eq_ignore_ascii_case("next"))
    };
    parameters.split(';').any(is_next).then_some(target)
}

fn wrong(url: &Url, reason: String) -> RegistryError {
    RegistryError::Protocol { url: shown(url), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_goes_on_where_the_registry_says() {
        let at: Url = "https://registry.example/v2/app/tags/list?n=2".parse().expect("a URL");
        let next = |links: &[&str]| {
            let values = links.iter().map(|link| (LINK, link.parse().expect("a header value")));
            let mut headers = HeaderMap::new();
            values.for_each(|(name, value)| _ = headers.append(name, value));
            next_page(&at, &headers).map(|next| next.map(|url| url.to_string())).map_err(|_| ())
        };
        let second = Ok(Some("https://registry.example/v2/app/tags/list?last=b&n=2".to_owned()));
        assert_eq!(next(&[]), Ok(None));
        assert_eq!(next(&[r#"</v2/app/tags/list?last=b&n=2>; rel="next""#]), second);
        assert_eq!(next(&[r#"</x>; rel="prev", </v2/app/tags/list?last=b&n=2>; title=x; rel=next"#]), second);
        assert_eq!(next(&[r#"</x>; rel="prev""#, r#"<list?last=b&n=2>; rel="next""#]), second);
        assert_eq!(next(&[r#"</x>; rel="prev""#, "garbage", "<"]), Ok(None));
        assert_eq!(next(&[r#"<https://elsewhere.example/v2/app/tags/list>; rel="next""#]), Err(()));
    }
}
