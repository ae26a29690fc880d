//! `layerwright gc`, and the cap that every build keeps the store under.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use executor::{
    gc::{self, Cap, Collected, GcError, Keep, Kind, Mode, Thing},
    sandbox,
};
use oci::store::Store;
use serde::Serialize;
use solver::Event;

use crate::{
    args::GcArgs,
    build::Events,
    call::{pretty, table},
    du::{Told, no_store, things_table},
    failure::{Failure, chain},
    progress::bytes,
    request::{self, Environment, RequestError},
    spec::call::Format,
};

/// The variable that says how large a store may grow.
const VARIABLE: &str = "LAYERWRIGHT_KEEP_STORAGE";

/// `layerwright gc`: the text for standard output.
///
/// # Errors
/// The store cannot be opened, read or written.
pub fn run(args: &GcArgs) -> Result<String, Failure> {
    let environment = Environment::of_process();
    let root = request::store_root(args.root.clone(), &environment)?;
    let keep = keep(args, cap(&environment)?);
    let mode = if args.dry_run { Mode::Pretend } else { Mode::Remove };
    let collected = match request::has_store(&root)? {
        // Nothing is made where nothing is.
        false => Collected::default(),
        true => {
            // Files of subordinate ids can only be removed by who has these ids.
            sandbox::enter_for_store(request::mode_of_store(&root), &root)?;
            gc::collect(&Store::open(&root)?, keep, mode)?
        }
    };
    Ok(match args.format {
        Format::Json => pretty(&Report::of(&collected, mode, args.verbose)),
        Format::Text => no_store(&root)? + &text(&collected, mode, args.verbose),
    })
}

fn keep(args: &GcArgs, default: Cap) -> Keep {
    let unused_for = args.keep_duration.unwrap_or(Duration::ZERO);
    match (args.all, args.keep_storage, args.keep_duration) {
        (true, ..) => Keep::Nothing,
        (false, Some(cap), _) => Keep::Under { cap, unused_for },
        // As BuildKit has it: what is older goes, however little there is.
        (false, None, Some(_)) => Keep::Under { cap: Cap::Bytes(0), unused_for },
        (false, None, None) => Keep::Under { cap: default, unused_for },
    }
}

/// How large the store may grow.
///
/// # Errors
/// [`RequestError::Value`]
pub fn cap(environment: &Environment) -> Result<Cap, RequestError> {
    let Some(text) = environment.text(VARIABLE) else { return Ok(Cap::Default) };
    text.parse().map_err(|_| RequestError::Value {
        name: VARIABLE,
        value: text.to_owned(),
        expected: "expected a size like 10GB, 512MiB, 20% or off".to_owned(),
    })
}

/// Keeps the store under its cap at the end of a build, if that has put anything into it. Says what went in one line; that
/// it could not is no reason for a build to fail.
pub fn keep_under(store: &Arc<Store>, cap: Cap, events: &Events) {
    if !store.has_grown() {
        return;
    }
    match gc::keep_under(store, cap) {
        Ok(None) => {}
        Ok(Some(collected)) => {
            let (gone, left) = (bytes(collected.bytes()), bytes(collected.left));
            let text = format!(
                "the store was over its cap: {gone} of what was used least recently are removed, {left} are left"
            );
            events(Event::Warning(text));
        }
        Err(error) => {
            events(Event::Warning(format!("the store is not kept under its cap: {}", chain(&error))))
        }
    }
}

fn text(collected: &Collected, mode: Mode, verbose: bool) -> String {
    let mut out = match verbose {
        true => things_table(&collected.removed),
        false => kinds_table(&collected.removed),
    };
    let verb = if mode == Mode::Pretend { "Would be removed" } else { "Total" };
    let limit = match collected.limit {
        Some(limit) if limit > 0 => format!(", and {} may be left", bytes(limit)),
        _ => String::new(),
    };
    out += &format!("{verb}:\t{}\nLeft:\t{}{limit}\n", bytes(collected.bytes()), bytes(collected.left));
    out
}

fn kinds_table(things: &[Thing]) -> String {
    let mut kinds = by_kind(things);
    // Locks that nobody holds, which are empty files.
    kinds.retain(|kind, (_, size)| *kind != Kind::Store || *size > 0);
    if kinds.is_empty() {
        return String::new();
    }
    let mut rows = vec![["TYPE".to_owned(), "COUNT".to_owned(), "SIZE".to_owned()]];
    rows.extend(
        kinds.into_iter().map(|(kind, (count, size))| [kind.to_string(), count.to_string(), bytes(size)]),
    );
    let rows: Vec<[&str; 3]> = rows.iter().map(|row| row.each_ref().map(String::as_str)).collect();
    table(&rows, 3)
}

