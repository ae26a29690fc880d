//! The remote caches of a build: opened once, before anything else is looked at, and kept over all its attempts.
//!
//! Whoever reads one shares with whoever writes it the connection, what has been read, and what is known to be there; so
//! the same place in `--cache-from` and `--cache-to` is one. What goes wrong with a cache is a warning: no build fails by it
//! that has not asked for that.

mod filling;
mod heard;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use executor::Words;
use exporter::cache::{
    DirectoryStorage, Reading, RegistryStorage, RemoteCache, Seen, Silence, Storage, names,
    sign::{SignKey, TrustKeys},
};
use oci::{Platform, image::FindDocument};
use solver::{Cancel, DistantCache, Event};

pub use self::filling::{Filling, FillingOptions};
use self::heard::Heard;
use crate::{
    build::Events,
    explain,
    failure::Failure,
    inputs::{Outside, Source},
    request::BuildRequest,
    spec::cache::CachePlace,
};

/// How long bundles are waited for at most while a build is planned, counted from when they were asked for; the schedule waits
/// for what is left of as much.
const PATIENCE: Duration = Duration::from_millis(250);

/// How long they are waited for at least.
const GRACE: Duration = Duration::from_millis(20);

/// Who trusts this build's key would trust everybody who can write what it reads.
const SIGNS_WHATEVER: &str = "--cache-sign-key signs what stands on records of --cache-from that anybody may have written: \
                              --cache-trust-key says whose count";

/// The caches that a build reads and fills.
pub struct RemoteCaches {
    seen: Seen,
    words: Words,
    storages: BTreeMap<Place, Arc<dyn Storage>>,
    readers: Vec<Reader>,
    trust: TrustKeys,
    sign: Option<Arc<SignKey>>,
    /// When the first one was asked for something.
    asked: Instant,
    /// What a bundle is called that nobody has given a name.
    unnamed: String,
}

struct Reader {
    cache: Arc<RemoteCache>,
    /// What people call it: two bundles of one repository are two.
    told: String,
    has_name: bool,
    /// The image that may be the cache where there is no bundle: what a reference without a tag means otherwise.
    image: Option<&'static str>,
    place: Place,
}

/// A place for artifacts and blobs, whatever they are called there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Repository(String, String),
    Directory(PathBuf),
}

impl RemoteCaches {
    /// Opens the caches of a request; the bundles that have a name are on their way from now on.
    ///
    /// # Errors
    /// A key cannot be used, or the registry client cannot be made.
    pub fn open(
        request: &BuildRequest,
        outside: &Outside,
        events: &Events,
        cancel: &Cancel,
    ) -> Result<Self, Failure> {
        let caches = &request.caches;
        let trust = TrustKeys::read(&caches.trust_keys)?;
        let sign = caches.sign_key.as_deref().map(SignKey::read).transpose()?.map(Arc::new);
        let exposed = sign.as_deref().and_then(SignKey::warning);
        exposed.into_iter().for_each(|text| events(Event::Warning(text.to_owned())));
        if sign.is_some() && trust.is_empty() && !caches.from.is_empty() {
            events(Event::Warning(SIGNS_WHATEVER.to_owned()));
        }
        let places = caches.from.iter().chain(caches.to.iter().map(|fill| &fill.place));
        let mut storages: BTreeMap<Place, Arc<dyn Storage>> = BTreeMap::new();
        for place in places {
            if let Entry::Vacant(free) = storages.entry(Place::of(place)) {
                free.insert(storage(place, outside)?);
            }
        }
        let seen = Seen::default();
        let asked = Instant::now();
        let reader = |place: &CachePlace| {
            let reading = Reading {
                storage: Arc::clone(&storages[&Place::of(place)]),
                layers: outside.elsewhere().clone(),
                seen: seen.clone(),
                trust: trust.clone(),
                events: Arc::clone(events),
                cancel: cancel.clone(),
            };
            let name = name(place);
            let has_name = name.is_some();
            let image = matches!(place, CachePlace::Registry(_)).then_some("latest");
            let cache = Arc::new(RemoteCache::new(reading, name));
            let told = told(place, cache.name());
            Reader { cache, told, has_name, image, place: Place::of(place) }
        };
        let readers = caches.from.iter().map(reader).collect();
        let words = Words::trusting(match &sign {
            // What is signed is not hearsay. Who reads a cache and trusts everybody has been warned.
            Some(own) if trust.is_empty() && caches.from.is_empty() => own.trusted().names(),
            _ => trust.names(),
        });
        Ok(Self { seen, words, storages, readers, trust, sign, asked, unnamed: String::new() })
    }

    /// The Dockerfile is known, and with it the name of the bundles that have none of their own.
    pub fn name(&mut self, request: &BuildRequest, dockerfile: &Source) {
        let here = [Platform::host()];
        let platforms = if request.platforms.is_empty() { &here[..] } else { &request.platforms };
        self.unnamed = names::bundle(dockerfile.text(), request.target.as_deref(), platforms);
        let unnamed = self.readers.iter().filter(|reader| !reader.has_name);
        unnamed.for_each(|reader| reader.cache.ask(self.unnamed.clone(), reader.image));
    }

