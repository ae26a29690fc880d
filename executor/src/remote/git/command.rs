//! The program `git`, alone with itself: no configuration of the machine or its users, no hooks, no prompts, no helper
//! programs, nothing of our environment but the search path, proxies and certificate authorities. It ends when we do,
//! however that is, so no lock of a repository is held by one that waits for a silent server.
//!
//! Credentials are in a file without a name that only this process holds open; git reads it as a configuration file
//! through `/proc`. So they are in no command line, no environment and on no disk.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::{fd::AsRawFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::MemfdFlags,
    io::Errno,
    process::{Pid, Signal, kill_process_group},
};
use solver::{Cancel, remote::redacted};

use super::error::GitError;
use crate::{sandbox::sys, snapshot::Events};

/// What `git` may say on its standard output: the list of a large tree.
const OUTPUT_MAX: u64 = 1 << 30;
/// How much of its complaints is kept, from the end.
const COMPLAINTS_MAX: usize = 16 << 10;
/// How often a running `git` is asked whether it is to stop.
const PAUSE: Duration = Duration::from_millis(50);
/// How long `git` has to clean up after itself when it is to stop.
const GRACE: Duration = Duration::from_secs(2);

/// How long a server may say nothing: as long as a registry.
pub const SILENCE: Duration = Duration::from_secs(60);
/// So much longer a fetch may take to look through all that it was sent, of which git says nothing.
const AT_WORK: u32 = 5;
/// The oldest version that takes its configuration as we give it.
const OLDEST: (u32, u32) = (2, 31);
/// The oldest version that can fetch everything of what it has in part (`--refetch`).
const FILTERING: (u32, u32) = (2, 36);

/// Passed on from our own environment.
const PASSED: [&str; 9] = [
    "PATH",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
];

/// What holds for every `git` we run.
const CONFIG: [(&str, &str); 17] = [
    ("core.hooksPath", "/dev/null"),
    ("core.attributesFile", "/dev/null"),
    ("core.excludesFile", "/dev/null"),
    ("core.fsmonitor", "false"),
    ("core.untrackedCache", "false"),
    ("core.autocrlf", "false"),
    ("core.symlinks", "true"),
    ("core.fileMode", "true"),
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
    ("fetch.recurseSubmodules", "false"),
    // What a fetch brings is one file, for which there is a limit.
    ("fetch.unpackLimit", "1"),
    ("submodule.recurse", "false"),
    ("credential.helper", ""),
    ("init.defaultBranch", "master"),
    // A server that sends nothing for a minute is given up.
    ("http.lowSpeedLimit", "1"),
    ("http.lowSpeedTime", "60"),
];

/// How `git` is run for one address.
#[derive(Clone)]
pub struct Git {
    /// For messages: which repository.
    pub remote: String,
    /// `Authorization` for whom.
    pub authorization: Option<Arc<Authorization>>,
    /// How SSH is spoken.
    pub ssh: String,
    /// What [`Git::can_filter`] has found out.
    pub filters: Arc<OnceLock<bool>>,
    /// Says when to stop.
    pub cancel: Arc<Cancel>,
    /// Hears what is waited for.
    pub events: Events,
    /// The most bytes that one fetch may bring.
    pub pack_max: u64,
}

/// How it ended.
struct Attended {
    status: ExitStatus,
    output: Vec<u8>,
    complaints: Vec<u8>,
    /// How long it was waited for until it was ended.
    waited: Option<Duration>,
}

/// A stream of which each piece is a sign of life.
struct Heard<R, F>(R, F);

/// A header that one part of the web is shown.
pub struct Authorization {
    file: File,
}

/// One run.
#[derive(Default)]
pub struct Call<'a> {
    /// Where it runs; else in the work tree, or the repository.
    pub directory: Option<&'a Path>,
    /// The repository directory.
    pub git_dir: Option<&'a Path>,
    /// The directory that files are written to.
    pub work_tree: Option<&'a Path>,
    /// The index, if not the repository's own.
    pub index: Option<&'a Path>,
    /// Another repository whose objects it reads, too.
    pub alternate: Option<&'a Path>,
    /// How long it may say nothing; no limit for what does not talk to anybody.
    pub silence: Option<Duration>,
    /// Configuration of this run alone.
    pub settings: &'a [(&'a str, &'a str)],
    /// Its standard input.
    pub input: Option<File>,
    /// Takes its standard output, which nobody else reads then.
    pub output: Option<File>,
    /// The most bytes that a file which it writes may have, where that is not for the disk alone to say.
    pub file_max: Option<u64>,
    /// Takes each line of its complaints, progress included.
    pub heard: Option<&'a (dyn Fn(&str) + Sync)>,
}

