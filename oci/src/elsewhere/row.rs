//! When a cache is given up whole.
//!
//! A place fails with one thing, or with all: storage that has damaged a blob answers 500 as often as that is asked for, and so
//! does a registry that is down, whatever it is asked for. One failure does not tell which; each has been tried again for seconds
//! by then ([`Registry::briefly`](crate::registry::Registry::briefly)), so what passes by itself has passed. What fails is lost
//! alone, and its step runs, until *several different things in a row* have failed: then nothing more is asked, since each would
//! take those seconds. Any answer ends the row, also that something is not there, or one that is damaged: somebody answers.
//! A refusal ends it all at once: it is about the repository. A directory has no row: each file fails for itself.
//!
//! All who bring something from the place count in the same row: steps, outputs, the sealers of images and of caches that are
//! filled, and who looks for what else is gone.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
};

use crate::{digest::Sha256Digest, fetch::registry_error, layer::BlobOrigin, registry::RegistryError};

/// Different things that have failed, after which nothing more is asked: as many as look-ups of records.
const ENOUGH: usize = 3;

/// What has failed at each place since it answered last.
#[derive(Debug, Default)]
pub(super) struct Rows(BTreeMap<BlobOrigin, BTreeSet<Sha256Digest>>);

impl Rows {
    /// The place has answered.
    pub(super) fn end(&mut self, place: &BlobOrigin) {
        self.0.remove(place);
    }

    /// Something was not to be had of a place. Says why the place is to be given up, if it is.
    pub(super) fn note(
        &mut self,
        place: &BlobOrigin,
        blob: &Sha256Digest,
        error: &(dyn Error + 'static),
    ) -> Option<String> {
        match registry_error(error) {
            Some(RegistryError::Cancelled) => None,
            Some(error @ RegistryError::Denied { .. }) => Some(error.to_string()),
            Some(error) if error.is_unavailable() => {
                let row = self.0.entry(place.clone()).or_default();
                row.insert(*blob);
                (row.len() >= ENOUGH)
                    .then(|| format!("{ENOUGH} blobs in a row failed, the last one so: {error}"))
            }
            _ => {
                self.end(place);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io, path::Path, time::Duration};

    use super::*;
    use crate::{fetch::FetchError, verify::BlobError};

    fn place(name: &str) -> BlobOrigin {
        BlobOrigin::Registry(format!("localhost:5000/{name}").parse().expect("a reference"))
    }

    fn status(status: u16) -> RegistryError {
        RegistryError::Status { url: "x".to_owned(), status, codes: vec![], reason: None, retry_after: None }
    }

    fn denied() -> RegistryError {
        RegistryError::Denied { name: "x".to_owned(), reason: None, hint: String::new() }
    }

    fn damaged() -> RegistryError {
        let source = BlobError::TooLong { digest: Sha256Digest::of(b"x"), size: 1 };
        RegistryError::Damaged { name: "x".to_owned(), source: Box::new(source) }
    }

    #[test]
    fn a_place_is_given_up_when_different_things_in_a_row_fail() {
        let silent = || RegistryError::Timeout { url: "x".to_owned(), waited: Duration::from_secs(15) };
        let missing = || RegistryError::NotFound { name: "x".to_owned(), reason: None };
        // Which blob fails how; whether that is the end.
        type Failure = (u8, RegistryError);
        let cases: Vec<(Vec<Failure>, bool)> = vec![
            (vec![(1, status(500)), (2, status(503))], false),
            (vec![(1, status(500)), (1, status(500)), (1, status(500)), (2, silent())], false),
            (vec![(1, status(500)), (2, silent()), (3, status(429))], true),
            (vec![(1, status(500)), (2, status(500)), (3, missing())], false),
            (vec![(1, status(500)), (2, status(500)), (3, missing()), (4, status(500))], false),
            (vec![(1, status(500)), (2, status(500)), (3, damaged()), (4, status(500))], false),
            (vec![(1, status(500)), (2, status(500)), (3, RegistryError::Cancelled), (4, status(500))], true),
            (vec![(1, denied())], true),
        ];
        for (failures, is_end) in cases {
            let mut rows = Rows::default();
            let told = format!("{failures:?}");
            let mut given_up = None;
            for (blob, error) in failures {
                assert!(given_up.is_none(), "{told}");
                let error = io::Error::other(FetchError::from(error));
                given_up = rows.note(&place("a"), &Sha256Digest::of(&[blob]), &error);
                let elsewhere = io::Error::other(status(500));
                assert!(rows.note(&place("b"), &Sha256Digest::of(b"one"), &elsewhere).is_none());
            }
            assert_eq!(given_up.is_some(), is_end, "{told}");
        }
    }

    #[test]
    fn what_comes_ends_the_row_and_a_directory_has_none() {
        let mut rows = Rows::default();
        let fail = |rows: &mut Rows, place: &BlobOrigin, blob: u8, error: io::Error| {
            rows.note(place, &Sha256Digest::of(&[blob]), &error).is_some()
        };
        for blob in 0..10 {
            assert!(!fail(&mut rows, &place("a"), blob, io::Error::other(status(500))));
            rows.end(&place("a"));
        }
        let directory = BlobOrigin::OciLayout(Path::new("cache").to_owned());
        for blob in 0..10 {
            assert!(!fail(&mut rows, &directory, blob, io::Error::from_raw_os_error(5)));
        }
    }
}
