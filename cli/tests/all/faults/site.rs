//! What the tests build, how it is run, and how the result is judged: by asking the registry itself.

use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use oci::{
    Descriptor, MediaType, Reference, Registry, Sha256Digest,
    manifest::{Index, Manifest},
};

use super::common::{DockerRegistry, client, noise, skip, told};

/// Statically linked, so it runs in an image that holds little else.
const BUSYBOX: &str = "/bin/busybox";
/// Deadlines and pauses of registries are a thirtieth of what people get.
const HURRY: u32 = 30;
/// Whatever runs longer than this is taken for hanging: ten times what the slowest schedule needs.
const WATCHDOG: Duration = Duration::from_secs(120);

const BASE: &str = "FROM scratch\nCOPY busybox /bin/busybox\nCOPY noise /data\n";
const APP: &str = "\
ARG BASE
FROM $BASE AS tools
RUN [\"/bin/busybox\", \"sh\", \"-c\", \"echo made > /made\"]
FROM $BASE
COPY --from=tools /made /made
COPY noise /noise
RUN [\"/bin/busybox\", \"sh\", \"-c\", \"/bin/busybox cat /made /noise > /both\"]
COPY Dockerfile /etc/
";

/// A registry with a base image, a context, and the right answer.
pub struct Site {
    pub upstream: DockerRegistry,
    directory: tempfile::TempDir,
    /// What the image's digest is when nothing goes wrong.
    pub digest: Sha256Digest,
}

/// A build that has ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stderr: String,
    pub took: Duration,
}

impl Site {
    /// `None`, and a loud line, where something is not installed.
    pub fn new() -> Option<Self> {
        if !Path::new(BUSYBOX).exists() {
            skip("there is no static /bin/busybox");
            return None;
        }
        let upstream = DockerRegistry::start()?;
        let directory = tempfile::tempdir().expect("tempdir");
        let mut site = Self { upstream, directory, digest: Sha256Digest::of(b"") };
        for (name, dockerfile) in [("base", BASE), ("context", APP)] {
            fs::create_dir(site.path(name)).expect("created");
            fs::write(site.path(name).join("Dockerfile"), dockerfile).expect("written");
            fs::write(site.path(name).join("noise"), noise(200_000 + name.len())).expect("written");
        }
        fs::copy(BUSYBOX, site.path("base/busybox")).expect("copied");
        let base = site.upstream.reference("base");
        site.succeeds(site.command("base").arg("--push").arg("-t").arg(base.to_string()));
        let clean = site.upstream.reference("clean");
        site.succeeds(&mut site.app(&site.upstream.address, "warm", &[&clean]));
        site.digest = site.finds(&clean).expect("sound").expect("pushed");
        Some(site)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// `layerwright build` of a context, with `warm` as its store.
    fn command(&self, context: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_layerwright"));
        command.args(["build", "--progress", "plain"]).arg(self.path(context));
        command.env_clear().env("HOME", self.directory.path()).env("LAYERWRIGHT_ROOT", self.path("warm"));
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("LAYERWRIGHT_DEBUG_HURRY", HURRY.to_string());
        command
    }

    /// Builds the app on the base that `registry` has, in the store of this name, and pushes it.
    pub fn app(&self, registry: &str, store: &str, names: &[&Reference]) -> Command {
        let mut command = self.command("context");
        command.env("LAYERWRIGHT_ROOT", self.path(store));
        command.arg("--push").arg(format!("--build-arg=BASE={registry}/base"));
        names.iter().for_each(|name| _ = command.arg("-t").arg(name.to_string()));
        command
    }

    pub fn succeeds(&self, command: &mut Command) {
        let ended = self.run(command);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    }

    pub fn run(&self, command: &mut Command) -> Ended {
        let log = tempfile::NamedTempFile::new_in(self.directory.path()).expect("a log");
        let began = Instant::now();
        let mut child = start(command, log.as_file());
        let code = wait(&mut child);
        let stderr = fs::read_to_string(log.path()).expect("text");
        Ended { code, stderr, took: began.elapsed() }
    }

    /// What a name resolves to in the registry itself, if everything below it is there and right.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn finds(&self, name: &Reference) -> Result<Option<Sha256Digest>, String> {
        let registry = client(vec![]);
        let name = name.with_default_tag();
        let found = registry.resolve(&name).map_err(|error| told(&error))?;
        let Some(found) = found else { return Ok(None) };
        examine(&registry, &name, found.digest).map(|()| Some(found.digest))
    }
}

/// Reads everything that a manifest or index names, which verifies it.
fn examine(registry: &Registry, name: &Reference, digest: Sha256Digest) -> Result<(), String> {
    let fetched = registry.manifest(&name.with_digest(digest)).map_err(|error| told(&error))?;
    if fetched.media_type == MediaType::OciIndex {
        let index: Index = serde_json::from_slice(&fetched.bytes).map_err(|error| error.to_string())?;
        return index.manifests.iter().try_for_each(|below| examine(registry, name, below.digest));
    }
    let manifest: Manifest = serde_json::from_slice(&fetched.bytes).map_err(|error| error.to_string())?;
    manifest.layers.iter().chain([&manifest.config]).try_for_each(|blob| read_blob(registry, name, blob))
}

fn read_blob(registry: &Registry, name: &Reference, blob: &Descriptor) -> Result<(), String> {
    let mut reader = registry.pull_blob(name, blob).map_err(|error| told(&error))?;
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).map(drop).map_err(|error| told(&error))
}

fn start(command: &mut Command, stderr: &File) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr.try_clone().expect("cloned"));
    command.spawn().expect("the binary runs")
}

/// Its exit code; `None` for one that had to be killed.
fn wait(child: &mut Child) -> Option<i32> {
    let began = Instant::now();
    while began.elapsed() < WATCHDOG {
        if let Some(status) = child.try_wait().expect("it is ours") {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().expect("it is ours");
    child.wait().expect("it is ours");
    None
}
