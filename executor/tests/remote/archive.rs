//! Main contexts that come as a stream.

use std::{fs, io::Write};

use executor::remote::Received;
use solver::FailureKind;

use crate::{
    ground::{Ground, show},
    server::{Server, answer},
};

/// An archive with a directory, a program, a link and a hard link.
fn archive() -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |path: &str, kind, mode, body: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(1234);
        header.set_size(body.len() as u64);
        archive.append_data(&mut header, path, body).unwrap();
    };
    add("dir/", tar::EntryType::Directory, 0o750, b"");
    add("dir/run", tar::EntryType::Regular, 0o755, b"run");
    add("Dockerfile", tar::EntryType::Regular, 0o664, b"FROM scratch\n");
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    archive.append_link(&mut header, "link", "dir/run").unwrap();
    archive.into_inner().unwrap()
}

/// The same, packed by one of the four.
fn packed(bytes: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(bytes).unwrap();
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bzip2.write_all(bytes).unwrap();
    let mut xz = xz2::write::XzEncoder::new(Vec::new(), 1);
    xz.write_all(bytes).unwrap();
    vec![
        ("plain", bytes.to_vec()),
        ("gzip", gzip.finish().unwrap()),
        ("bzip2", bzip2.finish().unwrap()),
        ("xz", xz.finish().unwrap()),
        ("zstd", zstd::encode_all(bytes, 1).unwrap()),
    ]
}

#[test]
fn archives_are_unpacked_whatever_packed_them() {
    let expected = ["Dockerfile 664 FROM scratch\n", "dir/ 750", "dir/run 755 run", "link -> dir/run"];
    for (what, bytes) in packed(&archive()) {
        let ground = Ground::new();
        let Received::Files(files) = ground.remotes().tar_context(bytes.as_slice()).unwrap() else {
            panic!("{what} is an archive");
        };
        assert_eq!(show(files.path()), expected, "{what}");
        let path = files.path().to_owned();
        drop(files);
        assert!(!path.exists(), "{what}");

        let server = Server::start(move |_, stream| answer(stream, "200 OK", &[], &bytes));
        let Received::Files(files) = ground.remotes().url_context(&server.url("a.tgz")).unwrap() else {
            panic!("{what} is an archive behind a URL, too");
        };
        assert_eq!(show(files.path()), expected, "{what}");
    }
}

#[test]
fn anything_else_is_a_dockerfile() {
    for text in ["FROM scratch\n", "", "\u{e9}"] {
        let received = Ground::new().remotes().tar_context(text.as_bytes()).unwrap();
        assert!(matches!(&received, Received::Dockerfile(bytes) if bytes == text.as_bytes()), "{received:?}");
    }
    let error = Ground::new().remotes().tar_context(b"\x1f\x8c".as_slice()).expect_err("no text");
    assert!(error.to_string().contains("neither a tar archive"), "{error}");
    let server = Server::start(|_, stream| answer(stream, "200 OK", &[], b"FROM scratch\n"));
    let received = Ground::new().remotes().url_context(&server.url("Dockerfile")).unwrap();
    assert!(matches!(received, Received::Dockerfile(bytes) if bytes == b"FROM scratch\n"));
}

#[test]
fn hostile_archives_stay_inside_or_are_refused() {
    let ground = Ground::new();
    let outside = ground.root.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let mut through_link = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    through_link.append_link(&mut header, "way", &outside).unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_size(1);
    header.set_mode(0o644);
    through_link.append_data(&mut header, "way/mark", b"x".as_slice()).unwrap();
    let bytes = through_link.into_inner().unwrap();
    // The link leads inside of the context, where nothing of that name is yet.
    drop(ground.remotes().tar_context(bytes.as_slice()));
    assert_eq!(show(&outside), Vec::<String>::new());

    let mut up = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..9].copy_from_slice(b"../escape");
    header.set_size(0);
    header.set_mode(0o644);
    header.set_cksum();
    up.append(&header, std::io::empty()).unwrap();
    let failure = ground.remotes().tar_context(up.into_inner().unwrap().as_slice()).unwrap_err();
    assert!(failure.message.contains("leads out of the destination"), "{failure}");
    assert_eq!(failure.kind, FailureKind::Build);

    let truncated = archive();
    assert!(ground.remotes().tar_context(&truncated[..700]).is_err());
    let tmp = ground.root.path().join("tmp");
    let runs = fs::read_dir(&tmp).unwrap().flat_map(|run| fs::read_dir(run.unwrap().path()).unwrap());
    let left: Vec<_> = runs.map(|entry| entry.unwrap().file_name()).filter(|name| name != "lock").collect();
    assert!(left.is_empty(), "{left:?}");
}
