use super::{
    craft::{Archive, Fields, block, record, seal},
    *,
};

/// Every entry with its content, or the error.
fn read(bytes: &[u8]) -> Result<Vec<(TarEntry, Vec<u8>)>, TarError> {
    let mut archive = TarReader::new(bytes);
    let mut entries = Vec::new();
    while let Some(entry) = archive.next_entry()? {
        let mut content = Vec::new();
        archive.content().read_to_end(&mut content).map_err(TarError::Io)?;
        entries.push((entry, content));
    }
    Ok(entries)
}

fn paths(bytes: &[u8]) -> Vec<String> {
    let entries = read(bytes).unwrap_or_else(|error| panic!("{error}"));
    entries.iter().map(|(entry, _)| String::from_utf8_lossy(&entry.path).into_owned()).collect()
}

fn long_name(typeflag: u8, name: &[u8]) -> Archive {
    Archive::default().entry(Fields { path: b"././@LongLink", typeflag, ..Fields::default() }, name)
}

fn global(key: &str, value: &[u8]) -> Archive {
    let fields = Fields { path: b"pax_global_header", typeflag: b'g', ..Fields::default() };
    Archive::default().entry(fields, &record(key, value))
}

#[test]
fn entries_come_with_kind_metadata_and_content() {
    let device = Fields { path: b"null", typeflag: b'3', device: (1, 3), owner: (7, 8), ..Fields::default() };
    let archive = Archive::default().directory("d/").file("d/f", b"content").symlink("l", "../x");
    let bytes = archive.hard_link("h", "d/f").entry(device, b"").finish();
    let entries = read(&bytes).expect("well-formed");
    let kinds: Vec<_> = entries.iter().map(|(entry, _)| entry.kind.clone()).collect();
    let (symlink, hard_link) = (TarKind::Symlink(b"../x".to_vec()), TarKind::HardLink(b"d/f".to_vec()));
    let null = TarKind::CharDevice { major: 1, minor: 3 };
    assert_eq!(kinds, [TarKind::Directory, TarKind::File, symlink, hard_link, null]);
    assert_eq!(entries[1].1, b"content");
    assert_eq!((entries[4].0.uid, entries[4].0.gid), (7, 8));
}

#[test]
fn an_entry_without_a_name_is_the_directory_itself() {
    let nameless = Fields { path: b"", ..Fields::default() };
    let bytes = Archive::default().entry(nameless, b"").file("a", b"").finish();
    assert_eq!(paths(&bytes), [".", "a"]);
}

#[test]
fn content_that_is_not_read_is_skipped() {
    let bytes = Archive::default().file("a", &[1; 1000]).file("b", &[2; 512]).file("c", b"").finish();
    let mut archive = TarReader::new(&bytes[..]);
    let mut seen = Vec::new();
    while let Some(entry) = archive.next_entry().expect("well-formed") {
        seen.push(entry.path);
    }
    assert_eq!(seen, [b"a", b"b", b"c"]);
}

#[test]
fn the_size_in_pax_wins_so_that_no_entry_can_hide() {
    let hidden = Archive::default().file("hidden", b"").bytes();
    let visible = Archive::default().pax(&[("size", b"512")]).raw(&block(&Fields::default())).raw(&hidden);
    assert_eq!(paths(&visible.file("after", b"").finish()), ["file", "after"]);
}

#[test]
fn long_names_of_both_kinds() {
    let long = vec![b'n'; 300];
    let gnu = long_name(b'L', &[&long[..], b"\0"].concat()).file("short", b"x").finish();
    let pax = Archive::default().pax(&[("path", &long)]).file("short", b"x").finish();
    for bytes in [gnu, pax] {
        assert_eq!(paths(&bytes), [String::from_utf8(long.clone()).expect("ASCII")]);
    }
    let link = long_name(b'K', &long).symlink("l", "short").finish();
    assert_eq!(read(&link).expect("well-formed")[0].0.kind, TarKind::Symlink(long));
}

#[test]
fn ustar_prefixes_and_old_directories() {
    let mut prefixed = block(&Fields::default());
    prefixed[345..348].copy_from_slice(b"a/b");
    let mut old = block(&Fields { path: b"dir/", typeflag: 0, ..Fields::default() });
    old[257..265].fill(0);
    let bytes = Archive::default().raw(&seal(prefixed)).raw(&seal(old)).finish();
    let entries = read(&bytes).expect("well-formed");
    assert_eq!(entries[0].0.path, b"a/b/file");
    assert_eq!(entries[1].0.kind, TarKind::Directory);
}

