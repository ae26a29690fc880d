//! Builds that are stopped in the middle of a RUN: no process stays, the store stays usable, and the exit code says
//! what happened.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::common::fault;

/// Built statically, so it runs in an image that holds nothing else.
const BUSYBOX: &str = "/bin/busybox";
/// A step ends within ten seconds of the first signal; this leaves room for a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

struct Site {
    directory: tempfile::TempDir,
    /// Sleeps that nobody else on this machine sleeps.
    seconds: u32,
}

impl Site {
    fn new(seconds: u32, script: &str) -> Option<Self> {
        if !Path::new(BUSYBOX).exists() {
            eprintln!("SKIPPED: there is no static {BUSYBOX}");
            return None;
        }
        let directory = tempfile::tempdir().expect("a temporary directory");
        let context = directory.path().join("context");
        fs::create_dir(&context).expect("created");
        fs::copy(BUSYBOX, context.join("busybox")).expect("copied");
        let script = script.replace("SLEEP", &format!("/bin/busybox sleep {seconds}"));
        let dockerfile =
            format!("FROM scratch\nCOPY busybox /bin/sh\nCOPY busybox /bin/busybox\nRUN {script}\n");
        fs::write(context.join("Dockerfile"), dockerfile).expect("written");
        Some(Self { directory, seconds })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_layerwright"));
        command.args(["build", "--progress", "plain", "--root"]).arg(self.directory.path().join("root"));
        command.arg(self.directory.path().join("context"));
        command
    }

    /// Starts the build and waits until its RUN has said so.
    fn start(&self) -> Child {
        let mut child = self.command().stderr(Stdio::piped()).spawn().expect("the binary runs");
        let stderr = child.stderr.take().expect("piped");
        let mut lines = BufReader::new(stderr).lines().map(|line| line.expect("UTF-8"));
        let before: Vec<String> = lines.by_ref().take_while(|line| !line.ends_with(" ready")).collect();
        if let Some(status) = child.try_wait().expect("it is ours") {
            panic!("the build ended before its step ran: {status}\n{}", before.join("\n"));
        }
        child
    }

    /// Whether a process of the step is alive.
    fn is_asleep(&self) -> bool {
        let wanted = format!("sleep\0{}\0", self.seconds);
        let processes = fs::read_dir("/proc").expect("readable").filter_map(Result::ok);
        let mut command_lines = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
        command_lines.any(|line| line.windows(wanted.len()).any(|window| window == wanted.as_bytes()))
    }

    /// The same build without the sleep works on the same store.
    fn builds_afterwards(&self) {
        let dockerfile = self.directory.path().join("context/Dockerfile");
        let text = fs::read_to_string(&dockerfile).expect("readable");
        let from = text.find("RUN ").expect("a RUN");
        fs::write(&dockerfile, format!("{}RUN echo again\n", &text[..from])).expect("written");
        let output = self.command().output().expect("the binary runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("pids are small")).expect("not zero");
    kill_process(pid, signal).expect("it is ours");
}

fn wait(child: &mut Child) -> ExitStatus {
    wait_until("the builder has ended", || child.try_wait().expect("it is ours"))
}

fn wait_until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::yield_now();
    }
}

#[test]
fn ctrl_c_stops_the_step_and_leaves_nothing() {
    for (seconds, number, code) in [(86_401, Signal::INT, 130), (86_402, Signal::TERM, 143)] {
        let Some(site) = Site::new(seconds, "echo ready; SLEEP") else { return };
        let mut child = site.start();
        wait_until("the step sleeps", || site.is_asleep().then_some(()));
        signal(&child, number);
        assert_eq!(wait(&mut child).code(), Some(code));
        assert!(!site.is_asleep(), "the step outlives the build");
        site.builds_afterwards();
    }
}

#[test]
fn a_second_signal_ends_a_step_that_does_not_want_to() {
    let Some(site) = Site::new(86_403, "trap '' TERM; echo ready; SLEEP") else { return };
    let mut child = site.start();
    wait_until("the step sleeps", || site.is_asleep().then_some(()));
    let start = Instant::now();
    signal(&child, Signal::INT);
    // Two signals that arrive together are one: the second is sent until it has done its work.
    let status = wait_until("the builder has ended", || {
        let ended = child.try_wait().expect("it is ours");
        if ended.is_none() {
            signal(&child, Signal::INT);
        }
        ended
    });
    assert_eq!(status.code(), Some(130));
    assert!(start.elapsed() < Duration::from_secs(9), "it waited for the step");
    wait_until("no process is left", || (!site.is_asleep()).then_some(()));
    site.builds_afterwards();
}

#[test]
fn kill_9_leaves_no_process_and_a_store_that_works() {
    let Some(site) = Site::new(86_404, "echo ready; SLEEP") else { return };
    let mut child = site.start();
    wait_until("the step sleeps", || site.is_asleep().then_some(()));
    signal(&child, Signal::KILL);
    assert_eq!(wait(&mut child).signal(), Some(9));
    wait_until("no process is left", || (!site.is_asleep()).then_some(()));
    site.builds_afterwards();
    let left: Vec<_> = fs::read_dir(site.directory.path().join("root/tmp")).expect("readable").collect();
    assert!(left.is_empty(), "temporaries were not swept: {left:?}");
}

#[test]
fn one_ctrl_c_leaves_a_build_that_waits_for_standard_input() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for (context, file) in [("-", "Dockerfile"), (".", "-")] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_layerwright"))
            .args(["build", "--progress", "plain", "-f", file, context])
            .current_dir(directory.path())
            .env("LAYERWRIGHT_ROOT", directory.path().join("root"))
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let _open = child.stdin.take().expect("piped");
        let mut told = BufReader::new(child.stderr.take().expect("piped")).lines();
        // Signals are watched for before anything is told.
        let first = told.next().expect("a line").expect("UTF-8");
        assert!(first.starts_with("warning: no output"), "{first}");
        signal(&child, Signal::INT);
        assert_eq!(wait(&mut child).code(), Some(130), "{context} {file}");
    }
}

/// Nothing runs yet that could be stopped; what is waited for is a server, which may take minutes to be given up.
#[test]
fn ctrl_c_ends_the_wait_for_a_server_that_does_not_answer() {
    let server = fault::Server::start(|request| match request.path.as_str() {
        "/v2/" => fault::status(200, &[], ""),
        _ => fault::Reply::Stall,
    });
    let directory = tempfile::tempdir().expect("a temporary directory");
    let dockerfile = directory.path().join("Dockerfile");
    fs::write(&dockerfile, format!("FROM {}/base:1\n", server.address)).expect("written");
    let git = format!("http://{}/app.git", server.address);
    let context = directory.path().to_str().expect("UTF-8");
    for (flags, shown) in [
        (vec![context], "load metadata for"),
        (vec!["--check", context], "load metadata for"),
        (vec![git.as_str()], "load git source"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_layerwright"));
        command.args(["build", "--progress", "plain", "--root"]).arg(directory.path().join("root"));
        let mut child = command.args(&flags).stderr(Stdio::piped()).spawn().expect("the binary runs");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let said = lines.find(|line| line.as_ref().expect("UTF-8").contains(shown));
        assert!(said.is_some(), "{flags:?}: nothing says what is waited for");
        let start = Instant::now();
        signal(&child, Signal::INT);
        assert_eq!(wait(&mut child).code(), Some(130), "{flags:?}");
        assert!(start.elapsed() < Duration::from_secs(20), "{flags:?}: it waited for the server");
    }
}
