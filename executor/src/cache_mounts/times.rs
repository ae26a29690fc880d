//! With which time a step sees each file: the rule that keeps make and cargo right with a cache mount.
//!
//! For every cache mount of the step, each file is compared with what the mount's users have seen last
//! ([`Ledger`]):
//!
//! - it is what it was: it has the time it had, and nothing is made again;
//! - it is something else, or was not there: it has *changed*, and gets a time later than all that is in the mount. One
//!   that has such a time already (it was edited since) keeps it. The others come right after the mount was last
//!   used, in the order of the times they have, so that what was generated stays newer than its sources;
//! - nothing was seen yet, since the mount is new and empty: any time will do.
//!
//! If several mounts disagree, "changed" wins, then the latest time. "Later" is a later whole second, because
//! there are tools that compare seconds only.
//!
//! Where a link leads elsewhere, what it leads to has changed. A directory is what it was while steps have put the same
//! names into it. If the base image is another one, all that steps have put on top of it counts as changed: with the
//! tools, everything is to be made again.

use std::{
    collections::{BTreeMap, BTreeSet},
    thread,
    time::Duration,
};

use oci::{TreeDigest, tree::TIME_LIMIT};
use solver::Cancel;

use super::{
    CacheMountError,
    ledger::{Ledger, Seen, contested},
    sight::{Item, Kind, Sight, go_on, is_within},
};
use crate::snapshot::Stamp;

/// What is known of the steps that have used a cache mount.
#[derive(Debug)]
pub(super) enum Past {
    /// It is new and empty.
    Nothing,
    /// It holds what somebody unknown has put there.
    Unknown,
    /// It was used by those who saw this.
    Known(Ledger),
}

/// A time for each path of one file system that is not the one on disk.
pub(super) type Overrides = BTreeMap<Vec<u8>, Stamp>;

/// What a mount says of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Any,
    Keep(Stamp),
    Changed,
}

/// Adds to what is seen of the file systems what the past makes necessary to look at.
pub(super) fn complete(sights: &mut [Sight], pasts: &[Past], cancel: &Cancel) -> Result<(), CacheMountError> {
    for sight in sights {
        let knows_base = |past: &Past| match past {
            Past::Known(ledger) => has_base(ledger, sight),
            Past::Nothing | Past::Unknown => false,
        };
        if !pasts.iter().all(knows_base) {
            sight.add_unpacked(cancel)?;
        }
        for past in pasts {
            if let Past::Known(ledger) = past {
                add_from(sight, ledger, cancel)?;
            }
        }
        let links = sight.items.iter().filter(|(_, item)| item.kind == Kind::Symlink);
        let is_changed = |path: &[u8], item: &Item| {
            pasts.iter().any(|past| verdict(sight, path, item, past) == Verdict::Changed)
        };
        let changed: Vec<_> =
            links.filter(|(path, item)| is_changed(path, item)).map(|(path, _)| path.clone()).collect();
        for link in changed {
            sight.follow(&link, cancel)?;
        }
    }
    Ok(())
}

fn has_base(ledger: &Ledger, sight: &Sight) -> bool {
    ledger.bases.get(sight.target()) == Some(&sight.base)
}

/// Files of the base image that were seen before, or were hidden and no longer are.
fn add_from(sight: &mut Sight, ledger: &Ledger, cancel: &Cancel) -> Result<(), CacheMountError> {
    let same_base = has_base(ledger, sight);
    for (shown, seen) in &ledger.seen {
        let Some(path) = sight.path(shown).filter(|path| !sight.items.contains_key(path)) else { continue };
        match seen {
            Seen { is_directory: true, .. } => {}
            Seen { from_base: true, face, .. } if same_base && *face != contested() => {
                sight.add_same(path, *face)?;
            }
            _ => sight.add_uncovered(&path, cancel)?,
        }
    }
    for shown in &ledger.hidden {
        if let Some(path) = sight.path(shown).filter(|path| !sight.hidden.contains(path)) {
            sight.add_uncovered(&path, cancel)?;
        }
    }
    Ok(())
}

/// The times that a step is to see, where they are not those on disk; one map a file system. `used` is when the
/// mounts were last written to.
pub(super) fn decide(
    sights: &[Sight],
    pasts: &[Past],
    used: Stamp,
    cancel: &Cancel,
) -> Result<Vec<Overrides>, CacheMountError> {
    let verdicts: Vec<_> = sights.iter().map(|sight| verdicts(sight, pasts)).collect();
    let mut order = BTreeSet::new();
    let earliest = Stamp { seconds: used.seconds + 1, nanoseconds: 0 };
    let latest = Stamp { nanoseconds: WINDOW, ..earliest };
    let is_late = |item: &Item| item.time > latest;
    for (sight, verdicts) in sights.iter().zip(&verdicts) {
        let changed = verdicts.iter().filter(|(_, verdict)| **verdict == Verdict::Changed);
        let times = changed.map(|(path, _)| &sight.items[*path]).filter(|item| !is_late(item));
        order.extend(times.map(|item| item.time));
    }
    if !order.is_empty() {
        wait_until(latest, cancel)?;
    }
    let fresh = spread(&order, earliest);
    let time = |item: &Item, verdict: &Verdict| match verdict {
        Verdict::Keep(time) => kept(*time, item.time),
        Verdict::Changed if !is_late(item) => fresh[&item.time],
        Verdict::Changed | Verdict::Any => item.time,
    };
    let overrides = |(sight, verdicts): (&Sight, &BTreeMap<&Vec<u8>, Verdict>)| {
        let times = verdicts.iter().map(|(path, verdict)| {
            let item = &sight.items[*path];
            ((*path).clone(), time(item, verdict), item.time)
        });
        times.filter(|(_, shown, own)| shown != own).map(|(path, shown, _)| (path, shown)).collect()
    };
    Ok(sights.iter().zip(&verdicts).map(overrides).collect())
}

