//! The instructions that change the image's config and no file.

use oci::config;
use parser::ast::{ArgDeclaration, CommandLine, Healthcheck, InstructionKind, KeyValues, Word};
use parser::word;

use super::{
    OutlineArg, PlanError, lint, ports,
    stage::{Declared, Walk},
    survey::Task,
    variables,
    wording::{self, list, quoted_list},
};

/// What the shell form is given to where SHELL says nothing.
const DEFAULT_SHELL: [&str; 2] = ["/bin/sh", "-c"];

impl Walk<'_, '_> {
    pub(super) fn setting(&mut self, task: &Task) -> Result<(), PlanError> {
        match &task.instruction.kind {
            InstructionKind::Arg(declarations) => self.arg(task, declarations)?,
            InstructionKind::Env(pairs) => self.env(task, pairs)?,
            InstructionKind::Label(pairs) => self.label(task, pairs)?,
            InstructionKind::Expose(words) => self.expose(task, words)?,
            InstructionKind::Volume(words) => self.volume(task, words)?,
            InstructionKind::User(user) => self.user(task, user)?,
            InstructionKind::Stopsignal(signal) => self.stop_signal(task, signal)?,
            InstructionKind::Healthcheck(check) => self.healthcheck(check),
            InstructionKind::Cmd(command) => self.cmd(task, command),
            InstructionKind::Entrypoint(command) => self.entrypoint(task, command),
            InstructionKind::Shell(shell) => self.shell(shell),
            InstructionKind::Maintainer(author) => self.maintainer(author),
            InstructionKind::Onbuild { text, trigger: _ } => {
                self.state.config.config.on_build.push(text.value.clone());
            }
            InstructionKind::Add(_)
            | InstructionKind::Copy(_)
            | InstructionKind::Run(_)
            | InstructionKind::Workdir(_) => unreachable!("these are steps"),
        }
        Ok(())
    }

    fn arg(&mut self, task: &Task, declarations: &[ArgDeclaration]) -> Result<(), PlanError> {
        let mut committed = Vec::new();
        for ArgDeclaration { name, default, comment } in declarations {
            let name = &name.value;
            let given = self.planner.options.build_args.get(name).cloned();
            let value = match (given, default) {
                (Some(given), _) => Some(given),
                (None, Some(default)) => Some(self.expand(task, default)?),
                (None, None) => self.globals.get(name).map(str::to_owned),
            };
            let shown = value.as_deref().filter(|value| variables::is_proxy_with_password(name, value));
            if shown.is_some() {
                self.planner.report.push(lint::proxy_in_history(task.span(), name));
            }
            committed.push(match &value {
                Some(value) => format!("{name}={value}"),
                None => name.clone(),
            });
            if let Some(value) = value.as_ref().filter(|_| !variables::is_for_the_builder(name)) {
                self.state.environment.set(name, value);
            }
            if variables::is_of_target(name) {
                self.labels.know(self.target);
            }
            let is_given = self.planner.options.build_args.contains_key(name);
            let inherits = default.is_none() && !is_given && self.globals.get(name).is_some();
            let own = || OutlineArg {
                name: name.clone(),
                description: comment.clone(),
                value: value.clone(),
                span: task.span(),
            };
            self.state.declared.push(Declared { name: name.clone(), own: (!inherits).then(own) });
            self.state.arguments.push((name.clone(), value));
        }
        self.commit(format!("ARG {}", committed.join(" ")), false);
        Ok(())
    }

    /// Keys and values, all expanded with what was set before the instruction.
    fn pairs(&mut self, task: &Task, pairs: &KeyValues) -> Result<Vec<(String, String)>, PlanError> {
        let expand = |(key, value): &(Word, Word)| Ok((self.expand(task, key)?, self.expand(task, value)?));
        pairs.pairs.iter().map(expand).collect()
    }

    fn env(&mut self, task: &Task, pairs: &KeyValues) -> Result<(), PlanError> {
        let pairs = self.pairs(task, pairs)?;
        for (name, value) in &pairs {
            self.state.environment.set(name, value);
            let variable = format!("{name}={value}");
            self.state.set_in_config(name, variable);
        }
        self.commit(format!("ENV {}", joined(&pairs)), false);
        Ok(())
    }

    fn label(&mut self, task: &Task, pairs: &KeyValues) -> Result<(), PlanError> {
        let pairs = self.pairs(task, pairs)?;
        self.commit(format!("LABEL {}", joined(&pairs)), false);
        self.state.config.config.labels.extend(pairs);
        Ok(())
    }

    fn expose(&mut self, task: &Task, words: &[Word]) -> Result<(), PlanError> {
        let escape = self.planner.dockerfile.directives.escape;
        let mut exposed = Vec::new();
        for written in words {
            let lookup = |name: &str| self.state.environment.get(name).map(str::to_owned);
            let expanded = word::expand_to_words(&written.value, escape, &lookup)
                .map_err(|error| self.mistake(task, written.span, error.to_string()))?;
            for port in expanded {
                if written.value.contains('$') {
                    self.planner.report.extend(parser::lint::port(task.place(written.span), &port));
                }
                exposed.extend(ports::parse(&port).map_err(|error| self.mistake(task, written.span, error))?);
            }
        }
        self.commit(format!("EXPOSE {}", list(&exposed)), false);
        self.state.config.config.exposed_ports.extend(exposed);
        Ok(())
    }

    fn volume(&mut self, task: &Task, words: &[Word]) -> Result<(), PlanError> {
        let mut volumes = Vec::new();
        for written in words {
            let path = self.expand(task, written)?;
            if path.is_empty() {
                return Err(self.mistake(task, written.span, "VOLUME specified can not be an empty string"));
            }
            volumes.push(path);
        }
        self.commit(format!("VOLUME {}", list(&volumes)), false);
        self.state.config.config.volumes.extend(volumes);
        Ok(())
    }

