//! Registries that send the client elsewhere in the middle of a call: by redirect, or by the place of an upload.

use oci::{
    Descriptor, MediaType, Registry, Sha256Digest,
    registry::{Hosts, Pushed},
};

use super::{
    PASSWORD, Scene,
    common::{
        self,
        fault::{Reply, Request, status},
    },
};

/// The only blob.
pub const BLOB: &[u8] = b"layer";
/// The only manifest.
pub const MANIFEST: &[u8] =
    br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;

/// Which call of the registry sends us elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Blob,
    Manifest,
    Tag,
    UploadBegins,
    UploadEnds,
    Mount,
    ManifestPut,
}

impl At {
    fn is(self, request: &Request) -> bool {
        match self {
            Self::Blob => request.is("GET", "/blobs/"),
            Self::Manifest => request.is("GET", "/manifests/"),
            Self::Tag => request.is("HEAD", "/manifests/"),
            Self::UploadBegins => request.is("POST", "/uploads/"),
            Self::UploadEnds => request.is("PUT", "/uploads/"),
            Self::Mount => request.path.contains("mount="),
            Self::ManifestPut => request.is("PUT", "/manifests/"),
        }
    }

    /// Makes the call.
    fn call(self, client: &Registry, address: &str) -> Result<(), String> {
        let app = common::reference(address, "app:v1");
        let wrong = |error: oci::registry::RegistryError| common::told(&error);
        let is_right = match self {
            Self::Blob => {
                let reader =
                    client.pull_blob(&app, &Descriptor::of(MediaType::OciLayerGzip, BLOB)).map_err(wrong)?;
                common::read(reader).map_err(|error| common::told(&error))? == BLOB
            }
            Self::Manifest => client.manifest(&app).map_err(wrong)?.bytes == MANIFEST,
            Self::Tag => client.resolve(&app).map_err(wrong)?.is_some(),
            Self::UploadBegins | Self::UploadEnds => {
                common::push(client, &app, BLOB).map_err(wrong)? == Pushed::Uploaded
            }
            Self::Mount => {
                let from = common::reference(address, "other");
                common::push_mounting(client, &app, BLOB, Some(&from)).map_err(wrong)? == Pushed::Uploaded
            }
            Self::ManifestPut => {
                let put = client.push_manifest(&app, &MediaType::OciIndex, MANIFEST).map_err(wrong)?;
                put.digest == Sha256Digest::of(MANIFEST)
            }
        };
        if is_right { Ok(()) } else { Err("something else came of it".to_owned()) }
    }
}

/// A registry that sends us elsewhere.
pub struct Elsewhere {
    pub name: &'static str,
    is_tls: bool,
    at: At,
    code: u16,
    /// `PORT` and `TLS` stand for the ports of those who wait there, `PASSWORD` for what nobody may make a header of.
    to: &'static str,
    /// What the error says, where the call cannot work.
    refusal: Option<&'static str>,
}

const fn plain(name: &'static str, at: At, code: u16, to: &'static str) -> Elsewhere {
    Elsewhere { name, is_tls: false, at, code, to, refusal: None }
}

const fn over_tls(name: &'static str, at: At, code: u16, to: &'static str) -> Elsewhere {
    Elsewhere { is_tls: true, ..plain(name, at, code, to) }
}

const fn refused(refusal: &'static str, trap: Elsewhere) -> Elsewhere {
    Elsewhere { refusal: Some(refusal), ..trap }
}

const LEAVES: &str = "that would leave HTTPS";

