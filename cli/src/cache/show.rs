//! `layerwright cache show`

use exporter::cache::{
    care::{Content, Entry, Kept, Survey},
    names::{self, Name},
};
use oci::TreeDigest;
use solver::Key;

use super::{CareError, Place, json, text};
use crate::{args::CacheShowArgs, call::pretty, failure::Failure, history, spec::call::Format};

/// Shorter beginnings of keys are names.
const PREFIX_MIN: usize = 4;
/// So many keys are named where several are meant.
const NAMED_MAX: usize = 8;

/// What is shown.
pub enum Shown<'a> {
    /// A record by itself.
    Record(&'a Entry, &'a Kept),
    /// A record that only a bundle has.
    Inside(&'a Entry, &'a Kept),
    /// A bundle, or what cannot be used.
    Whole(&'a Entry),
}

/// The text for standard output.
///
/// # Errors
/// The cache cannot be read, or has no such thing, or several.
pub fn run(args: &CacheShowArgs) -> Result<String, Failure> {
    let (place, what) = (Place::open(&args.at)?, args.what.as_str());
    let survey = found(&place, what)?;
    let shown = pick(&survey, what)?.ok_or_else(|| place.nothing(what))?;
    Ok(match args.at.format() {
        Format::Json => pretty(&json::shown(&shown)),
        Format::Text => text::shown(&shown, history::now()),
    })
}

/// As little of the cache as has to be looked at.
fn found(place: &Place, what: &str) -> Result<Survey, Failure> {
    if place.tag.is_some() {
        return place.survey();
    }
    let mut named = place.named(&[what.to_owned()])?;
    if let Some(prefix) = prefix(what).filter(|_| named.entries.is_empty()) {
        let mut names = place.tidy.names(&place.cancel)?;
        names.retain(|name| is_begun(name, prefix));
        named = place.named(&names)?;
    }
    // What has no name of its own any more may be in a bundle.
    if named.entries.is_empty() { place.survey() } else { place.named(&with_both_names(named)) }
}

/// The names of these documents; of a record those of both its keys.
fn with_both_names(survey: Survey) -> Vec<String> {
    let of = |entry: Entry| match &entry.content {
        Content::Record(kept) => {
            let record = &kept.remote.record;
            vec![names::definition(&record.definition), names::content(&record.content)]
        }
        _ => entry.names,
    };
    survey.entries.into_iter().flat_map(of).collect()
}

/// The one thing that is meant.
fn pick<'a>(survey: &'a Survey, what: &str) -> Result<Option<Shown<'a>>, Failure> {
    if let Some(entry) = survey.entries.iter().find(|entry| entry.names.iter().any(|name| name == what)) {
        return Ok(Some(of(entry)));
    }
    let Some(prefix) = prefix(what) else { return Ok(None) };
    let mut fitting: Vec<Shown<'a>> = Vec::new();
    for entry in &survey.entries {
        let is_named = entry.names.iter().any(|name| is_begun(name, prefix));
        match entry.records() {
            [kept] if is_named || fits(kept, prefix) => fitting.push(of_record(entry, kept)),
            _ if is_named => fitting.push(Shown::Whole(entry)),
            records => {
                let inside = records.iter().filter(|kept| fits(kept, prefix));
                fitting.extend(inside.map(|kept| Shown::Inside(entry, kept)));
            }
        }
    }
    // Records by themselves say more than bundles about the same ones.
    let is_own = |shown: &Shown<'_>| !matches!(shown, Shown::Inside(..));
    if fitting.iter().any(is_own) {
        fitting.retain(is_own);
    }
    let mut keys: Vec<String> = fitting.iter().map(Shown::key).collect();
    keys.sort_unstable();
    keys.dedup();
    if keys.len() > 1 {
        keys.truncate(NAMED_MAX);
        return Err(Failure::Care(CareError::Ambiguous { what: what.to_owned(), keys }));
    }
    Ok(fitting.pop())
}

impl Shown<'_> {
    /// What tells it from others.
    fn key(&self) -> String {
        match self {
            Self::Record(_, kept) | Self::Inside(_, kept) => kept.remote.record.definition.hex(),
            Self::Whole(entry) => entry.names.join(" "),
        }
    }
}

fn of(entry: &Entry) -> Shown<'_> {
    match &entry.content {
        Content::Record(kept) => Shown::Record(entry, kept),
        _ => Shown::Whole(entry),
    }
}

fn of_record<'a>(entry: &'a Entry, kept: &'a Kept) -> Shown<'a> {
    match of(entry) {
        // A bundle of one.
        Shown::Whole(_) => Shown::Inside(entry, kept),
        shown => shown,
    }
}

/// The digits of what may be the beginning of a key.
fn prefix(what: &str) -> Option<&str> {
    let digits = what.strip_prefix("blake3:").unwrap_or(what);
    let are_digits = digits.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    (are_digits && (PREFIX_MIN..=64).contains(&digits.len())).then_some(digits)
}

fn is_begun(name: &str, prefix: &str) -> bool {
    match names::parse(name) {
        Some(Name::Record(Key::Definition(digest) | Key::Content(digest)) | Name::Bundle(digest)) => {
            digest.hex().starts_with(prefix)
        }
        Some(Name::Running(_)) | None => false,
    }
}

fn fits(kept: &Kept, prefix: &str) -> bool {
    let begins = |digest: &TreeDigest| digest.hex().starts_with(prefix);
    begins(&kept.remote.record.definition) || begins(&kept.remote.record.content)
}
