//! Files behind URLs, from a server that does as it is told.

use std::{
    error::Error,
    fs,
    io::Write,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use executor::Retry;
use oci::Sha256Digest;
use solver::{FailureKind, StepFailure, op::HttpFile};

use crate::{
    ground::Ground,
    server::{Server, answer},
};

const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

fn wanted(server: &Server, path: &str) -> HttpFile {
    HttpFile { url: server.url(path), name: "file".to_owned(), checksum: None }
}

fn read(ground: &Ground, file: &HttpFile) -> Result<String, StepFailure> {
    let download = ground.remotes().http(file)?;
    Ok(fs::read_to_string(download.directory.join(&download.name)).unwrap())
}

/// A failure with its causes.
fn told(failure: &StepFailure) -> String {
    let causes = std::iter::successors(failure.source(), |error| (*error).source());
    causes.fold(failure.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[test]
fn a_file_has_mode_time_and_name_and_nothing_is_beside_it() {
    let server = Server::start(|_, stream| answer(stream, "200 OK", &[("Last-Modified", DATE)], b"text\n"));
    let ground = Ground::new();
    let download = ground.remotes().http(&wanted(&server, "a/b?c")).unwrap();
    let names: Vec<PathBuf> =
        fs::read_dir(&download.directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(names, [download.directory.join("file")]);
    let metadata = fs::metadata(&names[0]).unwrap();
    assert_eq!((metadata.permissions().mode() & 0o7777, metadata.mtime()), (0o600, 784_111_777));
    assert_eq!((download.modified, download.digest), (Some(784_111_777), Sha256Digest::of(b"text\n")));
    for name in ["", ".", "..", "a/b"] {
        let file = HttpFile { name: name.to_owned(), ..wanted(&server, "a") };
        assert!(ground.remotes().http(&file).unwrap_err().message.contains("is no name of a file"), "{name}");
    }
}

#[test]
fn unchanged_files_are_not_sent_again_and_changed_ones_are() {
    let content = Arc::new(AtomicUsize::new(1));
    let now = Arc::clone(&content);
    let server = Server::start(move |request, stream| {
        let version = now.load(Ordering::SeqCst);
        let etag = format!("\"{version}\"");
        match request.headers.get("if-none-match") {
            Some(known) if *known == etag => answer(stream, "304 Not Modified", &[], b""),
            _ => answer(stream, "200 OK", &[("ETag", &etag)], version.to_string().as_bytes()),
        }
    });
    let ground = Ground::new();
    let file = wanted(&server, "a");
    assert_eq!(read(&ground, &file).unwrap(), "1");
    assert_eq!(read(&ground, &file).unwrap(), "1");
    assert!(server.seen()[1].headers.contains_key("if-none-match"));
    content.store(2, Ordering::SeqCst);
    let remotes = ground.remotes();
    let first = remotes.http(&file).unwrap();
    content.store(3, Ordering::SeqCst);
    assert_eq!(remotes.http(&file).unwrap(), first, "a file is the same for a whole build");
    assert_eq!(read(&ground, &file).unwrap(), "3");

    // What was damaged in the store is not vouched for by the server.
    let stored = ground.remotes().http(&file).unwrap();
    fs::write(stored.directory.join("file"), "9").unwrap();
    assert_eq!(read(&ground, &file).unwrap(), "3");
}

#[test]
fn builds_of_one_store_download_a_file_once() {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    let server = Server::start(move |request, stream| match request.headers.get("if-none-match") {
        Some(_) => answer(stream, "304 Not Modified", &[], b""),
        None => {
            count.fetch_add(1, Ordering::SeqCst);
            answer(stream, "200 OK", &[("ETag", "\"1\"")], b"text");
        }
    });
    let (ground, file) = (Ground::new(), wanted(&server, "a"));
    std::thread::scope(|scope| {
        let builds: Vec<_> = (0..6).map(|_| scope.spawn(|| read(&ground, &file).unwrap())).collect();
        builds.into_iter().for_each(|one| assert_eq!(one.join().unwrap(), "text"));
    });
    assert_eq!(sent.load(Ordering::SeqCst), 1);
}

#[test]
fn what_a_server_refuses_is_asked_for_as_often_as_the_user_likes() {
    for (times, is_there) in [(0, false), (1, false), (2, true), (5, true)] {
        let asked = AtomicUsize::new(0);
        let server = Server::start(move |_, stream| match asked.fetch_add(1, Ordering::SeqCst) {
            0 | 1 => answer(stream, "404 Not Found", &[], b""),
            _ => answer(stream, "200 OK", &[], b"text"),
        });
        let ground = Ground { retry: Retry { times, pause: Duration::ZERO }, ..Ground::new() };
        assert_eq!(read(&ground, &wanted(&server, "a")).is_ok(), is_there, "{times}");
        let told = format!("{:?}", ground.events.lock().unwrap());
        assert_eq!(told.contains(&format!("attempt 1 of {} failed", times + 1)), times > 0, "{told}");
    }
}

#[test]
fn a_checksum_is_held_and_spares_the_question() {
    let server = Server::start(|_, stream| answer(stream, "200 OK", &[], b"text"));
    let ground = Ground::new();
    let pinned = |bytes: &[u8]| HttpFile { checksum: Some(Sha256Digest::of(bytes)), ..wanted(&server, "a") };
    let failure = read(&ground, &pinned(b"other")).unwrap_err();
    let (found, expected) = (Sha256Digest::of(b"text"), Sha256Digest::of(b"other"));
    assert_eq!(failure.message, format!("digest mismatch {found}: {expected}"));
    assert_eq!(failure.kind, FailureKind::Build);
    let hint = failure.hint.unwrap();
    assert!(hint.contains(&format!("sent {found}, --checksum wants {expected}")), "{hint}");
    assert_eq!(read(&ground, &pinned(b"text")).unwrap(), "text");
    let before = server.seen().len();
    assert_eq!(read(&ground, &pinned(b"text")).unwrap(), "text");
    assert_eq!(server.seen().len(), before);
}

#[test]
fn builds_that_download_the_same_do_not_disturb_each_other() {
    let server = Server::start(|_, stream| answer(stream, "200 OK", &[], b"text"));
    let ground = Ground::new();
    let file = wanted(&server, "a");
    let first = ground.remotes().http(&file).unwrap();
    let opened = fs::File::open(first.directory.join("file")).unwrap().metadata().unwrap().ino();
    std::thread::scope(|scope| {
        (0..4).for_each(|_| _ = scope.spawn(|| assert_eq!(read(&ground, &file).unwrap(), "text")));
    });
    assert_eq!(fs::metadata(first.directory.join("file")).unwrap().ino(), opened, "what is whole stays");
}

#[test]
fn statuses_are_told_with_the_url_and_without_credentials() {
    for (status, hint) in [("404 Not Found", false), ("401 Unauthorized", true), ("204 No Content", false)] {
        let server = Server::start(move |_, stream| answer(stream, status, &[], b"secret body"));
        let url = server.url("a?token=hush").replace("http://", "http://user:hush@");
        let failure = read(&Ground::new(), &HttpFile { url, ..wanted(&server, "") }).unwrap_err();
        let text = told(&failure);
        assert!(text.contains(&format!("answered {}", &status[..3])) && text.contains("127.0.0.1"), "{text}");
        assert!(!text.contains("user:hush"), "{text}");
        assert_eq!((failure.kind, failure.hint.is_some()), (FailureKind::Registry, hint), "{status}");
    }
}

#[test]
fn credentials_go_to_their_host_only() {
    let target = Server::start(|_, stream| answer(stream, "200 OK", &[], b"there"));
    let elsewhere = target.url("b");
    let server = Server::start(move |request, stream| match request.target.as_str() {
        "/here" => answer(stream, "302 Found", &[("Location", "/a")], b""),
        "/there" => answer(stream, "302 Found", &[("Location", &elsewhere)], b""),
        "/loop" => answer(stream, "302 Found", &[("Location", "/loop")], b""),
        "/file" => answer(stream, "302 Found", &[("Location", "file:///etc/passwd")], b""),
        _ => answer(
            stream,
            "200 OK",
            &[],
            request.headers.get("authorization").cloned().unwrap_or_default().as_bytes(),
        ),
    });
    let login = |path: &str| HttpFile {
        url: server.url(path).replace("http://", "http://u:p%40@"),
        ..wanted(&server, path)
    };
    assert_eq!(read(&Ground::new(), &login("a")).unwrap(), "Basic dTpwQA==");
    let token = || Ground::new().secret("HTTP_AUTH_TOKEN_127.0.0.1", "hush\n");
    assert_eq!(read(&token(), &login("here")).unwrap(), "Bearer hush");
    let header = Ground::new().secret("HTTP_AUTH_HEADER_127.0.0.1", "Basic abc");
    assert_eq!(read(&header, &wanted(&server, "a")).unwrap(), "Basic abc");
    assert_eq!(read(&Ground::new().secret("HTTP_AUTH_TOKEN_other", "x"), &wanted(&server, "a")).unwrap(), "");
    assert_eq!(read(&token(), &wanted(&server, "there")).unwrap(), "there");
    assert!(target.seen().iter().all(|request| !request.headers.contains_key("authorization")));
    for path in ["loop", "file"] {
        let text = told(&read(&token(), &wanted(&server, path)).unwrap_err());
        assert!(text.contains("too many redirects") || text.contains("only HTTP is followed"), "{text}");
    }
}

#[test]
fn what_breaks_goes_on_where_it_broke_or_begins_anew() {
    let body = Arc::new((0..200_000_u32).map(|byte| (byte % 251) as u8).collect::<Vec<u8>>());
    for (etag, resumes) in [("\"strong\"", true), ("W/\"weak\"", false)] {
        let (sent, whole) = (Arc::clone(&body), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&whole);
        let server = Server::start(move |request, stream| {
            let from = request
                .headers
                .get("range")
                .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
            if let Some(from) = from {
                assert_eq!(request.headers["if-range"], etag);
                let range = format!("bytes {from}-{}/{}", sent.len() - 1, sent.len());
                return answer(stream, "206 Partial Content", &[("Content-Range", &range)], &sent[from..]);
            }
            let head = format!("HTTP/1.1 200 OK\r\nETag: {etag}\r\nContent-Length: {}\r\n\r\n", sent.len());
            stream.write_all(head.as_bytes()).unwrap();
            let end = if count.fetch_add(1, Ordering::SeqCst) == 0 { 100_000 } else { sent.len() };
            let _ = stream.write_all(&sent[..end]);
        });
        let download = Ground::new();
        let file = download.remotes().http(&wanted(&server, "a")).unwrap();
        assert_eq!(file.digest, Sha256Digest::of(&body), "{etag}");
        assert_eq!(whole.load(Ordering::SeqCst), if resumes { 1 } else { 2 }, "{etag}");
    }
}

#[test]
fn parts_that_do_not_make_the_whole_are_no_file() {
    for rest in ["rest and more", "r"] {
        let server = Server::start(move |request, stream| match request.headers.get("range") {
            Some(_) => {
                let range = ("Content-Range", "bytes 5-9/10");
                answer(stream, "206 Partial Content", &[range], rest.as_bytes())
            }
            None => {
                let _ =
                    stream.write_all(b"HTTP/1.1 200 OK\r\nETag: \"a\"\r\nContent-Length: 10\r\n\r\nbegin");
            }
        });
        let text = told(&read(&Ground::new(), &wanted(&server, "a")).unwrap_err());
        assert!(text.contains("are not the length of the file"), "{rest}: {text}");
    }
}

#[test]
fn servers_that_never_deliver_are_given_up() {
    let truncates = Server::start(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
    });
    let stalls = Server::start(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
        std::thread::park();
    });
    for server in [truncates, stalls] {
        let ground = Ground::new();
        let failure = read(&ground, &wanted(&server, "a")).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Registry, "{failure}");
        let left = fs::read_dir(ground.root.path().join("downloads/files")).unwrap().count();
        assert_eq!(left, 0, "nothing half is kept");
    }
}

#[test]
fn a_download_can_be_cancelled() {
    let (asked, heard) = std::sync::mpsc::channel();
    let server = Server::start(move |_, _| {
        asked.send(()).unwrap();
        std::thread::park();
    });
    let ground = Ground::new();
    let (remotes, file) = (ground.remotes(), wanted(&server, "a"));
    let failure = std::thread::scope(|scope| {
        let fetching = scope.spawn(|| remotes.http(&file).unwrap_err());
        heard.recv().unwrap();
        ground.cancel.request();
        fetching.join().unwrap()
    });
    assert_eq!(failure.kind, FailureKind::Cancelled);
}
