//! The two identities of a step: pure functions of plain data over one canonical encoding.
//!
//! The *definition key* hashes the operation and its inputs' definition keys, and is known before anything runs. The
//! *content key* hashes the operation and what its inputs hold, and is known once they are there. Every type is taken
//! apart without `..`, so a field that is added and forgotten here does not compile.
//!
//! What a step's inputs are, for the content key, is decided by [`readings`]: the file system it works on as a whole, and
//! of everything a COPY or a mount reads only what is picked.

pub mod hidden;
pub mod pre_image;

use std::borrow::Cow;

use oci::{
    Platform, Snapshot, TreeDigest,
    canonical::{Canonical, Encoder},
};

use crate::{
    graph::Vertex,
    op::{
        BindMount, CacheMount, Chmod, ContextSource, Copy, CopyItem, Device, Exec, HttpFile, MakeDir, Mount,
        MountedFile, Network, Op, Place, Resource, Script, SecretMount, Security, Selector, Sharing, Source,
        SshMount, Timestamps, Ulimit,
    },
    remote::{GitAddress, GitTimes},
};
pub use pre_image::pre_image;

/// Identity of a source, which is both of its keys: the chain of an image's layers, or what the executor says the
/// files of a context or of the Dockerfile itself hash to.
///
/// # Panics
/// If a context or inline source comes without the digest of its files.
pub fn source_key(source: &Source, identity: Option<&TreeDigest>) -> TreeDigest {
    let files = || identity.expect("files of the user are identified before they are keyed");
    match source {
        Source::Scratch | Source::Image(_) => source_snapshot(source).digest(),
        Source::Context(_) | Source::Inline(_) => {
            let mut encoder = Encoder::new("files");
            encoder.field(1, files());
            encoder.digest()
        }
    }
}

/// The file system of a source; empty for files of the user, which are read from where they lie.
pub fn source_snapshot(source: &Source) -> Snapshot {
    match source {
        Source::Scratch | Source::Context(_) | Source::Inline(_) => Snapshot::default(),
        Source::Image(layers) => {
            Snapshot { layers: layers.iter().cloned().map(Box::new).map(oci::Layer::Base).collect() }
        }
    }
}

/// Key of a step by what is written: the operation, and the definition keys of its inputs in order.
pub fn definition_key(vertex: &Vertex, inputs: &[TreeDigest]) -> TreeDigest {
    key("definition", vertex, inputs)
}

/// Key of a step by what it works on: the operation, and the digests of its [`readings`], in order.
pub fn content_key(vertex: &Vertex, inputs: &[TreeDigest]) -> TreeDigest {
    key("content", vertex, inputs)
}

fn key(domain: &str, vertex: &Vertex, inputs: &[TreeDigest]) -> TreeDigest {
    let (op, platform) = identity(vertex);
    let mut encoder = Encoder::new(domain);
    encoder.field(1, op).field(2, platform).field(3, inputs);
    encoder.digest()
}

/// The half of a vertex that is identity. Its inputs are too, by their keys.
fn identity(vertex: &Vertex) -> (&Op, &Platform) {
    let Vertex { op, inputs: _, platform, label: _, span: _, ambient_env: _, use_cache: _, written: _ } =
        vertex;
    (op, platform)
}

/// What a step reads, in the order in which its content key lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reading<'a> {
    /// The whole of this input.
    Whole(usize),
    /// Of this input, what the selector picks.
    Selected(usize, Cow<'a, Selector>),
}

/// What a step reads: its first input whole, and one selection an item of a copy.
pub fn readings(op: &Op) -> Vec<Reading<'_>> {
    match op {
        Op::Source(_) => Vec::new(),
        Op::Exec(exec) => {
            let mounts = exec.mounts.iter().filter_map(mounted);
            [Reading::Whole(0)].into_iter().chain(mounts).collect()
        }
        Op::MakeDir(_) => vec![Reading::Whole(0)],
        Op::Merge => vec![Reading::Whole(0), Reading::Whole(1)],
        Op::Copy(copy) => {
            let items =
                copy.items.iter().map(|item| Reading::Selected(item.input, Cow::Borrowed(&item.selector)));
            [Reading::Whole(0)].into_iter().chain(items).collect()
        }
    }
}

