//! `layerwright doctor`: what this machine allows, found out by doing it, and the one setting that would lift each
//! limit.

use std::{
    fmt::Write,
    path::{Path, PathBuf},
};

use executor::sandbox::{Outcome, Probe, Rung, probe};

/// What `doctor` has found.
pub struct Findings {
    /// The table, and what it comes to.
    pub text: String,
    /// Whether RUN steps can work here.
    pub can_run: bool,
}

/// Tries everything for a store in this directory, which need not exist yet.
pub fn examine(store: &Path) -> Findings {
    let probes = probe(&existing(store));
    let best = best_rung(&probes);
    let verdict = match best {
        Some(Rung::SingleId) => {
            "limited: RUN steps work, with one user id: they cannot change owners".to_owned()
        }
        Some(rung) => format!("ok: RUN steps work ({rung})"),
        None => "no: RUN steps cannot work here".to_owned(),
    };
    Findings { text: format!("{}\n{verdict}\n", table(&probes)), can_run: best.is_some() }
}

/// The directory, or the nearest one above that is there: the same file system, as a rule.
fn existing(directory: &Path) -> PathBuf {
    directory.ancestors().find(|directory| directory.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

/// The rung a build would take.
fn best_rung(probes: &[Probe]) -> Option<Rung> {
    let works = |rung: &Rung| {
        let name = rung.to_string();
        probes.iter().any(|probe| probe.name == name && matches!(probe.outcome, Outcome::Works(_)))
    };
    [Rung::Root, Rung::SubordinateIds, Rung::SingleId].into_iter().find(works)
}

/// The probes as a table.
fn table(probes: &[Probe]) -> String {
    let width = probes.iter().map(|probe| probe.name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for Probe { name, outcome } in probes {
        let (mark, detail) = match outcome {
            Outcome::Works(detail) => ("ok", detail),
            Outcome::Fails { reason, .. } => ("no", reason),
        };
        let _ = writeln!(text, "{}", format!("{mark:<4}{name:<width$}  {detail}").trim_end());
        if let Outcome::Fails { remedy: Some(remedy), .. } = outcome {
            let _ = writeln!(text, "{:4}{:width$}  to lift it: {remedy}", "", "");
        }
    }
    text
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
        assert_eq!(table(&probes), want);
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
