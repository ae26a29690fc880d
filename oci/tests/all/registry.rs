//! The client against a real registry.

use std::{
    io::{Cursor, Read, Write},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use oci::{
    BlobOrigin, Descriptor, Fetcher, ImageConfig, MediaType, Platform, Registry, RegistryOptions,
    Sha256Digest, Store, image,
    manifest::{Index, Manifest},
    registry::{Pushed, RegistryError, Taken},
};

use crate::common::{
    DockerRegistry, Setup, client, client_with, layer, login, noise, push, push_mounting, read, self_signed,
    told,
};

#[test]
fn blobs_go_there_and_come_back() {
    let Some(server) = DockerRegistry::start() else { return };
    let (registry, app, other) =
        (client(vec![]), server.reference("team/app"), server.reference("team/other"));
    registry.check_push(&app).expect("anybody may push");
    for content in [Vec::new(), b"small".to_vec(), noise(5 << 20)] {
        let descriptor = layer(&content);
        assert!(!registry.has_blob(&app, &descriptor.digest).expect("answers"));
        let missing = registry.pull_blob(&app, &descriptor).err().expect("not there yet");
        assert!(missing.is_not_found(), "{missing}");

        let sent = AtomicU64::new(0);
        let open = || Ok(Box::new(Cursor::new(content.clone())) as Box<dyn Read + Send>);
        let count = |bytes| _ = sent.fetch_add(bytes, Ordering::Relaxed);
        let pushed = registry.push_blob(&app, &descriptor, None, &open, &count).expect("pushed");
        assert_eq!((pushed, sent.into_inner()), (Pushed::Uploaded, content.len() as u64));
        assert_eq!(push(&registry, &app, &content).expect("pushed"), Pushed::Existed);
        assert!(registry.has_blob(&app, &descriptor.digest).expect("answers"));
        assert_eq!(read(registry.pull_blob(&app, &descriptor).expect("there")).expect("whole"), content);

        let mounted = push_mounting(&registry, &other, &content, Some(&app)).expect("mounted");
        assert_eq!(mounted, Pushed::Mounted);
        assert!(registry.has_blob(&other, &descriptor.digest).expect("answers"));
    }
    let nowhere = server.reference("team/nowhere");
    let pushed = push_mounting(&registry, &app, b"not there", Some(&nowhere)).expect("pushed");
    assert_eq!(pushed, Pushed::Uploaded, "what cannot be mounted is sent");
}

#[test]
fn a_blob_that_cannot_be_read_is_not_the_registrys_fault() {
    let Some(server) = DockerRegistry::start() else { return };
    let (registry, app) = (client(vec![]), server.reference("app"));
    let descriptor = layer(b"content");
    let refused = |open: oci::registry::OpenBlob<'_>| {
        let error = registry.push_blob(&app, &descriptor, None, open, &|_| {}).expect_err("unreadable");
        assert!(matches!(error, RegistryError::Source { .. }), "{error}");
        told(&error)
    };
    let absent = refused(&|| Err(std::io::Error::other("the disk is gone")));
    assert!(absent.ends_with("the disk is gone"), "{absent}");
    let short = refused(&|| Ok(Box::new(Cursor::new(b"cont"))));
    assert!(short.ends_with("3 bytes are missing at its end"), "{short}");
    let other = push_other_bytes(&registry, &app, &descriptor);
    assert!(other.contains("to push it: blob sha256:") && other.contains("is damaged"), "{other}");
    assert!(!registry.has_blob(&app, &descriptor.digest).expect("answers"));
    let long = refused(&|| Ok(Box::new(Cursor::new(b"contents"))));
    assert!(long.ends_with("it goes on after its size"), "{long}");
}

fn push_other_bytes(registry: &Registry, app: &oci::Reference, descriptor: &Descriptor) -> String {
    let open = || Ok(Box::new(Cursor::new(b"CONTENT")) as Box<dyn Read + Send>);
    told(&registry.push_blob(app, descriptor, None, &open, &|_| {}).expect_err("other bytes"))
}

