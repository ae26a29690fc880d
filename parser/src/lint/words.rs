//! Rules about what a single instruction says.

use super::{Findings, Inherited};
use crate::ast::{Instruction, InstructionKind, KeyValues, Span, Word};
use crate::diagnostic::Diagnostic;

/// Parts of names that tell of a secret.
const SECRET: [&str; 10] =
    ["apikey", "auth", "credential", "credentials", "key", "password", "pword", "passwd", "secret", "token"];

/// Parts of names that say it is none after all.
const NO_SECRET: [&str; 3] = ["public", "file", "version"];

pub(super) fn check(instruction: &Instruction, keyword: &str, so_far: Inherited, findings: &mut Findings) {
    match &instruction.kind {
        InstructionKind::Arg(declarations) => {
            declarations.iter().for_each(|declaration| secret("ARG", &declaration.name, findings));
        }
        InstructionKind::Env(values) => {
            legacy(values, keyword, instruction, findings);
            values.pairs.iter().for_each(|(key, _)| secret("ENV", key, findings));
        }
        InstructionKind::Label(values) => legacy(values, keyword, instruction, findings),
        InstructionKind::Expose(ports) => ports.iter().for_each(|port| expose(port, findings)),
        InstructionKind::Maintainer(_) => {
            let message = "Maintainer instruction is deprecated in favor of using label";
            findings.report("MaintainerDeprecated", instruction.span, message);
        }
        InstructionKind::Workdir(path) if !so_far.workdir => workdir(path, findings),
        _ => {}
    }
}

fn legacy(values: &KeyValues, keyword: &str, instruction: &Instruction, findings: &mut Findings) {
    if values.legacy {
        let message =
            format!(r#""{keyword} key=value" should be used instead of legacy "{keyword} key value" format"#);
        findings.report("LegacyKeyValueFormat", instruction.span, message);
    }
}

fn secret(instruction: &str, name: &Word, findings: &mut Findings) {
    if holds(&name.value, &SECRET) && !holds(&name.value, &NO_SECRET) {
        let message =
            format!("Do not use ARG or ENV instructions for sensitive data ({instruction} {:?})", name.value);
        findings.report("SecretsUsedInArgOrEnv", name.span, message);
    }
}

/// Whether one of `words` stands in `name` between underscores or its ends.
fn holds(name: &str, words: &[&str]) -> bool {
    name.to_ascii_lowercase().split('_').any(|part| words.contains(&part))
}

fn expose(written: &Word, findings: &mut Findings) {
    if !written.value.contains('$') {
        findings.found.extend(port(written.span, &written.value));
    }
}

/// `ExposeProtoCasing` and `ExposeInvalidFormat` of one port of EXPOSE, once its variables are replaced.
pub fn port(span: Span, port: &str) -> Vec<Diagnostic> {
    let (ports, protocol) = port.split_once('/').unwrap_or((port, ""));
    let mut found = Vec::new();
    if protocol != protocol.to_ascii_lowercase() {
        let message = format!("Defined protocol '{port}' in EXPOSE instruction should be lowercase");
        found.push(Diagnostic::warning("ExposeProtoCasing", span, message));
    }
    if ports.contains(':') {
        let message = format!(
            "EXPOSE instruction should not define an IP address or host-port mapping, found '{port}'"
        );
        found.push(Diagnostic::warning("ExposeInvalidFormat", span, message));
    }
    found
}

fn workdir(path: &Word, findings: &mut Findings) {
    let plain = path.value.trim_start_matches(['"', '\'']);
    if plain.starts_with(['/', '$']) {
        return;
    }
    let message =
        format!("Relative workdir {:?} can have unexpected results if the base image changes", path.value);
    findings.report("WorkdirRelativePath", path.span, message);
}
