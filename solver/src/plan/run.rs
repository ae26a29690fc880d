//! RUN.

use parser::Diagnostic;
use parser::ast::{CommandLine, Heredoc, Run, Word};

use super::{Entitlement, PlanError, devices, mounts::Mounts, stage::Walk, survey::Task, unused, variables};
use crate::op::{Device, Exec, Network, Op, Script, Security, Timestamps};

/// What tools that honour it take for the time: 2000-01-01T00:00:00Z, as everything that a layer normalises.
const SOURCE_DATE_EPOCH: &str = "SOURCE_DATE_EPOCH";

impl Walk<'_, '_> {
    pub(super) fn run(&mut self, task: &Task, run: &Run) -> Result<(), PlanError> {
        let Run { command, heredocs, mounts, network, security, devices } = run;
        let devices = devices.iter().map(|device| self.device(task, device)).collect::<Result<_, _>>()?;
        let security = self.security(task, security.as_ref())?;
        let network = self.network(task, network.as_ref())?;
        let Mounts { mounts, inputs, .. } = self.mounts(task, mounts)?;
        let (args, script) = self.command(task, command, heredocs)?;
        let config = &self.state.config.config;
        let workdir = if config.working_dir.is_empty() { "/" } else { &config.working_dir };
        let exec = Exec {
            args: args.clone(),
            env: self.environment_of_run(),
            user: config.user.clone(),
            workdir: workdir.to_owned(),
            network,
            security,
            relaxed: match security {
                // Whoever may do all has no use for the others.
                Security::Insecure => self.planner.options.relaxed.of_files(),
                Security::Sandbox | Security::NoNewPrivileges => self.planner.options.relaxed.of_results(),
            },
            mounts,
            devices,
            hosts: self.planner.options.hosts.clone(),
            hostname: unused::hostname(self.planner.options).map(str::to_owned),
            ulimits: self.planner.options.ulimits.clone(),
            shared_memory: self.planner.options.shared_memory,
            script,
            timestamps: self.planner.options.timestamps,
        };
        let shown = format!("{}{}", self.shown(task), summary(command, heredocs));
        let created_by = format!("RUN {}{} # buildkit", self.arguments_in_history(), args.join(" "));
        let proxies = variables::proxies(&self.planner.options.build_args).into_iter();
        let proxies = proxies.filter(|(name, _)| self.state.environment.get(name).is_none()).collect();
        self.step(task, Op::Exec(exec), inputs.into_vertices(), &shown, proxies);
        self.commit(created_by, true);
        Ok(())
    }

    fn device(&self, task: &Task, word: &Word) -> Result<Device, PlanError> {
        let device = devices::parse(&word.value).map_err(|message| self.mistake(task, word.span, message))?;
        let allow = &self.planner.options.allow;
        let allowed = allow.contains(&Entitlement::Device(None))
            || allow.contains(&Entitlement::Device(Some(device.name.clone())));
        if allowed {
            return Ok(device);
        }
        let found = format!("device {} is requested by the build but not allowed", device.name);
        let found = Diagnostic::error(task.place(word.span), found);
        Err(found.hint(format!("allow it with --allow device={}", device.name)).into())
    }

    fn security(&self, task: &Task, word: Option<&Word>) -> Result<Security, PlanError> {
        let usual = self.planner.options.security;
        let Some(word) = word else { return Ok(usual) };
        match word.value.as_str() {
            "sandbox" => Ok(usual),
            "insecure" => {
                let allowed = self.planner.options.allow.contains(&Entitlement::SecurityInsecure);
                self.entitled(task, word, "security.insecure", allowed)?;
                Ok(Security::Insecure)
            }
            other => Err(self.mistake(task, word.span, format!("security {other:?} is not valid"))),
        }
    }

    fn network(&self, task: &Task, word: Option<&Word>) -> Result<Network, PlanError> {
        let options = self.planner.options;
        let Some(word) = word else { return Ok(options.network) };
        match word.value.as_str() {
            "default" => Ok(options.network),
            "none" => Ok(Network::None),
            "host" => {
                let allowed =
                    options.allow.contains(&Entitlement::NetworkHost) || options.network == Network::Host;
                self.entitled(task, word, "network.host", allowed)?;
                Ok(Network::Host)
            }
            other => Err(self.mistake(task, word.span, format!("invalid network mode {other:?}"))),
        }
    }