/// Pushes an image of one layer, and returns its manifest's descriptor.
fn push_image(registry: &Registry, app: &oci::Reference, platform: &str) -> Descriptor {
    let content = platform.as_bytes();
    push(registry, app, content).expect("pushed");
    let mut config = ImageConfig::empty(&platform.parse().expect("a platform"));
    config.rootfs.diff_ids = vec![Sha256Digest::of(content).into()];
    let config = serde_json::to_vec(&config).expect("serialisable");
    push(registry, app, &config).expect("pushed");
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(MediaType::OciManifest),
        config: Descriptor::of(MediaType::OciConfig, &config),
        layers: vec![layer(content)],
        annotations: Default::default(),
    };
    let bytes = serde_json::to_vec(&manifest).expect("serialisable");
    registry.push_manifest(app, &MediaType::OciManifest, &bytes).expect("pushed");
    let mut descriptor = Descriptor::of(MediaType::OciManifest, &bytes);
    descriptor.platform = Some(platform.parse().expect("a platform"));
    descriptor
}

#[test]
fn an_image_of_several_platforms_is_pushed_resolved_and_fetched() {
    let Some(server) = DockerRegistry::start() else { return };
    let (registry, app) = (client(vec![]), server.reference("app"));
    let manifests =
        ["linux/amd64", "linux/arm64"].map(|platform| push_image(&registry, &app, platform)).to_vec();
    let index = Index {
        schema_version: 2,
        media_type: Some(MediaType::OciIndex),
        manifests: manifests.clone(),
        annotations: Default::default(),
    };
    let bytes = serde_json::to_vec(&index).expect("serialisable");
    let tagged = server.reference("app:v1");
    let taken = registry.push_manifest(&tagged, &MediaType::OciIndex, &bytes).expect("pushed");
    let digest = Sha256Digest::of(&bytes);
    assert_eq!(taken, Taken { digest, is_confirmed: true });

    let found = registry.resolve(&tagged).expect("answers").expect("there");
    assert_eq!(found, Descriptor::of(MediaType::OciIndex, &bytes));
    assert_eq!(registry.resolve(&server.reference("app:v2")).expect("answers"), None);
    assert!(registry.manifest(&server.reference("app:v2")).expect_err("not there").is_not_found());
    let fetched = registry.manifest(&tagged.with_digest(digest)).expect("there");
    assert_eq!((fetched.bytes, fetched.media_type, fetched.digest), (bytes, MediaType::OciIndex, digest));

    let arm64: Platform = "linux/arm64".parse().expect("a platform");
    let resolved = image::resolve_registry(&registry, &tagged, &arm64).expect("resolved");
    assert_eq!((resolved.root_digest, resolved.manifest_digest), (digest, manifests[1].digest));
    assert_eq!(resolved.config.architecture, "arm64");
    let origin = BlobOrigin::Registry(tagged.clone());
    let layers = resolved.base_layers(&origin);

    let root = tempfile::tempdir().expect("tempdir");
    let fetcher = Fetcher::new(Arc::new(Store::open(root.path()).expect("a store")), registry.clone());
    let streamed = read(fetcher.open(&layers[0].descriptor, &origin).expect("there")).expect("whole");
    assert_eq!(streamed, b"linux/arm64");
    fetcher.ensure(&layers[0].descriptor, &origin).expect("fetched");
    drop(server);
    assert_eq!(
        read(fetcher.open(&layers[0].descriptor, &origin).expect("stored")).expect("whole"),
        b"linux/arm64"
    );

    let s390x: Platform = "linux/s390x".parse().expect("a platform");
    assert!(image::resolve_registry(&registry, &tagged, &s390x).is_err(), "nobody listens any more");
}

#[test]
fn what_a_store_has_seen_of_an_image_is_not_asked_for_again() {
    let Some(server) = DockerRegistry::start() else { return };
    let (registry, tagged) = (client(vec![]), server.reference("app:v1"));
    let amd64: Platform = "linux/amd64".parse().expect("a platform");
    let first = push_image(&registry, &tagged, "linux/amd64");
    let root = tempfile::tempdir().expect("tempdir");
    let store = Store::open(root.path()).expect("a store");
    let resolve = |reference: &oci::Reference| {
        image::resolve_registry_with(&registry, &store, &|_| None, reference, &amd64)
    };

    assert_eq!(resolve(&tagged).expect("resolved").root_digest, first.digest);
    assert_eq!(resolve(&tagged).expect("known").root_digest, first.digest);
    let second = push_image(&registry, &tagged, "linux/arm64");
    assert_eq!(resolve(&tagged).expect("asked").root_digest, second.digest, "a tag that was moved is seen");

    // A damaged document is as good as none.
    let pinned = tagged.with_digest(first.digest);
    let blob = store.blob_path(&first.digest);
    std::fs::remove_file(&blob).expect("there");
    std::fs::write(&blob, "{}").expect("written");
    assert_eq!(resolve(&pinned).expect("asked again").manifest_digest, first.digest);

    drop(server);
    assert_eq!(resolve(&pinned).expect("known").manifest_digest, first.digest);
    assert!(resolve(&tagged).is_err(), "what a tag points at only the registry knows");
}

