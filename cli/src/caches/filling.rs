//! The caches that one attempt of a build fills.

use std::sync::Arc;

use exporter::{
    BaseLayers, Encoder, Packing, Sealer,
    cache::{
        BuildEnd, CacheBulletin, Joining, Mode, OnError, OwnChain, RemoteCache, WriteError, Writer,
        WriterOptions,
        writer::{FindInventory, Written, fits},
    },
    upload::Landings,
};
use oci::{Sha256Digest, fetch::Fetcher, threads::both};
use solver::{Bulletin, Cancel, Event, Graph, Record, RecordWriter};

use super::{Place, RemoteCaches, name};
use crate::{
    build::Events,
    failure::Failure,
    inputs::Clean,
    progress,
    request::{BuildRequest, caches::CacheFill},
    spec::cache::CacheMode,
};

/// What caches are filled with.
pub struct FillingOptions<'a> {
    /// What is built.
    pub graph: &'a Graph,
    /// Make the layers of the outputs, those of the first one first.
    pub sealers: &'a [Arc<Sealer>],
    /// Makes another one.
    pub sealer: &'a dyn Fn(Packing) -> Sealer,
    /// Where the image's blobs are on their way to.
    pub landings: Landings,
    /// Brings blobs from elsewhere.
    pub fetcher: &'a Fetcher,
    /// Takes what happens.
    pub events: &'a Events,
    /// Stops everything.
    pub cancel: &'a Cancel,
    /// Whether the build may be.
    pub clean: &'a Clean,
}

/// Fills the caches of a build.
pub struct Filling {
    writers: Vec<Writer>,
    /// Nothing is written of a build that is refused.
    clean: Clean,
    bulletin: Option<Arc<dyn Bulletin>>,
}

impl Filling {
    /// Contacts nobody yet.
    pub fn new(request: &BuildRequest, caches: &RemoteCaches, options: &FillingOptions<'_>) -> Self {
        let FillingOptions { graph, landings, fetcher, events, cancel, clean, .. } = options;
        let chain = OwnChain::of(graph);
        let store = Arc::clone(fetcher.store());
        let inventories: FindInventory =
            Arc::new(move |files| executor::inventory::read(store.root(), files));
        let mut own: Vec<Arc<Sealer>> = Vec::new();
        let writer = |fill: &CacheFill| {
            let sealer = sealer(fill, options, &mut own);
            Writer::new(WriterOptions {
                storage: Arc::clone(&caches.storages[&Place::of(&fill.place)]),
                mode: match fill.mode {
                    CacheMode::Min => Mode::Min,
                    CacheMode::Max => Mode::Max,
                },
                bundle: name(&fill.place).unwrap_or_else(|| caches.unnamed.clone()),
                reader: reader(fill, request, caches),
                on_error: if fill.ignore_error { OnError::Warn } else { OnError::Fail },
                chain: chain.clone(),
                sealer: Arc::clone(&sealer),
                aside: aside(fill, options, &sealer, &mut own),
                landings: Some(landings.clone()),
                seen: caches.seen.clone(),
                sign: caches.sign.clone(),
                fetcher: Fetcher::clone(fetcher),
                inventories: Arc::clone(&inventories),
                events: Arc::clone(events),
                cancel: Cancel::clone(cancel),
            })
        };
        let writers: Vec<_> = request.caches.to.iter().map(writer).collect();
        let mut filled = request.caches.to.iter().zip(&writers);
        let bulletin = filled.find_map(|(fill, writer)| bulletin(fill, writer, caches, cancel));
        Self { writers, bulletin, clean: Clean::clone(clean) }
    }

    /// Who takes records, where anything is filled.
    pub fn writer(&self) -> Option<&dyn RecordWriter> {
        (!self.writers.is_empty()).then_some(self)
    }

    /// Where it is said which steps run.
    pub fn bulletin(&self) -> Option<&Arc<dyn Bulletin>> {
        self.bulletin.as_ref()
    }

    /// Hears of what the scheduler does. Does not block.
    pub fn take(&self, event: &Event) {
        self.writers.iter().for_each(|writer| writer.take(event));
    }

