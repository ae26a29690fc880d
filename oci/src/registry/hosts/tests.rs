use std::fs;

use super::*;

/// Settings with this `registries.conf`, these options, and files below the system's directory.
fn hosts(options: HostOptions, conf: &str, files: &[&str]) -> (tempfile::TempDir, Hosts) {
    let system = tempfile::tempdir().expect("a temporary directory");
    for (name, text) in files.iter().map(|name| (*name, "")).chain([("containers/registries.conf", conf)]) {
        let path = system.path().join(name);
        fs::create_dir_all(path.parent().expect("it has one")).expect("created");
        fs::write(path, text).expect("written");
    }
    let hosts = Hosts::below(system.path(), options, &|_| None);
    (system, hosts)
}

fn with(options: HostOptions, conf: &str) -> Hosts {
    hosts(options, conf, &[]).1.loaded()
}

impl Hosts {
    /// Read now, before the file is gone.
    fn loaded(self) -> Self {
        self.settings().expect("well-formed");
        self
    }
}

fn shown(hosts: &Hosts, name: &str, wanted: Wanted) -> String {
    let sources = match hosts.sources(&name.parse().expect("a reference"), wanted) {
        Ok(sources) => sources,
        Err(error) => return error.to_string(),
    };
    let all = sources.mirrors.into_iter().chain([sources.own]);
    all.map(|source| source.to_string()).collect::<Vec<_>>().join(" ")
}

fn mirror(prefix: &str, location: &str) -> (String, Location) {
    (prefix.to_owned(), location.parse().expect("a location"))
}

const CONF: &str = r#"
    [[registry]]
    prefix = "example.com/foo"
    location = "internal.example.net/bar"
    [[registry.mirror]]
    location = "m0.local/foo"
    [[registry.mirror]]
    location = "m1.local:5000/mirrors/foo"
    insecure = true
    pull-from-mirror = "digest-only"
    [[registry]]
    location = "docker.io"
    [[registry.mirror]]
    location = "mirror.gcr.io"
    pull-from-mirror = "tag-only"
    [[registry]]
    prefix = "*.bad.example"
    blocked = true
    [[registry]]
    prefix = "fine.bad.example"
    [[registry]]
    prefix = "quay.io/secret:1"
    blocked = true
"#;

#[test]
fn images_are_looked_for_at_mirrors_and_then_at_their_place() {
    let digest = format!("sha256:{}", "0".repeat(64));
    let hosts = with(HostOptions::default(), CONF);
    for (name, wanted, want) in [
        ("ghcr.io/a/b:1".to_owned(), Wanted::Manifest, "ghcr.io/a/b:1".to_owned()),
        (
            "example.com/foo/image:1".to_owned(),
            Wanted::Manifest,
            "m0.local/foo/image:1 internal.example.net/bar/image:1".to_owned(),
        ),
        (
            format!("example.com/foo/image@{digest}"),
            Wanted::Manifest,
            format!(
                "m0.local/foo/image@{digest} m1.local:5000/mirrors/foo/image@{digest} \
                 internal.example.net/bar/image@{digest}"
            ),
        ),
        ("example.com/foobar:1".to_owned(), Wanted::Manifest, "example.com/foobar:1".to_owned()),
        (
            "debian".to_owned(),
            Wanted::Manifest,
            "mirror.gcr.io/library/debian docker.io/library/debian".to_owned(),
        ),
        (format!("debian@{digest}"), Wanted::Manifest, format!("docker.io/library/debian@{digest}")),
        (
            format!("debian@{digest}"),
            Wanted::Blob,
            format!("mirror.gcr.io/library/debian@{digest} docker.io/library/debian@{digest}"),
        ),
        ("fine.bad.example/x:1".to_owned(), Wanted::Manifest, "fine.bad.example/x:1".to_owned()),
        ("quay.io/secret:2".to_owned(), Wanted::Manifest, "quay.io/secret:2".to_owned()),
    ] {
        assert_eq!(shown(&hosts, &name, wanted), want, "{name}");
    }
}

#[test]
fn what_is_blocked_is_refused_by_the_line_that_says_so() {
    let (system, hosts) = hosts(HostOptions::default(), CONF, &[]);
    for (name, line) in [("a.b.bad.example/x:1", 16), ("quay.io/secret:1", 21)] {
        let path = system.path().join("containers/registries.conf");
        let want = format!("{name} is blocked by {}:{line}", path.display());
        let reference = name.parse().expect("a reference");
        assert_eq!(shown(&hosts, name, Wanted::Manifest), want);
        assert_eq!(hosts.permit(&reference).expect_err("blocked").to_string(), want);
    }
}

#[test]
fn mirrors_that_the_user_names_take_the_place_of_those_in_files() {
    let mirrors = vec![
        mirror("docker.io", "http://10.0.0.1:5000"),
        mirror("docker.io", "m:5000/hub"),
        mirror("docker.io/library", "official:5000/lib"),
    ];
    let hosts = with(HostOptions { mirrors, ..HostOptions::default() }, CONF);
    for (name, want) in [
        ("debian:1", "official:5000/lib/debian:1 docker.io/library/debian:1"),
        ("me/app:1", "10.0.0.1:5000/me/app:1 m:5000/hub/me/app:1 docker.io/me/app:1"),
        ("example.com/foo/a:1", "m0.local/foo/a:1 internal.example.net/bar/a:1"),
    ] {
        assert_eq!(shown(&hosts, name, Wanted::Manifest), want);
    }
}