    fn user(&mut self, task: &Task, user: &Word) -> Result<(), PlanError> {
        let user = self.expand(task, user)?;
        self.commit(format!("USER {user}"), false);
        self.state.config.config.user = user;
        Ok(())
    }

    fn stop_signal(&mut self, task: &Task, written: &Word) -> Result<(), PlanError> {
        let signal = self.expand(task, written)?;
        if !is_signal(&signal) {
            return Err(self.mistake(task, written.span, format!("invalid signal: {signal}")));
        }
        self.commit(format!("STOPSIGNAL {signal}"), false);
        self.state.config.config.stop_signal = signal;
        Ok(())
    }

    fn healthcheck(&mut self, check: &Healthcheck) {
        let health = match check {
            Healthcheck::None => config::Healthcheck { test: vec!["NONE".to_owned()], ..Default::default() },
            Healthcheck::Check { command, interval, timeout, start_period, start_interval, retries } => {
                let test = match command {
                    CommandLine::Shell(line) => vec!["CMD-SHELL".to_owned(), line.clone()],
                    CommandLine::Exec(args) => [vec!["CMD".to_owned()], args.clone()].concat(),
                };
                config::Healthcheck {
                    test,
                    interval: *interval,
                    timeout: *timeout,
                    start_period: *start_period,
                    start_interval: *start_interval,
                    retries: *retries,
                }
            }
        };
        let [interval, timeout, start_period, start_interval] =
            [health.interval, health.timeout, health.start_period, health.start_interval]
                .map(wording::duration);
        let times = format!("Interval:{interval} Timeout:{timeout} StartPeriod:{start_period}");
        let rest = format!("StartInterval:{start_interval} Retries:{}", health.retries);
        self.commit(format!("HEALTHCHECK {{Test:{} {times} {rest}}}", list(&health.test)), false);
        self.state.config.config.healthcheck = Some(health);
    }

    fn cmd(&mut self, task: &Task, command: &CommandLine) {
        self.recommend_json(task, command);
        let args = self.with_shell(command);
        self.commit(format!("CMD {}", quoted_list(&args)), false);
        self.state.config.config.cmd = some_if_any(args);
        self.state.config.config.args_escaped = true;
        self.command_is_set = true;
    }

    /// A CMD of the base was made for the base's entrypoint and goes with it.
    fn entrypoint(&mut self, task: &Task, command: &CommandLine) {
        self.recommend_json(task, command);
        let args = self.with_shell(command);
        self.commit(format!("ENTRYPOINT {}", quoted_list(&args)), false);
        self.state.config.config.entrypoint = some_if_any(args);
        if !self.command_is_set {
            self.state.config.config.cmd = None;
        }
    }

    fn shell(&mut self, shell: &[String]) {
        self.commit(format!("SHELL {}", list(shell)), false);
        self.state.config.config.shell = some_if_any(shell.to_vec());
    }

    fn maintainer(&mut self, author: &Word) {
        self.commit(format!("MAINTAINER {}", author.value), false);
        self.state.config.author.clone_from(&author.value);
    }

    /// Whoever sets a shell, in the stage or its base, has chosen to have one.
    fn recommend_json(&mut self, task: &Task, command: &CommandLine) {
        if matches!(command, CommandLine::Shell(_)) && self.state.config.config.shell.is_none() {
            self.planner.report.push(lint::json_args_recommended(task.span(), &task.instruction.text));
        }
    }

    fn with_shell(&self, command: &CommandLine) -> Vec<String> {
        match command {
            CommandLine::Exec(args) => args.clone(),
            CommandLine::Shell(line) => self.in_shell(line),
        }
    }

    /// A line for the shell of the stage.
    pub(super) fn in_shell(&self, line: &str) -> Vec<String> {
        let shell = self.state.config.config.shell.as_deref().filter(|shell| !shell.is_empty());
        let mut args = shell.map_or_else(|| DEFAULT_SHELL.map(str::to_owned).to_vec(), <[String]>::to_vec);
        args.push(line.to_owned());
        args
    }
}

/// An empty list is how a Dockerfile unsets a command.
fn some_if_any(args: Vec<String>) -> Option<Vec<String>> {
    Some(args).filter(|args| !args.is_empty())
}

fn joined(pairs: &[(String, String)]) -> String {
    pairs.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
}

/// Whether a text names a signal of Linux: a number, or a name with or without `SIG`, in any case.
fn is_signal(text: &str) -> bool {
    const NAMES: [&str; 36] = [
        "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL",
        "PIPE", "POLL", "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP",
        "TTIN", "TTOU", "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ", "RTMIN", "RTMAX",
    ];
    // Docker asks no more of a number than that it is not zero; what it means is the runtime's to say.
    if let Ok(number) = text.parse::<i64>() {
        return number != 0;
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let real_time = |from: &str, sign: char, most: u32| {
        let offset = name.strip_prefix(from).and_then(|rest| rest.strip_prefix(sign));
        offset.and_then(|offset| offset.parse().ok()).is_some_and(|offset| (1..=most).contains(&offset))
    };
    NAMES.contains(&name) || real_time("RTMIN", '+', 15) || real_time("RTMAX", '-', 14)
}

#[cfg(test)]
mod tests {
    use super::is_signal;

    #[test]
    fn signals_have_numbers_and_names() {
        for signal in ["9", "65", "-1", "SIGTERM", "term", "SIGRTMIN+3", "rtmax-14"] {
            assert!(is_signal(signal), "{signal}");
        }
        for signal in ["", "0", "SIGFOO", "RTMIN+16", "9x", "SIG"] {
            assert!(!is_signal(signal), "{signal}");
        }
    }
}