    /// What this build has read of them, and what it has not, for who explains it.
    pub fn read(&self) -> explain::Read {
        let distrusted = self.readers.iter().flat_map(|reader| reader.cache.distrusted());
        let unanswered = self.readers.iter().filter(|reader| reader.cache.is_unknown());
        explain::Read {
            seen: self.seen.clone(),
            distrusted: distrusted.chain(self.words.doubted()).collect(),
            unanswered: unanswered.map(|reader| reader.cache.name().to_owned()).collect(),
        }
    }

    /// Whom this build believes, and whose word it has taken.
    pub fn words(&self) -> &Words {
        &self.words
    }

    /// Those that are asked, in this order.
    pub fn distant(&self) -> Vec<Arc<dyn DistantCache>> {
        let heard = |reader: &Reader| Heard { cache: Arc::clone(&reader.cache), words: self.words.clone() };
        self.readers.iter().map(|reader| Arc::new(heard(reader)) as Arc<dyn DistantCache>).collect()
    }

    /// Finds manifests and configs of base images in the bundles. Nobody waits long for one, since a registry can be asked, too:
    /// as long again as it has taken until the first was wanted, for which a registry has said mostly what a tag stands for.
    pub fn find_document(&self) -> Arc<FindDocument> {
        let caches: Vec<_> = self.readers.iter().map(|reader| Arc::clone(&reader.cache)).collect();
        let (asked, until) = (self.asked, OnceLock::new());
        Arc::new(move |digest| {
            let until: &Duration = until.get_or_init(|| (asked.elapsed() * 2).max(GRACE).min(PATIENCE));
            let patience = || until.saturating_sub(asked.elapsed());
            caches.iter().find_map(|cache| cache.document(digest, patience()))
        })
    }

    /// Tells how much of what they had did not count, since nobody who is trusted has signed it.
    pub fn tell_ignored(&self, events: &Events) {
        for reader in &self.readers {
            let (count, name) = (reader.cache.ignored(), &reader.told);
            let records = if count == 1 { "record" } else { "records" };
            if count > 0 {
                let note =
                    format!("ignored {count} {records} of {name}: no --cache-trust-key has signed them");
                events(Event::Note(note));
            }
        }
    }

    /// Tells of those that have given nothing at all: what is mistyped looks like that. Where another bundle of the same place
    /// has given something this one need not be there: so looks the first build of a branch, and records are found without it.
    pub fn tell_silent(&self, events: &Events) {
        for reader in &self.readers {
            let name = &reader.told;
            let silence = reader.cache.silence().filter(|_| !self.has_given(&reader.place));
            let note = silence.map(|silence| match silence {
                Silence::Nothing if reader.has_name => format!("found nothing in the cache {name}"),
                // What it holds of others nobody has asked.
                Silence::Nothing => format!("found nothing of this Dockerfile in the cache {name}"),
                Silence::NoAnswer => format!("the cache {name} has not answered before the build ended"),
            });
            note.into_iter().for_each(|note| events(Event::Note(note)));
        }
    }

    fn has_given(&self, place: &Place) -> bool {
        self.readers.iter().any(|reader| reader.place == *place && reader.cache.has_given())
    }

    /// Time since the first of them was asked for something.
    pub fn clock(&self) -> Duration {
        self.asked.elapsed()
    }
}

impl Place {
    fn of(place: &CachePlace) -> Self {
        match place {
            CachePlace::Registry(reference) => {
                Self::Repository(reference.registry.clone(), reference.repository.clone())
            }
            CachePlace::Directory { path, .. } => Self::Directory(path.clone()),
        }
    }
}

fn storage(place: &CachePlace, outside: &Outside) -> Result<Arc<dyn Storage>, Failure> {
    Ok(match place {
        CachePlace::Registry(reference) => Arc::new(RegistryStorage::new(&outside.registry()?, reference)),
        CachePlace::Directory { path, .. } => Arc::new(DirectoryStorage::new(path)),
    })
}

/// What people call a cache: with the bundle's name, where somebody has given it one.
fn told(place: &CachePlace, name: &str) -> String {
    match place {
        CachePlace::Registry(reference) => reference.to_string(),
        CachePlace::Directory { tag: Some(tag), .. } => format!("{name}, tag={tag}"),
        CachePlace::Directory { tag: None, .. } => name.to_owned(),
    }
}

/// The name of the bundle, where somebody has given it one; an image is found by its digest, too.
fn name(place: &CachePlace) -> Option<String> {
    match place {
        CachePlace::Registry(reference) => {
            reference.digest.map(|digest| digest.to_string()).or_else(|| reference.tag.clone())
        }
        CachePlace::Directory { tag, .. } => tag.clone(),
    }
}