fn by_kind(things: &[Thing]) -> BTreeMap<Kind, (usize, u64)> {
    let mut kinds = BTreeMap::new();
    for thing in things {
        let (count, size) = kinds.entry(thing.kind).or_insert((0, 0));
        (*count, *size) = (*count + 1, *size + thing.bytes);
    }
    kinds
}

/// What was removed, for programs.
#[derive(Serialize)]
struct Report<'a> {
    dry_run: bool,
    removed: Vec<Removed>,
    #[serde(skip_serializing_if = "Option::is_none")]
    things: Option<Vec<Told<'a>>>,
    bytes: u64,
    left: u64,
}

#[derive(Serialize)]
struct Removed {
    kind: Kind,
    count: usize,
    bytes: u64,
}

impl<'a> Report<'a> {
    fn of(collected: &'a Collected, mode: Mode, verbose: bool) -> Self {
        let removed = by_kind(&collected.removed).into_iter();
        Self {
            dry_run: mode == Mode::Pretend,
            removed: removed.map(|(kind, (count, bytes))| Removed { kind, count, bytes }).collect(),
            things: verbose.then(|| collected.removed.iter().map(Told::of).collect()),
            bytes: collected.bytes(),
            left: collected.left,
        }
    }
}

impl From<GcError> for Failure {
    fn from(error: GcError) -> Self {
        match error {
            GcError::Store(error) => Self::Store(error),
            error => Self::Gc(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn thing(kind: Kind, path: &str, bytes: u64, what: Option<&str>) -> Thing {
        let what = what.map(str::to_owned);
        Thing { kind, path: path.into(), bytes, used: SystemTime::now(), what, is_reclaimable: true }
    }

    #[test]
    fn what_is_kept_follows_buildkit() {
        let keep_of = |line: &str| {
            let argv = ["layerwright", "gc"].into_iter().chain(line.split_whitespace());
            match crate::args::parse(argv) {
                Ok(crate::args::Cli { command: crate::args::Command::Gc(args) }) => {
                    Some(keep(&args, Cap::Percent(7)))
                }
                _ => None,
            }
        };
        let under =
            |cap, hours: u64| Some(Keep::Under { cap, unused_for: Duration::from_secs(3600 * hours) });
        for (line, expected) in [
            ("", under(Cap::Percent(7), 0)),
            ("--all", Some(Keep::Nothing)),
            ("-a --dry-run", Some(Keep::Nothing)),
            ("--keep-storage 1GB", under(Cap::Bytes(1_000_000_000), 0)),
            ("--keep-storage=off", under(Cap::None, 0)),
            ("--keep-duration 168h", under(Cap::Bytes(0), 168)),
            ("--keep-duration 7d --keep-storage 20%", under(Cap::Percent(20), 168)),
            ("--all --keep-storage 1GB", None),
            ("--keep-storage much", None),
            ("--keep-duration 7", None),
        ] {
            assert_eq!(keep_of(line), expected, "{line:?}");
        }
    }

    #[test]
    fn what_went_is_told_by_kind_and_ends_in_a_total() {
        let removed = vec![
            thing(Kind::Records, "records/content/a.json", 4096, Some("RUN make")),
            thing(Kind::BuiltLayers, "snapshots/b", 2_000_000, None),
            thing(Kind::Records, "trees/c", 4096, None),
            thing(Kind::Store, "locks/step-d", 0, None),
        ];
        let collected = Collected { removed, left: 5, limit: Some(3000) };
        let want = "TYPE                COUNT   SIZE\n\
                    built layers        1       2.00MB\n\
                    records and trees   2       8.19kB\n\
                    Total:\t2.01MB\n\
                    Left:\t5B, and 3.00kB may be left\n";
        assert_eq!(text(&collected, Mode::Remove, false), want);
        let nothing = text(&Collected::default(), Mode::Pretend, false);
        assert_eq!(nothing, "Would be removed:\t0B\nLeft:\t0B\n");
        let verbose = text(&collected, Mode::Remove, true);
        assert!(verbose.contains("records/content/a") && verbose.contains("RUN make"), "{verbose}");
        let json = pretty(&Report::of(&collected, Mode::Remove, false));
        assert!(json.contains("\"kind\": \"built-layers\"") && json.contains("\"bytes\": 2008192"), "{json}");
    }

    #[test]
    fn the_variable_is_checked() {
        let environment = |value: &str| Environment {
            variables: [(VARIABLE.into(), value.into())].into(),
            stderr_is_terminal: false,
            is_root: false,
            stdin_is_terminal: false,
        };
        assert_eq!(cap(&environment("2GiB")).expect("a size"), Cap::Bytes(2 << 30));
        assert_eq!(cap(&environment("")).expect("not set"), Cap::Default);
        let error = cap(&environment("lots")).expect_err("no size").to_string();
        assert!(error.contains("LAYERWRIGHT_KEEP_STORAGE=\"lots\""), "{error}");
    }
}
