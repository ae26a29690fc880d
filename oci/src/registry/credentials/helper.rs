//! Credential helpers: programs that keep passwords (docker-credential-helpers, "Development").
//!
//! A helper is given what it needs on its standard input, never on its command line, which everybody can see. It runs in a
//! process group of its own, so that what it starts ends with it when it does not answer in time or nobody waits any
//! more. What it says about a failure is shown, what it says of secrets is not.

use std::{
    io::{self, Read, Write},
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use serde::{Deserialize, Serialize};

use super::{Credential, CredentialError, DOCKER_HUB_SERVER, Login, Proof, Secret};
use crate::{reference::DEFAULT_REGISTRY, registry::error::one_line};

/// How long a helper may take, unless it is told otherwise.
pub(super) const DEADLINE: Duration = Duration::from_secs(30);
/// Longest answer of a helper that is read, and longest complaint.
const MAX_OUTPUT: u64 = 64 << 10;
/// How often it is looked whether a helper has ended that has said all.
const PAUSE: Duration = Duration::from_millis(2);
/// User name by which helpers say that the secret is an identity token.
const TOKEN_USER: &str = "<token>";
/// In what helpers say when they have nothing.
const NOT_FOUND: &str = "credentials not found";

/// A helper, and who names it.
#[derive(Debug)]
pub(super) struct Helper {
    program: String,
    named_by: String,
    deadline: Duration,
    leash: Leash,
}

/// What helpers take and give.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Message {
    #[serde(rename = "ServerURL", default)]
    server: String,
    #[serde(default)]
    username: String,
    secret: String,
}

impl Helper {
    /// The helper called `name` in the file or variable `named_by`.
    ///
    /// # Errors
    /// The name is none of a program.
    pub fn new(name: &str, named_by: &str, leash: Leash) -> Result<Self, CredentialError> {
        let program = format!("docker-credential-{name}");
        let helper = Self { program, named_by: named_by.to_owned(), deadline: DEADLINE, leash };
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        match !name.is_empty() && name.bytes().all(plain) {
            true => Ok(helper),
            false => Err(helper.failed("is not the name of a program".to_owned())),
        }
    }

    /// What it has for a registry.
    ///
    /// # Errors
    /// [`CredentialError::Helper`], unless it says that it has nothing.
    pub fn get(&self, registry: &str) -> Result<Option<Credential>, CredentialError> {
        let output = self.run("get", server(registry).as_bytes())?;
        if !output.success {
            return if output.says(NOT_FOUND) { Ok(None) } else { Err(self.complaint(&output, None)) };
        }
        let Message { username, secret, .. } = serde_json::from_str(&output.stdout)
            .map_err(|_| self.failed("answered something else than JSON".to_owned()))?;
        let secret = Secret::new(secret);
        Ok(match username.as_str() {
            TOKEN_USER => Some(Credential::IdentityToken(secret)),
            "" => None,
            _ => Some(Credential::Password { user: username, password: secret }),
        })
    }

    /// Has it keep a login.
    ///
    /// # Errors
    /// [`CredentialError::Helper`]
    pub fn store(&self, registry: &str, login: &Login) -> Result<(), CredentialError> {
        let (user, secret) = match &login.proof {
            Proof::Password(password) => (login.user.as_str(), password),
            Proof::IdentityToken(token) => (TOKEN_USER, token),
        };
        let (server, text) = (server(registry).to_owned(), secret.expose().to_owned());
        let message = Message { server, username: user.to_owned(), secret: text };
        let input = serde_json::to_vec(&message).expect("strings are JSON");
        let output = self.run("store", &input)?;
        if output.success { Ok(()) } else { Err(self.complaint(&output, Some(secret))) }
    }

    /// Has it forget what it has for a registry. `false` where it has nothing.
    ///
    /// # Errors
    /// [`CredentialError::Helper`]
    pub fn erase(&self, registry: &str) -> Result<bool, CredentialError> {
        // Most helpers do not mind when there is nothing to forget; only `get` tells.
        if self.get(registry)?.is_none() {
            return Ok(false);
        }
        let output = self.run("erase", server(registry).as_bytes())?;
        if output.success { Ok(true) } else { Err(self.complaint(&output, None)) }
    }

