//! HEALTHCHECK.

use super::Reader;
use crate::ast::{CommandLine, Healthcheck};
use crate::diagnostic::Diagnostic;
use crate::duration;
use crate::flags::Flags;
use crate::grammar::Flag;

/// Docker's shortest time, in nanoseconds.
const MIN_INTERVAL: i64 = 1_000_000;

impl Reader<'_> {
    /// BuildKit does not even look at the options of `HEALTHCHECK NONE`; here they are told to do nothing.
    pub(super) fn options_of_none(&mut self, flags: &[Flag<'_>]) -> Flags {
        for flag in flags {
            let message = format!("--{} has no effect: HEALTHCHECK NONE has no options", flag.name);
            let span = self.line.span_of_part(flag.source);
            self.diagnostics.push(Diagnostic { span, ..Diagnostic::notice(message) });
        }
        Flags::default()
    }

    pub(super) fn healthcheck(&mut self, rest: &str, flags: &Flags) -> Option<Healthcheck> {
        let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
        let (kind, command) = (&rest[..end], rest[end..].trim_start());
        match kind.to_ascii_uppercase().as_str() {
            "" => self.refuse("HEALTHCHECK requires at least one argument"),
            "NONE" if command.is_empty() => Some(Healthcheck::None),
            "NONE" => self.refuse_at(command, "HEALTHCHECK NONE takes no arguments"),
            "CMD" => self.check(command, flags),
            upper => self.refuse_at(kind, format!("Unknown type {upper:?} in HEALTHCHECK (try CMD)")),
        }
    }

    fn check(&mut self, command: &str, flags: &Flags) -> Option<Healthcheck> {
        let interval = self.interval(flags, "interval");
        let timeout = self.interval(flags, "timeout");
        let start_period = self.interval(flags, "start-period");
        let start_interval = self.interval(flags, "start-interval");
        let retries = self.retries(flags);
        let is_empty = |command: &CommandLine| match command {
            CommandLine::Exec(words) => words.is_empty(),
            CommandLine::Shell(text) => text.is_empty(),
        };
        let command = self.command_line(command)?;
        if is_empty(&command) {
            return self.refuse("Missing command after HEALTHCHECK CMD");
        }
        Some(Healthcheck::Check { command, interval, timeout, start_period, start_interval, retries })
    }

    /// Nanoseconds; 0 where not given, or wrong and reported.
    fn interval(&mut self, flags: &Flags, name: &str) -> i64 {
        let Some(word) = flags.one(name) else { return 0 };
        let parsed = duration::parse(&word.value).and_then(|nanoseconds| match nanoseconds {
            0 | MIN_INTERVAL.. => Ok(nanoseconds),
            _ => Err(format!("Interval {name:?} cannot be less than 1ms")),
        });
        parsed.unwrap_or_else(|message| {
            self.diagnostics.push(Diagnostic::error(word.span, message));
            0
        })
    }

    fn retries(&mut self, flags: &Flags) -> i64 {
        let Some(word) = flags.one("retries") else { return 0 };
        let message = match word.value.parse::<i32>() {
            Ok(retries @ 0..) => return retries.into(),
            Ok(retries) => format!("--retries cannot be negative ({retries})"),
            Err(_) => format!("--retries is not a number: {:?}", word.value),
        };
        self.diagnostics.push(Diagnostic::error(word.span, message));
        0
    }
}
