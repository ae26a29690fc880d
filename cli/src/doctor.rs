//! `layerwright doctor`: what this machine allows, found out by doing it, and the one setting that would lift each
//! limit.

use std::fmt::Write;

use executor::sandbox::{Outcome, Probe};

/// The probes as a table.
pub fn table(probes: &[Probe]) -> String {
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
}