#[test]
fn what_is_said_of_a_place_holds_for_it_and_nothing_else() {
    let options = HostOptions {
        insecure: vec!["lab".to_owned(), "port:5000".to_owned()],
        skip_verify: vec!["skip:8443".to_owned()],
        mirrors: vec![mirror("docker.io", "http://plain:5000/hub")],
        ..HostOptions::default()
    };
    let conf = r#"
        [[registry]]
        location = "half.example/open"
        insecure = true
        [[registry]]
        location = "half.example/open/not"
        [[registry]]
        prefix = "*.lab.example"
        insecure = true
        [[registry]]
        location = "far.example"
        [[registry.mirror]]
        location = "near.example:5000"
        insecure = true
        [[registry]]
        location = "docker.io"
        insecure = true
    "#;
    let hosts = with(options, conf);
    use Lenience::{Insecure, None, Plain, SkipVerify};
    for (url, want) in [
        ("https://lab/v2/", Insecure),
        ("https://LAB:5000/v2/", Insecure),
        ("https://lab.example/v2/", None),
        ("https://port:5000/v2/a/manifests/1", Insecure),
        ("https://port/v2/", None),
        ("https://skip:8443/v2/", SkipVerify),
        ("https://skip/v2/", None),
        ("http://plain:5000/v2/hub/a/manifests/1", Plain),
        ("http://plain:5000/v2/other/manifests/1", None),
        ("http://plain:5000/v2/", None),
        ("https://half.example/v2/open/a/manifests/1", Insecure),
        ("https://half.example/v2/open/", Insecure),
        ("https://half.example:443/v2/open/a/blobs/uploads/", Insecure),
        ("https://half.example/v2/openly/manifests/1", None),
        ("https://half.example/v2/open/not/manifests/1", None),
        ("https://half.example/v2/", None),
        ("https://a.b.lab.example/v2/x/manifests/1", Insecure),
        ("https://near.example:5000/v2/x/manifests/1", Insecure),
        ("https://far.example/v2/x/manifests/1", None),
        ("https://registry-1.docker.io/v2/library/debian/manifests/1", Insecure),
        ("https://auth.docker.io/token", None),
    ] {
        let url: Url = url.parse().expect("a URL");
        assert_eq!(hosts.lenience(&url).expect("well-formed"), want, "{url}");
    }
}

#[test]
fn certificates_are_those_of_the_host_by_flag_and_by_directory() {
    let identity = |name: &str| Identity {
        certificate: format!("{name}.cert").into(),
        key: format!("{name}.key").into(),
    };
    let options = HostOptions {
        ca_files: vec![
            ("a:5000".to_owned(), "flag.pem".into()),
            ("docker.io".to_owned(), "hub.pem".into()),
            ("b".to_owned(), "b.pem".into()),
        ],
        client_certificates: vec![("a:5000".to_owned(), identity("flag"))],
        ..HostOptions::default()
    };
    let files = [
        "docker/certs.d/a:5000/ca.crt",
        "docker/certs.d/a:5000/me.cert",
        "docker/certs.d/a:5000/me.key",
        "containers/certs.d/c/ca.crt",
        "docker/certs.d/c/not-this.crt",
        "docker/certs.d/d:443/ca.crt",
        "docker/certs.d/docker.io/ca.crt",
    ];
    let (system, hosts) = hosts(options, "", &files);
    let trust = |url: &str| hosts.trust(&url.parse().expect("a URL")).expect("well-formed");
    let shown = |url: &str| {
        let prefix = format!("{}/", system.path().display());
        let paths =
            trust(url).ca_files.into_iter().map(|path| path.display().to_string().replace(&prefix, ""));
        paths.collect::<Vec<_>>().join(" ")
    };
    for (url, want) in [
        ("https://a:5000/v2/", "flag.pem docker/certs.d/a:5000/ca.crt"),
        ("https://a/v2/", ""),
        ("https://b:1/v2/", "b.pem"),
        ("https://c/v2/", "containers/certs.d/c/ca.crt"),
        ("https://d/v2/", "docker/certs.d/d:443/ca.crt"),
        ("https://registry-1.docker.io/v2/", "hub.pem docker/certs.d/docker.io/ca.crt"),
        ("https://auth.docker.io/token", ""),
    ] {
        assert_eq!(shown(url), want, "{url}");
    }
    assert_eq!(trust("https://a:5000/v2/").identity, Some(identity("flag")), "a flag goes before a file");
    assert!(trust("https://a:5000/").needs_tls() && !trust("https://e/").needs_tls());
}

#[test]
fn a_broken_file_is_an_error_and_no_file_is_none() {
    let (_system, broken) = hosts(HostOptions::default(), "[[registry]", &[]);
    let error = broken.permit(&"debian".parse().expect("a reference")).expect_err("no TOML");
    let source = std::error::Error::source(&error).expect("the file").to_string();
    assert!(source.contains("registries.conf:1: "), "{source}");
    let reference = "debian".parse().expect("a reference");
    assert!(Hosts::default().permit(&reference).is_ok());
}
