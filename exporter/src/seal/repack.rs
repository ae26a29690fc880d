//! Makes a base image's layer anew in another format (`force-compression=true`), once: what came out is remembered in
//! the store as for built layers, under the layer's own identity and `ENCODER.base`.
//!
//! The tar is not looked into: the bytes that come out of the old blob go into the new one. They must have the diff ID
//! that the image's config has for them, or the new blob is none.

use std::io::{self, ErrorKind, Read, Write};

use oci::{
    BaseLayer, TreeDigest,
    store::sealed::{self, SealedRecord},
    unpacked::{MAX_LAYER, unpacked},
};

use super::{SealError, SealedLayer, Shared, progress::Progress, turn::turn};
use crate::pipeline::{EncodeError, Encoded, Encoding};

/// Bytes that are read at once.
const BLOCK: usize = 256 << 10;

/// The layer in the sealer's format.
pub(super) fn repack(shared: &Shared, tree: TreeDigest, base: &BaseLayer) -> Result<SealedLayer, SealError> {
    let store = &shared.options.store;
    let name = format!("{}.{}", shared.options.encoder.id(), sealed::BASE);
    let recorded = || sealed::read(store, &tree, &name).filter(|record| record.diff_id == base.diff_id);
    if let Some(record) = recorded() {
        return Ok(record.into());
    }
    let _turn = turn(shared, &tree, &name)?;
    if let Some(record) = recorded() {
        return Ok(record.into());
    }
    let Encoded { diff_id, descriptor, .. } = encode(shared, base)?;
    let record = SealedRecord { diff_id, descriptor };
    sealed::write(store, &tree, &name, &record)?;
    Ok(record.into())
}

fn encode(shared: &Shared, base: &BaseLayer) -> Result<Encoded, SealError> {
    let (options, digest) = (&shared.options, base.descriptor.digest);
    let unreadable = |source| SealError::Base { digest, source };
    let progress = Progress::of_base(&options.events, &base.descriptor);
    let blob = options.fetcher.open(&base.descriptor, &base.origin).map_err(unreadable)?;
    let tar = unpacked(Counted { blob, progress: &progress }).map_err(unreadable)?;
    let watch = |_| match shared.is_unwanted() {
        true => Err(io::Error::other("nobody waits for this layer any more")),
        false => Ok(()),
    };
    let (store, encoder) = (&*options.store, options.encoder);
    let encoding = Encoding {
        encoder,
        store,
        wanted: base.descriptor.size,
        old: None,
        diff_id: Some(base.diff_id),
        watch: &watch,
    };
    let encoded = shared.pipeline()?.encode(encoding, |sink| copy(tar, sink));
    progress.finish();
    encoded.map_err(|error| match error {
        _ if options.cancel.is_requested() => SealError::Cancelled,
        EncodeError::Store(error) => error.into(),
        EncodeError::Write(source) => SealError::Write { root: store.root().to_owned(), source },
        EncodeError::Produce(source) => unreadable(source),
        EncodeError::DiffId(found) => SealError::DiffId { digest, wanted: base.diff_id, found },
    })
}

/// A blob of which somebody wants to know how much has been read.
struct Counted<'a, R> {
    blob: R,
    progress: &'a Progress<'a>,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.blob.read(buffer)?;
        self.progress.add(count);
        Ok(count)
    }
}

fn copy(tar: impl Read, sink: &mut impl Write) -> io::Result<()> {
    let mut tar = tar.take(MAX_LAYER + 1);
    let (mut block, mut total) = (vec![0; BLOCK], 0);
    loop {
        let count = match tar.read(&mut block) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        total += count as u64;
        if total > MAX_LAYER {
            let large = format!("it unpacks to more than {} GiB", MAX_LAYER >> 30);
            return Err(io::Error::new(ErrorKind::FileTooLarge, large));
        }
        sink.write_all(&block[..count])?;
    }
}