/// What a mount shows of an input. All of it is known by its digest, so that nobody has to look.
fn mounted(mount: &Mount) -> Option<Reading<'static>> {
    let (input, source) = match mount {
        Mount::Bind(bind) => (bind.input, &bind.source),
        Mount::Cache(cache) => cache.seed.as_ref().map(|(input, source)| (*input, source))?,
        Mount::Tmpfs { .. } | Mount::Secret(_) | Mount::Ssh(_) => return None,
    };
    Some(match source.strip_prefix('/') {
        None | Some("") => Reading::Whole(input),
        Some(path) => Reading::Selected(input, Cow::Owned(Selector::of_path(path))),
    })
}

impl Canonical for Op {
    fn encode(&self, out: &mut Encoder) {
        match self {
            Self::Source(source) => out.field(1, source),
            Self::Exec(exec) => out.field(2, exec),
            Self::Copy(copy) => out.field(3, copy),
            Self::MakeDir(directory) => out.field(4, directory),
            Self::Merge => out.variant(5),
        };
    }
}

impl Canonical for Source {
    fn encode(&self, out: &mut Encoder) {
        match self {
            Self::Scratch => out.variant(1),
            Self::Image(_) => out.field(2, &source_snapshot(self).digest()),
            Self::Context(context) => out.field(3, context),
            Self::Inline(files) => out.field(4, files),
        };
    }
}

impl Canonical for ContextSource {
    fn encode(&self, out: &mut Encoder) {
        let Self { place, selector } = self;
        out.field(1, place).field(2, selector);
    }
}

impl Canonical for Place {
    fn encode(&self, out: &mut Encoder) {
        match self {
            Self::Context(name) => out.field(1, name),
            Self::Git(address) => out.field(2, address),
            Self::Http(file) => out.field(3, file),
        };
    }
}

impl Canonical for GitAddress {
    fn encode(&self, out: &mut Encoder) {
        let Self { remote, reference, subdir, checksum, keep_git_dir, submodules, times, fetch_by_commit } =
            self;
        out.field(1, remote).field(2, reference).field(3, subdir).field(4, checksum);
        out.field(5, keep_git_dir).field(6, submodules).field(7, times).field(8, fetch_by_commit);
    }
}

impl Canonical for GitTimes {
    fn encode(&self, out: &mut Encoder) {
        out.variant(match self {
            Self::Checkout => 1,
            Self::Commit => 2,
        });
    }
}

impl Canonical for HttpFile {
    fn encode(&self, out: &mut Encoder) {
        let Self { url, name, checksum } = self;
        out.field(1, url).field(2, name).field(3, &checksum.map(|digest| digest.to_string()));
    }
}

impl Canonical for Selector {
    fn encode(&self, out: &mut Encoder) {
        let Self { include, exclude, follow_links, parents } = self;
        out.field(1, include).field(2, exclude).field(3, follow_links).field(4, parents);
    }
}

impl Canonical for Exec {
    fn encode(&self, out: &mut Encoder) {
        let Self {
            args,
            env,
            user,
            workdir,
            network,
            security,
            relaxed,
            mounts,
            devices,
            hosts,
            hostname,
            ulimits,
            shared_memory,
            script,
            timestamps,
        } = self;
        out.field(1, args).field(2, env).field(3, user).field(4, workdir);
        out.field(5, network).field(6, script).field(7, timestamps);
        out.field(8, security).field(9, mounts).field(10, hosts).field(11, hostname).field(12, devices);
        // Only where they are given: what was keyed before there were these is keyed so still.
        if !ulimits.is_empty() {
            out.field(13, ulimits);
        }
        if let Some(bytes) = shared_memory {
            out.field(14, bytes);
        }
        if !relaxed.is_empty() {
            out.field(15, relaxed);
        }
    }
}

impl Canonical for Resource {
    fn encode(&self, out: &mut Encoder) {
        self.to_string().encode(out);
    }
}

impl Canonical for Ulimit {
    fn encode(&self, out: &mut Encoder) {
        let Self { soft, hard } = self;
        out.field(1, soft).field(2, hard);
    }
}