    /// The servers it has something for, as it calls them.
    ///
    /// # Errors
    /// [`CredentialError::Helper`]
    pub fn list(&self) -> Result<Vec<String>, CredentialError> {
        let output = self.run("list", b"")?;
        if !output.success {
            return Err(self.complaint(&output, None));
        }
        let users: std::collections::BTreeMap<String, serde::de::IgnoredAny> =
            serde_json::from_str(&output.stdout)
                .map_err(|_| self.failed("answered something else than JSON".to_owned()))?;
        Ok(users.into_keys().collect())
    }

    fn run(&self, action: &str, input: &[u8]) -> Result<Output, CredentialError> {
        let output = run(&self.program, action, input, self.deadline, &self.leash);
        output.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                self.failed("is not installed: no program in PATH has that name".to_owned())
            }
            _ => self.failed(error.to_string()),
        })
    }

    fn failed(&self, reason: String) -> CredentialError {
        CredentialError::Helper { helper: self.program.clone(), named_by: self.named_by.clone(), reason }
    }

    /// What it says about a failure: helpers write that to either of their outputs. An answer that may hold a secret is
    /// not told.
    fn complaint(&self, output: &Output, secret: Option<&Secret>) -> CredentialError {
        let text = match output.stderr.trim() {
            "" if output.stdout.contains('{') => "",
            "" => output.stdout.trim(),
            stderr => stderr,
        };
        let secret = secret.map(Secret::expose).filter(|secret| !secret.is_empty());
        let text = one_line(&secret.map_or_else(|| text.to_owned(), |secret| text.replace(secret, "***")));
        self.failed(match text.is_empty() {
            true => "failed without saying why".to_owned(),
            false => format!("failed: {text}"),
        })
    }
}

/// What helpers know a registry by.
fn server(registry: &str) -> &str {
    if registry == DEFAULT_REGISTRY { DOCKER_HUB_SERVER } else { registry }
}

/// Ends a helper and what it has started when nobody waits for its answer any more.
#[derive(Debug, Clone, Default)]
pub struct Leash(Arc<Mutex<Held>>);

#[derive(Debug, Default)]
enum Held {
    #[default]
    Nobody,
    Group(Pid),
    Cut,
}

impl Leash {
    /// Ends the helper that runs, and any that would begin.
    pub fn cut(&self) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Held::Group(group) = *held {
            end(group);
        }
        *held = Held::Cut;
    }

    fn hold(&self, group: Pid) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match *held {
            Held::Cut => end(group),
            _ => *held = Held::Group(group),
        }
    }

    fn release(&self) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Held::Group(_) = *held {
            *held = Held::Nobody;
        }
    }
}

fn end(group: Pid) {
    // A group that has just ended is what was wanted.
    let _ = kill_process_group(group, Signal::KILL);
}

struct Output {
    success: bool,
    stdout: String,
    stderr: String,
}

impl Output {
    fn says(&self, text: &str) -> bool {
        self.stdout.contains(text) || self.stderr.contains(text)
    }
}

/// Runs a helper to its end, but not longer than `deadline`.
fn run(program: &str, action: &str, input: &[u8], deadline: Duration, leash: &Leash) -> io::Result<Output> {
    let until = Instant::now() + deadline;
    let mut child = Command::new(program)
        .arg(action)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let group = Pid::from_child(&child);
    leash.hold(group);
    let outputs = converse(&mut child, input, until);
    let outputs = outputs.filter(|_| ends(group, until));
    if outputs.is_none() {
        end(group);
    }
    // Its number stays taken until it is reaped: nobody else can be hit by the leash before it is let go.
    let ended = waitid(WaitId::Pid(group), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
    leash.release();
    let status = child.wait()?;
    ended?;
    let (stdout, stderr) = outputs.ok_or_else(|| {
        let reason = format!("did not answer within {} s and was ended", deadline.as_secs_f32());
        io::Error::new(io::ErrorKind::TimedOut, reason)
    })?;
    Ok(Output { success: status.success(), stdout, stderr })
}

/// Whether a helper that says nothing any more ends in time. It stays to be waited for.
fn ends(helper: Pid, until: Instant) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
    let ended = || !matches!(waitid(WaitId::Pid(helper), options), Ok(None));
    loop {
        let is_late = Instant::now() >= until;
        if ended() || is_late {
            return !is_late;
        }
        thread::sleep(PAUSE);
    }
}

