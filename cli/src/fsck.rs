//! `layerwright fsck`: verifies a store, and with `--repair` takes what is damaged out of the way.
//!
//! Findings are data and go to standard output, one line each; how far it is goes to standard error, where somebody
//! waits for it there.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal, Write as _},
    path::{Path, PathBuf},
    sync::Mutex,
    time::{Duration, Instant},
};

use executor::{
    fsck::{self, Finding, Outcome, Progress, Repair, Report},
    sandbox,
};
use oci::store::{Store, StoreError};
use serde::Serialize;

use crate::{
    args::FsckArgs,
    call::pretty,
    failure::{self, Failure},
    progress::bytes,
    request::{self, Environment},
    spec::call::Format,
};

/// Something was found; with `--repair` all of it is out of the way.
const FOUND: u8 = 1;
/// Hexadecimal digits of a digest, and how many of them people are shown.
const DIGEST: usize = 64;
const DIGEST_SHOWN: usize = 12;
/// How often a terminal is told how far it is.
const TICK: Duration = Duration::from_millis(100);
/// How often anybody else is, and when first.
const SLOW_TICK: Duration = Duration::from_secs(5);

/// What to print, and the exit code.
pub struct Answer {
    /// For standard output.
    pub text: String,
    /// 0 without findings, 1 with some, 4 with some that could not be repaired.
    pub exit_code: u8,
}

/// Checks a store. To be called while the process has one thread: the files of the store may belong to ids that only
/// the builder's user namespace has.
///
/// # Errors
/// There is no store, it cannot be opened, or something in it cannot be looked at.
pub fn run(args: FsckArgs) -> Result<Answer, Failure> {
    let root = request::store_root(args.root, &Environment::of_process())?;
    if !request::has_store(&root)? {
        return Err(Failure::NoStore { root });
    }
    sandbox::enter_for_store(request::mode_of_store(&root), &root)?;
    let repair = if args.repair { Repair::Remove } else { Repair::Nothing };
    let (store, unmarked) = match (Store::open(&root), repair) {
        (Err(error @ StoreError::Unmarked { .. }), Repair::Remove) => {
            Store::claim_again(&root)?;
            (Store::open(&root)?, Some(marked_again(&error)))
        }
        (opened, _) => (opened?, None),
    };
    let ticker = Ticker::new();
    let report = fsck::check(&store, repair, &|progress| ticker.tell(progress));
    ticker.end();
    let mut report = report?;
    report.findings.splice(..0, unmarked);
    let text = match args.format {
        Format::Text => told(&report, &root, repair),
        Format::Json => pretty(&Told::of(&report, &root)),
    };
    Ok(Answer { text, exit_code: exit_code(&report.findings) })
}

fn marked_again(error: &StoreError) -> Finding {
    let follows = "it was written anew, and the store is yours again";
    Finding { path: "format".into(), what: error.to_string(), follows, outcome: Outcome::Repaired }
}

fn exit_code(findings: &[Finding]) -> u8 {
    let is_left = |finding: &Finding| matches!(finding.outcome, Outcome::InUse | Outcome::Failed(_));
    match findings {
        [] => 0,
        findings if findings.iter().any(is_left) => failure::MACHINE,
        _ => FOUND,
    }
}

fn told(report: &Report, root: &Path, repair: Repair) -> String {
    let mut text = String::new();
    let count = |is: fn(&Outcome) -> bool| report.findings.iter().filter(|found| is(&found.outcome)).count();
    for Finding { path, what, follows, outcome } in &report.findings {
        let outcome = match outcome {
            Outcome::Found => follows.to_string(),
            Outcome::Repaired => format!("removed; {follows}"),
            Outcome::InUse => "not removed: a running build uses it".to_owned(),
            Outcome::Failed(why) => format!("not removed: {why}"),
        };
        let line = failure::harmless(&format!("{}: {what} ({outcome})", path.display()));
        let line = shortened(&line);
        writeln!(text, "{line}").expect("in memory");
    }
    let looked = format!("{} in {}", things(report.things, report.bytes), root.display());
    let found = report.findings.len();
    let (removed, in_use) =
        (count(|outcome| *outcome == Outcome::Repaired), count(|outcome| *outcome == Outcome::InUse));
    let summary = match (found, repair) {
        (0, _) => format!("{looked}: no damage found"),
        (_, Repair::Nothing) => format!("{looked}: {found} damaged; layerwright fsck --repair removes them"),
        (_, Repair::Remove) if removed == found => {
            format!("{looked}: {found} damaged, all removed; builds make again what they need")
        }
        (_, Repair::Remove) if in_use > 0 => format!(
            "{looked}: {found} damaged, {removed} removed; {in_use} are in use by running builds: run this again when \
             they have ended"
        ),
        (_, Repair::Remove) => format!("{looked}: {found} damaged, {removed} removed"),
    };
    text + &summary + "\n"
}