impl Authorization {
    /// Keeps a header for the addresses below `scope`, a URL.
    ///
    /// # Errors
    /// The system has no memory file for it.
    pub fn new(scope: &str, header: &str) -> io::Result<Self> {
        let quoted = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
        let mut file: File = rustix::fs::memfd_create("git-config", MemfdFlags::CLOEXEC)?.into();
        // Git would show the header to whoever it is redirected to.
        let text = format!(
            "[http \"{}\"]\n\textraHeader = \"Authorization: {}\"\n\tfollowRedirects = false\n",
            quoted(scope),
            quoted(header)
        );
        file.write_all(text.as_bytes())?;
        Ok(Self { file })
    }

    /// Where another process of ours finds it.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }
}

impl Git {
    /// Runs `git` and returns what it says; a version that would not heed our configuration is refused.
    ///
    /// # Errors
    /// [`GitError::NoGit`] or [`GitError::Old`], [`GitError::Failed`] with its complaints, [`GitError::Silent`], [`GitError::Full`],
    /// or [`GitError::Cancelled`].
    pub fn run(&self, call: Call<'_>, arguments: &[&str]) -> Result<Vec<u8>, GitError> {
        self.can_filter()?;
        self.run_any(call, arguments)
    }

    /// The same whatever version it is.
    fn run_any(&self, call: Call<'_>, arguments: &[&str]) -> Result<Vec<u8>, GitError> {
        let Call { directory, git_dir, work_tree, index, alternate, silence, settings, .. } = call;
        let Call { input, output, file_max, heard, .. } = call;
        let mut command = self.command(settings);
        for (variable, path) in
            [("GIT_DIR", git_dir), ("GIT_WORK_TREE", work_tree), ("GIT_INDEX_FILE", index)]
        {
            path.map(|path| command.env(variable, path));
        }
        alternate.map(|path| command.env("GIT_ALTERNATE_OBJECT_DIRECTORIES", path.join("objects")));
        command.current_dir(directory.or(work_tree).or(git_dir).unwrap_or(Path::new("/")));
        command.args(arguments).stdin(input.map_or_else(Stdio::null, Stdio::from));
        output.map(|output| command.stdout(output));
        if let Some(bytes) = file_max {
            sys::limit_files(&mut command, bytes);
        }
        let mut child = command.spawn().map_err(GitError::NoGit)?;
        let Attended { status, output, complaints, waited } = self.attend(&mut child, silence, heard)?;
        if self.cancel.is_requested() {
            return Err(GitError::Cancelled);
        }
        match (status.success(), waited) {
            (true, _) => Ok(output),
            (false, Some(waited)) => Err(GitError::Silent {
                action: action(arguments),
                remote: self.remote.clone(),
                waited,
                said: words(&complaints).filter(|said| !said.starts_with("warning: ")).unwrap_or_default(),
            }),
            (false, None) => Err(self.failure(arguments, &complaints, status)),
        }
    }

    fn failure(&self, arguments: &[&str], complaints: &[u8], status: ExitStatus) -> GitError {
        let (action, remote) = (action(arguments), self.remote.clone());
        match full_disk(complaints) {
            Some(source) => GitError::Full { action, remote, source },
            None => GitError::Failed {
                action,
                remote,
                said: words(complaints).unwrap_or_else(|| status.to_string()),
            },
        }
    }

    /// Whether this version can leave out files and fetch them later. It is asked once, and only where git is run at all.
    ///
    /// # Errors
    /// As those of [`Git::run`].
    pub fn can_filter(&self) -> Result<bool, GitError> {
        if let Some(known) = self.filters.get() {
            return Ok(*known);
        }
        let said = self.run_any(Call::default(), &["version"])?;
        let said = String::from_utf8_lossy(&said).trim().to_owned();
        match version(&said) {
            Some(version) if version < OLDEST => Err(GitError::Old { found: said }),
            version => Ok(*self.filters.get_or_init(|| version.is_none_or(|version| version >= FILTERING))),
        }
    }

