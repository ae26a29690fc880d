//! Whom the client trusts and who trusts the client, against the real registry: private authorities, client certificates,
//! leniences, and plain HTTP where it is no loopback.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    io::{Read, Write},
    net::{TcpListener, UdpSocket},
    path::{Path, PathBuf},
};

use oci::{
    Reference, RegistryOptions,
    registry::{HostOptions, Hosts, Identity},
};

use crate::common::{
    DockerRegistry, Setup, client_with, layer, noise,
    pki::{Authority, Signed},
    push, read, skip, told,
};

/// Two authorities, a registry's certificate and a client's of each.
struct Pki {
    home: tempfile::TempDir,
    ours: Authority,
    server: Signed,
    client: Signed,
    stranger: Signed,
}

impl Pki {
    fn new(names: &str) -> Option<Self> {
        let home = tempfile::tempdir().expect("tempdir");
        let Some(ours) = Authority::new(&home.path().join("ours")) else {
            skip("openssl is not installed");
            return None;
        };
        let theirs = Authority::new(&home.path().join("theirs")).expect("openssl is installed");
        let (server, client) = (ours.sign("server", names), ours.sign("client", ""));
        let stranger = theirs.sign("client", "");
        Some(Self { home, ours, server, client, stranger })
    }

    fn other_authority(&self) -> PathBuf {
        self.home.path().join("theirs/ca.crt")
    }

    fn registry(&self, clients: Option<&Path>) -> Option<DockerRegistry> {
        let tls = Some((self.server.certificate.as_path(), self.server.key.as_path()));
        DockerRegistry::with(&Setup { tls, clients, ..Setup::default() })
    }
}

fn identity(signed: &Signed) -> Identity {
    Identity { certificate: signed.certificate.clone(), key: signed.key.clone() }
}

/// Settings of a user whose directory for them is this one.
fn hosts(options: HostOptions, config: &Path, variables: &[(&str, &str)]) -> Hosts {
    let mut environment: BTreeMap<String, OsString> =
        variables.iter().map(|(name, value)| ((*name).to_owned(), value.into())).collect();
    environment.insert("XDG_CONFIG_HOME".to_owned(), config.into());
    Hosts::new(options, &|name| environment.get(name).cloned())
}

/// Pushes a blob and pulls it; or why not.
fn used(hosts: Hosts, image: &Reference) -> Result<(), String> {
    let registry = client_with(RegistryOptions { hosts, ..RegistryOptions::default() });
    let content = noise(70_000);
    push(&registry, image, &content).map_err(|error| told(&error))?;
    let pulled = registry.pull_blob(image, &layer(&content)).map_err(|error| told(&error))?;
    assert!(read(pulled).expect("all of it") == content);
    Ok(())
}

fn write(path: &Path, text: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().expect("it has one")).expect("created");
    fs::write(path, text).expect("written");
}

fn copy(from: &Path, to: &Path) {
    write(to, fs::read(from).expect("it is there"));
}

#[test]
fn a_private_authority_is_trusted_where_somebody_says_so() {
    let Some(pki) = Pki::new("IP:127.0.0.1") else { return };
    let Some(server) = pki.registry(None) else { return };
    let (image, config, host) = (server.reference("app"), pki.home.path().join("config"), &server.address);
    let nothing = || hosts(HostOptions::default(), &config, &[]);
    let error = used(nothing(), &image).expect_err("nobody vouches for it");
    // Where the system has no authorities at all, that is said instead.
    assert!(
        error.starts_with(&format!("cannot talk to {host}: its certificate is signed by nobody")),
        "{error}"
    );
    assert!(error.contains(&format!("--registry-certificate {host}=CA.pem")), "{error}");

    let by_flag = |path: PathBuf| {
        let ca_files = vec![(host.clone(), path)];
        hosts(HostOptions { ca_files, ..HostOptions::default() }, &config, &[])
    };
    assert_eq!(used(by_flag(pki.ours.certificate()), &image), Ok(()));
    let error = used(by_flag(pki.other_authority()), &image).expect_err("another authority");
    assert!(error.contains(&format!("signed neither by {}", pki.other_authority().display())), "{error}");
    let error = used(by_flag(pki.home.path().join("absent.pem")), &image).expect_err("no such file");
    assert!(error.contains("absent.pem: No such file"), "{error}");

    for place in ["containers/certs.d", "docker/certs.d"] {
        let directory = config.join(place).join(host);
        copy(&pki.ours.certificate(), &directory.join("ca.crt"));
        assert_eq!(used(nothing(), &image), Ok(()), "{place}");
        fs::remove_dir_all(directory).expect("ours");
    }
}