/// Hands the input over and reads both outputs to their ends; `None` when that takes too long. The threads are not joined:
/// what is left of a group that was ended may keep them waiting for a moment.
fn converse(child: &mut Child, input: &[u8], until: Instant) -> Option<(String, String)> {
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let input = input.to_vec();
    // A helper that does not read is judged by its answer.
    thread::spawn(move || drop(stdin.write_all(&input)));
    let stdout = reader(child.stdout.take().expect("stdout is piped"));
    let stderr = reader(child.stderr.take().expect("stderr is piped"));
    let take = |from: mpsc::Receiver<String>| {
        from.recv_timeout(until.saturating_duration_since(Instant::now())).ok()
    };
    Some((take(stdout)?, take(stderr)?))
}

/// Reads an output to its end on a thread of its own, and keeps its beginning.
fn reader(mut from: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut text = Vec::new();
        let read = from.by_ref().take(MAX_OUTPUT).read_to_end(&mut text);
        let drained = read.and_then(|_| io::copy(&mut from, &mut io::sink()));
        // Half an answer is none, and its owner may be gone.
        if drained.is_ok() {
            let _ = sender.send(String::from_utf8_lossy(&text).into_owned());
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Installs a helper. A shell writes it: a writable descriptor of ours would be inherited by whatever another test
    /// starts at that moment, and the kernel runs no program that somebody may write.
    fn install(script: &str) -> (tempfile::TempDir, String) {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("docker-credential-test");
        let install = "printf '#!/bin/sh\n%s\n' \"$1\" > \"$0\" && chmod 755 \"$0\"";
        let status =
            Command::new("sh").arg("-c").arg(install).arg(&path).arg(script).status().expect("a shell");
        assert!(status.success());
        let program = path.to_str().expect("UTF-8").to_owned();
        (directory, program)
    }

    fn helper(program: String, deadline: Duration) -> Helper {
        Helper { program, named_by: "/etc/config.json".to_owned(), deadline, leash: Leash::default() }
    }

    /// What a helper of this script makes of a question.
    fn ask<T>(script: &str, question: impl Fn(&Helper) -> Result<T, CredentialError>) -> Result<T, String> {
        let (_directory, program) = install(script);
        question(&helper(program, Duration::from_secs(20))).map_err(|error| error.to_string())
    }

    #[test]
    fn helpers_are_asked_on_their_input() {
        let echo = r#"read server; printf '{"Username":"%s","Secret":"%s"}' "$1" "$server""#;
        let given = |user: &str, secret: &str| {
            Ok(Some(Credential::Password { user: user.to_owned(), password: Secret::new(secret.to_owned()) }))
        };
        assert_eq!(ask(echo, |helper| helper.get("r.example.com")), given("get", "r.example.com"));
        assert_eq!(ask(echo, |helper| helper.get("docker.io")), given("get", DOCKER_HUB_SERVER));
        let token = r#"echo '{"Username":"<token>","Secret":"t"}'"#;
        let identity = Ok(Some(Credential::IdentityToken(Secret::new("t".to_owned()))));
        assert_eq!(ask(token, |helper| helper.get("r")), identity);
        for nothing in [
            "echo credentials not found in native keychain; exit 1",
            "echo credentials not found in native keychain >&2; exit 1",
            r#"echo '{"Username":"","Secret":""}'"#,
        ] {
            assert_eq!(ask(nothing, |helper| helper.get("r")), Ok(None), "{nothing}");
        }
    }

    fn login(proof: impl Fn(Secret) -> Proof) -> Login {
        Login { user: "u".to_owned(), proof: proof(Secret::new("s3cret".to_owned())) }
    }

    #[test]
    fn what_is_to_be_kept_or_forgotten_is_handed_over() {
        let (directory, program) = install(
            r#"cat >> "$0.log"; echo " $1" >> "$0.log"
            [ $1 = get ] && echo '{"Username":"u","Secret":"x"}' || echo '{"r":"u"}'"#,
        );
        let helper = helper(program, Duration::from_secs(20));
        helper.store("r", &login(Proof::Password)).expect("kept");
        helper.store("docker.io", &login(Proof::IdentityToken)).expect("kept");
        assert_eq!(helper.erase("r").ok(), Some(true));
        assert_eq!(helper.list().ok(), Some(vec!["r".to_owned()]));
        let nothing = "echo credentials not found in native keychain; exit 1";
        assert_eq!(ask(nothing, |helper| helper.erase("r")), Ok(false));
        let log =
            std::fs::read_to_string(directory.path().join("docker-credential-test.log")).expect("written");
        let want = [
            r#"{"ServerURL":"r","Username":"u","Secret":"s3cret"} store"#,
            r#"{"ServerURL":"https://index.docker.io/v1/","Username":"<token>","Secret":"s3cret"} store"#,
            "r get",
            "r erase",
            " list",
        ];
        assert_eq!(log.lines().collect::<Vec<_>>(), want);
    }

    #[test]
    fn failures_say_what_the_helper_says_and_no_secret() {
        for (script, want) in [
            ("echo the vault is locked >&2; exit 1", "failed: the vault is locked"),
            ("echo the vault is locked; exit 1", "failed: the vault is locked"),
            (r#"printf 'a\nb\033[31m' >&2; exit 1"#, "failed: a b [31m"),
            (r#"echo '{"Username":"u","Secret":"s3cret"}'; exit 1"#, "failed without saying why"),
            ("echo s3cret is too weak >&2; exit 1", "failed: *** is too weak"),
        ] {
            let told = ask(script, |helper| helper.store("r", &login(Proof::Password))).expect_err(script);
            let named = "docker-credential-test\" of /etc/config.json ";
            assert!(told.contains(&format!("{named}{want}")) && !told.contains("s3cret"), "{told}");
        }
        let long = ask("head -c 100000 /dev/zero | tr '\\0' x >&2; exit 1", |helper| helper.get("r"));
        assert!(long.expect_err("it failed").len() < 500);
        let noise = ask("echo hunter2", |helper| helper.get("r")).expect_err("no JSON");
        assert!(
            noise.ends_with("answered something else than JSON") && !noise.contains("hunter2"),
            "{noise}"
        );
        let absent =
            helper("docker-credential-is-not-here".to_owned(), DEADLINE).get("r").expect_err("absent");
        let want = "credential helper \"docker-credential-is-not-here\" of /etc/config.json is not installed: no \
                    program in PATH has that name";
        assert_eq!(absent.to_string(), want);
    }

    #[test]
    fn the_name_of_a_helper_is_a_name() {
        for name in ["", "../../tmp/x", "a b", "a;b"] {
            assert!(Helper::new(name, "f", Leash::default()).is_err(), "{name}");
        }
    }

    /// Whether a process still is there, and is no zombie that its parent has yet to notice.
    fn runs(pid: &str) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(" Z"))
    }

    /// A helper that waits for a child, which has told its number in a file before.
    const STUCK: &str = r#"sh -c 'echo $$ > "$0.pid"; exec sleep 600' "$0" & wait"#;

    fn child_of(program: &str) -> String {
        let path = format!("{program}.pid");
        let began = Instant::now();
        loop {
            match std::fs::read_to_string(&path) {
                Ok(pid) if pid.ends_with('\n') => return pid,
                _ if began.elapsed() > Duration::from_secs(60) => panic!("the helper does not start"),
                _ => thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// What must be so soon: a signal takes its time.
    fn soon(is_so: impl Fn() -> bool) -> bool {
        let began = Instant::now();
        std::iter::repeat_with(|| thread::sleep(Duration::from_millis(5)))
            .take_while(|()| began.elapsed() < Duration::from_secs(60))
            .any(|()| is_so())
    }

    #[test]
    fn a_helper_that_is_too_slow_is_ended_with_all_it_has_started() {
        let (_directory, program) = install(STUCK);
        let slow = thread::scope(|scope| {
            let asked = scope.spawn(|| helper(program.clone(), Duration::from_secs(2)).get("r"));
            let child = child_of(&program);
            let slow = asked.join().expect("no panic").expect_err("too slow");
            assert!(soon(|| !runs(&child)), "{child} is still there");
            slow.to_string()
        });
        assert!(slow.ends_with("did not answer within 2 s and was ended"), "{slow}");
    }

    #[test]
    fn a_helper_that_has_answered_and_does_not_end_is_ended() {
        let (_directory, program) = install("exec >&- 2>&-; exec sleep 600");
        let stuck = helper(program, Duration::from_secs(1)).get("r").expect_err("it does not end");
        assert!(stuck.to_string().ends_with("did not answer within 1 s and was ended"), "{stuck}");
    }

    #[test]
    fn a_helper_that_nobody_waits_for_is_ended_with_all_it_has_started() {
        let (_directory, program) = install(STUCK);
        let asked = helper(program.clone(), Duration::from_secs(600));
        let leash = asked.leash.clone();
        thread::scope(|scope| {
            let asked = scope.spawn(move || asked.get("r"));
            let child = child_of(&program);
            leash.cut();
            asked.join().expect("no panic").expect_err("ended");
            assert!(soon(|| !runs(&child)), "{child} is still there");
        });
    }
}
