//! An `ssh-agent` that belongs to one build.
//!
//! It is watched over by a shell that waits for the end of its own standard input, which is a pipe of ours: also when the
//! builder is killed, the agent ends at once and takes its socket with it.

use std::{
    fs::DirBuilder,
    io::{self, Read, Write},
    os::unix::{fs::DirBuilderExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use super::AgentError;
use crate::pipe::read_at_most;

/// Largest key file, in bytes: BuildKit's limit.
const KEY_MAX: u64 = 100 << 10;

/// Says "ready" once the agent answers, then waits to be told to end. `$1` is the directory. The socket is there a moment
/// before anybody listens at it; `ssh-add` ends with 2 as long as it reaches nobody (ssh-add(1)).
const WATCH: &str = r#"
cd "$1" || exit 1
ssh-agent -D -a ./agent >/dev/null &
agent=$!
while kill -0 "$agent" 2>/dev/null; do
    SSH_AUTH_SOCK=./agent ssh-add -l </dev/null >/dev/null 2>&1
    [ $? -eq 2 ] || { echo ready; break; }
    sleep 0.01
done
read -r _
kill "$agent" 2>/dev/null
wait "$agent"
rm -f agent
rmdir "$1"
"#;

/// A running agent; it ends when this is dropped.
#[derive(Debug)]
pub struct PrivateAgent {
    directory: PathBuf,
    watcher: Child,
    /// Open as long as the agent shall run.
    life: Option<ChildStdin>,
}

impl PrivateAgent {
    /// Starts one and gives it the keys.
    pub fn start(id: &str, keys: &[PathBuf]) -> Result<Self, AgentError> {
        let keys = keys.iter().map(|path| Ok((path, read_key(id, path)?))).collect::<Result<Vec<_>, _>>()?;
        let cannot_run = |program| move |source| AgentError::Run { program, id: id.to_owned(), source };
        let directory = private_directory().map_err(cannot_run("ssh-agent"))?;
        let agent = Self::watch(directory).map_err(cannot_run("ssh-agent"))?.ready(id)?;
        for (path, key) in keys {
            agent.add(id, path, &key)?;
        }
        Ok(agent)
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("agent")
    }

    fn watch(directory: PathBuf) -> io::Result<Self> {
        let mut watcher = Command::new("/bin/sh")
            .args(["-c", WATCH, "sh"])
            .arg(&directory)
            // A Ctrl-C is for the builder.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let life = watcher.stdin.take();
        Ok(Self { directory, watcher, life })
    }

    fn ready(mut self, id: &str) -> Result<Self, AgentError> {
        let mut word = [0; 6];
        let output = self.watcher.stdout.as_mut().expect("it is piped");
        if output.read_exact(&mut word).is_ok() {
            return Ok(self);
        }
        let mut message = String::new();
        let errors = self.watcher.stderr.take().expect("it is piped");
        self.life = None;
        // Whatever can be read of it is better than nothing.
        let _ = errors.take(KEY_MAX).read_to_string(&mut message);
        let message = message.trim();
        let id = id.to_owned();
        if message.contains("not found") {
            let source = io::ErrorKind::NotFound.into();
            return Err(AgentError::Run { program: "ssh-agent", id, source });
        }
        Err(AgentError::NotStarted { id, message: message.to_owned() })
    }

    /// Through a pipe, so that the file's permissions, which ssh-add is particular about, are the user's own business.
    fn add(&self, id: &str, path: &Path, key: &[u8]) -> Result<(), AgentError> {
        let failed = |source| AgentError::Run { program: "ssh-add", id: id.to_owned(), source };
        let mut process = Command::new("ssh-add")
            .args(["-q", "-"])
            .current_dir(&self.directory)
            .env("SSH_AUTH_SOCK", "./agent")
            // A passphrase is asked for by nobody.
            .envs([("SSH_ASKPASS_REQUIRE", "force"), ("SSH_ASKPASS", "/bin/false")])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let written = process.stdin.take().expect("it is piped").write_all(key);
        // It has stopped reading, and says why.
        if let Err(error) = written
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            return Err(failed(error));
        }
        let output = process.wait_with_output().map_err(failed)?;
        if output.status.success() {
            return Ok(());
        }
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(AgentError::Refused { id: id.to_owned(), path: path.to_owned(), message })
    }
}

impl Drop for PrivateAgent {
    fn drop(&mut self) {
        self.life = None;
        // It has nothing to say any more.
        let _ = self.watcher.wait();
    }
}

/// A new directory for us alone, where temporary files lie: a socket's path has to be short.
fn private_directory() -> io::Result<PathBuf> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("layerwright-ssh-{}-{number}", std::process::id()));
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

fn read_key(id: &str, path: &Path) -> Result<Vec<u8>, AgentError> {
    let failed = |source| AgentError::Read { id: id.to_owned(), path: path.to_owned(), source };
    let key = read_at_most(path, KEY_MAX).map_err(failed)?;
    match is_encrypted(&key) {
        true => Err(AgentError::Encrypted { id: id.to_owned(), path: path.to_owned() }),
        false => Ok(key),
    }
}

/// Whether a private key needs a passphrase: PEM says so in its header (RFC 1421, RFC 5958), OpenSSH's own format in the
/// name of a cipher, which comes first (openssh-portable:PROTOCOL.key).
fn is_encrypted(key: &[u8]) -> bool {
    /// `openssh-key-v1`, a zero, and the cipher `none` with its length, in Base64.
    const PLAIN: &str = "b3BlbnNzaC1rZXktdjEAAAAABG5vbmU";
    let text = String::from_utf8_lossy(key);
    let mut lines = text.lines().map(str::trim).skip_while(|line| !line.starts_with("-----BEGIN "));
    match lines.next() {
        Some("-----BEGIN OPENSSH PRIVATE KEY-----") => {
            lines.next().is_some_and(|line| !line.starts_with(PLAIN))
        }
        Some("-----BEGIN ENCRYPTED PRIVATE KEY-----") => true,
        Some(_) => {
            lines.next().is_some_and(|line| line.starts_with("Proc-Type:") && line.ends_with("ENCRYPTED"))
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encrypted_keys_are_known_by_their_headers() {
        let cases = [
            ("-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQ\n", false),
            ("-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAACmFlczI1Ni1jdHIAAAAG\n", true),
            ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n", false),
            (
                "-----BEGIN RSA PRIVATE KEY-----\r\nProc-Type: 4,ENCRYPTED\r\nDEK-Info: AES-128-CBC,00\r\n",
                true,
            ),
            ("-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIE\n", true),
            ("-----BEGIN PRIVATE KEY-----\nMIIE\n", false),
            ("no key", false),
            ("", false),
        ];
        for (key, expected) in cases {
            assert_eq!(is_encrypted(key.as_bytes()), expected, "{key}");
        }
    }
}
