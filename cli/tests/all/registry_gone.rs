//! A registry that goes away in the middle of something is exit code 3, whoever met it and however deep in the causes
//! it stands. Each case takes the few seconds for which a registry that does not answer is asked again.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Arc,
};

use crate::common::fault::{Reply, Request, Server, status};

/// A base image in an OCI layout, which registries are made of.
struct Base {
    directory: tempfile::TempDir,
    manifest: String,
}

/// What an image is built with: its own context and store.
struct Site(tempfile::TempDir);

impl Site {
    fn new(dockerfile: &str) -> Self {
        let site = Self(tempfile::tempdir().expect("a temporary directory"));
        fs::create_dir(site.path("context")).expect("created");
        fs::write(site.path("context/Dockerfile"), dockerfile).expect("written");
        fs::write(site.path("context/file"), noise(200_000)).expect("written");
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `layerwright build` with these flags; `@` stands for the site's directory.
    fn build(&self, flags: &str) -> Output {
        let flags = flags.replace('@', &self.0.path().display().to_string());
        let mut command = Command::new(env!("CARGO_BIN_EXE_layerwright"));
        command.arg("build").args(flags.split_whitespace()).arg(self.path("context"));
        command.env_clear().env("HOME", self.0.path()).env("LAYERWRIGHT_ROOT", self.path("root"));
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.output().expect("the binary runs")
    }
}

/// Bytes that do not compress.
fn noise(size: usize) -> Vec<u8> {
    let next = |state: &u64| Some(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
    std::iter::successors(Some(1), next).map(|state| (state >> 56) as u8).take(size).collect()
}

impl Base {
    fn new() -> Self {
        let site = Site::new("FROM scratch\nCOPY file /\n");
        let built = site.build("-q -o type=oci,tar=false,dest=@/layout");
        assert!(built.status.success(), "{}", told(&built));
        let manifest = String::from_utf8(built.stdout).expect("a digest").trim_end().to_owned();
        Self { directory: site.0, manifest }
    }

    fn blob(&self, digest: &str) -> Option<Vec<u8>> {
        let blobs = self.directory.path().join("layout/blobs/sha256");
        fs::read(Path::new(&blobs).join(digest.strip_prefix("sha256:")?)).ok()
    }

    /// What a registry that has the image as `base` and takes uploads answers.
    fn answer(&self, request: &Request) -> Reply {
        let path = request.path.split('?').next().unwrap_or_default();
        let digest = path.rsplit('/').next().unwrap_or_default();
        match (request.method.as_str(), path) {
            (_, "/v2/") => status(200, &[], ""),
            ("POST", path) => status(202, &[("Location", &format!("{path}1"))], ""),
            ("GET" | "HEAD", path) if path.starts_with("/v2/base/manifests/") => {
                let body = self.blob(&self.manifest).expect("it is there");
                status(200, &[("Content-Type", "application/vnd.oci.image.manifest.v1+json")], body)
            }
            ("GET", path) if path.starts_with("/v2/base/blobs/") => match self.blob(digest) {
                Some(body) => status(200, &[], body),
                None => status(404, &[], ""),
            },
            ("PUT" | "PATCH", _) => status(201, &[], ""),
            _ => status(404, &[], ""),
        }
    }

    /// The size of the layer tells it from the config.
    fn is_layer(&self, request: &Request) -> bool {
        let digest = request.path.rsplit('/').next().unwrap_or_default();
        request.is("GET", "/base/blobs/") && self.blob(digest).is_some_and(|blob| blob.len() > 100_000)
    }
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Builds against a registry that is no more from the first request on that `last` accepts: in the middle of the answer.
fn check(base: &Arc<Base>, dockerfile: &str, flags: &str, last: fn(&Base, &Request) -> bool) {
    let served = Arc::clone(base);
    let leaving = Server::start(move |request| match last(&served, request) {
        true => Reply::Vanish(1000, Box::new(served.answer(request))),
        false => served.answer(request),
    });
    let served = Arc::clone(base);
    let staying = Server::start(move |request| served.answer(request));
    let with_names =
        |text: &str| text.replace("LEAVING", &leaving.address).replace("STAYING", &staying.address);
    let built = Site::new(&with_names(dockerfile)).build(&with_names(flags));
    let text = told(&built);
    assert_eq!(built.status.code(), Some(3), "{dockerfile:?} {flags}: {text}");
    assert!(text.contains(&leaving.address) && text.contains("error: "), "{text}");
    let is_told_twice = text.lines().any(|line| line.matches("Connection refused").count() > 1);
    assert!(!is_told_twice, "{text}");
}

#[test]
fn a_registry_that_goes_away_is_to_blame() {
    const ON_BASE: &str = "FROM LEAVING/base\n";
    const NEEDS_FILES: &str = "FROM LEAVING/base\nCOPY --from=LEAVING/base file /copy\n";
    const OWN: &str = "FROM scratch\nCOPY file /\n";
    let layer: fn(&Base, &Request) -> bool = Base::is_layer;
    let manifest: fn(&Base, &Request) -> bool = |_, request| request.is("GET", "/manifests/");
    let upload: fn(&Base, &Request) -> bool = |_, request| request.path.contains("/uploads/1");
    let cases = [
        ("the manifest of a base", ON_BASE, "", manifest),
        ("a layer that a step reads", NEEDS_FILES, "", layer),
        ("the files of a base", ON_BASE, "-o @/files", layer),
        ("a base's blob for an archive", ON_BASE, "-o type=oci,dest=@/a.tar", layer),
        ("a base's blob for a layout", ON_BASE, "-o type=oci,tar=false,dest=@/out", layer),
        ("a base's blob for another registry", ON_BASE, "-t STAYING/app --push", layer),
        ("an upload that is never read", OWN, "-t LEAVING/unread --push", upload),
        ("an upload, when all has been sent", OWN, "-t LEAVING/app --push", upload),
    ];
    let base = Arc::new(Base::new());
    std::thread::scope(|scope| {
        let run = |(name, dockerfile, flags, last)| {
            let base = &base;
            (name, scope.spawn(move || check(base, dockerfile, flags, last)))
        };
        let running: Vec<_> = cases.map(run).into();
        let failed = running.into_iter().filter_map(|(name, case)| case.join().err().map(|_| name));
        assert_eq!(failed.collect::<Vec<_>>(), [""; 0], "their panics stand above");
    });
}
