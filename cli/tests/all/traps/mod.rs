//! Forty ways to get hold of somebody's credentials (RELIABILITY B3): who sends us elsewhere, asks in somebody else's name, or
//! hopes to be quoted. Servers remember every byte they are sent; what only the registry may see must be nowhere else.

mod elsewhere;
mod server;

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{Arc, OnceLock},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use oci::{
    MediaType, Registry, RegistryOptions, Sha256Digest,
    manifest::Manifest,
    registry::{HostOptions, Hosts},
};
use rustls::ServerConfig;
use server::Capture;

use elsewhere::{BLOB, MANIFEST};

use crate::common::{
    self,
    fault::{Reply, Request, status},
};

const USER: &str = "alice";
const PASSWORD: &str = "correct-horse-7";
/// What the registry's own token service gives.
const TOKEN: &str = "5ecret-token-1";
/// Shown of a server's text in an error.
const LONGEST_ERROR: usize = 2000;

/// A trap, and why the client should not have gone into it.
type Trap = (&'static str, Sprung);
/// What came of it, or what is wrong with that.
type Sprung = fn(&Scene) -> Result<(), String>;

const TRAPS: [Trap; 15] = [
    ("a realm of somebody else", |scene| {
        scene.challenged(&[r#"Bearer realm="https://auth.evil.example/token""#], "somebody else's host")
    }),
    ("a realm where clouds keep their secrets", |scene| {
        scene.challenged(&[r#"Bearer realm="http://169.254.169.254/latest""#], "that is not HTTPS")
    }),
    ("a realm with user information", |scene| {
        scene.challenged(
            &[r#"Bearer realm="https://r.example.com@auth.evil.example/""#],
            "somebody else's host",
        )
    }),
    ("a second challenge beside a harmless one", |scene| {
        scene.challenged(
            &["Basic realm=\"x\"", r#"bearer REALM="https://auth.evil.example/token""#],
            "somebody else's host",
        )
    }),
    ("a challenge that does not end", |scene| {
        scene.challenged(
            &[
                r#"Basic,, =Bearer realm = "https://auth.evil.example/t\"#,
                r#"Bearer realm="https://auth.evil.example/"#,
            ],
            "somebody else's host",
        )
    }),
    ("a challenge of 60 KB", huge_challenge),
    ("a token request that is sent elsewhere", redirected_token),
    ("a realm that quotes the password", |scene| {
        scene.quoted(401, "www-authenticate", |shown| {
            format!("Bearer realm=\"https://auth.evil.example/{shown}\"")
        })
    }),
    ("an error that quotes the password", |scene| {
        scene.quoted(403, "x", |shown| {
            format!(r#"{{"errors":[{{"code":"DENIED","message":"bad {shown}"}}]}}"#)
        })
    }),
    ("plain text that quotes the password", |scene| scene.quoted(403, "x", |shown| format!("no: {shown}"))),
    ("a forbidden redirect that quotes the password", |scene| {
        scene.quoted(307, "location", |shown| format!("http://r.example.com/{shown}"))
    }),
    ("URLs of a layer", urls_of_a_layer),
    ("a mirror that wants to know", mirror),
    ("names that are like that of the login", similar_names),
    ("what a build leaves behind", outputs),
];

/// Somebody with a login, the registry it is for, and others who would like to have it.
pub struct Scene {
    directory: tempfile::TempDir,
    /// Listens at every address of this machine, and plays registry, storage, mirror and proxy.
    evil: Capture,
    /// The same with TLS.
    evil_tls: Capture,
    /// The certificate of all who speak TLS, and its key.
    certificate: PathBuf,
    tls: Arc<ServerConfig>,
    /// Where the registry is, once there is one: who sends people away can send them back.
    home: Arc<OnceLock<String>>,
}

impl Scene {
    fn new(certificate: &Path, tls: &Arc<ServerConfig>) -> Self {
        let home = Arc::new(OnceLock::new());
        let evil = |tls: Option<&Arc<ServerConfig>>| {
            let home = Arc::clone(&home);
            Capture::start("0.0.0.0", tls, |_| {
                move |request: &Request| elsewhere::answer(request, home.get())
            })
        };
        let directory = tempfile::tempdir().expect("tempdir");
        let (certificate, tls) = (certificate.to_owned(), Arc::clone(tls));
        Self { directory, evil: evil(None), evil_tls: evil(Some(&tls)), certificate, tls, home }
    }

    /// The registry of the login.
    fn registry<R>(&self, is_tls: bool, rule: impl FnOnce(&str) -> R) -> Capture
    where
        R: Fn(&Request) -> Reply + Send + Sync + 'static,
    {
        let capture = Capture::start("127.0.0.1", is_tls.then_some(&self.tls), rule);
        let scheme = if is_tls { "https" } else { "http" };
        self.home.set(format!("{scheme}://{}", capture.address)).expect("there is one registry");
        self.keep_login(&capture.address);
        capture
    }

    fn keep_login(&self, name: &str) {
        let auths = serde_json::json!({ "auths": { name: { "auth": encoded() } } });
        fs::write(self.file(), auths.to_string()).expect("written");
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("config.json")
    }

    fn client(&self, hosts: Hosts) -> Registry {
        let ca_files = vec![self.certificate.clone()];
        common::client_with(RegistryOptions {
            auth_files: vec![self.file()],
            ca_files,
            hosts,
            ..Default::default()
        })
    }

    /// The real program with this environment, in which all that is not this machine is reached through the evil server.
    fn run(&self, arguments: &[&str]) -> Output {
        let proxy = format!("http://{}", self.evil.address.replace("0.0.0.0", "127.0.0.1"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_layerwright"));
        command.args(arguments).env_clear().stdin(Stdio::null()).current_dir(self.directory.path());
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"] {
            command.env(name, &proxy);
        }
        command
            .env("DOCKER_CONFIG", self.directory.path())
            .env("LAYERWRIGHT_ROOT", self.directory.path().join("root"));
        command.output().expect("the binary runs")
    }

    /// Tries the login at a registry that always challenges like this; it must be refused for this reason.
    fn challenged(&self, challenges: &'static [&'static str], want: &str) -> Result<(), String> {
        let headers: Vec<_> = challenges.iter().map(|challenge| ("WWW-Authenticate", *challenge)).collect();
        let home = self.registry(false, |_| move |_: &Request| status(401, &headers, ""));
        self.refused(&home, want)
    }

    fn refused(&self, home: &Capture, want: &str) -> Result<(), String> {
        let output = self.run(&["login", "--authfile", &self.file().display().to_string(), &home.address]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let is_right = !output.status.success() && text.contains(want) && text.len() < LONGEST_ERROR;
        self.harmless(&text)?;
        if is_right { Ok(()) } else { Err(format!("it says: {text}")) }
    }

    /// A registry that takes the password, and writes it into its answer: as a header, or as the body.
    fn quoted(&self, code: u16, header: &'static str, quote: fn(&str) -> String) -> Result<(), String> {
        let home = self.registry(false, |_| {
            move |request: &Request| match request.header("authorization") {
                None => status(401, &[("WWW-Authenticate", "Basic")], ""),
                Some(shown) => {
                    let text = quote(&format!("{PASSWORD}/{}", shown.trim_start_matches("Basic ")));
                    status(code, &[(header, text.lines().next().unwrap_or_default())], &text)
                }
            }
        });
        self.refused(&home, "***")?;
        self.seen_by(&home)
    }

    /// That the registry has seen the password: a trap that nobody comes near proves nothing.
    fn seen_by(&self, home: &Capture) -> Result<(), String> {
        let is_seen = home.requests().iter().any(|request| secret_in(&told(request)).is_some());
        if is_seen { Ok(()) } else { Err("the registry has not seen the password".to_owned()) }
    }

    /// That a text has nothing in it that people may not read.
    fn harmless(&self, text: &str) -> Result<(), String> {
        secret_in(text).map_or(Ok(()), |secret| Err(format!("{secret} stands in: {text}")))
    }

    /// That nobody else has seen anything; and that nobody at all was told where we come from, or got a cookie back.
    fn is_safe(&self) -> Result<(), String> {
        for request in self.evil.requests().iter().chain(&self.evil_tls.requests()) {
            self.harmless(&told(request))?;
            for header in ["authorization", "cookie", "referer", "proxy-authorization"] {
                if let Some(value) = request.header(header) {
                    return Err(format!("{header}: {value} in {}", request.line()));
                }
            }
        }
        Ok(())
    }
}

fn encoded() -> String {
    BASE64_STANDARD.encode(format!("{USER}:{PASSWORD}"))
}

/// What of a text is somebody's secret.
fn secret_in(text: &str) -> Option<String> {
    [PASSWORD.to_owned(), encoded(), TOKEN.to_owned()].into_iter().find(|secret| text.contains(secret))
}

/// All of a request.
fn told(request: &Request) -> String {
    let headers = request.headers.iter().map(|(name, value)| format!("{name}: {value}\n"));
    request.line() + "\n" + &headers.collect::<String>() + &String::from_utf8_lossy(&request.body)
}

fn huge_challenge(scene: &Scene) -> Result<(), String> {
    let challenge = format!(r#"Bearer realm="https://auth.evil.example/{}""#, "x".repeat(60_000));
    let home =
        scene.registry(false, |_| move |_: &Request| status(401, &[("WWW-Authenticate", &challenge)], ""));
    scene.refused(&home, "somebody else's host")
}

fn redirected_token(scene: &Scene) -> Result<(), String> {
    let to = format!("http://{}/token", scene.evil.address.replace("0.0.0.0", "127.0.0.2"));
    let home = scene.registry(false, |own| {
        let challenge = format!(r#"Bearer realm="http://{own}/token""#);
        move |request: &Request| match request.path.starts_with("/token") {
            true => status(307, &[("Location", &to)], ""),
            false => status(401, &[("WWW-Authenticate", &challenge)], ""),
        }
    });
    scene.refused(&home, "answered 307")?;
    scene.seen_by(&home)
}

fn urls_of_a_layer(scene: &Scene) -> Result<(), String> {
    let url = format!("http://{}/layer", scene.evil.address.replace("0.0.0.0", "127.0.0.2"));
    let digest = Sha256Digest::of(BLOB);
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": BLOB.len()},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": BLOB.len(), "urls": [url]}],
    });
    let home = scene.registry(false, |_| {
        move |request: &Request| match (request.header("authorization"), request.path.contains("/manifests/"))
        {
            (None, _) => status(401, &[("WWW-Authenticate", "Basic")], ""),
            (_, true) => {
                status(200, &[("Content-Type", MediaType::OciManifest.as_str())], manifest.to_string())
            }
            (_, false) => status(404, &[], ""),
        }
    });
    let (client, app) = (scene.client(Hosts::default()), common::reference(&home.address, "app"));
    let fetched = client.manifest(&app).map_err(|error| common::told(&error))?;
    let manifest: Manifest = serde_json::from_slice(&fetched.bytes).map_err(|error| error.to_string())?;
    let pulled = client.pull_blob(&app, &manifest.layers[0]);
    assert!(scene.evil.requests().is_empty(), "nobody else is asked");
    match pulled {
        Err(error) if error.is_not_found() => scene.seen_by(&home),
        other => Err(format!("{:?}", other.map(|_| "a layer"))),
    }
}

fn mirror(scene: &Scene) -> Result<(), String> {
    let home = scene.registry(false, |_| {
        move |request: &Request| match request.header("authorization") {
            None => status(401, &[("WWW-Authenticate", "Basic")], ""),
            Some(_) => elsewhere::registry(request),
        }
    });
    let evil = format!("http://{}", scene.evil.address.replace("0.0.0.0", "127.0.0.2"));
    let mirrors = vec![(home.address.clone(), evil.parse().map_err(|_| "no location")?)];
    let hosts = Hosts::new(HostOptions { mirrors, ..HostOptions::default() }, &|_| None);
    let found = scene.client(hosts).manifest(&common::reference(&home.address, "app"));
    let bytes = found.map_err(|error| common::told(&error))?.bytes;
    assert!(bytes == MANIFEST && !scene.evil.requests().is_empty(), "the mirror was asked before");
    scene.seen_by(&home)
}

fn similar_names(scene: &Scene) -> Result<(), String> {
    let home = scene.registry(false, |_| |_: &Request| status(401, &[("WWW-Authenticate", "Basic")], ""));
    let port: u16 = home.address.rsplit(':').next().and_then(|port| port.parse().ok()).ok_or("no port")?;
    for name in [
        "127.0.0.1".to_owned(),
        format!("127.0.0.1:{}", port ^ 1),
        format!("127.0.0.2:{port}"),
        format!("localhost:{port}"),
        format!("{}/app/deeper", home.address),
        format!("{}/ap", home.address),
        format!("{}.evil.example", home.address),
        "docker.io".to_owned(),
    ] {
        scene.keep_login(&name);
        let refused = scene.client(Hosts::default()).manifest(&common::reference(&home.address, "app"));
        let error = refused.err().map(|error| common::told(&error)).unwrap_or_default();
        if !error.contains("no credentials were sent") || scene.seen_by(&home).is_ok() {
            return Err(format!("{name}: {error}"));
        }
    }
    Ok(())
}

/// A build that works and one that fails, with a real registry; the password is in the command's own file and nowhere else.
fn outputs(scene: &Scene) -> Result<(), String> {
    let setup = common::Setup { user: Some((USER, PASSWORD)), ..common::Setup::default() };
    let Some(registry) = common::DockerRegistry::with(&setup) else { return Ok(()) };
    scene.keep_login(&registry.address);
    let context = scene.directory.path().join("context");
    fs::create_dir(&context).map_err(|error| error.to_string())?;
    fs::write(context.join("Dockerfile"), "FROM scratch\nCOPY Dockerfile /\n")
        .map_err(|error| error.to_string())?;
    let tag = format!("{}/app:1", registry.address);
    for mode in ["json", "plain"] {
        for (more, is_success) in [(&["--push"][..], true), (&["--push", "--target", "absent"][..], false)] {
            let build = ["build", "--progress", mode, "--metadata-file", "metadata.json", "-t", &tag];
            let output = scene.run(&[&build, more, &["context"]].concat());
            let text = [output.stdout, output.stderr].concat();
            let text = String::from_utf8_lossy(&text);
            assert_eq!(output.status.success(), is_success, "{text}");
            scene.harmless(&text)?;
        }
    }
    let history = scene.run(&["history", "logs"]);
    scene.harmless(&String::from_utf8_lossy(&history.stdout))?;
    fs::remove_file(scene.file()).map_err(|error| error.to_string())?;
    every_file(scene.directory.path(), &mut |path, text| {
        secret_in(text).map_or(Ok(()), |secret| Err(format!("{secret} stands in {}", path.display())))
    })
}

fn every_file(
    directory: &Path,
    look: &mut dyn FnMut(&Path, &str) -> Result<(), String>,
) -> Result<(), String> {
    for entry in fs::read_dir(directory).map_err(|error| error.to_string())?.flatten() {
        let (path, kind) = (entry.path(), entry.file_type().map_err(|error| error.to_string())?);
        if kind.is_dir() {
            every_file(&path, look)?;
        } else if kind.is_file() {
            look(&path, &String::from_utf8_lossy(&fs::read(&path).unwrap_or_default()))?;
        }
    }
    Ok(())
}

#[test]
fn secrets_are_seen_by_the_right_host_only() {
    let home = tempfile::tempdir().expect("tempdir");
    let Some((certificate, key)) = common::self_signed(home.path()) else { return };
    let tls = server::tls(&certificate, &key);
    let sent = elsewhere::TRAPS.iter().map(|trap| (trap.name, None, Some(trap)));
    let all: Vec<_> = TRAPS.iter().map(|(name, spring)| (*name, Some(spring), None)).chain(sent).collect();
    let mut failures = Vec::new();
    for (name, spring, sent) in &all {
        let scene = Scene::new(&certificate, &tls);
        let sprung = match (spring, sent) {
            (Some(spring), _) => spring(&scene),
            (None, trap) => trap.map_or(Ok(()), |trap| trap.spring(&scene)),
        };
        if let Err(failure) = sprung.and_then(|()| scene.is_safe()) {
            failures.push(format!("{name}: {failure}"));
        }
    }
    let safe = all.len() - failures.len();
    let _ = writeln!(std::io::stderr(), "secrets seen only by the right host: {safe}/{}", all.len());
    assert_eq!((failures.join("\n"), all.len()), (String::new(), 40));
}
