//! One pair for every row of what enters a key, and of what does not.

use std::collections::{BTreeMap, BTreeSet};

use oci::{BaseLayer, BlobOrigin, Descriptor, DiffId, MediaType, Sha256Digest};
use parser::Span;

use super::*;
use crate::{graph::Written, op::Relaxation};

fn digest(name: &str) -> TreeDigest {
    let mut encoder = Encoder::new(name);
    encoder.field(1, name);
    encoder.digest()
}

fn vertex(op: Op) -> Vertex {
    Vertex {
        op,
        inputs: Vec::new(),
        platform: Platform::new("linux", "amd64", None),
        label: "[1/1] RUN make".to_owned(),
        span: None,
        ambient_env: Vec::new(),
        use_cache: true,
        written: Default::default(),
    }
}

fn written() -> Written {
    let argument = ("V".to_owned(), "1".to_owned());
    Written { instruction: "RUN make".to_owned(), arguments: [argument].into(), ..Written::default() }
}

fn exec() -> Exec {
    Exec { env: vec![("A".to_owned(), "b".to_owned())], ..Exec::new(["/bin/sh", "-c", "make"]) }
}

fn selector() -> Selector {
    Selector { include: vec!["a".to_owned()], ..Selector::default() }
}

fn copy() -> Copy {
    Copy {
        items: vec![CopyItem { input: 1, selector: selector(), unpack: false }],
        destination: "/d".to_owned(),
        into_directory: false,
        chown: None,
        chmod: None,
        timestamps: Timestamps::Auto,
    }
}

fn make_dir() -> MakeDir {
    MakeDir { path: "/w".to_owned(), owner: String::new(), timestamps: Timestamps::Auto }
}

fn exec_with(change: impl FnOnce(&mut Exec)) -> Vertex {
    let mut exec = exec();
    change(&mut exec);
    vertex(Op::Exec(exec))
}

fn copy_with(change: impl FnOnce(&mut Copy)) -> Vertex {
    let mut copy = copy();
    change(&mut copy);
    vertex(Op::Copy(copy))
}

fn selector_with(change: impl FnOnce(&mut Selector)) -> Vertex {
    copy_with(|copy| change(&mut copy.items[0].selector))
}

fn make_dir_with(change: impl FnOnce(&mut MakeDir)) -> Vertex {
    let mut make_dir = make_dir();
    change(&mut make_dir);
    vertex(Op::MakeDir(make_dir))
}

fn device(required: bool) -> impl Fn(&mut Exec) {
    move |exec| exec.devices = vec![Device { name: "vendor.com/class=one".to_owned(), required }]
}

fn mounted(mount: Mount) -> Vertex {
    exec_with(|exec| exec.mounts.push(mount))
}

fn bind_with(change: impl FnOnce(&mut BindMount)) -> Vertex {
    let mut bind = BindMount { target: "/m".to_owned(), input: 1, source: "/s".to_owned(), writable: false };
    change(&mut bind);
    mounted(Mount::Bind(bind))
}

fn cache_with(change: impl FnOnce(&mut CacheMount)) -> Vertex {
    let mut cache = CacheMount {
        target: "/m".to_owned(),
        id: "/m".to_owned(),
        sharing: Sharing::Shared,
        seed: None,
        mode: 0o755,
        uid: 0,
        gid: 0,
        read_only: false,
    };
    change(&mut cache);
    mounted(Mount::Cache(cache))
}

fn file() -> MountedFile {
    MountedFile { target: "/m".to_owned(), mode: 0o400, uid: 0, gid: 0 }
}

fn secret_with(change: impl FnOnce(&mut SecretMount)) -> Vertex {
    let mut secret = SecretMount { id: "s".to_owned(), required: false, file: Some(file()), variable: None };
    change(&mut secret);
    mounted(Mount::Secret(secret))
}

fn ssh_with(change: impl FnOnce(&mut SshMount)) -> Vertex {
    let mut ssh = SshMount { id: "s".to_owned(), required: false, socket: file() };
    change(&mut ssh);
    mounted(Mount::Ssh(ssh))
}