#[test]
fn a_platform_that_is_not_there_is_named() {
    let Some(server) = DockerRegistry::start() else { return };
    let (registry, app) = (client(vec![]), server.reference("app:v1"));
    let index = Index {
        schema_version: 2,
        media_type: Some(MediaType::OciIndex),
        manifests: vec![push_image(&registry, &app, "linux/amd64")],
        annotations: Default::default(),
    };
    let bytes = serde_json::to_vec(&index).expect("serialisable");
    registry.push_manifest(&app, &MediaType::OciIndex, &bytes).expect("pushed");
    let s390x: Platform = "linux/s390x".parse().expect("a platform");
    let error = image::resolve_registry(&registry, &app, &s390x).expect_err("not there");
    assert!(error.is_missing_platform());
    assert!(
        told(&error).ends_with("there is no image for linux/s390x, only for linux/amd64"),
        "{}",
        told(&error)
    );
}

#[test]
fn a_manifest_that_names_what_is_not_there_is_refused_as_such() {
    let Some(server) = DockerRegistry::start() else { return };
    let (registry, app) = (client(vec![]), server.reference("app:v1"));
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(MediaType::OciManifest),
        config: Descriptor::of(MediaType::OciConfig, b"{}"),
        layers: vec![],
        annotations: Default::default(),
    };
    let bytes = serde_json::to_vec(&manifest).expect("serialisable");
    let error = registry.push_manifest(&app, &MediaType::OciManifest, &bytes).expect_err("no config");
    assert!(error.is_blob_unknown(), "{error}");
}

#[test]
fn a_password_opens_the_registry_and_is_never_shown() {
    let Some(server) =
        DockerRegistry::with(&Setup { user: Some(("alice", "s3cret-pw")), ..Setup::default() })
    else {
        return;
    };
    let app = server.reference("team/app");
    let home = tempfile::tempdir().expect("tempdir");
    let with = |password| client(vec![login(home.path(), &server.address, "alice", password)]);

    let anonymous = client(vec![]).check_push(&app).expect_err("no password");
    assert!(matches!(anonymous, RegistryError::Denied { .. }), "{anonymous}");
    let wrong = with("wr0ng-pw").check_push(&app).expect_err("wrong password");
    assert!(matches!(wrong, RegistryError::Denied { .. }), "{wrong}");
    assert!(told(&anonymous).contains("no credentials were sent"), "{anonymous}");
    assert!(told(&wrong).contains("/config.json were sent"), "{wrong}");
    assert!(!told(&wrong).contains("wr0ng-pw") && !format!("{wrong:?}").contains("wr0ng-pw"));

    let registry = with("s3cret-pw");
    assert!(!format!("{registry:?}").contains("s3cret-pw"));
    registry.check_push(&app).expect("alice may");
    assert_eq!(push(&registry, &app, b"content").expect("pushed"), Pushed::Uploaded);
    let other = server.reference("team/other");
    assert_eq!(push_mounting(&registry, &other, b"content", Some(&app)).expect("mounted"), Pushed::Mounted);
    assert_eq!(
        read(registry.pull_blob(&app, &layer(b"content")).expect("there")).expect("whole"),
        b"content"
    );
}

