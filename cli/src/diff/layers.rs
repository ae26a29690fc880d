//! Two layers, read side by side; the files that differ are read once more, for what stands in them.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, BufReader, Read},
    thread,
};

use executor::{
    compare::{
        Change, Field, LayerContents, changes,
        excerpt::{Excerpt, beginnings, first_difference},
    },
    tarball::TarError,
};
use oci::{Descriptor, DiffId, digest::Sha256Hasher, documents::Documents, unpacked::unpacked};

use crate::failure::Failure;

/// Bytes of a file that are looked at for where it begins to differ.
const LOOKED_AT: u64 = 8 << 20;
/// Files of a layer that are looked at.
const FILES: usize = 20;
/// Bytes that are read at once.
const BLOCK: usize = 256 << 10;

/// A layer somewhere.
#[derive(Debug, Clone, Copy)]
pub struct Side<'a> {
    /// What the image is called.
    pub name: &'a str,
    /// Where it is.
    pub documents: &'a Documents,
    /// Which.
    pub layer: &'a Descriptor,
    /// What its config says that its tar is, where it says something.
    pub diff_id: Option<DiffId>,
}

/// What differs in a layer.
#[derive(Debug)]
pub struct LayerChanges {
    /// Paths by their bytes; none where only the order of the entries is another, or how the tar says it.
    pub changes: Vec<Change>,
    /// Where files begin to differ: of the first few with other content.
    pub excerpts: BTreeMap<Vec<u8>, Excerpt>,
}

/// Reads two layers to their ends, and that they are what their configs say.
///
/// # Errors
/// One of them is not, or cannot be read.
pub fn verify(first: Side<'_>, second: Side<'_>) -> Result<(), Failure> {
    both(first, second, |tar| io::copy(tar, &mut io::sink()).map_err(TarError::Io)).map(drop)
}

/// Compares two layers.
///
/// # Errors
/// One of them cannot be read.
pub fn compare(first: Side<'_>, second: Side<'_>) -> Result<LayerChanges, Failure> {
    let (one, other) = both(first, second, |tar| LayerContents::read(tar))?;
    let changes = changes(&one, &other);
    let has_content =
        |change: &&Change| change.fields.iter().any(|field| matches!(field, Field::Content(..)));
    let wanted: BTreeSet<_> =
        changes.iter().filter(has_content).take(FILES).map(|change| change.path.clone()).collect();
    let mut excerpts = BTreeMap::new();
    if !wanted.is_empty() {
        let (ones, others) = both(first, second, |tar| beginnings(tar, &wanted, LOOKED_AT))?;
        let pairs = ones.iter().filter_map(|(path, bytes)| Some((path, bytes, others.get(path)?)));
        excerpts.extend(
            pairs.filter_map(|(path, one, other)| Some((path.clone(), first_difference(one, other)?))),
        );
    }
    Ok(LayerChanges { changes, excerpts })
}

/// Hashes what is read through it.
struct Hashed<R> {
    stream: R,
    hasher: Sha256Hasher,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

/// Does the same with both tars, at the same time; what reads them reads them to their ends.
fn both<T: Send>(
    first: Side<'_>,
    second: Side<'_>,
    read: impl Fn(&mut dyn Read) -> Result<T, TarError> + Sync,
) -> Result<(T, T), Failure> {
    let one = |side: Side<'_>| {
        let read = || {
            let tar = side.documents.open_blob(side.layer).and_then(unpacked).map_err(TarError::Io)?;
            let mut hashed = Hashed { stream: tar, hasher: Sha256Hasher::default() };
            let answer = read(&mut BufReader::with_capacity(BLOCK, &mut hashed))?;
            let found = DiffId::from(hashed.hasher.finish());
            match side.diff_id.filter(|diff_id| *diff_id != found) {
                Some(said) => Err(TarError::Io(io::Error::other(format!(
                    "its config says that its tar is {said}, and it is {found}"
                )))),
                None => Ok(answer),
            }
        };
        read().map_err(|source| Failure::Layer {
            name: side.name.to_owned(),
            digest: side.layer.digest,
            source: Box::new(source),
        })
    };
    thread::scope(|scope| {
        let other = thread::Builder::new().spawn_scoped(scope, || one(second));
        let other = other.map_err(|source: io::Error| Failure::Start { what: "a thread", source })?;
        let first = one(first);
        let second = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok((first?, second?))
    })
}