pub const TRAPS: [Elsewhere; 25] = [
    plain("another port", At::Blob, 301, "http://127.0.0.1:PORT/x"),
    plain("another host", At::Blob, 302, "http://127.0.0.2:PORT/x"),
    plain("another name of this host", At::Blob, 303, "http://localhost:PORT/x"),
    plain("another host for a time", At::Blob, 307, "http://127.0.0.2:PORT/x"),
    plain("another host for good", At::Blob, 308, "http://127.0.0.2:PORT/x"),
    plain("a redirect without a scheme", At::Blob, 307, "//127.0.0.2:PORT/x"),
    plain("another scheme", At::Blob, 307, "https://127.0.0.1:TLS/x"),
    plain("user information in a redirect", At::Blob, 307, "http://alice:PASSWORD@127.0.0.2:PORT/x"),
    refused(
        "is denied",
        plain("a challenge after a redirect", At::Blob, 307, "http://127.0.0.2:PORT/challenge"),
    ),
    plain("the way back", At::Blob, 307, "http://127.0.0.2:PORT/back"),
    refused("too many redirects", plain("a circle", At::Blob, 307, "http://127.0.0.2:PORT/again")),
    plain("a path of the registry itself", At::Blob, 307, "../../../open"),
    plain("a manifest elsewhere", At::Manifest, 307, "http://127.0.0.2:PORT/manifest"),
    plain("a tag elsewhere", At::Tag, 302, "http://127.0.0.1:PORT/manifest"),
    plain("an upload at another port", At::UploadBegins, 202, "http://127.0.0.1:PORT/up"),
    plain("an upload without a scheme", At::UploadBegins, 202, "//127.0.0.2:PORT/up"),
    plain("user information in an upload", At::UploadBegins, 202, "http://alice:PASSWORD@127.0.0.2:PORT/up"),
    plain("an upload that begins elsewhere", At::UploadBegins, 307, "http://127.0.0.2:PORT/up"),
    plain("an upload that ends elsewhere", At::UploadEnds, 307, "http://127.0.0.2:PORT/up"),
    plain("an upload in place of a mount", At::Mount, 202, "http://127.0.0.2:PORT/up"),
    plain("a manifest that is put elsewhere", At::ManifestPut, 308, "http://127.0.0.2:PORT/manifest"),
    refused(LEAVES, over_tls("from HTTPS to HTTP", At::Blob, 307, "http://127.0.0.1:PORT/x")),
    over_tls("from HTTPS to another port", At::Blob, 307, "https://127.0.0.1:TLS/x"),
    refused(
        LEAVES,
        over_tls("an upload from HTTPS to HTTP", At::UploadBegins, 202, "http://127.0.0.1:PORT/up"),
    ),
    refused(
        LEAVES,
        over_tls("a manifest from HTTPS to HTTP", At::Manifest, 301, "http://127.0.0.2:PORT/manifest"),
    ),
];

impl Elsewhere {
    pub fn spring(&'static self, scene: &Scene) -> Result<(), String> {
        let port = |address: &str| address.rsplit(':').next().unwrap_or_default().to_owned();
        let (evil, evil_tls) = (port(&scene.evil.address), port(&scene.evil_tls.address));
        let to = self.to.replace("PORT", &evil).replace("TLS", &evil_tls).replace("PASSWORD", PASSWORD);
        let home = scene.registry(self.is_tls, |_| {
            move |request: &Request| match request.header("authorization") {
                _ if request.path.starts_with("/open") => status(200, &[], BLOB),
                None => status(401, &[("WWW-Authenticate", "Basic"), ("Set-Cookie", "session=1")], ""),
                Some(_) if self.at.is(request) => {
                    status(self.code, &[("Location", &to), ("Set-Cookie", "session=2")], "")
                }
                Some(_) => registry(request),
            }
        });
        let called = self.at.call(&scene.client(Hosts::default()), &home.address);
        match (called, self.refusal) {
            (Ok(()), None) => {}
            (Err(error), Some(refusal)) if error.contains(refusal) => scene.harmless(&error)?,
            (called, _) => return Err(format!("{called:?}")),
        }
        if let Some(request) = home.requests().iter().find(|request| request.header("cookie").is_some()) {
            return Err(format!("the registry's cookie came back: {}", request.line()));
        }
        scene.seen_by(&home)
    }
}

/// What an honest registry answers.
pub fn registry(request: &Request) -> Reply {
    let part = |text: &str| request.path.contains(text);
    let index = [("Content-Type", MediaType::OciIndex.as_str())];
    match request.method.as_str() {
        "POST" => status(202, &[("Location", "/v2/app/blobs/uploads/1")], ""),
        "PUT" => status(201, &[], ""),
        "HEAD" if part("/blobs/") => status(404, &[], ""),
        _ if part("/blobs/") => status(200, &[], BLOB),
        _ => status(200, &index, MANIFEST),
    }
}

/// What those answer who wait elsewhere. As a registry, they only want to know who one is; as a proxy, they say that all
/// goes well.
pub fn answer(request: &Request, home: Option<&String>) -> Reply {
    let index = [("Content-Type", MediaType::OciIndex.as_str())];
    let part = |text: &str| request.path.contains(text);
    match request.method.as_str() {
        _ if part("/v2/") || part("/challenge") => {
            status(401, &[("WWW-Authenticate", "Basic realm=\"x\"")], "")
        }
        _ if part("/back") => {
            status(307, &[("Location", &format!("{}/open", home.map_or("", String::as_str)))], "")
        }
        _ if part("/again") => status(307, &[("Location", "/again")], ""),
        _ if part("/token") => status(200, &[], r#"{"token":"x"}"#),
        "POST" => status(202, &[("Location", "/up?session=1")], ""),
        "PUT" => status(201, &[], ""),
        "CONNECT" => status(502, &[], ""),
        _ if part("/manifest") => status(200, &index, MANIFEST),
        _ => status(200, &[], BLOB),
    }
}