#[test]
fn a_registry_that_asks_for_a_client_certificate_gets_the_one_for_it() {
    let Some(pki) = Pki::new("IP:127.0.0.1") else { return };
    let Some(server) = pki.registry(Some(&pki.ours.certificate())) else { return };
    let (image, config, host) = (server.reference("app"), pki.home.path().join("config"), &server.address);
    let showing = |identity: Option<Identity>| {
        let options = HostOptions {
            ca_files: vec![(host.clone(), pki.ours.certificate())],
            client_certificates: identity.map(|identity| (host.clone(), identity)).into_iter().collect(),
            ..HostOptions::default()
        };
        hosts(options, &config, &[])
    };
    assert_eq!(used(showing(Some(identity(&pki.client))), &image), Ok(()));

    let (own_key, strange_key) = (&pki.client.key, &pki.stranger.key);
    let with = |certificate: &Path, key: &Path| {
        Some(Identity { certificate: certificate.to_owned(), key: key.to_owned() })
    };
    let absent = pki.home.path().join("absent.pem");
    for (shown, want) in [
        (None, format!("{host}: it wants a client certificate; give it with --registry-client-cert {host}=")),
        (
            Some(identity(&pki.stranger)),
            format!(
                "{host}: it does not accept the client certificate {}",
                pki.stranger.certificate.display()
            ),
        ),
        (
            with(&pki.client.certificate, strange_key),
            format!("its key is not that of {}", strange_key.display()),
        ),
        (with(&absent, own_key), format!("{}: No such file", absent.display())),
        (with(own_key, own_key), format!("{}: no certificate in PEM form", own_key.display())),
        (
            with(&pki.client.certificate, &pki.client.certificate),
            format!("{}: no private key in PEM form", pki.client.certificate.display()),
        ),
    ] {
        let error = used(showing(shown), &image).expect_err(&want);
        assert!(error.contains(&want), "{want}\n{error}");
    }

    let directory = config.join("docker/certs.d").join(host);
    copy(&pki.ours.certificate(), &directory.join("ca.crt"));
    copy(&pki.client.certificate, &directory.join("client.cert"));
    let without_key = used(hosts(HostOptions::default(), &config, &[]), &image).expect_err("half a pair");
    assert!(without_key.contains("client.cert: its key "), "{without_key}");
    copy(&pki.client.key, &directory.join("client.key"));
    assert_eq!(used(hosts(HostOptions::default(), &config, &[]), &image), Ok(()));
}

#[test]
fn a_certificate_that_is_not_verified_is_still_one() {
    let Some(pki) = Pki::new("DNS:elsewhere.example") else { return };
    let Some(server) = pki.registry(None) else { return };
    let Some(plain) = DockerRegistry::start() else { return };
    let config = pki.home.path().join("config");
    let skipping = |host: &str| {
        hosts(HostOptions { skip_verify: vec![host.to_owned()], ..HostOptions::default() }, &config, &[])
    };
    assert_eq!(used(skipping(&server.address), &server.reference("app")), Ok(()));
    let ca_files = vec![(server.address.clone(), pki.ours.certificate())];
    let trusting = hosts(HostOptions { ca_files, ..HostOptions::default() }, &config, &[]);
    let error = used(trusting, &server.reference("app")).expect_err("another name");
    assert!(error.contains("its certificate is for other names"), "{error}");

    let error = used(skipping(&plain.address), &plain.reference("app")).expect_err("no TLS");
    assert!(error.contains("it does not speak TLS; name it with --insecure-registry"), "{error}");
}

/// An address of this machine that is not its loopback. Nothing is sent to find it.
fn other_address() -> Option<String> {
    let socket = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    });
    let address = socket.ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then(|| address.to_string())
}

#[test]
fn plain_http_beyond_the_loopback_is_for_those_that_are_called_insecure() {
    let Some(host) = other_address() else { return skip("this machine has no address but its loopback's") };
    let Some(server) = DockerRegistry::with(&Setup { host: Some(&host), ..Setup::default() }) else { return };
    let (image, home) = (server.reference("team/app"), tempfile::tempdir().expect("tempdir"));
    let conf = home.path().join("registries.conf");
    let named = conf.display().to_string();
    let with = |options: HostOptions, text: &str| {
        fs::write(&conf, text).expect("written");
        hosts(options, &home.path().join("none"), &[("CONTAINERS_REGISTRIES_CONF", &named)])
    };
    let insecure = |location: &str| format!("[[registry]]\nlocation = \"{location}\"\ninsecure = true\n");

    let error = used(with(HostOptions::default(), ""), &image).expect_err("no TLS");
    assert!(error.contains(&format!("name it with --insecure-registry {}", server.address)), "{error}");
    let other_path = insecure(&format!("{}/other", server.address));
    assert!(used(with(HostOptions::default(), &other_path), &image).is_err(), "that is another repository");

    let flag = HostOptions { insecure: vec![server.address.clone()], ..HostOptions::default() };
    assert_eq!(used(with(flag, ""), &image), Ok(()));
    for location in [server.address.clone(), format!("{}/team", server.address), image_name(&image)] {
        assert_eq!(used(with(HostOptions::default(), &insecure(&location)), &image), Ok(()), "{location}");
    }
}

#[test]
fn a_hiccup_of_tls_does_not_lead_to_plain_http() {
    let Some(host) = other_address() else { return skip("this machine has no address but its loopback's") };
    let socket = TcpListener::bind((host.as_str(), 0)).expect("a free port");
    let address = socket.local_addr().expect("bound").to_string();
    std::thread::spawn(move || {
        for mut connection in socket.incoming().flatten() {
            let mut first = [0];
            let is_tls = connection.read_exact(&mut first).is_ok() && first == [22];
            let answer: &[u8] = match is_tls {
                true => b"",
                false => b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n",
            };
            let _ = connection.write_all(answer);
        }
    });
    let options = HostOptions { insecure: vec![address.clone()], ..HostOptions::default() };
    let home = tempfile::tempdir().expect("tempdir");
    let image = format!("{address}/app").parse().expect("a reference");
    let error = used(hosts(options, home.path(), &[]), &image).expect_err("TLS never works");
    assert!(error.contains("cannot talk to https://") || error.contains("cannot connect to "), "{error}");
}

fn image_name(image: &Reference) -> String {
    format!("{}/{}", image.registry, image.repository)
}