fn mounts() -> Vec<(&'static str, Vertex)> {
    let tmpfs = |target: &str, size| mounted(Mount::Tmpfs { target: target.to_owned(), size });
    let socket = |change: fn(&mut MountedFile)| secret_with(|secret| secret.file.iter_mut().for_each(change));
    vec![
        ("bind", bind_with(|_| {})),
        ("target of a bind", bind_with(|bind| bind.target = "/n".to_owned())),
        ("input of a bind", bind_with(|bind| bind.input = 2)),
        ("source of a bind", bind_with(|bind| bind.source = "/t".to_owned())),
        ("bind of everything", bind_with(|bind| bind.source = "/".to_owned())),
        ("writable bind", bind_with(|bind| bind.writable = true)),
        ("cache", cache_with(|_| {})),
        ("target of a cache", cache_with(|cache| cache.target = "/n".to_owned())),
        ("id of a cache", cache_with(|cache| cache.id = "/n".to_owned())),
        ("locked cache", cache_with(|cache| cache.sharing = Sharing::Locked)),
        ("private cache", cache_with(|cache| cache.sharing = Sharing::Private)),
        ("seeded cache", cache_with(|cache| cache.seed = Some((1, "/".to_owned())))),
        ("seed of another path", cache_with(|cache| cache.seed = Some((1, "/s".to_owned())))),
        ("seed of another input", cache_with(|cache| cache.seed = Some((2, "/s".to_owned())))),
        ("mode of a cache", cache_with(|cache| cache.mode = 0o700)),
        ("owner of a cache", cache_with(|cache| cache.uid = 1)),
        ("group of a cache", cache_with(|cache| cache.gid = 1)),
        ("read-only cache", cache_with(|cache| cache.read_only = true)),
        ("tmpfs", tmpfs("/m", None)),
        ("size of a tmpfs", tmpfs("/m", Some(1))),
        ("target of a tmpfs", tmpfs("/n", None)),
        ("secret", secret_with(|_| {})),
        ("id of a secret", secret_with(|secret| secret.id = "t".to_owned())),
        ("required secret", secret_with(|secret| secret.required = true)),
        ("secret without a file", secret_with(|secret| secret.file = None)),
        ("secret in a variable", secret_with(|secret| secret.variable = Some("S".to_owned()))),
        ("place of a secret", socket(|file| file.target = "/n".to_owned())),
        ("mode of a secret", socket(|file| file.mode = 0o440)),
        ("owner of a secret", socket(|file| file.uid = 1)),
        ("group of a secret", socket(|file| file.gid = 1)),
        ("agent", ssh_with(|_| {})),
        ("id of an agent", ssh_with(|ssh| ssh.id = "t".to_owned())),
        ("required agent", ssh_with(|ssh| ssh.required = true)),
        ("place of an agent", ssh_with(|ssh| ssh.socket.target = "/n".to_owned())),
    ]
}

