//! A remote cache whose word is taken: before anybody uses what it has told, that is noted.

use std::sync::Arc;

use executor::Words;
use exporter::cache::RemoteCache;
use solver::{Cancel, DistantCache, Key, traits::Answer};

/// A cache, and where it is noted that somebody's word was taken.
pub struct Heard {
    pub cache: Arc<RemoteCache>,
    pub words: Words,
}

impl DistantCache for Heard {
    fn lookup(&self, keys: &[Key], cancel: &Cancel, tell: &(dyn Fn(Vec<Answer>) + Sync)) {
        self.cache.lookup(keys, cancel, &|answers| {
            if answers.iter().any(|(_, found)| found.is_some()) {
                self.words.take_remote();
            }
            tell(answers);
        });
    }
}
