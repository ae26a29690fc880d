//! What the tests against registries share: a real `docker-registry` as a child process, and a server that misbehaves.
#![allow(dead_code, reason = "every test binary uses a part of it")]

pub mod fault;
pub mod pki;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use oci::{Descriptor, MediaType, Reference, Registry, RegistryOptions, registry::Limits};

/// A registry of the distribution project on a free loopback port, ended with the value.
pub struct DockerRegistry {
    process: Child,
    pub directory: tempfile::TempDir,
    /// `127.0.0.1:PORT`.
    pub address: String,
}

/// What a registry that takes tokens calls itself, ...
pub const SERVICE: &str = "test-registry";
/// ... and whoever gives them.
pub const ISSUER: &str = "test-issuer";

/// How the registry is to be set up beyond its defaults.
#[derive(Default)]
pub struct Setup<'a> {
    /// Name and password of its only user.
    pub user: Option<(&'a str, &'a str)>,
    /// Certificate and key.
    pub tls: Option<(&'a Path, &'a Path)>,
    /// URL of the token service whose tokens it takes, and the certificate they are signed with.
    pub tokens: Option<(&'a str, &'a Path)>,
    /// The authority of the clients that it speaks to, if not to all.
    pub clients: Option<&'a Path>,
    /// The address it listens at, if not the loopback's.
    pub host: Option<&'a str>,
    /// Whether it deletes nothing, as most do unless they are told otherwise.
    pub keeps: bool,
}

impl DockerRegistry {
    pub fn start() -> Option<Self> {
        Self::with(&Setup::default())
    }

    /// `None`, and a loud line, where the program is not installed.
    pub fn with(setup: &Setup<'_>) -> Option<Self> {
        if Command::new("docker-registry").arg("--version").stdout(Stdio::null()).status().is_err() {
            skip("docker-registry is not installed");
            return None;
        }
        // Somebody else may take the port between our look at it and the registry's.
        (0..5).find_map(|_| Self::try_start(setup)).or_else(|| panic!("docker-registry does not start"))
    }

    fn try_start(setup: &Setup<'_>) -> Option<Self> {
        let directory = tempfile::tempdir().expect("tempdir");
        let host = setup.host.unwrap_or("127.0.0.1");
        let port =
            TcpListener::bind((host, 0)).and_then(|socket| socket.local_addr()).expect("a free port").port();
        let address = format!("{host}:{port}");
        let config = directory.path().join("config.yml");
        fs::write(&config, Self::config(setup, directory.path(), &address)).expect("written");
        let mut process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it is installed");
        let log = BufReader::new(process.stderr.take().expect("piped"));
        let mut lines = log.lines().map_while(Result::ok);
        let listening = lines.any(|line| line.contains("listening on"));
        // Its log must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        let registry = Self { process, directory, address };
        listening.then_some(registry)
    }

    fn config(setup: &Setup<'_>, directory: &Path, address: &str) -> String {
        let root = directory.join("data");
        let deletes = !setup.keeps;
        let mut config = format!(
            "version: 0.1\nlog:\n  level: info\nstorage:\n  delete:\n    enabled: {deletes}\n  filesystem:\n    \
             rootdirectory: {}\nhttp:\n  addr: {address}\n",
            root.display()
        );
        if let Some((certificate, key)) = setup.tls {
            let (certificate, key) = (certificate.display(), key.display());
            config += &format!("  tls:\n    certificate: {certificate}\n    key: {key}\n");
        }
        if let Some(authority) = setup.clients {
            config += &format!("    clientcas:\n      - {}\n", authority.display());
        }
        if let Some((realm, bundle)) = setup.tokens {
            config += &format!(
                "auth:\n  token:\n    realm: {realm}\n    service: {SERVICE}\n    issuer: {ISSUER}\n    \
                 rootcertbundle: {}\n",
                bundle.display()
            );
        }
        if let Some((user, password)) = setup.user {
            let file = directory.join("htpasswd");
            fs::write(&file, htpasswd(user, password)).expect("written");
            config += &format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", file.display());
        }
        config
    }

    pub fn reference(&self, name: &str) -> Reference {
        reference(&self.address, name)
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        // It is ours, and nothing can be done about a failure here.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn htpasswd(user: &str, password: &str) -> Vec<u8> {
    let output = Command::new("htpasswd").args(["-Bbn", user, password]).output();
    output.expect("htpasswd of apache2-utils is installed").stdout
}

pub fn reference(address: &str, name: &str) -> Reference {
    format!("{address}/{name}").parse().expect("a reference")
}

/// Deadlines a thirtieth and less of the usual ones.
pub fn quick() -> Limits {
    Limits {
        connect: Duration::from_secs(5),
        idle: Duration::from_secs(2),
        first_pause: Duration::from_millis(5),
        longest_pause: Duration::from_millis(100),
        longest_retry_after: Duration::from_secs(10),
        patience: Duration::from_secs(2),
        short_patience: Duration::from_millis(200),
    }
}

/// A client with short deadlines that finds no credentials but those it is given.
pub fn client(auth_files: Vec<PathBuf>) -> Registry {
    client_with(RegistryOptions { auth_files, ..RegistryOptions::default() })
}

pub fn client_with(options: RegistryOptions) -> Registry {
    Registry::new(RegistryOptions { limits: quick(), ..options }).expect("a client")
}

/// Writes a `config.json` with one password.
pub fn login(directory: &Path, registry: &str, user: &str, password: &str) -> PathBuf {
    let entry = format!(r#"{{"auths":{{"{registry}":{{"username":"{user}","password":"{password}"}}}}}}"#);
    write_config(directory, &entry)
}

pub fn write_config(directory: &Path, text: &str) -> PathBuf {
    let path = directory.join("config.json");
    fs::write(&path, text).expect("written");
    path
}

pub fn layer(content: &[u8]) -> Descriptor {
    Descriptor::of(MediaType::OciLayerGzip, content)
}

/// Bytes that do not repeat soon.
pub fn noise(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    std::iter::repeat_with(next).take(size).collect()
}

pub fn read(mut reader: Box<dyn Read + Send>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).map(|_| bytes)
}

pub fn push(
    registry: &Registry,
    reference: &Reference,
    content: &[u8],
) -> Result<oci::registry::Pushed, oci::registry::RegistryError> {
    push_mounting(registry, reference, content, None)
}

pub fn push_mounting(
    registry: &Registry,
    reference: &Reference,
    content: &[u8],
    from: Option<&Reference>,
) -> Result<oci::registry::Pushed, oci::registry::RegistryError> {
    let content = content.to_vec();
    let open = || Ok(Box::new(std::io::Cursor::new(content.clone())) as Box<dyn Read + Send>);
    registry.push_blob(reference, &layer(&content), from, &open, &|_| {})
}

/// The whole chain of an error, as a user would read it.
pub fn told(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// A certificate for 127.0.0.1 that vouches for itself, and its key: PEM files in a directory. `None`, and a loud line,
/// without openssl.
pub fn self_signed(directory: &Path) -> Option<(PathBuf, PathBuf)> {
    let (certificate, key) = (directory.join("cert.pem"), directory.join("key.pem"));
    let made = Command::new("openssl")
        .args(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test"
                .split(' '),
        )
        .args(["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=CA:FALSE"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output();
    if made.is_ok_and(|output| output.status.success()) {
        return Some((certificate, key));
    }
    skip("openssl is not installed");
    None
}

/// Says on standard error that a test did not run.
pub fn skip(reason: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {reason}");
}
