//! A socket that passes on to an agent what a step may ask of it, as BuildKit does: which keys there are, and to sign
//! with one of them. Whatever would change the agent (adding and removing keys, locking) or is an extension is answered
//! with "failure" and never reaches it.
//!
//! The protocol (draft-ietf-sshm-ssh-agent): a request and an answer in turn, each a length of four bytes, big-endian,
//! and that many bytes, of which the first is the kind.

use std::{
    fs,
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{Gid, Mode, OFlags, Uid, open},
    io::retry_on_intr,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect as connect_to, socket_with},
};

const REQUEST_IDENTITIES: u8 = 11;
const SIGN_REQUEST: u8 = 13;

/// Length and kind of the answer to what is refused.
const FAILURE: [u8; 5] = [0, 0, 0, 1, 5];

/// OpenSSH's own limit of a message, in bytes.
const MESSAGE_MAX: u32 = 256 << 10;

/// So many connections at a time are enough for any step.
const CONNECTIONS_MAX: usize = 64;

/// A socket and the thread that serves it. Both end when this is dropped, and with them all connections.
#[derive(Debug)]
pub struct Proxy {
    socket: PathBuf,
    /// Its end ends the thread.
    life: Option<io::PipeWriter>,
    server: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listens on a new socket in a directory, for an agent that is connected to anew with every connection.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn start(directory: &Path, agent: PathBuf) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let held: OwnedFd = open(directory, flags, Mode::empty())?;
        // However long the path is, this one fits into an address.
        let listener = UnixListener::bind(format!("/proc/self/fd/{}/agent", held.as_raw_fd()))?;
        listener.set_nonblocking(true)?;
        let (ended, life) = io::pipe()?;
        let server = thread::Builder::new().name("ssh agent".to_owned());
        let server = server.spawn(move || serve(&listener, &ended, &agent))?;
        Ok(Self { socket: directory.join("agent"), life: Some(life), server: Some(server) })
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Says who may connect.
    ///
    /// # Errors
    /// The owner is none of this user's ids.
    pub fn give_to(&self, uid: u32, gid: u32, mode: u32) -> io::Result<()> {
        rustix::fs::chown(&self.socket, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        fs::set_permissions(&self.socket, std::os::unix::fs::PermissionsExt::from_mode(mode & 0o777))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.life = None;
        if let Some(server) = self.server.take() {
            // It holds nothing that a panic could leave half done.
            let _ = server.join();
        }
    }
}

/// The open ends of a connection, by which it can be ended from outside.
type Ends = Arc<Mutex<Vec<UnixStream>>>;

fn serve(listener: &UnixListener, ended: &io::PipeReader, agent: &Path) {
    let mut connections: Vec<(JoinHandle<()>, Ends)> = Vec::new();
    loop {
        let mut fds = [PollFd::new(listener, PollFlags::IN), PollFd::new(ended, PollFlags::IN)];
        if retry_on_intr(|| poll(&mut fds, None)).is_err() || !fds[1].revents().is_empty() {
            break;
        }
        connections.retain(|(connection, _)| !connection.is_finished());
        // Who is turned away sees the connection end.
        if let Ok((client, _)) = listener.accept()
            && connections.len() < CONNECTIONS_MAX
        {
            connections.extend(connect(client, agent));
        }
    }
    for (_, ends) in &connections {
        let ends = ends.lock().unwrap_or_else(PoisonError::into_inner);
        // One that has ended already needs no other end.
        ends.iter().for_each(|end| drop(end.shutdown(std::net::Shutdown::Both)));
    }
    connections.into_iter().for_each(|(connection, _)| drop(connection.join()));
}

/// Serves a connection in a thread of its own; without an agent or a thread, it ends at once.
fn connect(client: UnixStream, agent: &Path) -> Option<(JoinHandle<()>, Ends)> {
    client.set_nonblocking(false).ok()?;
    let agent = reach(agent).ok()?;
    let ends = Ends::new(Mutex::new(vec![client.try_clone().ok()?, agent.try_clone().ok()?]));
    let connection = thread::Builder::new().spawn(move || {
        // Whoever hung up, the connection is over.
        let _ = relay(&client, &agent);
        drop([client.shutdown(std::net::Shutdown::Both), agent.shutdown(std::net::Shutdown::Both)]);
    });
    Some((connection.ok()?, ends))
}

/// Connects without waiting: an agent that takes no more connections must not hold up the end of the build.
fn reach(agent: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect_to(&socket, &SocketAddrUnix::new(agent)?)?;
    let agent = UnixStream::from(socket);
    agent.set_nonblocking(false)?;
    Ok(agent)
}

fn relay(mut client: impl Read + Write, mut agent: impl Read + Write) -> io::Result<()> {
    loop {
        let request = read_message(&mut client)?;
        match request.get(4) {
            Some(&(REQUEST_IDENTITIES | SIGN_REQUEST)) => {
                agent.write_all(&request)?;
                client.write_all(&read_message(&mut agent)?)?;
            }
            _ => client.write_all(&FAILURE)?,
        }
    }
}

/// One message with its length.
fn read_message(mut from: impl Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let body = u32::from_be_bytes(length);
    if body > MESSAGE_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut message = length.to_vec();
    from.by_ref().take(body.into()).read_to_end(&mut message)?;
    match message.len() == body as usize + 4 {
        true => Ok(message),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An agent that answers every request with its own kind and a nine.
    fn echo_agent(directory: &Path) -> PathBuf {
        let path = directory.join("real");
        let listener = UnixListener::bind(&path).expect("a socket");
        thread::spawn(move || {
            for client in listener.incoming() {
                let mut client = client.expect("a connection");
                thread::spawn(move || {
                    while let Ok(request) = read_message(&mut client) {
                        client.write_all(&[0, 0, 0, 2, request[4], 9]).expect("it reads");
                    }
                });
            }
        });
        path
    }

    fn ask(client: &mut UnixStream, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len()).expect("short").to_be_bytes();
        client.write_all(&[&length, body].concat()).expect("it reads");
        read_message(client).expect("an answer")
    }

    #[test]
    fn only_two_requests_reach_the_agent() {
        let directory = tempfile::tempdir().expect("made");
        let place = directory.path().join("x".repeat(200));
        fs::create_dir(&place).expect("made");
        let proxy = Proxy::start(&place, echo_agent(directory.path())).expect("started");
        proxy
            .give_to(rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw(), 0o600)
            .expect("ours");
        let held = fs::File::open(&place).expect("there");
        let mut client =
            UnixStream::connect(format!("/proc/self/fd/{}/agent", held.as_raw_fd())).expect("it listens");
        for kind in 0..=255 {
            let passed = [REQUEST_IDENTITIES, SIGN_REQUEST].contains(&kind);
            let expected = if passed { vec![0, 0, 0, 2, kind, 9] } else { FAILURE.to_vec() };
            assert_eq!(ask(&mut client, &[kind, 1, 2, 3]), expected, "{kind}");
        }
        assert_eq!(ask(&mut client, &[]), FAILURE);
        client.write_all(&(MESSAGE_MAX + 1).to_be_bytes()).expect("it reads");
        assert_eq!(client.read(&mut [0]).expect("the end"), 0, "a message without bounds");
    }

    #[test]
    fn an_agent_that_takes_no_connections_holds_up_nothing() {
        let directory = tempfile::tempdir().expect("made");
        let path = directory.path().join("deaf");
        let deaf = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
        let deaf = deaf.expect("a socket");
        rustix::net::bind(&deaf, &SocketAddrUnix::new(&path).expect("short")).expect("a new path");
        rustix::net::listen(&deaf, 0).expect("it is bound");
        let _only = reach(&path).expect("there is room for one");
        let proxy = Proxy::start(directory.path(), path).expect("started");
        let mut client = UnixStream::connect(proxy.socket()).expect("it listens");
        assert!(matches!(client.read(&mut [0]), Ok(0) | Err(_)), "it is turned away");
        drop(proxy);
    }

    #[test]
    fn the_end_is_the_end_of_every_connection() {
        let directory = tempfile::tempdir().expect("made");
        let proxy = Proxy::start(directory.path(), echo_agent(directory.path())).expect("started");
        let mut clients = [0; 3].map(|_| UnixStream::connect(proxy.socket()).expect("it listens"));
        clients.iter_mut().for_each(|client| assert_eq!(ask(client, &[11])[4], 11));
        let mut half_said = UnixStream::connect(proxy.socket()).expect("it listens");
        half_said.write_all(&[0, 0]).expect("it reads");
        drop(proxy);
        for client in clients.iter_mut().chain([&mut half_said]) {
            assert!(matches!(client.read(&mut [0]), Ok(0) | Err(_)));
        }
        assert!(UnixStream::connect(directory.path().join("agent")).is_err());
    }
}
