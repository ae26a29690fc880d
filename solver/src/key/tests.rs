//! One pair for every row of what enters a key, and of what does not.

use std::collections::{BTreeMap, BTreeSet};

use oci::{BaseLayer, BlobOrigin, Descriptor, DiffId, MediaType, Sha256Digest};
use parser::Span;

use super::*;

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
    }
}

fn exec() -> Exec {
    Exec {
        args: vec!["/bin/sh".to_owned(), "-c".to_owned(), "make".to_owned()],
        env: vec![("A".to_owned(), "b".to_owned())],
        user: String::new(),
        workdir: "/".to_owned(),
        network: Network::Default,
        security: Default::default(),
        mounts: Vec::new(),
        devices: Vec::new(),
        hosts: Vec::new(),
        hostname: None,
        script: None,
        timestamps: Timestamps::Auto,
    }
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

/// All vertices have different keys of both kinds, and so do the same vertices on other inputs.
#[test]
fn what_can_change_the_output_changes_the_key() {
    let named =
        |name: &str, content: &str| Some(Script { name: name.to_owned(), content: content.to_owned() });
    let script = |content: &str| named("EOF", content);
    let rows = [
        ("run", exec_with(|_| {})),
        ("argument", exec_with(|exec| exec.args[2] = "make all".to_owned())),
        ("arguments split elsewhere", exec_with(|exec| exec.args = vec!["/bin/sh -c".into(), "make".into()])),
        ("value of a variable", exec_with(|exec| exec.env[0].1 = "c".to_owned())),
        ("another variable", exec_with(|exec| exec.env.push(("B".to_owned(), String::new())))),
        ("user", exec_with(|exec| exec.user = "daemon".to_owned())),
        ("working directory", exec_with(|exec| exec.workdir = "/w".to_owned())),
        ("no network", exec_with(|exec| exec.network = Network::None)),
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
    let pre_images: BTreeSet<_> = rows.iter().map(|(_, vertex)| pre_image(vertex, &inputs)).collect();
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
        ("forced", Vertex { use_cache: false, ..plain.clone() }),
    ];
    for (name, vertex) in rows {
        assert_eq!(definition_key(&vertex, &inputs), definition_key(&plain, &inputs), "{name}");
        assert_eq!(content_key(&vertex, &inputs), content_key(&plain, &inputs), "{name}");
        assert_eq!(pre_image(&vertex, &inputs), pre_image(&plain, &inputs), "{name}");
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
