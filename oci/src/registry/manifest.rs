//! Manifests: small documents whose bytes, type and digest must all agree before anything is made of them.

use bytes::Bytes;
use reqwest::{
    Method, Response, StatusCode,
    header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
};

use super::{
    FetchedManifest,
    auth::Access,
    error::{RegistryError, shown},
    http::{Call, Inner, Payload},
};
use crate::{
    descriptor::{Descriptor, MediaType},
    digest::Sha256Digest,
    document::{self, DocumentError},
    reference::Reference,
};

const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// Types of manifests that registries may send. Without the list, some send Docker's first format.
const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, \
    */*;q=0.5";

/// Gets a manifest or index, verified.
pub(super) async fn get(inner: &Inner, reference: &Reference) -> Result<FetchedManifest, RegistryError> {
    let mut response = request(inner, Method::GET, reference).await?;
    if response.status() != StatusCode::OK {
        return Err(inner.failure(response, &reference.registry, &reference.to_string()).await);
    }
    let url = shown(response.url());
    let wrong =
        |source: DocumentError| RegistryError::Document { url: url.clone(), source: Box::new(source) };
    let body = inner.body(&mut response, document::MAX_SIZE).await?;
    let too_long = || wrong(DocumentError::TooLarge { size: document::MAX_SIZE + 1 });
    let bytes = body.ok_or_else(too_long)?;
    let digest = check_digest(&url, reference, response.headers(), &bytes)?;
    let media_type =
        document::media_type(content_type(response.headers()).as_ref(), &bytes).map_err(wrong)?;
    Ok(FetchedManifest { bytes, media_type, digest })
}

/// What a tag or digest points at, without its bytes; `None` when it does not exist.
pub(super) async fn head(inner: &Inner, reference: &Reference) -> Result<Option<Descriptor>, RegistryError> {
    let response = request(inner, Method::HEAD, reference).await?;
    match response.status() {
        StatusCode::OK => {}
        StatusCode::NOT_FOUND => return Ok(None),
        _ => return Err(inner.failure(response, &reference.registry, &reference.to_string()).await),
    }
    let headers = response.headers();
    let size = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let found = (content_type(headers), announced_digest(headers), size);
    let (Some(media_type), Some(digest), Some(size)) = found else {
        // A registry that leaves headers out has to be asked for the body.
        let fetched = get(inner, reference).await?;
        return Ok(Some(Descriptor::new(fetched.media_type, fetched.digest, fetched.bytes.len() as u64)));
    };
    match reference.digest {
        Some(expected) if expected != digest => {
            Err(RegistryError::Digest { url: shown(response.url()), expected, found: digest })
        }
        _ => Ok(Some(Descriptor::new(media_type, digest, size))),
    }
}

/// A manifest that a registry has taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Its digest.
    pub digest: Sha256Digest,
    /// Whether the registry's answer says that digest (distribution-spec, "Pushing Manifests": `Docker-Content-Digest`),
    /// which it may leave out.
    pub is_confirmed: bool,
}

/// Puts a manifest under the reference's tag, else under its digest.
pub(super) async fn put(
    inner: &Inner,
    reference: &Reference,
    media_type: &MediaType,
    bytes: &Bytes,
) -> Result<Taken, RegistryError> {
    let digest = Sha256Digest::of(bytes);
    let access = Access::push(&reference.registry, &reference.repository);
    let selector = reference.tag.clone().unwrap_or_else(|| digest.to_string());
    let url =
        inner.url(&reference.registry, &format!("{}/manifests/{selector}", reference.repository)).await?;
    let mut call = Call::new(Method::PUT, url, &access);
    let content_type = HeaderValue::from_str(media_type.as_str());
    let content_type = content_type.map_err(|_| RegistryError::Protocol {
        url: shown(&call.url),
        reason: format!("{media_type:?} is not a media type"),
    })?;
    call.headers = HeaderMap::from_iter([(CONTENT_TYPE, content_type)]);
    call.payload = Payload::Bytes(bytes.clone());
    let response = inner.exchange(&call).await?;
    if !response.status().is_success() {
        return Err(inner.failure(response, &reference.registry, &reference.to_string()).await);
    }
    match announced_digest(response.headers()) {
        Some(found) if found != digest => {
            Err(RegistryError::Digest { url: shown(response.url()), expected: digest, found })
        }
        found => Ok(Taken { digest, is_confirmed: found.is_some() }),
    }
}

async fn request(inner: &Inner, method: Method, reference: &Reference) -> Result<Response, RegistryError> {
    let access = Access::pull(&reference.registry, &reference.repository);
    let path = format!("{}/manifests/{}", reference.repository, reference.selector());
    let mut call = Call::new(method, inner.url(&reference.registry, &path).await?, &access);
    call.headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(ACCEPTED))]);
    inner.exchange(&call).await
}

/// The digest of a body, which must be the one asked for and the one announced.
fn check_digest(
    url: &str,
    reference: &Reference,
    headers: &HeaderMap,
    bytes: &[u8],
) -> Result<Sha256Digest, RegistryError> {
    let found = Sha256Digest::of(bytes);
    let promised = [reference.digest, announced_digest(headers)];
    match promised.into_iter().flatten().find(|expected| *expected != found) {
        Some(expected) => Err(RegistryError::Digest { url: url.to_owned(), expected, found }),
        None => Ok(found),
    }
}

/// `Docker-Content-Digest`; one of another algorithm than ours says nothing to us.
pub(super) fn announced_digest(headers: &HeaderMap) -> Option<Sha256Digest> {
    headers.get(DOCKER_CONTENT_DIGEST)?.to_str().ok()?.parse().ok()
}

/// `Content-Type` without its parameters.
fn content_type(headers: &HeaderMap) -> Option<MediaType> {
    let text = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    let bare = text.split(';').next().unwrap_or_default().trim();
    (!bare.is_empty()).then(|| MediaType::from(bare.to_owned()))
}
