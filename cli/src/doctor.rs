//! `layerwright doctor`: what this machine allows, found out by doing it, and the one setting that would lift each
//! limit.

use std::{fmt::Write, io, path::Path};

use executor::sandbox::{CHROOT, Footing, Outcome, Probe, Rung, probe};

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
    let executor::sandbox::Findings { probes, footing } = probe(store);
    let verdict = verdict(footing, works(&probes, CHROOT));
    Findings { text: format!("{}\n{verdict}\n", table(&probes, line_width())), can_run: footing.is_some() }
}

/// What it comes to, with what a build says it stands on.
fn verdict(footing: Option<Footing>, chroot_works: bool) -> String {
    match footing {
        Some(footing) if footing.rung == Rung::SingleId => {
            format!("limited: RUN steps work, with one user id: they cannot change owners ({footing})")
        }
        Some(footing) => format!("ok: RUN steps work ({footing})"),
        None if chroot_works => "no: RUN steps work with --sandbox=chroot alone".to_owned(),
        None => "no: RUN steps cannot work here".to_owned(),
    }
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
    use executor::sandbox::{Files, Processes};
    use solver::op::Relaxations;

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
    fn the_verdict_says_what_a_build_stands_on() {
        let footing = |rung, files| {
            Some(Footing { rung, processes: Processes::Own, files, relaxed: Relaxations::default() })
        };
        assert_eq!(verdict(footing(Rung::Root, Files::Merged), false), "ok: RUN steps work (root)");
        let copied = verdict(footing(Rung::Root, Files::Copied), false);
        assert_eq!(copied, "ok: RUN steps work (root, with copies for overlays)");
        let limited = verdict(footing(Rung::SingleId, Files::Fused), false);
        assert!(
            limited.starts_with("limited: ") && limited.ends_with("with one id, with fuse-overlayfs)"),
            "{limited}"
        );
        assert!(verdict(None, true).contains("--sandbox=chroot") && verdict(None, false).starts_with("no: "));
    }
}
