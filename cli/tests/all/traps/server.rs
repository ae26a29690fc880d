//! Servers that remember every byte they are sent, plain or with TLS, on any loopback address.

use std::{
    io::{self, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex},
    thread,
};

use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use super::common::fault::{Reply, Request, read_request};

type Rule = dyn Fn(&Request) -> Reply + Send + Sync;

/// A server; it ends with the test's process.
#[derive(Clone)]
pub struct Capture {
    /// `host:port`
    pub address: String,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Capture {
    /// On a free port of this address. The rule is made once the server knows its own.
    pub fn start<R>(host: &str, tls: Option<&Arc<ServerConfig>>, rule: impl FnOnce(&str) -> R) -> Self
    where
        R: Fn(&Request) -> Reply + Send + Sync + 'static,
    {
        let socket = TcpListener::bind((host, 0)).expect("a free port");
        let address = socket.local_addr().expect("bound").to_string();
        let rule: Arc<Rule> = Arc::new(rule(&address));
        let (seen, tls) = (Arc::new(Mutex::new(Vec::new())), tls.cloned());
        let log = Arc::clone(&seen);
        thread::spawn(move || {
            for connection in socket.incoming().map_while(Result::ok) {
                let (rule, log, tls) = (Arc::clone(&rule), Arc::clone(&log), tls.clone());
                // What breaks on the way to the client is the client's to notice.
                thread::spawn(move || drop(serve(connection, tls, &*rule, &log)));
            }
        });
        Self { address, seen }
    }

    /// All that has come so far.
    pub fn requests(&self) -> Vec<Request> {
        self.seen.lock().expect("no rule panics").clone()
    }
}

/// What a server with this certificate needs.
pub fn tls(certificate: &Path, key: &Path) -> Arc<ServerConfig> {
    let chain = CertificateDer::pem_file_iter(certificate).expect("readable").collect::<Result<_, _>>();
    let key = PrivateKeyDer::from_pem_file(key).expect("a key");
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().expect("ring has them");
    Arc::new(
        builder.with_no_client_auth().with_single_cert(chain.expect("certificates"), key).expect("a pair"),
    )
}

fn serve(
    connection: TcpStream,
    tls: Option<Arc<ServerConfig>>,
    rule: &Rule,
    log: &Mutex<Vec<Request>>,
) -> io::Result<()> {
    match tls {
        None => answer(connection, rule, log),
        Some(config) => {
            let session = ServerConnection::new(config).map_err(io::Error::other)?;
            answer(StreamOwned::new(session, connection), rule, log)
        }
    }
}

/// One request, one answer, and the end of the connection.
fn answer(connection: impl Read + Write, rule: &Rule, log: &Mutex<Vec<Request>>) -> io::Result<()> {
    let mut reader = BufReader::new(connection);
    let Some((request, _)) = read_request(&mut reader, &|_| None)? else { return Ok(()) };
    log.lock().expect("no rule panics").push(request.clone());
    let Reply::Send(status, headers, body) = rule(&request) else { panic!("rules here send whole answers") };
    let mut head =
        format!("HTTP/1.1 {status} Whatever\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
    let writer = reader.get_mut();
    writer.write_all((head + "\r\n").as_bytes())?;
    if request.method != "HEAD" {
        writer.write_all(&body)?;
    }
    writer.flush()
}
