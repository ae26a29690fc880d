//! Every directory of `testdata/layer` is a layer: `tree` describes it, `sha256` is the digest of its tar, and
//! `listing.gnu` and `listing.python` are what GNU tar and Python's tarfile read in it. UPDATE_EXPECT=1 rewrites the
//! expected files; read them with care then: a changed digest is a changed format.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use exporter::TimePolicy;
use oci::Sha256Digest;

use crate::support::{Described, expect, judge, workspace};

#[test]
fn layers_are_what_independent_readers_read() {
    let cases = fs::read_dir(workspace().join("testdata/layer")).expect("test data");
    let mut cases: Vec<_> = cases.map(|case| case.expect("readable").path()).collect();
    cases.sort();
    assert!(cases.len() >= 6, "cases are missing");
    cases.iter().for_each(|case| check(case));
}

fn check(case: &Path) {
    let text = fs::read_to_string(case.join("tree")).expect("a description");
    let epoch = text.lines().find_map(|line| line.strip_prefix("# SOURCE_DATE_EPOCH="));
    let times =
        epoch.map_or(TimePolicy::Default, |epoch| TimePolicy::Epoch(epoch.parse().expect("a number")));
    let tar = Described::parse(&text).tar(times);
    if let Some(listing) = list(&tar, Command::new("tar").args(GNU_TAR).env("TZ", "UTC").env("LC_ALL", "C")) {
        expect(&case.join("listing.gnu"), &listing);
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/list_tar.py");
    if let Some(listing) = list(&tar, Command::new("python3").arg(script)) {
        expect(&case.join("listing.python"), &listing);
    }
    expect(&case.join("sha256"), &format!("{}\n", Sha256Digest::of(&tar).hex()));
}

const GNU_TAR: [&str; 7] =
    ["-tvv", "--numeric-owner", "--full-time", "--quoting-style=c", "--xattrs", "--xattrs-include=*", "-f-"];

fn list(tar: &[u8], command: &mut Command) -> Option<String> {
    let mut file = tempfile::tempfile().expect("temporary file");
    file.write_all(tar).expect("written");
    std::io::Seek::rewind(&mut file).expect("rewound");
    judge(command.stdin(Stdio::from(file)))
}
