//! The lint rules that need neither an image nor the values of variables, by BuildKit's names and with its messages.
//!
//! A word that holds a variable says nothing here: rules that would need its value keep silent about it. What
//! `# check=` asks for is [`Checks`], which also whoever knows the values (the planner) has to ask.

mod checks;
mod rules;
mod stages;
mod words;

pub use checks::Checks;
pub use rules::{RULES, Rule, Scope, rule};
pub use words::port;

use crate::ast::{Dockerfile, Instruction, InstructionKind, Span, Stage};
use crate::diagnostic::Diagnostic;

/// Adds what the rules find to `known`, and leaves out what the Dockerfile asks to skip.
pub(crate) fn run(dockerfile: &Dockerfile, text: &str, known: Vec<Diagnostic>) -> Vec<Diagnostic> {
    let checks = match Checks::read(&dockerfile.directives) {
        Ok(checks) => checks,
        Err(error) => return vec![error],
    };
    let mut findings = Findings { found: known };
    stages::casing(dockerfile, &mut findings);
    stages::names(dockerfile, text, &mut findings);
    stages::platforms(dockerfile, &mut findings);
    let history = stages::history(dockerfile);
    for (stage, inherited) in dockerfile.stages.iter().zip(history) {
        instructions(stage, inherited, &mut findings);
    }
    let mut found = findings.found;
    found.retain(|finding| checks.allow(finding));
    found
}

struct Findings {
    found: Vec<Diagnostic>,
}

impl Findings {
    fn report(&mut self, rule: &'static str, span: Span, message: impl Into<String>) {
        self.found.push(Diagnostic::warning(rule, span, message));
    }
}

/// What a stage, or the stages it is built on, have set so far.
#[derive(Debug, Clone, Copy, Default)]
struct Inherited {
    workdir: bool,
}

impl Inherited {
    fn after(mut self, instruction: &Instruction) -> Inherited {
        self.workdir |= matches!(instruction.kind, InstructionKind::Workdir(_));
        self
    }
}

fn instructions(stage: &Stage, inherited: Inherited, findings: &mut Findings) {
    let mut so_far = inherited;
    let mut last = LastOfKind::default();
    for instruction in &stage.instructions {
        let keyword = keyword(&instruction.text);
        words::check(instruction, keyword, so_far, findings);
        last.check(instruction, keyword, findings);
        so_far = so_far.after(instruction);
    }
}

/// Where the instructions stand of which only the last one in a stage counts.
#[derive(Default)]
struct LastOfKind {
    cmd: Option<Span>,
    entrypoint: Option<Span>,
    healthcheck: Option<Span>,
}

impl LastOfKind {
    fn check(&mut self, instruction: &Instruction, keyword: &str, findings: &mut Findings) {
        let last = match instruction.kind {
            InstructionKind::Cmd(_) => &mut self.cmd,
            InstructionKind::Entrypoint(_) => &mut self.entrypoint,
            InstructionKind::Healthcheck(_) => &mut self.healthcheck,
            _ => return,
        };
        // The earlier one is reported: it is the one without effect.
        let Some(ignored) = last.replace(instruction.span) else { return };
        let message = format!(
            "Multiple {keyword} instructions should not be used in the same stage because only the last one will \
             be used"
        );
        findings.report("MultipleInstructionsDisallowed", ignored, message);
    }
}

/// An instruction's keyword, as written.
fn keyword(text: &str) -> &str {
    text.split_whitespace().next().unwrap_or_default()
}

#[cfg(test)]
mod tests;