    fn entitled(&self, task: &Task, word: &Word, entitlement: &str, allowed: bool) -> Result<(), Diagnostic> {
        if allowed {
            return Ok(());
        }
        let found = Diagnostic::error(task.place(word.span), format!("{entitlement} is not allowed"));
        Err(found.hint(format!("allow it with --allow {entitlement}")))
    }

    /// What is run: the command itself, a script with an interpreter of its own, or a line for the shell, which is
    /// given heredocs to deal with as they were written.
    fn command(
        &self,
        task: &Task,
        command: &CommandLine,
        heredocs: &[Heredoc],
    ) -> Result<(Vec<String>, Option<Script>), PlanError> {
        match (command, heredocs) {
            (CommandLine::Exec(_), [_, ..]) => {
                Err(self.mistake(task, task.instruction.span, "a heredoc needs the shell form of RUN"))
            }
            (CommandLine::Exec(args), []) if args.is_empty() => {
                Err(self.mistake(task, task.instruction.span, "RUN needs a command"))
            }
            (CommandLine::Exec(args), []) => Ok((args.clone(), None)),
            (CommandLine::Shell(line), []) => Ok((self.in_shell(line), None)),
            (CommandLine::Shell(line), [only, ..]) if line.is_empty() => {
                if only.content.starts_with("#!") {
                    let Heredoc { name, content, .. } = only;
                    if name.contains('/') || matches!(name.as_str(), "" | "." | "..") {
                        let message =
                            format!("the heredoc {name:?} has a #! line, so its name must be a file name");
                        return Err(self.mistake(task, task.instruction.span, message));
                    }
                    let script = Script { name: name.clone(), content: content.clone() };
                    return Ok((self.in_shell(&script.path()), Some(script)));
                }
                Ok((self.in_shell(&only.content), None))
            }
            (CommandLine::Shell(line), heredocs) => {
                let body = |heredoc: &Heredoc| {
                    let written = heredoc.written.as_ref().unwrap_or(&heredoc.content);
                    format!("\n{written}{}", heredoc.name)
                };
                let bodies: String = heredocs.iter().map(body).collect();
                Ok((self.in_shell(&format!("{line}{bodies}")), None))
            }
        }
    }

    fn environment_of_run(&self) -> Vec<(String, String)> {
        let mut environment = self.state.environment.clone();
        let is_ours = self.planner.options.timestamps == Timestamps::Auto;
        if is_ours && environment.get(SOURCE_DATE_EPOCH).is_none() {
            environment.set(SOURCE_DATE_EPOCH, &oci::tree::NORMAL_TIME.to_string());
        }
        environment.pairs().to_vec()
    }

    /// `|2 A=a B=b ` for the arguments that the command can see.
    fn arguments_in_history(&self) -> String {
        let mut shown: Vec<(&str, &str)> = Vec::new();
        for (name, value) in &self.state.arguments {
            let value = self.state.environment.get(name).or(value.as_deref()).unwrap_or("");
            match shown.iter_mut().find(|(known, _)| known == name) {
                Some((_, old)) => *old = value,
                None => shown.push((name, value)),
            }
        }
        let count = if shown.is_empty() { String::new() } else { format!("|{} ", shown.len()) };
        shown.iter().fold(count, |text, (name, value)| format!("{text}{name}={value} "))
    }
}

/// The first line of a script, for progress; a command that reads heredocs is shown already.
fn summary(command: &CommandLine, heredocs: &[Heredoc]) -> String {
    let script = match (command, heredocs) {
        (CommandLine::Shell(line), [script, ..]) if line.is_empty() => script,
        _ => return String::new(),
    };
    let mut lines = script.content.trim().lines();
    let first = lines.next().unwrap_or("");
    let more = if lines.next().is_some() { "..." } else { "" };
    format!(" ({first}{more})")
}
