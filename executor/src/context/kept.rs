//! A file of the store in which one build writes down what the next need not find out: what the files of a context hold
//! ([`super::index`]), or the blobs of a repository ([`crate::git::known`]).
//!
//! It lies in `contexts/HEX`, named after what it is about. It is replaced as a whole, in the background; of two builds that do
//! so the last one stays. One that is damaged or of another version counts as none, and one that cannot be written, or is torn by
//! a power failure, costs the next build time and nothing else: no build waits for the disk.
//!
//! On disk: eight bytes that name the format and its version, BLAKE3 of all that follows, and that. Of what is in it,
//! each entry counts the writings since it was last asked for, and is dropped when that is too long ago ([`aged`]).

use std::{fs, path::PathBuf, sync::Arc};

use oci::store::Store;

/// Names a format and its version.
pub type Magic = [u8; 8];

const DIGEST: usize = 32;
/// What stands in front of what is kept.
pub const HEADER: usize = size_of::<Magic>() + DIGEST;
/// So many writings an entry survives without being asked for.
pub const KEPT_UNUSED: u8 = 16;
/// Larger files are none of ours: some ten million entries.
const SIZE_MAX: u64 = 2 << 30;

/// Where such a file is.
pub struct Kept {
    store: Arc<Store>,
    pub(super) path: PathBuf,
}

impl Kept {
    /// That of what is named like this. Whoever asks for it uses it: it goes with the contexts that nobody builds any more.
    pub fn new(store: &Arc<Store>, name: &[u8]) -> Self {
        let path = store.area("contexts").join(blake3::hash(name).to_hex().as_str());
        store.touch(&path);
        Self { store: Arc::clone(store), path }
    }

    /// Its bytes, if there are any; they need not be [sound](is_sound).
    pub fn read(&self) -> Option<Vec<u8>> {
        let size = fs::metadata(&self.path).ok()?.len();
        (size <= SIZE_MAX).then(|| fs::read(&self.path).ok()).flatten()
    }

    /// Replaces it.
    pub fn write(&self, bytes: &[u8]) {
        let _ = self.store.write_loose(&self.path, bytes);
    }
}

/// Whether such a file is as it was written.
pub fn is_sound(bytes: &[u8], magic: &Magic) -> bool {
    let covered = bytes.strip_prefix(magic).and_then(|rest| rest.split_at_checked(DIGEST));
    covered.is_some_and(|(digest, covered)| blake3::hash(covered).as_bytes() == digest)
}

/// The bytes of a file that holds what `fill` appends.
pub fn sealed(magic: &Magic, fill: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = [&magic[..], &[0; DIGEST]].concat();
    fill(&mut bytes);
    let digest = blake3::hash(&bytes[HEADER..]);
    bytes[magic.len()..HEADER].copy_from_slice(digest.as_bytes());
    bytes
}

/// The age of an entry at the next writing; `None` for one to be dropped.
pub fn aged(unused: u8, is_used: bool) -> Option<u8> {
    let age = if is_used { 0 } else { unused.saturating_add(1) };
    (age <= KEPT_UNUSED).then_some(age)
}
