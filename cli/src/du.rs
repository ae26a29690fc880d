//! `layerwright du`: what a store holds, as blocks on its disk.

use std::{
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use executor::{
    gc::{self, Kind, Thing},
    sandbox,
};
use exporter::assemble::rfc3339;
use oci::store::Store;
use serde::Serialize;

use crate::{
    args::DuArgs,
    call::{pretty, table},
    failure::{Failure, harmless},
    history::ago,
    progress::bytes,
    request::{self, Environment},
    spec::call::Format,
};

/// Longest text in the last column, in characters.
const WHAT_MAX: usize = 70;
/// So much of a name tells it from all others.
const NAME: usize = 12;

/// `layerwright du`: the text for standard output.
///
/// # Errors
/// The store cannot be opened or read.
pub fn run(args: &DuArgs) -> Result<String, Failure> {
    let root = request::store_root(args.root.clone(), &Environment::of_process())?;
    let mut things = match request::has_store(&root)? {
        false => Vec::new(),
        true => {
            // The command of a RUN may have closed directories of a cache mount to all but their owner.
            sandbox::enter_for_store(request::mode_of_store(&root), &root)?;
            gc::usage(&Store::open(&root)?)?
        }
    };
    things.sort_by(|a, b| (a.kind, b.bytes, &a.path).cmp(&(b.kind, a.bytes, &b.path)));
    Ok(match args.format {
        Format::Json => pretty(&Usage::of(&things, args.verbose)),
        Format::Text => no_store(&root)? + &text(&things, args.verbose),
    })
}

/// A line that tells a mistyped directory from an empty store; nothing where there is one.
///
/// # Errors
/// The directory cannot be looked at.
pub fn no_store(root: &Path) -> Result<String, Failure> {
    Ok(match request::has_store(root)? {
        true => String::new(),
        false => format!("There is no store at {}; the first build makes one.\n", root.display()),
    })
}

fn text(things: &[Thing], verbose: bool) -> String {
    let mut out = match verbose {
        true => things_table(things) + "\n",
        false => String::new(),
    };
    let total = Sum::of(things.iter());
    let mut rows = vec![["TYPE", "COUNT", "SIZE", "RECLAIMABLE", "LAST USED"].map(str::to_owned)];
    for (kind, sum) in kinds(things) {
        let [size, reclaimable] = [sum.bytes, sum.reclaimable].map(bytes);
        rows.push([
            kind.to_string(),
            sum.count.to_string(),
            size,
            reclaimable,
            sum.used.map(since).unwrap_or_default(),
        ]);
    }
    if !things.is_empty() {
        let rows: Vec<[&str; 5]> = rows.iter().map(|row| row.each_ref().map(String::as_str)).collect();
        out += &(table(&rows, 3) + "\n");
    }
    out += &format!("Reclaimable:\t{}\nTotal:\t\t{}\n", bytes(total.reclaimable), bytes(total.bytes));
    out
}

/// One line for each thing.
pub fn things_table(things: &[Thing]) -> String {
    let things = things.iter().filter(|thing| is_listed(thing));
    let rows: Vec<[String; 6]> = things.map(row).collect();
    if rows.is_empty() {
        return String::new();
    }
    let heading = ["ID", "TYPE", "RECLAIMABLE", "SIZE", "LAST USED", "WHAT"].map(str::to_owned);
    let rows: Vec<[&str; 6]> =
        std::iter::once(&heading).chain(&rows).map(|row| row.each_ref().map(String::as_str)).collect();
    table(&rows, 2)
}

/// The store's own directories and locks are no things to people.
fn is_listed(thing: &Thing) -> bool {
    thing.kind != Kind::Store
}

fn row(thing: &Thing) -> [String; 6] {
    let what = harmless(thing.what.as_deref().unwrap_or_default()).replace('\n', " ");
    let what = match what.chars().count() > WHAT_MAX {
        true => what.chars().take(WHAT_MAX - 3).chain("...".chars()).collect(),
        false => what,
    };
    [
        short(thing),
        thing.kind.to_string(),
        thing.is_reclaimable.to_string(),
        bytes(thing.bytes),
        since(thing.used),
        what,
    ]
}

/// `snapshots/0a1b2c3d4e5f`
fn short(thing: &Thing) -> String {
    let path = thing.path.to_string_lossy();
    let part =
        |part: &str| part.chars().take(if part.len() >= 64 { NAME } else { part.len() }).collect::<String>();
    path.split('/').map(part).collect::<Vec<_>>().join("/")
}

fn since(used: SystemTime) -> String {
    ago(seconds(SystemTime::now()), seconds(used))
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Several things together.
struct Sum {
    count: usize,
    bytes: u64,
    reclaimable: u64,
    used: Option<SystemTime>,
}

impl Sum {
    fn of<'a>(things: impl Iterator<Item = &'a Thing>) -> Self {
        let mut sum = Self { count: 0, bytes: 0, reclaimable: 0, used: None };
        for thing in things {
            sum.count += 1;
            sum.bytes += thing.bytes;
            sum.reclaimable += if thing.is_reclaimable { thing.bytes } else { 0 };
            sum.used = sum.used.max(Some(thing.used));
        }
        sum
    }
}

/// The kinds of which there is anything.
fn kinds(things: &[Thing]) -> Vec<(Kind, Sum)> {
    let sum = |kind| (kind, Sum::of(things.iter().filter(|thing| thing.kind == kind)));
    Kind::ALL.map(sum).into_iter().filter(|(_, sum)| sum.count > 0).collect()
}

/// What a store holds, for programs.
#[derive(Serialize)]
struct Usage<'a> {
    kinds: Vec<ToldKind>,
    #[serde(skip_serializing_if = "Option::is_none")]
    things: Option<Vec<Told<'a>>>,
    reclaimable: u64,
    total: u64,
}