    fn command(&self, settings: &[(&str, &str)]) -> Command {
        let mut command = Command::new("git");
        command.env_clear();
        for name in PASSED {
            std::env::var_os(name).map(|value| command.env(name, value));
        }
        // OpenSSL's names are honoured by our own client, too.
        for (from, to) in [("SSL_CERT_FILE", "GIT_SSL_CAINFO"), ("SSL_CERT_DIR", "GIT_SSL_CAPATH")] {
            std::env::var_os(from).map(|value| command.env(to, value));
        }
        command.envs([
            ("HOME", "/dev/null"),
            ("LC_ALL", "C"),
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("GIT_ATTR_NOSYSTEM", "1"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_ASKPASS", ""),
            ("SSH_ASKPASS_REQUIRE", "never"),
            ("GIT_ALLOW_PROTOCOL", "http:https:ssh:git"),
            ("GIT_NO_REPLACE_OBJECTS", "1"),
            // What is lacking is fetched where that is said, many things at a time.
            ("GIT_NO_LAZY_FETCH", "1"),
            ("GIT_SSH_COMMAND", &self.ssh),
            ("GIT_SSH_VARIANT", "ssh"),
        ]);
        let mut config: Vec<(&str, String)> = CONFIG.map(|(key, value)| (key, value.to_owned())).to_vec();
        config.extend(settings.iter().map(|(key, value)| (*key, (*value).to_owned())));
        config.extend(self.authorization.as_ref().map(|held| ("include.path", held.path())));
        command.env("GIT_CONFIG_COUNT", config.len().to_string());
        for (number, (key, value)) in config.iter().enumerate() {
            command.env(format!("GIT_CONFIG_KEY_{number}"), key);
            command.env(format!("GIT_CONFIG_VALUE_{number}"), value);
        }
        // A group of its own: the helpers that it starts are ended with it, and a Ctrl-C of the terminal is ours.
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        sys::end_with_us(&mut command);
        command
    }

    /// Listens until it ends, or ends it.
    fn attend(
        &self,
        child: &mut Child,
        silence: Option<Duration>,
        heard: Option<&(dyn Fn(&str) + Sync)>,
    ) -> Result<Attended, GitError> {
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (sender, ended) = mpsc::channel::<()>();
        let group = Pid::from_child(child);
        let (spoken, has_all) = (Mutex::new(Instant::now()), AtomicBool::new(false));
        let speaks = || *spoken.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        let listens = |line: &str| {
            has_all.fetch_or(line.starts_with("Receiving objects: 100%"), Relaxed);
            heard.inspect(|heard| heard(line));
        };
        let borne = || silence.map(|silence| if has_all.load(Relaxed) { silence * AT_WORK } else { silence });
        let is_silent = || {
            let since = spoken.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
            borne().is_some_and(|borne| since > borne)
        };
        thread::scope(|scope| {
            let told = sender.clone();
            let output = scope.spawn(move || {
                let mut bytes = Vec::new();
                let read = stdout.map(|pipe| Heard(pipe, speaks).take(OUTPUT_MAX).read_to_end(&mut bytes));
                drop(sender);
                read.transpose().map(|_| bytes)
            });
            let complaints = scope.spawn(move || {
                let complaints = listen(stderr.map(|pipe| Heard(pipe, speaks)), &listens);
                drop(told);
                complaints
            });
            // Its output ends when it does, and the helpers that hold the other end.
            let was_ended = end_when(&|| self.cancel.is_requested() || is_silent(), group, &ended);
            let output = output.join().expect("reading does not panic");
            let complaints = complaints.join().expect("reading does not panic");
            let status = child.wait().map_err(GitError::io("wait for", PathBuf::from("git")))?;
            let output = output.map_err(GitError::io("read the output of", PathBuf::from("git")))?;
            Ok(Attended { status, output, complaints, waited: borne().filter(|_| was_ended) })
        })
    }
}

impl<R: Read, F: Fn()> Read for Heard<R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.0.read(buffer)?;
        (self.1)();
        Ok(count)
    }
}

/// `fetch`
fn action(arguments: &[&str]) -> String {
    arguments.first().copied().unwrap_or_default().to_owned()
}

/// Waits until a process group is `ended`; ends it if need be, and says whether that was so.
fn end_when(must_end: &dyn Fn() -> bool, group: Pid, ended: &mpsc::Receiver<()>) -> bool {
    let mut asked: Option<Instant> = None;
    while let Err(mpsc::RecvTimeoutError::Timeout) = ended.recv_timeout(PAUSE) {
        // A group that is gone already is ended, too.
        match asked {
            None if must_end() => {
                let _ = kill_process_group(group, Signal::TERM);
                asked = Some(Instant::now());
            }
            Some(since) if since.elapsed() > GRACE => _ = kill_process_group(group, Signal::KILL),
            _ => {}
        }
    }
    asked.is_some()
}