#[test]
fn certificates_are_verified_against_the_users_authorities() {
    let home = tempfile::tempdir().expect("tempdir");
    let Some((certificate, key)) = self_signed(home.path()) else { return };
    let tls = Some((certificate.as_path(), key.as_path()));
    let Some(server) = DockerRegistry::with(&Setup { tls, ..Setup::default() }) else { return };
    let app = server.reference("app");
    let with = |ca_files, insecure| {
        client_with(RegistryOptions { ca_files, insecure, ..RegistryOptions::default() })
    };

    let trusting = with(vec![certificate.clone()], vec![]);
    assert_eq!(push(&trusting, &app, &noise(100_000)).expect("pushed"), Pushed::Uploaded);
    let insecure = with(vec![], vec![server.address.clone()]);
    assert_eq!(push(&insecure, &app, &noise(100_000)).expect("there"), Pushed::Existed);
    let first = with(vec![], vec![server.address.clone()]);
    let untagged = first.tags(&app).expect_err("it is asked over TLS, and has none");
    assert!(matches!(untagged, RegistryError::NotFound { .. }), "{untagged}");

    // Another authority than its own: where the system has none, that is said instead.
    let error = told(&with(vec![], vec![]).check_push(&app).expect_err("nobody vouches for it"));
    assert!(error.contains("certificate"), "{error}");
    std::fs::write(home.path().join("empty.pem"), "nothing").expect("written");
    let error = told(
        &with(vec![home.path().join("empty.pem")], vec![]).check_push(&app).expect_err("no certificate"),
    );
    assert!(error.ends_with("no certificate in PEM form"), "{error}");
    assert_eq!(ssl_cert_file_child(&app, &certificate), "pushed");
}

/// The environment belongs to the whole process, so this runs in another one: see [`trusts_ssl_cert_file`].
fn ssl_cert_file_child(app: &oci::Reference, certificate: &std::path::Path) -> String {
    let output = Command::new(std::env::current_exe().expect("we are running"))
        .args(["--exact", "registry::trusts_ssl_cert_file", "--nocapture"])
        .env("SSL_CERT_FILE", certificate)
        .env("TLS_TEST_REFERENCE", app.to_string())
        .output()
        .expect("our own binary starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().find_map(|line| line.strip_prefix("result: ").map(str::to_owned)).unwrap_or(text)
}

#[test]
fn trusts_ssl_cert_file() {
    let Ok(app) = std::env::var("TLS_TEST_REFERENCE") else { return };
    let checked = client(vec![]).check_push(&app.parse().expect("a reference"));
    let result = checked.map_or_else(|error| told(&error), |()| "pushed".to_owned());
    writeln!(std::io::stdout(), "\nresult: {result}").expect("the parent listens");
}

#[test]
fn what_is_deleted_is_gone_with_its_tags() {
    let Some(server) = DockerRegistry::start() else { return };
    let (registry, app) = (client(vec![]), server.reference("team/app"));
    let unknown = registry.tags(&app).expect_err("no repository yet");
    assert!(matches!(unknown, RegistryError::NotFound { .. }), "{unknown}");
    assert!(unknown.to_string().contains("team/app does not exist: NAME_UNKNOWN"), "{unknown}");
    let config = Descriptor::of(MediaType::OciConfig, b"{}");
    let open = || Ok(Box::new(Cursor::new(b"{}")) as Box<dyn Read + Send>);
    registry.push_blob(&app, &config, None, &open, &|_| {}).expect("pushed");
    let put = |tag: &str, note: &str| {
        let annotations = [("note".to_owned(), note.to_owned())].into();
        let media_type = Some(MediaType::OciManifest);
        let manifest =
            Manifest { schema_version: 2, media_type, config: config.clone(), layers: vec![], annotations };
        let bytes = serde_json::to_vec(&manifest).expect("JSON");
        let reference = oci::Reference { tag: Some(tag.to_owned()), ..app.clone() };
        registry.push_manifest(&reference, &MediaType::OciManifest, &bytes).expect("pushed").digest
    };
    let (one, same, two) = (put("one", "1"), put("same", "1"), put("two", "2"));
    assert_eq!(one, same);
    assert_eq!(registry.tags(&app).expect("answers"), ["one", "same", "two"]);
    assert!(registry.delete(&app, &one).expect("deleted"));
    assert!(!registry.delete(&app, &one).expect("answers"), "it is gone");
    assert_eq!(registry.tags(&app).expect("answers"), ["two"]);
    let left = oci::Reference { digest: Some(two), ..app.clone() };
    assert_eq!(registry.manifest(&left).expect("there").digest, two);
}

#[test]
fn a_registry_that_deletes_nothing_says_so() {
    let Some(server) = DockerRegistry::with(&Setup { keeps: true, ..Setup::default() }) else { return };
    let (registry, app) = (client(vec![]), server.reference("app"));
    let error = registry.delete(&app, &Sha256Digest::of(b"x")).expect_err("it may not");
    assert!(error.is_unsupported(), "{error}");
}