#[derive(Serialize)]
struct ToldKind {
    kind: Kind,
    count: usize,
    bytes: u64,
    reclaimable: u64,
    last_used: Option<String>,
}

/// A thing, for programs.
#[derive(Serialize)]
pub struct Told<'a> {
    kind: Kind,
    path: String,
    bytes: u64,
    reclaimable: bool,
    last_used: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    what: Option<&'a str>,
}

impl<'a> Told<'a> {
    /// As programs see it.
    pub fn of(thing: &'a Thing) -> Self {
        Self {
            kind: thing.kind,
            path: thing.path.to_string_lossy().into_owned(),
            bytes: thing.bytes,
            reclaimable: thing.is_reclaimable,
            last_used: time(thing.used),
            what: thing.what.as_deref(),
        }
    }
}

impl<'a> Usage<'a> {
    fn of(things: &'a [Thing], verbose: bool) -> Self {
        let total = Sum::of(things.iter());
        let told = |(kind, Sum { count, bytes, reclaimable, used })| ToldKind {
            kind,
            count,
            bytes,
            reclaimable,
            last_used: used.map(time),
        };
        Self {
            kinds: kinds(things).into_iter().map(told).collect(),
            things: verbose.then(|| things.iter().filter(|thing| is_listed(thing)).map(Told::of).collect()),
            reclaimable: total.reclaimable,
            total: total.bytes,
        }
    }
}

fn time(used: SystemTime) -> String {
    rfc3339(i64::try_from(seconds(used)).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_are_summed_by_kind_and_listed_on_demand() {
        let used = SystemTime::now();
        let thing = |kind, path: &str, bytes, what: Option<&str>, is_reclaimable| Thing {
            kind,
            path: path.into(),
            bytes,
            used,
            what: what.map(str::to_owned),
            is_reclaimable,
        };
        let blob = format!("blobs/sha256/{}", "ab".repeat(32));
        let things = [
            thing(Kind::Blobs, &blob, 1_500_000, Some("RUN printf '\x1b[31m'\\\n && make"), true),
            thing(Kind::CacheMounts, "mounts/a/b/0", 500_000, Some("cargo"), false),
            thing(Kind::Store, "locks/x", 0, None, true),
        ];
        let shown = text(&things, false);
        assert!(
            shown.starts_with("TYPE               COUNT   SIZE       RECLAIMABLE   LAST USED\n"),
            "{shown}"
        );
        assert!(
            shown.contains("cache mounts       1       500.00kB   0B            Less than a second ago\n"),
            "{shown}"
        );
        assert!(shown.ends_with("\n\nReclaimable:\t1.50MB\nTotal:\t\t2.00MB\n"), "{shown}");
        let listed = text(&things, true);
        assert!(listed.contains("blobs/sha256/abababababab  blobs"), "{listed}");
        assert!(
            listed.contains("RUN printf ' [31m'\\  && make\n") && !listed.contains("locks/x"),
            "{listed}"
        );
        let json = pretty(&Usage::of(&things, true));
        assert!(json.contains("\"total\": 2000000") && json.contains("\"what\": \"cargo\""), "{json}");
        assert_eq!(text(&[], true), "\nReclaimable:\t0B\nTotal:\t\t0B\n");
    }
}