/// `git version 2.47.3 (of whoever built it)`
fn version(said: &str) -> Option<(u32, u32)> {
    let mut numbers = said.strip_prefix("git version ")?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Reads complaints, and tells each line; progress ends its lines with a carriage return.
fn listen(pipe: Option<impl Read>, heard: &dyn Fn(&str)) -> Vec<u8> {
    let (mut kept, mut line) = (Vec::new(), Vec::new());
    let mut buffer = [0; 4096];
    let Some(mut pipe) = pipe else { return kept };
    while let Ok(count @ 1..) = pipe.read(&mut buffer) {
        for byte in &buffer[..count] {
            match byte {
                b'\n' | b'\r' => {
                    heard(&String::from_utf8_lossy(&line));
                    line.clear();
                }
                byte if line.len() < COMPLAINTS_MAX => line.push(*byte),
                _ => {}
            }
        }
        kept.extend_from_slice(&buffer[..count]);
        let surplus = kept.len().saturating_sub(COMPLAINTS_MAX);
        kept.drain(..surplus);
    }
    kept
}

/// What a person should read of the complaints, if anything: without progress, escape sequences and credentials, on one line.
/// What git only warns of explains nothing, unless there is nothing else.
fn words(complaints: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(complaints);
    let is_progress = |line: &str| line.contains("% (") || line.starts_with("remote: Enumerating");
    let lines = text.split(['\n', '\r']).map(str::trim).filter(|line| !line.is_empty() && !is_progress(line));
    let (warnings, others): (Vec<&str>, Vec<&str>) = lines.partition(|line| line.starts_with("warning: "));
    let lines = if others.is_empty() { warnings } else { others };
    let last = &lines[lines.len().saturating_sub(4)..];
    let words: String = last.join("; ").chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    (!words.is_empty()).then(|| redacted(&words))
}

/// The error of a disk that takes no more, if that is what git complains of, and no server says it of its own.
fn full_disk(complaints: &[u8]) -> Option<io::Error> {
    let text = String::from_utf8_lossy(complaints);
    let theirs = ["remote: ", "fatal: remote error: ", "error: remote error: "];
    let own = text.split(['\n', '\r']).filter(|line| !theirs.iter().any(|start| line.starts_with(start)));
    let full = [("No space left on device", Errno::NOSPC), ("Disk quota exceeded", Errno::DQUOT)];
    let found = own.flat_map(|line| full.iter().find(|(words, _)| line.ends_with(words))).next();
    found.map(|(_, errno)| (*errno).into())
}

#[cfg(test)]
mod tests {
    use oci::registry::FILE_MAX;

    use super::*;

    #[test]
    fn a_git_that_says_nothing_is_given_up() {
        let git = Git {
            remote: "r".to_owned(),
            authorization: None,
            ssh: "ssh".to_owned(),
            filters: Arc::default(),
            cancel: Arc::default(),
            events: Arc::new(|_| {}),
            pack_max: FILE_MAX,
        };
        // Waits for what never comes on its standard input.
        let (input, _held) = rustix::pipe::pipe().expect("a pipe");
        let call = Call {
            silence: Some(Duration::from_millis(100)),
            input: Some(File::from(input)),
            ..Call::default()
        };
        let error = git.run(call, &["hash-object", "--stdin"]).expect_err("given up").to_string();
        assert_eq!(error, "git hash-object of r failed: nothing was heard for 100ms");
    }

    #[test]
    fn warnings_are_told_where_there_is_nothing_else() {
        let ignored = "warning: filtering not recognized by server, ignoring\n";
        for (said, expected) in [
            (String::new(), None),
            (format!("{ignored}Receiving objects:  50% (1/2)\r"), Some(ignored.trim())),
            (format!("{ignored}fatal: early EOF\n"), Some("fatal: early EOF")),
            (format!("fatal: early EOF\n{ignored}"), Some("fatal: early EOF")),
        ] {
            assert_eq!(words(said.as_bytes()).as_deref(), expected, "{said}");
        }
    }

    #[test]
    fn a_full_disk_is_ours_only_where_git_says_so_itself() {
        for (said, is_full) in [
            (
                "Receiving objects: 50% (1/2)\rfatal: write error: No space left on device\nfatal: fetch-pack failed\n",
                true,
            ),
            ("error: unable to write file x: Disk quota exceeded", true),
            ("remote: fatal: write error: No space left on device\nfatal: early EOF", false),
            ("fatal: remote error: No space left on device\n", false),
            ("fatal: could not read x: No such file or directory", false),
        ] {
            assert_eq!(full_disk(said.as_bytes()).is_some(), is_full, "{said}");
        }
    }

    #[test]
    fn versions_are_read() {
        for (said, expected) in [
            ("git version 2.47.3", Some((2, 47))),
            ("git version 2.39.5 (Apple Git-154)", Some((2, 39))),
            ("git version 3.0-rc1", None),
        ] {
            assert_eq!(version(said), expected, "{said}");
        }
    }
}
