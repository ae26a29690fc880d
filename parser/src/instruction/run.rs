//! RUN.

use super::Reader;
use crate::ast::{CommandLine, Run, Word};
use crate::diagnostic::Diagnostic;
use crate::flags::Flags;
use crate::grammar;

impl Reader<'_> {
    pub(super) fn run(&mut self, rest: &str, flags: &Flags) -> Option<Run> {
        let network = flags.one("network");
        self.one_of(network.as_ref(), "network mode", &["default", "none", "host"]);
        let security = flags.one("security");
        self.one_of(security.as_ref(), "security mode", &["sandbox", "insecure"]);
        let heredocs = std::mem::take(&mut self.heredocs);
        let only_heredoc = !heredocs.is_empty() && grammar::heredoc_marker(rest).is_some();
        let command = match only_heredoc {
            true => CommandLine::Shell(String::new()),
            false => self.command_line(rest)?,
        };
        let (mounts, devices) = (flags.many("mount"), flags.many("device"));
        Some(Run { command, heredocs, mounts, network, security, devices })
    }

    fn one_of(&mut self, word: Option<&Word>, what: &str, allowed: &[&str]) {
        let Some(word) = word.filter(|word| !allowed.contains(&word.value.as_str())) else { return };
        let error = Diagnostic::error(word.span, format!("invalid {what} {:?}", word.value));
        self.diagnostics.push(error.hint(format!("it may be {}", allowed.join(", "))));
    }
}
