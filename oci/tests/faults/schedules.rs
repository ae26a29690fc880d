//! Random faults between the client and a real registry: whatever happens, no wrong image and no false success.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use oci::{
    BlobOrigin, Descriptor, Fetcher, ImageConfig, MediaType, Platform, Reference, Registry, Sha256Digest,
    Store, image, manifest::Manifest,
};

use crate::common::{
    DockerRegistry, client,
    fault::{Reply, Request, Server, status},
    layer, noise, push, read, reference, told,
};

const SCHEDULES: u64 = 40;

/// A small generator with a seed that can be printed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// One fault; what it does to a request depends on nothing else.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Refused,
    AnswerLost,
    Cut(usize),
    Truncated(usize),
    Status(u16),
    SlowDown,
    SessionLost,
    WrongByte,
    WrongDigestHeader,
    ExtraByte,
    RangeIgnored,
}

impl Fault {
    fn random(random: &mut Random) -> Self {
        let place = random.below(300_000) as usize;
        match random.below(14) {
            0 => Self::Refused,
            1 => Self::AnswerLost,
            2 | 3 => Self::Cut(place),
            4 | 5 => Self::Truncated(place),
            6 => Self::Status(500),
            7 => Self::Status(503),
            8 => Self::Status(429),
            9 => Self::SlowDown,
            10 => Self::SessionLost,
            11 => Self::WrongByte,
            12 => Self::WrongDigestHeader,
            _ if random.below(2) == 0 => Self::ExtraByte,
            _ => Self::RangeIgnored,
        }
    }

    fn reply(self, request: &Request) -> Reply {
        match self {
            Self::Refused => Reply::Lose(Box::new(status(200, &[], ""))),
            Self::AnswerLost => Reply::Lose(Box::new(Reply::Forward)),
            Self::Cut(place) => Reply::Cut(place, Box::new(Reply::Forward)),
            Self::Truncated(place) => Reply::End(place, Box::new(Reply::Forward)),
            Self::Status(code) => status(code, &[], ""),
            Self::SlowDown => status(429, &[("Retry-After", "0")], ""),
            Self::SessionLost if request.method == "PUT" && request.path.contains("/uploads/") => {
                status(404, &[], r#"{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN"}]}"#)
            }
            Self::WrongByte => Reply::Bent(|_, body| body.iter_mut().take(1).for_each(|byte| *byte ^= 1)),
            Self::ExtraByte => Reply::Bent(|headers, body| {
                headers.retain(|(name, _)| name != "content-length" || body.is_empty());
                body.extend(body.first().copied());
            }),
            Self::WrongDigestHeader => Reply::Bent(|headers, _| {
                let wrong = Sha256Digest::of(b"wrong").to_string();
                let digests = headers.iter_mut().filter(|(name, _)| name == "docker-content-digest");
                digests.for_each(|(_, value)| value.clone_from(&wrong));
            }),
            Self::RangeIgnored => Reply::ForwardWithout("range"),
            Self::SessionLost => Reply::Forward,
        }
    }
}

/// Pushes an image of one layer.
fn push_image(registry: &Registry, app: &Reference, content: &[u8]) -> Result<Sha256Digest, String> {
    let mut config = ImageConfig::empty(&Platform::new("linux", "amd64", None));
    config.rootfs.diff_ids = vec![Sha256Digest::of(content).into()];
    let config = serde_json::to_vec(&config).expect("serialisable");
    for blob in [content, &config] {
        push(registry, app, blob).map_err(|error| told(&error))?;
    }
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(MediaType::OciManifest),
        config: Descriptor::of(MediaType::OciConfig, &config),
        layers: vec![layer(content)],
        annotations: Default::default(),
    };
    let bytes = serde_json::to_vec(&manifest).expect("serialisable");
    registry.push_manifest(app, &MediaType::OciManifest, &bytes).map_err(|error| told(&error))
}

/// Pulls it back into a new store, and returns the layer's bytes.
fn pull_image(registry: &Registry, app: &Reference) -> Result<(Sha256Digest, Vec<u8>), String> {
    let platform = Platform::new("linux", "amd64", None);
    let image = image::resolve_registry(registry, app, &platform).map_err(|error| told(&error))?;
    let root = tempfile::tempdir().expect("tempdir");
    let fetcher = Fetcher::new(Arc::new(Store::open(root.path()).expect("a store")), registry.clone());
    let origin = BlobOrigin::Registry(app.clone());
    let layers = image.base_layers(&origin);
    fetcher.ensure(&layers[0].descriptor, &origin).map_err(|error| told(&error))?;
    let bytes = read(fetcher.open(&layers[0].descriptor, &origin).expect("stored")).expect("verified");
    Ok((image.manifest_digest, bytes))
}

/// A server in front of `upstream` that commits one to six faults among its first requests.
fn faulty(upstream: &str, seed: u64, committed: &Arc<AtomicUsize>) -> (Server, Vec<(usize, Fault)>) {
    let mut random = Random(seed);
    let count = 1 + random.below(6);
    let plan: Vec<_> = (0..count).map(|_| (random.below(16) as usize, Fault::random(&mut random))).collect();
    let (next, faults, committed) = (AtomicUsize::new(0), plan.clone(), committed.clone());
    let server = Server::before(upstream, move |request| {
        let number = next.fetch_add(1, Ordering::SeqCst);
        let fault = faults.iter().find(|(at, _)| *at == number);
        committed.fetch_add(usize::from(fault.is_some()), Ordering::SeqCst);
        fault.map_or(Reply::Forward, |(_, fault)| fault.reply(request))
    });
    (server, plan)
}

/// How many faults change bytes that only their digest can tell.
fn damages(plan: &[(usize, Fault)]) -> usize {
    plan.iter().filter(|(_, fault)| matches!(fault, Fault::WrongByte | Fault::ExtraByte)).count()
}

#[test]
fn no_schedule_of_faults_gives_a_wrong_image() {
    let Some(upstream) = DockerRegistry::start() else { return };
    let committed = Arc::new(AtomicUsize::new(0));
    for seed in 1..=SCHEDULES {
        let (server, plan) = faulty(&upstream.address, seed, &committed);
        let name = format!("app{seed}:v1");
        let content = noise(300_000 + seed as usize);
        let (registry, app) = (client(vec![]), reference(&server.address, &name));
        let pushed = push_image(&registry, &app, &content);
        let digest =
            pushed.unwrap_or_else(|error| panic!("seed {seed}: {error}\n{plan:?}\n{:#?}", server.lines()));
        let pulled = pull_image(&registry, &app);
        if pulled.is_err() && damages(&plan) > 1 {
            // What comes out wrong is asked for once more, and not for ever: an error is right here.
            continue;
        }
        let pulled =
            pulled.unwrap_or_else(|error| panic!("seed {seed}: {error}\n{plan:?}\n{:#?}", server.lines()));
        assert!(pulled == (digest, content.clone()), "seed {seed}: other bytes\n{plan:?}");

        // Success means that the registry itself has it, without any fault in between.
        let direct = pull_image(&client(vec![]), &upstream.reference(&name));
        assert!(
            direct.is_ok_and(|direct| direct == (digest, content)),
            "seed {seed}: false success\n{plan:?}"
        );
    }
}
