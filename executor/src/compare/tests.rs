//! Layers made by hand, and what is told of two of them.

use tar::{Builder, EntryType, Header};

use super::{excerpt::*, *};

/// `PATH KIND MODE UID:GID TIME [CONTENT]` an entry, in the order of the tar.
fn tar(entries: &[(&str, EntryType, u32, u64, u64, &str)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (path, kind, mode, owner, time, content) in entries {
        let mut header = Header::new_ustar();
        header.set_entry_type(*kind);
        header.set_mode(*mode);
        header.set_uid(*owner);
        header.set_gid(*owner);
        header.set_mtime(*time);
        if matches!(kind, EntryType::Symlink | EntryType::Link) {
            header.set_size(0);
            builder.append_link(&mut header, path, content).expect("in memory");
        } else {
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, path, content.as_bytes()).expect("in memory");
        }
    }
    builder.into_inner().expect("in memory")
}

fn layer(entries: &[(&str, EntryType, u32, u64, u64, &str)]) -> LayerContents {
    LayerContents::read(&tar(entries)[..]).expect("an archive")
}

#[test]
fn every_field_of_a_path_is_told() {
    use EntryType::{Directory, Regular, Symlink};
    let first = layer(&[
        ("etc/", Directory, 0o755, 0, 1, ""),
        ("etc/content", Regular, 0o644, 0, 1, "one"),
        ("etc/kind", Regular, 0o644, 0, 1, ""),
        ("etc/link", Symlink, 0o777, 0, 1, "a"),
        ("etc/mode", Regular, 0o644, 0, 1, ""),
        ("etc/owner", Regular, 0o644, 0, 1, ""),
        ("etc/time", Regular, 0o644, 0, 1, ""),
        ("etc/first", Regular, 0o644, 0, 1, ""),
        ("etc/.wh.gone", Regular, 0, 0, 0, ""),
        ("etc/.wh..wh..opq", Regular, 0, 0, 0, ""),
    ]);
    let second = layer(&[
        ("etc/", Directory, 0o755, 0, 1, ""),
        ("etc/content", Regular, 0o644, 0, 1, "other"),
        ("etc/kind", Directory, 0o644, 0, 1, ""),
        ("etc/link", Symlink, 0o777, 0, 1, "b"),
        ("etc/mode", Regular, 0o600, 0, 1, ""),
        ("etc/owner", Regular, 0o644, 7, 1, ""),
        ("etc/time", Regular, 0o644, 0, 2, ""),
        ("etc/gone", Regular, 0o644, 0, 1, ""),
    ]);
    let moment = |seconds| Moment { seconds, nanoseconds: 0 };
    let told: Vec<(String, Vec<Field>)> = changes(&first, &second)
        .into_iter()
        .map(|change| (String::from_utf8(change.path).expect("ASCII"), change.fields))
        .collect();
    let expected = [
        ("etc", Field::Opaque(true, false)),
        ("etc/content", Field::Content(3, 5)),
        ("etc/first", Field::OnlyFirst("file")),
        ("etc/gone", Field::Kind("whiteout", "file")),
        ("etc/kind", Field::Kind("file", "directory")),
        ("etc/link", Field::Target(b"a".to_vec(), b"b".to_vec())),
        ("etc/mode", Field::Mode(0o644, 0o600)),
        ("etc/owner", Field::Owner((0, 0), (7, 7))),
        ("etc/time", Field::Time(moment(1), moment(2))),
    ];
    let mut left: BTreeMap<String, Vec<Field>> = told.into_iter().collect();
    for (path, field) in expected {
        assert_eq!(left.remove(path), Some(vec![field]), "{path}");
    }
    assert_eq!(left, BTreeMap::new());
}

#[test]
fn order_is_no_difference_and_the_last_entry_counts() {
    use EntryType::Regular;
    let first = layer(&[("a", Regular, 0o644, 0, 1, "x"), ("b", Regular, 0o644, 0, 1, "y")]);
    let second = layer(&[
        ("./b", Regular, 0o644, 0, 1, "y"),
        ("a", Regular, 0o600, 9, 9, "other"),
        ("a", Regular, 0o644, 0, 1, "x"),
    ]);
    assert_eq!(changes(&first, &second), []);
    assert_eq!((first.len(), LayerContents::default().is_empty()), (2, true));
}

#[test]
fn an_excerpt_shows_where_two_files_part() {
    let excerpt = |first: &str, second: &str| first_difference(first.as_bytes(), second.as_bytes());
    assert_eq!(excerpt("same", "same"), None);
    let found = excerpt("one\nSun Nov 22 09:20:01 UTC 2026\n", "one\nSun Nov 22 09:20:07 UTC 2026\n");
    let found = found.expect("different");
    assert_eq!((found.offset, found.line), (22, Some(2)));
    assert_eq!(found.first, r#""Sun Nov 22 09:20:01 UTC 2026""#);
    assert_eq!(found.second, r#""Sun Nov 22 09:20:07 UTC 2026""#);
    let long = format!("{}1{}", "a".repeat(100), "b".repeat(100));
    let other = long.replace('1', "2");
    let found = excerpt(&long, &other).expect("different");
    assert_eq!(found.first, format!("\"…{}1{}…\"", "a".repeat(20), "b".repeat(39)));
    let found = first_difference(b"\0\x01\x02", b"\0\x01").expect("different");
    assert_eq!(
        (found.line, found.first.as_str(), found.second.as_str()),
        (None, "02", "the end of the file")
    );
}

#[test]
fn beginnings_are_those_of_the_files_that_are_wanted() {
    use EntryType::{Regular, Symlink};
    let archive = tar(&[
        ("./a", Regular, 0o644, 0, 1, "0123456789"),
        ("b", Regular, 0o644, 0, 1, "not this"),
        ("c", Symlink, 0o777, 0, 1, "a"),
    ]);
    let wanted = [b"a".to_vec(), b"c".to_vec()].into();
    let found = beginnings(&archive[..], &wanted, 4).expect("an archive");
    assert_eq!(found, [(b"a".to_vec(), b"0123".to_vec())].into());
}

#[test]
fn what_is_no_archive_is_an_error() {
    LayerContents::read(&b"nothing of the kind"[..]).expect_err("cut");
}
