//! `layerwright doctor`: what this machine allows, found out by doing it, and the one setting that would lift each
//! limit.

use std::{
    fmt::Write,
    io,
    path::{Path, PathBuf},
};

use executor::sandbox::{CHROOT, Outcome, Probe, Rung, probe};

/// What `doctor` has found.
pub struct Findings {
    /// The table, and what it comes to.
    pub text: String,
    /// Whether RUN steps can work here.
    pub can_run: bool,
}

/// What is left of a line at least, however narrow the terminal.
const LEAST: usize = 30;

/// Tries everything for a store in this directory, which need not exist yet.
pub fn examine(store: &Path) -> Findings {
    let probes = probe(&existing(store));
    let best = best_rung(&probes);
    let verdict = match best {
        Some(Rung::SingleId) => {
            "limited: RUN steps work, with one user id: they cannot change owners".to_owned()
        }
        Some(rung) => format!("ok: RUN steps work ({rung})"),
        None if works(&probes, CHROOT) => "no: RUN steps work with --sandbox=chroot alone".to_owned(),
        None => "no: RUN steps cannot work here".to_owned(),
    };
    Findings { text: format!("{}\n{verdict}\n", table(&probes, line_width())), can_run: best.is_some() }
}

/// The directory, or the nearest one above that is there: the same file system, as a rule.
fn existing(directory: &Path) -> PathBuf {
    directory.ancestors().find(|directory| directory.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

/// The rung a build would take.
fn best_rung(probes: &[Probe]) -> Option<Rung> {
    let works = |rung: &Rung| works(probes, &rung.to_string());
    [Rung::Root, Rung::SubordinateIds, Rung::SingleId].into_iter().find(works)
}

fn works(probes: &[Probe], name: &str) -> bool {
    probes.iter().any(|probe| probe.name == name && matches!(probe.outcome, Outcome::Works(_)))
}

/// The columns of the terminal on standard output; what goes elsewhere is not wrapped, for programs read it.
fn line_width() -> usize {
    match rustix::termios::tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_col > 0 => size.ws_col.into(),
        _ => usize::MAX,
    }
}

/// The probes as a table, in lines of this many columns.
fn table(probes: &[Probe], columns: usize) -> String {
    let width = probes.iter().map(|probe| probe.name.chars().count()).max().unwrap_or(0);
    let room = columns.saturating_sub(width + 6).max(LEAST);
    let mut text = String::new();
    for Probe { name, outcome } in probes {
        let (mark, detail) = match outcome {
            Outcome::Works(detail) => ("ok", detail),
            Outcome::Fails { reason, .. } => ("no", reason),
            Outcome::NotNeeded(reason) => ("-", reason),
        };
        let remedy = match outcome {
            Outcome::Fails { remedy: Some(remedy), .. } => wrapped(&format!("to lift it: {remedy}"), room),
            _ => Vec::new(),
        };
        let mut lines = wrapped(detail, room).into_iter().chain(remedy);
        let first = lines.next().unwrap_or_default();
        let _ = writeln!(text, "{}", format!("{mark:<4}{name:<width$}  {first}").trim_end());
        for line in lines {
            let _ = writeln!(text, "{:4}{:width$}  {line}", "", "");
        }
    }
    text
}

/// The words of a text in lines of at most `room` characters, unless one word is longer.
fn wrapped(text: &str, room: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is always one");
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= room {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_stands_beside_what_lifts_it() {
        let fails = |remedy: Option<&str>| Outcome::Fails {
            reason: "EPERM at unshare".to_owned(),
            remedy: remedy.map(str::to_owned),
        };
        let probes = [
            Probe { name: "overlay".to_owned(), outcome: Outcome::Works(String::new()) },
            Probe { name: "user namespaces".to_owned(), outcome: fails(Some("sysctl x=1")) },
            Probe { name: "cgroups".to_owned(), outcome: fails(None) },
        ];
        let want = "ok  overlay\nno  user namespaces  EPERM at unshare\n                     to lift it: sysctl x=1\n\
                    no  cgroups          EPERM at unshare\n";
        assert_eq!(table(&probes, 80), want);
        let narrow = table(
            &[Probe { name: "x".to_owned(), outcome: Outcome::NotNeeded("ten words or so ".repeat(3)) }],
            40,
        );
        assert_eq!(narrow, "-   x  ten words or so ten words or so\n       ten words or so\n");
    }

    #[test]
    fn the_best_rung_that_works_is_named() {
        let probe = |rung: Rung, works| Probe {
            name: rung.to_string(),
            outcome: match works {
                true => Outcome::Works(String::new()),
                false => Outcome::Fails { reason: String::new(), remedy: None },
            },
        };
        let probes =
            [probe(Rung::Root, false), probe(Rung::SubordinateIds, false), probe(Rung::SingleId, true)];
        assert_eq!(best_rung(&probes), Some(Rung::SingleId));
        assert_eq!(best_rung(&probes[..2]), None);
    }
}
