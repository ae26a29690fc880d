//! `layerwright cache show`

use exporter::cache::{
    care::{Content, Entry, Kept, Survey},
    names::{self, Name},
};
use solver::Key;

use super::{CareError, Place, json, text};
use crate::{args::CacheShowArgs, call::pretty, failure::Failure, history, spec::call::Format};

/// Shorter beginnings of keys are names.
pub const PREFIX_MIN: usize = 4;
/// What the names begin with that have a key, or another hash.
const KINDS: [&str; 3] = ["lw1-d-", "lw1-c-", "lw1-b-"];
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
    if let Some(prefix) = Prefix::of(what).filter(|_| named.entries.is_empty()) {
        let mut names = place.tidy.names(&place.cancel)?;
        names.retain(|name| prefix.begins(name));
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
    let Some(prefix) = Prefix::of(what) else { return Ok(None) };
    let mut fitting: Vec<Shown<'a>> = Vec::new();
    for entry in &survey.entries {
        let is_named = entry.names.iter().any(|name| prefix.begins(name));
        match entry.records() {
            [kept] if is_named || prefix.fits(kept) => fitting.push(of_record(entry, kept)),
            _ if is_named => fitting.push(Shown::Whole(entry)),
            records => {
                let inside = records.iter().filter(|kept| prefix.fits(kept));
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
        return Err(CareError::Ambiguous { what: what.to_owned(), keys }.into());
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

/// The beginning of a key, or of a name that has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix<'a> {
    /// `lw1-d-`, where a name was begun.
    kind: &'a str,
    digits: &'a str,
}

impl<'a> Prefix<'a> {
    /// What may be one.
    pub fn of(what: &'a str) -> Option<Self> {
        Self::read(what).filter(|prefix| (PREFIX_MIN..=64).contains(&prefix.digits.len()))
    }

    fn read(what: &'a str) -> Option<Self> {
        let kind = KINDS.iter().find(|kind| what.starts_with(**kind)).map_or("", |kind| &what[..kind.len()]);
        let digits = &what[kind.len()..];
        let digits = digits.strip_prefix("blake3:").filter(|_| kind.is_empty()).unwrap_or(digits);
        let are_digits = digits.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        are_digits.then_some(Self { kind, digits })
    }

    /// Whether it is one of a name.
    pub fn is_of_name(self) -> bool {
        !self.kind.is_empty()
    }

    fn begins(self, name: &str) -> bool {
        match names::parse(name) {
            Some(Name::Record(Key::Definition(digest) | Key::Content(digest)) | Name::Bundle(digest)) => {
                name.starts_with(self.kind) && digest.hex().starts_with(self.digits)
            }
            Some(Name::Running(_)) | None => false,
        }
    }

    fn fits(self, kept: &Kept) -> bool {
        let record = &kept.remote.record;
        [names::definition(&record.definition), names::content(&record.content)]
            .iter()
            .any(|name| self.begins(name))
    }
}

/// Whether it would be the beginning of a key if it were longer.
pub fn is_short(what: &str) -> bool {
    Prefix::read(what).is_some_and(|prefix| prefix.digits.len() < PREFIX_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_begun_is_a_key_or_a_name() {
        for (what, want) in [
            ("ff4d", Some(("", "ff4d"))),
            ("blake3:ff4d0", Some(("", "ff4d0"))),
            ("lw1-b-ff4d", Some(("lw1-b-", "ff4d"))),
            ("lw1-d-ff4", None),
            ("lw1-d-blake3:ff4d", None),
            ("lw1-r-ff4d", None),
            ("4", None),
            ("main", None),
            ("FF4D", None),
        ] {
            assert_eq!(Prefix::of(what).map(|prefix| (prefix.kind, prefix.digits)), want, "{what}");
        }
        assert_eq!(["4", "lw1-c-12", "beef", "main"].map(is_short), [true, true, false, false]);
        let name = |kind: &str| format!("{kind}{}", "ff4d".repeat(16));
        let begins = |what: &str, kind: &str| Prefix::of(what).expect("a prefix").begins(&name(kind));
        assert!(
            begins("ff4d", "lw1-d-") && begins("lw1-c-ff4dff", "lw1-c-") && begins("lw1-b-ff4d", "lw1-b-")
        );
        assert!(!begins("lw1-c-ff4d", "lw1-d-") && !begins("ff4e", "lw1-d-") && !begins("ff4d", "lw1-r-"));
    }
}