/// All vertices have different keys of both kinds, and so do the same vertices on other inputs.
#[test]
fn what_can_change_the_output_changes_the_key() {
    let named =
        |name: &str, content: &str| Some(Script { name: name.to_owned(), content: content.to_owned() });
    let script = |content: &str| named("EOF", content);
    let host =
        |address: &'static str| move |exec: &mut Exec| exec.hosts.push(("db".to_owned(), address.to_owned()));
    let limited = |resource, hard| {
        let limit = Ulimit { soft: Some(64), hard: Some(hard) };
        move |exec: &mut Exec| exec.ulimits.extend([(resource, limit)])
    };
    let mut rows = vec![
        ("run", exec_with(|_| {})),
        ("merge", vertex(Op::Merge)),
        ("insecure", exec_with(|exec| exec.security = Security::Insecure)),
        ("user namespaces", exec_with(|exec| exec.relaxed = [Relaxation::Userns].into_iter().collect())),
        ("no filter", exec_with(|exec| exec.relaxed = [Relaxation::NoSeccomp].into_iter().collect())),
        (
            "merged otherwise",
            exec_with(|exec| exec.relaxed = [Relaxation::FuseOverlayfs].into_iter().collect()),
        ),
        (
            "names held together",
            exec_with(|exec| exec.relaxed = [Relaxation::HardLinks].into_iter().collect()),
        ),
        ("no new privileges", exec_with(|exec| exec.security = Security::NoNewPrivileges)),
        ("host", exec_with(host("10.0.0.1"))),
        ("address of a host", exec_with(host("10.0.0.2"))),
        ("host name", exec_with(|exec| exec.hostname = Some("h".to_owned()))),
        ("limit", exec_with(limited(Resource::Nofile, 64))),
        ("another limit", exec_with(limited(Resource::Nofile, 65))),
        ("limit of something else", exec_with(limited(Resource::Nproc, 64))),
        ("shared memory", exec_with(|exec| exec.shared_memory = Some(1 << 20))),
        ("more shared memory", exec_with(|exec| exec.shared_memory = Some(1 << 21))),
        ("argument", exec_with(|exec| exec.args[2] = "make all".to_owned())),
        ("arguments split elsewhere", exec_with(|exec| exec.args = vec!["/bin/sh -c".into(), "make".into()])),
        ("value of a variable", exec_with(|exec| exec.env[0].1 = "c".to_owned())),
        ("another variable", exec_with(|exec| exec.env.push(("B".to_owned(), String::new())))),
        ("user", exec_with(|exec| exec.user = "daemon".to_owned())),
        ("working directory", exec_with(|exec| exec.workdir = "/w".to_owned())),
        ("no network", exec_with(|exec| exec.network = Network::None)),
        ("isolated network", exec_with(|exec| exec.network = Network::Isolated)),
        ("network of the host", exec_with(|exec| exec.network = Network::Host)),
        ("device", exec_with(device(false))),
        ("required device", exec_with(device(true))),
        ("script", exec_with(|exec| exec.script = script("#!/bin/sh\n"))),
        ("another script", exec_with(|exec| exec.script = script("#!/bin/sh\n#\n"))),
        ("script of another name", exec_with(|exec| exec.script = named("PY", "#!/bin/sh\n"))),
        ("times", exec_with(|exec| exec.timestamps = Timestamps::Preserve)),
        ("platform", Vertex { platform: Platform::new("linux", "arm64", None), ..exec_with(|_| {}) }),
        ("variant", Vertex { platform: Platform::new("linux", "amd64", Some("v3")), ..exec_with(|_| {}) }),
        ("copy", copy_with(|_| {})),
        ("destination", copy_with(|copy| copy.destination = "/e".to_owned())),
        ("into a directory", copy_with(|copy| copy.into_directory = true)),
        ("owner", copy_with(|copy| copy.chown = Some("1".to_owned()))),
        ("empty owner", copy_with(|copy| copy.chown = Some(String::new()))),
        ("mode", copy_with(|copy| copy.chmod = Some(Chmod::Octal(0o644)))),
        ("symbolic mode", copy_with(|copy| copy.chmod = Some(Chmod::Symbolic("u+x".to_owned())))),
        ("times of a copy", copy_with(|copy| copy.timestamps = Timestamps::Preserve)),
        ("archive", copy_with(|copy| copy.items[0].unpack = true)),
        ("item twice", copy_with(|copy| copy.items.push(copy.items[0].clone()))),
        ("item of another input", copy_with(|copy| copy.items[0].input = 2)),
        ("path", selector_with(|selector| selector.include[0] = "b".to_owned())),
        ("excluded", selector_with(|selector| selector.exclude.push("*.o".to_owned()))),
        ("followed", selector_with(|selector| selector.follow_links = true)),
        ("parents", selector_with(|selector| selector.parents = true)),
        ("directory", make_dir_with(|_| {})),
        ("path of a directory", make_dir_with(|directory| directory.path = "/v".to_owned())),
        ("owner of a directory", make_dir_with(|directory| directory.owner = "daemon".to_owned())),
        ("times of a directory", make_dir_with(|directory| directory.timestamps = Timestamps::Preserve)),
    ];
    rows.extend(mounts());
    let inputs = [digest("parent"), digest("files")];
    let others = [[digest("other parent"), inputs[1]], [inputs[0], digest("other files")]];
    let mut keys = BTreeMap::new();
    for (name, vertex) in &rows {
        for key in [definition_key, content_key] {
            for inputs in [inputs, others[0], others[1]] {
                if let Some(same) = keys.insert(key(vertex, &inputs), name) {
                    panic!("{name} and {same} have the same key");
                }
            }
        }
    }
    assert_eq!(keys.len(), rows.len() * 6);
    let pre_images: BTreeSet<_> = rows.iter().map(|(_, vertex)| pre_image(vertex, &[], &inputs)).collect();
    assert_eq!(pre_images.len(), rows.len(), "every difference can be explained");
}

#[test]
fn what_cannot_change_the_output_does_not_change_the_key() {
    let plain = exec_with(|_| {});
    let inputs = [digest("parent")];
    let rows = [
        ("label", Vertex { label: "[2/2] RUN make".to_owned(), ..plain.clone() }),
        ("place in the Dockerfile", Vertex { span: Some(Span { start: 1, end: 2 }), ..plain.clone() }),
        ("proxy", Vertex { ambient_env: vec![("http_proxy".into(), "http://p".into())], ..plain.clone() }),
        ("what is written", Vertex { written: written(), ..plain.clone() }),
        ("forced", Vertex { use_cache: false, ..plain.clone() }),
    ];
    for (name, vertex) in rows {
        assert_eq!(definition_key(&vertex, &inputs), definition_key(&plain, &inputs), "{name}");
        assert_eq!(content_key(&vertex, &inputs), content_key(&plain, &inputs), "{name}");
        let told = |vertex: &Vertex| {
            let mut fields = pre_image(vertex, &[], &inputs);
            fields.retain(|name, _| !pre_image::is_remark(name));
            fields
        };
        assert_eq!(told(&vertex), told(&plain), "{name}");
    }
}

