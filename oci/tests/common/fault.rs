//! A server that does what a test tells it to: answers made up, or taken from a real registry and then damaged.

use std::{
    io::{self, BufRead, BufReader, BufWriter, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

/// The bodies of requests to paths with this word are left in the socket.
pub const UNREAD: &str = "unread";
/// Those of requests to paths with this word are read and forgotten.
pub const SWALLOW: &str = "swallow";

/// Names and values.
pub type Headers = Vec<(String, String)>;

/// One request, read to its end.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    /// With its query.
    pub path: String,
    pub headers: Headers,
    pub body: Vec<u8>,
}

impl Request {
    /// A header by its lower-case name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    /// `METHOD path`, for comparisons.
    pub fn line(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    pub fn is(&self, method: &str, part: &str) -> bool {
        self.method == method && self.path.contains(part)
    }
}

/// What to answer.
pub enum Reply {
    /// Status, headers and body, with a fitting `Content-Length` unless one is given.
    Send(u16, Headers, Vec<u8>),
    /// The same, but the connection is reset after so many bytes of the body.
    Cut(usize, Box<Reply>),
    /// The same, but the body ends after so many bytes without an error of the connection.
    End(usize, Box<Reply>),
    /// The same is done, but nobody hears of it: the connection is reset before its head.
    Lose(Box<Reply>),
    /// So many zeros.
    Zeros(u64),
    /// A head and then endless zeros.
    Endless(u16),
    /// What the registry behind us answers.
    Forward,
    /// The same, without this header of the request.
    ForwardWithout(&'static str),
    /// The same, after this has been done to its headers and body.
    Bent(fn(&mut Headers, &mut Vec<u8>)),
    /// Silence until the client gives up.
    Stall,
    /// The registry is no more after so many bytes of the body: this connection and all others end, and nobody listens.
    Vanish(usize, Box<Reply>),
    /// The same, but the first so many bytes of the body come at 1 KiB/s.
    Trickle(usize, Box<Reply>),
    /// The same, sent twice on the connection.
    Twice(Box<Reply>),
    /// The same; what is guarded is dropped when it has been sent.
    Guarded(Box<dyn std::any::Any>, Box<Reply>),
}

pub fn status(status: u16, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Reply {
    let owned = headers.iter().map(|(name, value)| (name.to_string(), value.to_string()));
    Reply::Send(status, owned.collect(), body.as_ref().to_vec())
}

type Rule = dyn Fn(&Request) -> Reply + Send + Sync;
/// After how many bytes of a request's body the connection is reset; it is asked before the body is read.
type Break = dyn Fn(&Request) -> Option<u64> + Send + Sync;

/// The server; it ends with the test's process.
pub struct Server {
    /// `127.0.0.1:PORT`.
    pub address: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub fn start(rule: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::before("", rule)
    }

    /// In front of a registry at `upstream`.
    pub fn before(upstream: &str, rule: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::knowing_itself(upstream, |_| rule)
    }

    /// With a rule that needs the server's own address.
    pub fn knowing_itself<R>(upstream: &str, rule: impl FnOnce(&str) -> R) -> Self
    where
        R: Fn(&Request) -> Reply + Send + Sync + 'static,
    {
        Self::breaking(upstream, |_| None, rule)
    }

    /// The same, but some requests do not arrive whole.
    pub fn breaking<R>(
        upstream: &str,
        breaks: impl Fn(&Request) -> Option<u64> + Send + Sync + 'static,
        rule: impl FnOnce(&str) -> R,
    ) -> Self
    where
        R: Fn(&Request) -> Reply + Send + Sync + 'static,
    {
        let socket = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = socket.local_addr().expect("bound").to_string();
        let (rule, breaks): (Arc<Rule>, Arc<Break>) = (Arc::new(rule(&address)), Arc::new(breaks));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (upstream, log, gone) = (upstream.to_owned(), requests.clone(), Arc::new(AtomicBool::new(false)));
        std::thread::spawn(move || {
            let is_here = |_: &TcpStream| !gone.load(Ordering::SeqCst);
            for connection in socket.incoming().map_while(Result::ok).take_while(is_here) {
                let (rule, breaks, log) = (rule.clone(), breaks.clone(), log.clone());
                let (upstream, gone) = (upstream.clone(), gone.clone());
                // What breaks on the way to the client is the client's to notice.
                std::thread::spawn(move || {
                    drop(serve(connection, &upstream, (&*rule, &*breaks), &log, &gone))
                });
            }
        });
        Self { address, requests }
    }

    /// All requests so far, but for the probe of what the server speaks.
    pub fn requests(&self) -> Vec<Request> {
        let all = self.requests.lock().expect("no test panics in it").clone();
        all.into_iter().filter(|request| request.path != "/v2/").collect()
    }

    /// How often it was asked what it speaks.
    pub fn probes(&self) -> usize {
        let all = self.requests.lock().expect("no test panics in it");
        all.iter().filter(|request| request.path == "/v2/").count()
    }

    pub fn lines(&self) -> Vec<String> {
        self.requests().iter().map(Request::line).collect()
    }

    pub fn count(&self, method: &str, part: &str) -> usize {
        self.requests().iter().filter(|request| request.is(method, part)).count()
    }
}

fn serve(
    connection: TcpStream,
    upstream: &str,
    (rule, breaks): (&Rule, &Break),
    log: &Mutex<Vec<Request>>,
    gone: &AtomicBool,
) -> io::Result<()> {
    let mut reader = BufReader::new(connection.try_clone()?);
    while let Some((request, broken)) = read_request(&mut reader, breaks)? {
        if gone.load(Ordering::SeqCst) {
            break;
        }
        if broken {
            reset(&connection)?;
            break;
        }
        log.lock().expect("no test panics in it").push(request.clone());
        let reply = match rule(&request) {
            Reply::Vanish(count, reply) => {
                gone.store(true, Ordering::SeqCst);
                // Whoever accepts connections must notice.
                drop(TcpStream::connect(connection.local_addr()?));
                Reply::Cut(count, reply)
            }
            reply => reply,
        };
        if !answer(&connection, &request, reply, upstream)? {
            break;
        }
    }
    Ok(())
}

/// Whether the connection can be used again.
fn answer(mut connection: &TcpStream, request: &Request, reply: Reply, upstream: &str) -> io::Result<bool> {
    match reply {
        Reply::Send(status, headers, body) => {
            write_head(connection, status, &headers, body.len())?;
            if request.method != "HEAD" {
                connection.write_all(&body)?;
            }
            Ok(true)
        }
        Reply::Forward => {
            let reply = forward(request, upstream)?;
            answer(connection, request, reply, upstream)
        }
        Reply::ForwardWithout(header) => {
            let mut request = request.clone();
            request.headers.retain(|(name, _)| name != header);
            answer(connection, &request, Reply::Forward, upstream)
        }
        Reply::Bent(bend) => {
            let (status, mut headers, mut body) = whole(request, Reply::Forward, upstream)?;
            bend(&mut headers, &mut body);
            answer(connection, request, Reply::Send(status, headers, body), upstream)
        }
        Reply::Cut(count, reply) => {
            send_part(connection, request, *reply, upstream, count)?;
            reset(connection)
        }
        Reply::Lose(reply) => {
            if matches!(*reply, Reply::Forward) {
                forward(request, upstream)?;
            }
            reset(connection)
        }
        Reply::End(count, reply) => {
            send_part(connection, request, *reply, upstream, count)?;
            Ok(false)
        }
        Reply::Zeros(size) => {
            write_head(connection, 200, &[], size as usize)?;
            io::copy(&mut io::repeat(0).take(size), &mut BufWriter::with_capacity(64 << 10, connection))?;
            Ok(true)
        }
        Reply::Endless(status) => {
            write_head(connection, status, &[], usize::MAX >> 1)?;
            loop {
                connection.write_all(&[0; 64 << 10])?;
            }
        }
        Reply::Vanish(..) => unreachable!("the server ends before it answers"),
        Reply::Trickle(count, reply) => {
            let (status, headers, body) = whole(request, *reply, upstream)?;
            write_head(connection, status, &headers, body.len())?;
            let (slow, rest) = body.split_at(count.min(body.len()));
            for piece in slow.chunks(1 << 7) {
                connection.write_all(piece)?;
                std::thread::sleep(std::time::Duration::from_millis(125));
            }
            connection.write_all(rest)?;
            Ok(true)
        }
        Reply::Twice(reply) => {
            let (status, headers, body) = whole(request, *reply, upstream)?;
            let mut once = Vec::new();
            write_head(&mut once, status, &headers, body.len())?;
            once.extend(body);
            connection.write_all(&once.repeat(2))?;
            Ok(true)
        }
        Reply::Guarded(guard, reply) => {
            let usable = answer(connection, request, *reply, upstream);
            drop(guard);
            usable
        }
        Reply::Stall => {
            // Nothing is sent, and nothing read: whatever else the client sends stays where it is.
            loop {
                std::thread::park();
            }
        }
    }
}

fn reset(connection: &TcpStream) -> io::Result<bool> {
    rustix::net::sockopt::set_socket_linger(connection, Some(std::time::Duration::ZERO))?;
    Ok(false)
}

fn send_part(
    mut connection: &TcpStream,
    request: &Request,
    reply: Reply,
    upstream: &str,
    count: usize,
) -> io::Result<()> {
    let (status, headers, body) = whole(request, reply, upstream)?;
    write_head(connection, status, &headers, body.len())?;
    connection.write_all(&body[..count.min(body.len())])
}

/// Status, headers and body of an answer that is made up or the registry's; one to HEAD has no body.
fn whole(request: &Request, reply: Reply, upstream: &str) -> io::Result<(u16, Headers, Vec<u8>)> {
    let reply = if matches!(reply, Reply::Forward) { forward(request, upstream)? } else { reply };
    let Reply::Send(status, headers, body) = reply else { panic!("only whole answers can be damaged") };
    Ok((status, headers, body))
}

fn write_head(
    mut connection: impl Write,
    status: u16,
    headers: &[(String, String)],
    length: usize,
) -> io::Result<()> {
    let mut head = format!("HTTP/1.1 {status} Whatever\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-length")) {
        head += &format!("Content-Length: {length}\r\n");
    }
    connection.write_all((head + "\r\n").as_bytes())
}

/// The first line and the headers, their names in lower case.
fn read_head(reader: &mut impl BufRead) -> io::Result<Option<(String, Headers)>> {
    let mut first = String::new();
    if reader.read_line(&mut first)? == 0 {
        return Ok(None);
    }
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    Ok(Some((first.trim_end().to_owned(), headers)))
}

fn length(headers: &[(String, String)]) -> Option<u64> {
    headers.iter().find(|(name, _)| name == "content-length")?.1.parse().ok()
}

/// A request, and whether it is to be broken off.
pub fn read_request(reader: &mut impl BufRead, breaks: &Break) -> io::Result<Option<(Request, bool)>> {
    let Some((first, headers)) = read_head(reader)? else { return Ok(None) };
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut request = Request { method, path, headers, body: Vec::new() };
    let whole = length(&request.headers).unwrap_or(0);
    let broken = breaks(&request).filter(|part| *part < whole);
    let mut sent = reader.take(broken.unwrap_or(whole));
    if request.path.contains(SWALLOW) {
        io::copy(&mut sent, &mut io::sink())?;
    } else if !request.path.contains(UNREAD) {
        sent.read_to_end(&mut request.body)?;
    }
    Ok(Some((request, broken.is_some())))
}

/// Asks a registry directly; gives status and body.
pub fn ask(registry: &str, method: &str, path: &str) -> io::Result<(u16, Vec<u8>)> {
    let headers = vec![("host".to_owned(), registry.to_owned())];
    let request = Request { method: method.to_owned(), path: path.to_owned(), headers, body: Vec::new() };
    let (status, _, body) = whole(&request, Reply::Forward, registry)?;
    Ok((status, body))
}

/// Asks the registry behind us, in our own name, so that the locations it gives lead back here.
fn forward(request: &Request, upstream: &str) -> io::Result<Reply> {
    let mut connection = TcpStream::connect(upstream)?;
    let mut head = format!("{} {} HTTP/1.1\r\nConnection: close\r\n", request.method, request.path);
    for (name, value) in
        request.headers.iter().filter(|(name, _)| !matches!(name.as_str(), "connection" | "authorization"))
    {
        head += &format!("{name}: {value}\r\n");
    }
    connection.write_all((head + "\r\n").as_bytes())?;
    connection.write_all(&request.body)?;
    let mut reader = BufReader::new(connection);
    let (first, headers) = read_head(&mut reader)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let status =
        first.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
    let mut body = Vec::new();
    if request.method != "HEAD" {
        reader.take(length(&headers).unwrap_or(u64::MAX)).read_to_end(&mut body)?;
    }
    let headers = headers.into_iter().filter(|(name, _)| name != "connection" && name != "transfer-encoding");
    Ok(Reply::Send(status, headers.collect(), body))
}
