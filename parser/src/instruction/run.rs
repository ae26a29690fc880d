//! RUN.

use super::Reader;
use crate::ast::{CommandLine, Run, Word};
use crate::diagnostic::Diagnostic;
use crate::flags::Flags;
use crate::mount::{self, MountError};
use crate::{go, grammar, suggest};

impl Reader<'_> {
    pub(super) fn run(&mut self, rest: &str, flags: &Flags) -> Option<Run> {
        let network = flags.one("network");
        self.one_of(network.as_ref(), &["default", "none", "host"], |mode| {
            format!("invalid network mode {mode}")
        });
        let security = flags.one("security");
        let invalid = |mode: String| format!("security {mode} is not valid");
        self.one_of(security.as_ref(), &["sandbox", "insecure"], invalid);
        for written in flags.many("mount") {
            if let Err(MountError { message, hint }) = check_mount(&written.value) {
                self.diagnostics.push(Diagnostic { hint, ..Diagnostic::error(written.span, message) });
            }
        }
        let heredocs = std::mem::take(&mut self.heredocs);
        let only_heredoc = !heredocs.is_empty() && grammar::heredoc_marker(rest).is_some();
        let command = match only_heredoc {
            true => CommandLine::Shell(String::new()),
            false => self.command_line(rest)?,
        };
        let (mounts, devices) = (flags.many("mount"), flags.many("device"));
        Some(Run { command, heredocs, mounts, network, security, devices })
    }

    fn one_of(&mut self, word: Option<&Word>, allowed: &[&str], message: impl Fn(String) -> String) {
        let Some(word) = word.filter(|word| !allowed.contains(&word.value.as_str())) else { return };
        let hint = match suggest::nearest(&word.value, allowed.iter().copied()) {
            Some(near) => format!("did you mean {near}?"),
            None => format!("it may be {}", allowed.join(", ")),
        };
        let error = Diagnostic::error(word.span, message(go::quote(&word.value)));
        self.diagnostics.push(error.hint(hint));
    }
}

/// What can be said of a mount before variables have values: all of it where there are none.
fn check_mount(written: &str) -> Result<(), MountError> {
    match written.contains(['$', '"', '\'', '\\', '`']) {
        true => mount::from(written).map(drop),
        false => mount::parse(written).map(drop),
    }
}