    /// Waits until all is where it belongs, as long as that goes on.
    ///
    /// # Errors
    /// [`Failure::Cache`] of the first that had to be filled and is not.
    pub fn finish(&self, end: BuildEnd, documents: &[Sha256Digest], events: &Events) -> Result<(), Failure> {
        if self.writers.is_empty() || !self.clean.is_clean() {
            return Ok(());
        }
        let finished = finish_all(&self.writers, end, documents);
        self.writers.iter().filter_map(told).for_each(|note| events(Event::Note(note)));
        finished.map_err(Failure::from)
    }
}

impl RecordWriter for Filling {
    fn store(&self, record: &Record) {
        if self.clean.is_clean() {
            self.writers.iter().for_each(|writer| writer.store(record));
        }
    }
}

/// Waits for all; of several failures the first one's is returned.
fn finish_all(writers: &[Writer], end: BuildEnd, documents: &[Sha256Digest]) -> Result<(), WriteError> {
    let [first, rest @ ..] = writers else { return Ok(()) };
    let (first, rest) = both(|| first.finish(end, documents), || finish_all(rest, end, documents));
    first.and(rest)
}

/// Who reads the same bundle of the same place.
fn reader(fill: &CacheFill, request: &BuildRequest, caches: &RemoteCaches) -> Option<Arc<RemoteCache>> {
    let mut reading = request.caches.from.iter().zip(&caches.readers);
    reading.find_map(|(from, reader)| (*from == fill.place).then(|| Arc::clone(&reader.cache)))
}

/// The bulletin of a cache that is read, too, and gets every record: whoever is told to wait there finds what he waits for.
fn bulletin(
    fill: &CacheFill,
    writer: &Writer,
    caches: &RemoteCaches,
    cancel: &Cancel,
) -> Option<Arc<dyn Bulletin>> {
    let place = Place::of(&fill.place);
    let reader = caches.readers.iter().find(|reader| reader.place == place && fill.mode == CacheMode::Max)?;
    let bulletin = CacheBulletin::new(Joining {
        storage: Arc::clone(&caches.storages[&place]),
        reader: Arc::clone(&reader.cache),
        fates: Box::new(writer.fates()),
        trust: caches.trust.clone(),
        sign: caches.sign.clone(),
        cancel: cancel.clone(),
    })?;
    Some(Arc::new(bulletin))
}

/// What a writer has done, in words, if anything.
fn told(writer: &Writer) -> Option<String> {
    let Written { steps, bytes } = writer.written();
    let plural = if steps == 1 { "" } else { "s" };
    let (name, up) = (writer.name(), progress::bytes(bytes));
    match (steps, bytes) {
        (0, 0) => None,
        // The image's packing of layers that the place has.
        (0, _) => Some(format!("sent {up} to {name}")),
        _ => Some(format!("cached {steps} step{plural} in {name}, {up} up")),
    }
}

/// The sealer of layers that an image has: an output's, so that their blobs are the same, unless another packing is asked for.
fn sealer(fill: &CacheFill, options: &FillingOptions<'_>, own: &mut Vec<Arc<Sealer>>) -> Arc<Sealer> {
    let wanted = packing(fill.packing.encoder.unwrap_or_default());
    let does = |sealer: &&Arc<Sealer>| fits(sealer) && (!fill.packing.forced || sealer.packs(&wanted));
    let found = options.sealers.iter().find(does);
    found.map_or_else(|| own_sealer(wanted, options, own), Arc::clone)
}

/// The sealer of all other layers: what packs them with the least trouble, unless something else is asked for.
fn aside(
    fill: &CacheFill,
    options: &FillingOptions<'_>,
    sealer: &Arc<Sealer>,
    own: &mut Vec<Arc<Sealer>>,
) -> Arc<Sealer> {
    let wanted = packing(fill.packing.encoder.unwrap_or(Encoder::ZSTD_FASTEST));
    match fill.packing.forced || sealer.packs(&wanted) {
        true => Arc::clone(sealer),
        false => own_sealer(wanted, options, own),
    }
}

fn packing(encoder: Encoder) -> Packing {
    Packing { encoder, base: BaseLayers::Kept, ..Packing::default() }
}

/// A sealer of the caches' own, one for each packing.
fn own_sealer(wanted: Packing, options: &FillingOptions<'_>, own: &mut Vec<Arc<Sealer>>) -> Arc<Sealer> {
    if let Some(found) = own.iter().find(|sealer| sealer.packs(&wanted)) {
        return Arc::clone(found);
    }
    let made = Arc::new((options.sealer)(wanted));
    own.push(Arc::clone(&made));
    made
}
