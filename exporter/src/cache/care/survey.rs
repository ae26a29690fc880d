//! Reading everything that a cache holds, once.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use oci::{BlobOrigin, Sha256Digest};
use solver::Cancel;

use super::{AT_ONCE, Announced, Content, Entry, Kept, Seal, Standing, Survey, Tidy};
use crate::{
    cache::{
        artifact,
        bundle::{Bundle, SignedRecord},
        names::{self, Name},
        record::{FormatError, RemoteRecord},
        sign::TrustKeys,
        storage::{Artifact, ArtifactKind, Named, StorageError, StorageErrorKind},
    },
    parallel::in_parallel,
};

/// What is in a cache.
///
/// # Errors
/// It cannot be asked, or `cancel` asks.
pub fn survey(place: &dyn Tidy, trusted: &TrustKeys, cancel: &Cancel) -> Result<Survey, StorageError> {
    survey_of(place, &place.names(cancel)?, trusted, cancel)
}

/// What some names stand for; those that stand for nothing are left out. With a trust key a record that none of the keys has
/// signed cannot be used.
///
/// # Errors
/// As those of [`survey`].
pub fn survey_of(
    place: &dyn Tidy,
    names: &[String],
    trusted: &TrustKeys,
    cancel: &Cancel,
) -> Result<Survey, StorageError> {
    let found = Mutex::new(BTreeMap::<Sha256Digest, (Vec<String>, Standing)>::new());
    in_parallel(names, AT_ONCE, |name| {
        let Some(standing) = place.look(name, cancel)? else { return Ok(()) };
        let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
        found.entry(standing.digest).or_insert_with(|| (Vec::new(), standing)).0.push(name.clone());
        Ok(())
    })?;
    let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    let reader = Reader { origin: place.origin(), trusted };
    let mut survey = Survey::default();
    for (mut names, standing) in found.into_values() {
        names.sort_unstable();
        match reader.entry(names, standing)? {
            Read::Ours(entry) => survey.entries.push(*entry),
            Read::Announcement(announced) => survey.announcements.push(announced),
            Read::Other(names) => survey.others.extend(names),
        }
    }
    survey.entries.sort_by(|a, b| a.names.cmp(&b.names));
    survey.others.sort_unstable();
    Ok(survey)
}

/// What a document turned out to be.
enum Read {
    Ours(Box<Entry>),
    Announcement(Announced),
    Other(Vec<String>),
}

struct Reader<'a> {
    origin: BlobOrigin,
    trusted: &'a TrustKeys,
}

impl Reader<'_> {
    fn entry(&self, names: Vec<String>, standing: Standing) -> Result<Read, StorageError> {
        let Standing { digest, size, named } = standing;
        let is_ours = || names.iter().any(|name| names::parse(name).is_some());
        let (blobs, content) = match named {
            Ok(Named::Artifact(artifact)) => match self.content(&names, &artifact) {
                Ok(content) => (blobs(&artifact), content),
                Err(error) if error.is_other_version() => return Ok(Read::Other(names)),
                Err(error) => (blobs(&artifact), Content::Unusable(error.to_string())),
            },
            Err(error) if error.kind == StorageErrorKind::Damaged && is_ours() => {
                let why = error.source.map_or(error.what, |source| source.to_string());
                (BTreeMap::new(), Content::Unusable(why))
            }
            Ok(Named::Announcement(_)) => return Ok(Read::Announcement(Announced { names, digest })),
            Ok(Named::Image(_) | Named::Index(_)) => return Ok(Read::Other(names)),
            Err(error) if error.kind == StorageErrorKind::Damaged => return Ok(Read::Other(names)),
            Err(error) => return Err(error),
        };
        Ok(Read::Ours(Box::new(Entry { names, digest, size, blobs, content })))
    }

    fn content(&self, names: &[String], artifact: &Artifact) -> Result<Content, FormatError> {
        let Artifact { kind, document, signature, .. } = artifact;
        match kind {
            ArtifactKind::Record => {
                let record = SignedRecord { document: document.clone(), signature: signature.clone() };
                let kept = self.kept(&record)?;
                let is_of_another = names.iter().any(|name| {
                    matches!(names::parse(name), Some(Name::Record(key)) if !kept.remote.answers(&key))
                });
                Ok(match is_of_another {
                    true => Content::Unusable("it belongs to another key".to_owned()),
                    false => Content::Record(Box::new(kept)),
                })
            }
            ArtifactKind::Bundle => {
                let records = Bundle::decode(document)?.records;
                // What cannot be used of it is a miss for who reads it, and so for us.
                Ok(Content::Bundle(records.iter().filter_map(|record| self.kept(record).ok()).collect()))
            }
        }
    }

    fn kept(&self, record: &SignedRecord) -> Result<Kept, FormatError> {
        let remote: RemoteRecord = record.open(None, self.trusted, &self.origin)?;
        let seal = match (&record.signature, self.trusted.is_empty()) {
            (None, _) => Seal::Missing,
            (Some(_), true) => Seal::Unverified,
            (Some(_), false) => Seal::Trusted,
        };
        Ok(Kept { remote, seal })
    }
}

/// What an artifact keeps alive, its content included.
fn blobs(artifact: &Artifact) -> BTreeMap<Sha256Digest, u64> {
    let document = artifact::config(artifact.kind, &artifact.document);
    artifact.blobs.iter().chain([&document]).map(|blob| (blob.digest, blob.size)).collect()
}