/// How a file that was shown with a time is shown again. Nothing in a cache mount is older than [`TIME_LIMIT`], so all
/// times before it are alike; which of them a file has reaches the layer if the step moves it, so that is not changed.
fn kept(time: Stamp, own: Stamp) -> Stamp {
    let limit = Stamp { seconds: TIME_LIMIT, nanoseconds: 0 };
    if time < limit && own < limit { own } else { time.max(limit) }
}

/// How many nanoseconds all fresh times together take.
const WINDOW: u32 = 1_000_000;

/// A fresh time for each time on disk, in the same order.
fn spread(order: &BTreeSet<Stamp>, earliest: Stamp) -> BTreeMap<Stamp, Stamp> {
    let step = (WINDOW / u32::try_from(order.len() + 1).unwrap_or(WINDOW)).clamp(1, 1000);
    // None is a whole second: so have the copies that a tool makes which knows no smaller ones.
    let fresh = |at: usize| earliest.later((at as u64 + 1) * u64::from(step));
    order.iter().enumerate().map(|(at, time)| (*time, fresh(at))).collect()
}

fn verdicts<'a>(sight: &'a Sight, pasts: &[Past]) -> BTreeMap<&'a Vec<u8>, Verdict> {
    let of = |(path, item): (&'a Vec<u8>, &Item)| {
        let verdict = pasts.iter().map(|past| verdict(sight, path, item, past)).max();
        (path, verdict.unwrap_or(Verdict::Any))
    };
    let mut verdicts: BTreeMap<_, _> = sight.items.iter().map(of).collect();
    // All names of a file have one time.
    let mut inodes: BTreeMap<(u64, u64), Verdict> = BTreeMap::new();
    for (path, verdict) in &verdicts {
        if let Some(inode) = sight.items[*path].inode {
            let latest = inodes.entry(inode).or_insert(Verdict::Any);
            *latest = (*latest).max(*verdict);
        }
    }
    for (path, verdict) in &mut verdicts {
        if let Some(inode) = sight.items[*path].inode {
            *verdict = inodes[&inode];
        }
    }
    verdicts
}

fn verdict(sight: &Sight, path: &[u8], item: &Item, past: &Past) -> Verdict {
    let ledger = match past {
        Past::Nothing => return Verdict::Any,
        Past::Unknown if item.from_base => return Verdict::Keep(item.time),
        Past::Unknown => return Verdict::Changed,
        Past::Known(ledger) => ledger,
    };
    let same_base = has_base(ledger, sight);
    let shown = sight.shown(path).expect("what is not shown is no item");
    match ledger.seen.get(&shown) {
        _ if sight.is_led_to(path) || !same_base && !item.from_base => Verdict::Changed,
        Some(seen) if seen.face == item.face => Verdict::Keep(seen.time),
        Some(_) => Verdict::Changed,
        // It was looked at for another mount only, or has come to light.
        None if item.from_base && same_base && !was_hidden(ledger, &shown) => Verdict::Keep(item.time),
        None => Verdict::Changed,
    }
}

fn was_hidden(ledger: &Ledger, shown: &[u8]) -> bool {
    ledger.hidden.iter().any(|hidden| is_within(shown, hidden))
}

/// What is to be written down of a mount before the step runs. `is_shared`: somebody else uses it now.
pub(super) fn remember(
    sights: &[Sight],
    overrides: &[Overrides],
    past: &Past,
    is_shared: bool,
    view: TreeDigest,
) -> Ledger {
    let mut ledger = Ledger {
        view,
        is_settled: true,
        bases: BTreeMap::new(),
        seen: BTreeMap::new(),
        hidden: BTreeSet::new(),
    };
    for (sight, overrides) in sights.iter().zip(overrides) {
        ledger.bases.insert(sight.target().to_vec(), sight.base);
        ledger.hidden.extend(sight.hidden.iter().filter_map(|path| sight.shown(path)));
        ledger.is_settled &= overrides.is_empty();
        for (path, item) in &sight.items {
            let shown = sight.shown(path).expect("what is not shown is no item");
            let is_contested = is_shared && verdict(sight, path, item, past) == Verdict::Changed;
            ledger.is_settled &= !is_contested;
            let seen = Seen {
                face: if is_contested { contested() } else { item.face },
                time: overrides.get(path).copied().unwrap_or(item.time),
                from_base: item.from_base,
                is_directory: item.kind == Kind::Directory,
            };
            ledger.seen.insert(shown, seen);
        }
    }
    ledger
}

/// Lets a fresh time pass, so that what the step makes is not older. If the clock was set back since the mount was used,
/// that would take long: then what is made now is made again next time.
fn wait_until(time: Stamp, cancel: &Cancel) -> Result<(), CacheMountError> {
    loop {
        let now = Stamp::of_files_now();
        if now >= time || time.seconds > now.seconds + 2 {
            return Ok(());
        }
        go_on(cancel)?;
        thread::sleep(Duration::from_millis(2));
    }
}