impl Canonical for Device {
    fn encode(&self, out: &mut Encoder) {
        let Self { name, required } = self;
        out.field(1, name).field(2, required);
    }
}

impl Canonical for Security {
    fn encode(&self, out: &mut Encoder) {
        out.variant(match self {
            Self::Sandbox => 1,
            Self::Insecure => 2,
            Self::NoNewPrivileges => 3,
        });
    }
}

impl Canonical for Mount {
    fn encode(&self, out: &mut Encoder) {
        match self {
            Self::Bind(bind) => out.field(1, bind),
            Self::Cache(cache) => out.field(2, cache),
            Self::Tmpfs { target, size } => out.variant(3).field(4, target).field(5, size),
            Self::Secret(secret) => out.field(6, secret),
            Self::Ssh(ssh) => out.field(7, ssh),
        };
    }
}

impl Canonical for BindMount {
    fn encode(&self, out: &mut Encoder) {
        let Self { target, input, source, writable } = self;
        out.field(1, target).field(2, &(*input as u64)).field(3, source).field(4, writable);
    }
}

impl Canonical for CacheMount {
    fn encode(&self, out: &mut Encoder) {
        let Self { target, id, sharing, seed, mode, uid, gid, read_only } = self;
        let seed = seed.as_ref().map(|(input, source)| (input.to_string(), source.clone()));
        out.field(1, target).field(2, id).field(3, sharing).field(4, &seed);
        out.field(5, mode).field(6, uid).field(7, gid).field(8, read_only);
    }
}

impl Canonical for Sharing {
    fn encode(&self, out: &mut Encoder) {
        out.variant(match self {
            Self::Shared => 1,
            Self::Private => 2,
            Self::Locked => 3,
        });
    }
}

impl Canonical for SecretMount {
    fn encode(&self, out: &mut Encoder) {
        let Self { id, required, file, variable } = self;
        out.field(1, id).field(2, required).field(3, file).field(4, variable);
    }
}

impl Canonical for SshMount {
    fn encode(&self, out: &mut Encoder) {
        let Self { id, required, socket } = self;
        out.field(1, id).field(2, required).field(3, socket);
    }
}

impl Canonical for MountedFile {
    fn encode(&self, out: &mut Encoder) {
        let Self { target, mode, uid, gid } = self;
        out.field(1, target).field(2, mode).field(3, uid).field(4, gid);
    }
}

impl Canonical for Script {
    fn encode(&self, out: &mut Encoder) {
        let Self { name, content } = self;
        out.field(1, content).field(2, name);
    }
}

impl Canonical for Network {
    fn encode(&self, out: &mut Encoder) {
        out.variant(match self {
            Self::Default => 1,
            Self::None => 2,
            Self::Host => 3,
            Self::Isolated => 4,
        });
    }
}

impl Canonical for Timestamps {
    fn encode(&self, out: &mut Encoder) {
        out.variant(match self {
            Self::Auto => 1,
            Self::Preserve => 2,
        });
    }
}

impl Canonical for Copy {
    fn encode(&self, out: &mut Encoder) {
        let Self { items, destination, into_directory, chown, chmod, timestamps } = self;
        out.field(1, items).field(2, destination).field(3, into_directory).field(4, chown);
        out.field(5, chmod).field(6, timestamps);
    }
}

impl Canonical for CopyItem {
    fn encode(&self, out: &mut Encoder) {
        let Self { input, selector, unpack } = self;
        out.field(1, &(*input as u64)).field(2, selector).field(3, unpack);
    }
}

impl Canonical for Chmod {
    fn encode(&self, out: &mut Encoder) {
        match self {
            Self::Octal(mode) => out.field(1, mode),
            Self::Symbolic(mode) => out.field(2, mode),
        };
    }
}

impl Canonical for MakeDir {
    fn encode(&self, out: &mut Encoder) {
        let Self { path, owner, timestamps } = self;
        // The second field is the mode, which is the same for all.
        out.field(1, path).field(2, &0o755_u32).field(3, owner).field(4, timestamps);
    }
}

#[cfg(test)]
mod tests;