#[test]
fn of_mounts_only_the_source_is_read() {
    let reads = |vertex: &Vertex| readings(&vertex.op).into_iter().skip(1).map(read).collect::<Vec<_>>();
    fn read(reading: Reading<'_>) -> String {
        match reading {
            Reading::Whole(input) => format!("all of {input}"),
            Reading::Selected(input, selector) => format!("{:?} of {input}", selector.include),
        }
    }
    let seeded = |source: &str| cache_with(|cache| cache.seed = Some((2, source.to_owned())));
    for (vertex, want) in [
        (bind_with(|_| {}), vec!["[\"s\"] of 1"]),
        (bind_with(|bind| bind.source = "/a[1]/*".to_owned()), vec!["[\"a[[]1]/[*]\"] of 1"]),
        (bind_with(|bind| bind.source = "/".to_owned()), vec!["all of 1"]),
        (seeded("/s"), vec!["[\"s\"] of 2"]),
        (seeded("/"), vec!["all of 2"]),
        (cache_with(|_| {}), vec![]),
        (secret_with(|_| {}), vec![]),
        (ssh_with(|_| {}), vec![]),
        (vertex(Op::Merge), vec!["all of 1"]),
    ] {
        assert_eq!(reads(&vertex), want, "{:?}", vertex.op);
    }
}

#[test]
fn a_source_is_what_it_holds() {
    let layer = |content: &str, blob: &str| BaseLayer {
        diff_id: DiffId::from(Sha256Digest::of(content.as_bytes())),
        descriptor: Descriptor::new(MediaType::OciLayerGzip, Sha256Digest::of(blob.as_bytes()), 1),
        origin: BlobOrigin::OciLayout(blob.into()),
    };
    let image = |layers: &[BaseLayer]| source_key(&Source::Image(layers.to_vec()), None);
    assert_eq!(
        image(&[layer("a", "here")]),
        image(&[layer("a", "there")]),
        "origin and compression do not count"
    );
    assert_ne!(image(&[layer("a", "x"), layer("b", "y")]), image(&[layer("b", "y"), layer("a", "x")]));
    assert_eq!(image(&[]), source_key(&Source::Scratch, None));

    let context = |context: &str, include: &str, files: &str| {
        let selector = Selector { include: vec![include.to_owned()], ..Selector::default() };
        let context = ContextSource { place: Place::Context(context.to_owned()), selector };
        source_key(&Source::Context(context), Some(&digest(files)))
    };
    assert_eq!(context("", "a", "files"), context("named", "a*", "files"), "where files lie does not count");
    let remote = |place: Place| {
        let context = ContextSource { place, selector: Selector::default() };
        source_key(&Source::Context(context), Some(&digest("files")))
    };
    let address = crate::remote::parse_git("https://h/r.git#main").expect("git").expect("right");
    let file = HttpFile { url: "https://h/f".to_owned(), name: "f".to_owned(), checksum: None };
    assert_eq!(remote(Place::Git(address)), context("", "a", "files"), "nor does the repository");
    assert_eq!(remote(Place::Http(file)), context("", "a", "files"), "nor does the URL");
    assert_ne!(context("", "a", "files"), context("", "a", "other files"));
    let inline = Source::Inline(BTreeMap::from([("EOF".to_owned(), "text".to_owned())]));
    assert_eq!(source_key(&inline, Some(&digest("files"))), context("", "a", "files"));
}

/// Keys are names in other people's caches: if this changes, [`oci::canonical::FORMAT_VERSION`] must.
#[test]
fn the_encoding_is_fixed() {
    let inputs = [digest("parent")];
    let keys = [
        definition_key(&exec_with(|_| {}), &inputs),
        content_key(&exec_with(|_| {}), &inputs),
        content_key(&copy_with(|_| {}), &inputs),
        content_key(&make_dir_with(|_| {}), &inputs),
    ];
    let prefixes = keys.map(|key| key.hex()[..16].to_owned());
    assert_eq!(prefixes, ["ac7bc88f866cfe42", "29d809df8dad3525", "aae6f59a5b1b5adc", "25a6821ba06ae903"]);
}