/// The text with digests cut to what tells them from each other; JSON has all of them.
fn shortened(text: &str) -> String {
    let mut short = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| c.is_ascii_hexdigit()) {
        let digits = rest[at..].find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(rest.len() - at);
        let kept = if digits >= DIGEST { DIGEST_SHOWN } else { digits };
        short += &rest[..at + kept];
        rest = &rest[at + digits..];
    }
    short + rest
}

fn things(count: u64, size: u64) -> String {
    format!("{count} things, {}", bytes(size))
}

/// A report in JSON.
#[derive(Serialize)]
struct Told<'a> {
    root: &'a Path,
    things: u64,
    bytes: u64,
    findings: Vec<ToldFinding<'a>>,
}

#[derive(Serialize)]
struct ToldFinding<'a> {
    path: &'a PathBuf,
    what: &'a str,
    follows: &'a str,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

impl<'a> Told<'a> {
    fn of(report: &'a Report, root: &'a Path) -> Self {
        let told = |finding: &'a Finding| {
            let (outcome, reason) = match &finding.outcome {
                Outcome::Found => ("found", None),
                Outcome::Repaired => ("removed", None),
                Outcome::InUse => ("in use", None),
                Outcome::Failed(why) => ("failed", Some(why.as_str())),
            };
            ToldFinding {
                path: &finding.path,
                what: &finding.what,
                follows: finding.follows,
                outcome,
                reason,
            }
        };
        Self {
            root,
            things: report.things,
            bytes: report.bytes,
            findings: report.findings.iter().map(told).collect(),
        }
    }
}

/// Says on standard error how far the check is: on a terminal on one line that changes, else every few seconds.
struct Ticker {
    is_terminal: bool,
    next: Mutex<Instant>,
}

impl Ticker {
    fn new() -> Self {
        let is_terminal = io::stderr().is_terminal();
        let first = if is_terminal { TICK } else { SLOW_TICK };
        Self { is_terminal, next: Mutex::new(Instant::now() + first) }
    }

    fn tell(&self, progress: Progress) {
        // Who finds it taken has nothing to add.
        let Ok(mut next) = self.next.try_lock() else { return };
        if Instant::now() < *next {
            return;
        }
        let Progress { area, things, bytes } = progress;
        let line = format!("checking {area}: {}", self::things(things, bytes));
        let _ = match self.is_terminal {
            true => write!(io::stderr(), "\r{line}\x1b[K"),
            false => writeln!(io::stderr(), "{line}"),
        };
        *next = Instant::now() + if self.is_terminal { TICK } else { SLOW_TICK };
    }

    fn end(&self) {
        if self.is_terminal {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(outcome: Outcome) -> Finding {
        let path = PathBuf::from("trees/00");
        Finding { path, what: "damaged tree file at byte 0".into(), follows: "the step runs again", outcome }
    }

    fn report(outcomes: &[Outcome]) -> Report {
        let findings = outcomes.iter().cloned().map(finding).collect();
        Report { findings, things: 12, bytes: 3_400_000 }
    }

    #[test]
    fn the_exit_code_and_the_summary_say_what_is_left_to_do() {
        use Outcome::{Failed, Found, InUse, Repaired};
        for (outcomes, repair, code, summary) in [
            (vec![], Repair::Remove, 0, "no damage found"),
            (vec![Found, Found], Repair::Nothing, 1, "2 damaged; layerwright fsck --repair removes them"),
            (vec![Repaired], Repair::Remove, 1, "1 damaged, all removed; builds make again what they need"),
            (
                vec![Repaired, InUse],
                Repair::Remove,
                4,
                "1 are in use by running builds: run this again when they have ended",
            ),
            (vec![Failed("no".into())], Repair::Remove, 4, "1 damaged, 0 removed"),
        ] {
            let report = report(&outcomes);
            assert_eq!(exit_code(&report.findings), code, "{outcomes:?}");
            let text = told(&report, Path::new("/store"), repair);
            let last = text.lines().last().expect("a summary");
            assert!(last.starts_with("12 things, 3.40MB in /store: ") && last.ends_with(summary), "{last}");
            assert_eq!(text.lines().count(), outcomes.len() + 1);
        }
    }

    #[test]
    fn digests_are_cut_and_nothing_else_is() {
        let digest = "0123456789abcdef".repeat(4);
        for (text, want) in [
            (format!("trees/{digest}"), "trees/0123456789ab"),
            (
                format!("x/{digest}.json: blake3:{digest} (gone)"),
                "x/0123456789ab.json: blake3:0123456789ab (gone)",
            ),
            ("mounts/deadbeef: é 12".to_owned(), "mounts/deadbeef: é 12"),
            (String::new(), ""),
        ] {
            assert_eq!(shortened(&text), want);
        }
    }

    #[test]
    fn a_line_says_where_what_and_what_follows() {
        let text = told(&report(&[Outcome::Repaired]), Path::new("/store"), Repair::Remove);
        let first = text.lines().next();
        let wanted = "trees/00: damaged tree file at byte 0 (removed; the step runs again)";
        assert_eq!(first, Some(wanted));
    }
}