#[test]
fn the_end_is_where_a_header_would_stand() {
    let whole = Archive::default().file("a", b"x");
    assert_eq!(paths(&whole.clone().bytes()), ["a"]);
    assert_eq!(paths(&whole.clone().finish()), ["a"]);
    assert_eq!(paths(&whole.clone().raw(&[0; 512]).bytes()), ["a"]);
    assert_eq!(paths(&Archive::default().raw(&whole.clone().finish()).file("b", b"").bytes()), ["a"]);
    for cut in [1, 511, 513, 1023] {
        assert!(read(&whole.clone().bytes()[..cut]).is_err(), "cut at {cut}");
    }
}

#[test]
fn headers_are_counted() {
    let bytes = Archive::default().file("a", b"").pax(&[("uid", b"1")]).file("b", b"").finish();
    for (more, is_read) in [(3, true), (2, false)] {
        let mut archive = TarReader::new(&bytes[..]);
        archive.headers = MAX_HEADERS - more;
        archive.next_entry().expect("one more is taken");
        let second = archive.next_entry();
        assert!(if is_read { second.is_ok() } else { matches!(second, Err(TarError::TooManyEntries)) });
    }
}

#[test]
fn what_readers_disagree_about_or_do_not_know_is_an_error() {
    let mut wrong_sum = block(&Fields::default());
    wrong_sum[0] = b'F';
    let mut no_owner = block(&Fields::default());
    no_owner[108..116].fill(b'x');
    let sized_link = Fields { typeflag: b'1', link: b"a", ..Fields::default() };
    let cases = [
        ("checksum", Archive::default().raw(&wrong_sum)),
        ("lone zero block", Archive::default().raw(&[0; 512]).file("a", b"")),
        ("NUL in a PAX path", Archive::default().pax(&[("path", b"a\0b")]).file("a", b"")),
        ("4096 bytes of name", Archive::default().pax(&[("path", &[b'n'; 4096])]).file("a", b"")),
        ("link with content", Archive::default().entry(sized_link, b"x")),
        (
            "directory with content",
            Archive::default().entry(Fields { typeflag: b'5', ..Fields::default() }, b"x"),
        ),
        ("link to nothing", Archive::default().symlink("a", "")),
        ("PAX size of a directory", Archive::default().pax(&[("size", b"512")]).directory("d/")),
        ("two PAX headers", Archive::default().pax(&[("uid", b"1")]).pax(&[("uid", b"2")]).file("a", b"")),
        (
            "PAX size before a GNU name",
            Archive::default().pax(&[("size", b"1")]).raw(&long_name(b'L', b"n").bytes()),
        ),
        ("two GNU names", long_name(b'L', b"a").raw(&long_name(b'L', b"b").bytes()).file("c", b"")),
        ("extension without entry", Archive::default().pax(&[("uid", b"1")])),
        ("global path", global("path", b"x").file("a", b"")),
        ("global size", global("size", b"5").file("a", b"")),
        ("GNU sparse", Archive::default().entry(Fields { typeflag: b'S', ..Fields::default() }, b"")),
        ("PAX sparse", Archive::default().pax(&[("GNU.sparse.major", b"1")]).file("a", b"")),
        ("volume label", Archive::default().entry(Fields { typeflag: b'V', ..Fields::default() }, b"")),
        ("owner that is no number", Archive::default().raw(&seal(no_owner))),
        ("2 MiB of PAX", Archive::default().pax(&[("comment", &vec![b'x'; 2 << 20])]).file("a", b"")),
    ];
    for (name, archive) in cases {
        assert!(read(&archive.finish()).is_err(), "{name}");
    }
    assert_eq!(paths(&global("comment", b"0123").file("a", b"").finish()), ["a"]);
}

#[test]
fn gnu_tar_and_we_read_the_same_names() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(200));
    for path in ["plain", "with\nnewline", "\u{e4}", &long] {
        let path = directory.path().join("in").join(path);
        std::fs::create_dir_all(path.parent().expect("it has one")).expect("made");
        std::fs::write(path, "content").expect("written");
    }
    for format in ["gnu", "pax", "posix"] {
        let mut tar = std::process::Command::new("tar");
        tar.arg("-C").arg(directory.path().join("in")).args([
            "--sort=name",
            "--format",
            format,
            "-cf",
            "-",
            ".",
        ]);
        let bytes = tar.output().expect("GNU tar runs").stdout;
        let want = [
            "./",
            &format!("./{}/", "d".repeat(120)),
            &format!("./{long}"),
            "./plain",
            "./with\nnewline",
            "./\u{e4}",
        ];
        assert_eq!(paths(&bytes), want, "{format}");
    }
}
