use super::*;

fn git(remote: &str) -> GitAddress {
    GitAddress {
        remote: remote.to_owned(),
        reference: None,
        subdir: None,
        checksum: None,
        keep_git_dir: false,
        submodules: true,
        times: GitTimes::Checkout,
        fetch_by_commit: false,
    }
}

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

#[test]
fn git_addresses_are_taken_apart() {
    let plain = || git("https://h/r.git");
    let text = |text: &str| Some(text.to_owned());
    let rows = [
        ("https://h/r.git", plain()),
        ("https://h/r%2Egit", git("https://h/r%2Egit")),
        ("https://h/r.git#main", GitAddress { reference: text("main"), ..plain() }),
        ("https://h/r.git#:a/b", GitAddress { subdir: text("a/b"), ..plain() }),
        (
            "https://h/r.git#main:/a/../b/",
            GitAddress { reference: text("main"), subdir: text("b"), ..plain() },
        ),
        ("https://h/r.git#:.", plain()),
        ("https://h/r.git?ref=main", GitAddress { reference: text("main"), ..plain() }),
        ("https://h/r.git?ref=main#main", GitAddress { reference: text("main"), ..plain() }),
        ("https://h/r.git?tag=v1", GitAddress { reference: text("refs/tags/v1"), ..plain() }),
        ("https://h/r.git?tag=refs/tags/v1", GitAddress { reference: text("refs/tags/v1"), ..plain() }),
        ("https://h/r.git?branch=b%2fc", GitAddress { reference: text("refs/heads/b/c"), ..plain() }),
        ("https://h/r.git?subdir=x", GitAddress { subdir: text("x"), ..plain() }),
        ("https://h/r.git?keep-git-dir", GitAddress { keep_git_dir: true, ..plain() }),
        ("https://h/r.git?keep-git-dir=0", plain()),
        ("https://h/r.git?submodules=false", GitAddress { submodules: false, ..plain() }),
        ("https://h/r.git?mtime=commit", GitAddress { times: GitTimes::Commit, ..plain() }),
        ("https://h/r.git?mtime=checkout", plain()),
        (
            "https://h/r.git?commit=0123456",
            GitAddress { reference: text("0123456"), checksum: text("0123456"), ..plain() },
        ),
        (
            "https://h/r.git?branch=main&checksum=0123456",
            GitAddress { reference: text("refs/heads/main"), checksum: text("0123456"), ..plain() },
        ),
        ("git@h:o/r", git("git@h:o/r")),
        (
            "git@h:o/r.git#v1:d",
            GitAddress { reference: text("v1"), subdir: text("d"), ..git("git@h:o/r.git") },
        ),
        ("ssh://git@h/r", git("ssh://git@h/r")),
        ("git://h/r#x", GitAddress { reference: text("x"), ..git("git://h/r") }),
    ];
    for (address, want) in rows {
        assert_eq!(parse_git(address), Some(Ok(want)), "{address}");
    }
    let by_commit = format!("https://h/r.git?fetch-by-commit&ref=main&commit={COMMIT}");
    let by_commit = parse_git(&by_commit).expect("git").expect("right");
    assert!(by_commit.fetch_by_commit && by_commit.reference.as_deref() == Some("main"));
}

#[test]
fn what_is_no_repository_is_left_to_others() {
    for text in [
        "https://h/a.tar.gz",
        "http://h",
        "ftp://h/r.git",
        "file:///r.git",
        "a@b",
        "dir/a@b:c",
        "C:file",
        "http",
        "./git@h:r",
        "../x.git",
        "github.com/moby/buildkit",
    ] {
        assert_eq!(parse_git(text), None, "{text}");
    }
    let context = parse_git_context("github.com/moby/buildkit#v1").expect("git").expect("right");
    assert_eq!(context.remote, "https://github.com/moby/buildkit");
    assert_eq!(parse_git_context("buildkit"), None);
}

#[test]
fn wrong_addresses_say_what_is_wrong() {
    for (address, want) in [
        ("https://h/r.git?token=x", "unexpected query \"token\""),
        ("https://h/r.git?ref=a&ref=b", "query \"ref\" has multiple values"),
        ("https://h/r.git?ref=", "query \"ref\" has no value"),
        ("https://h/r.git?ref=a#b", "ref conflicts: \"b\" vs \"a\""),
        ("https://h/r.git?subdir=a#:b", "subdir conflicts: \"b\" vs \"a\""),
        ("https://h/r.git?tag=a#b", "ref conflicts: \"b\" vs \"refs/tags/a\""),
        ("https://h/r.git?tag=a&branch=b", "branch conflicts with tag"),
        ("https://h/r.git?submodules=maybe", "invalid submodules value: \"maybe\""),
        ("https://h/r.git?mtime=now", "invalid mtime value: \"now\""),
        ("https://h/r.git?checksum=xyz", "invalid checksum \"xyz\" for Git URL, expected hex commit hash"),
        (
            "https://h/r.git?fetch-by-commit",
            "fetch-by-commit needs a full commit hash in checksum= or commit=",
        ),
        ("https://h/r.git?ref=%zz", "invalid URL escape in the query of the git address"),
        (
            "https://h/r.git#-x",
            "the reference of the git address begins with '-' or holds a control character",
        ),
        (
            "ssh://-oProxyCommand=x/r",
            "the host of the git address begins with '-' or holds a control character",
        ),
    ] {
        let error = parse_git(address).expect(address).expect_err(address);
        assert_eq!(error.to_string(), want, "{address}");
    }
}

#[test]
fn files_are_called_what_their_urls_end_in() {
    for (url, want) in [
        ("https://h/a/b.tar.gz", "b.tar.gz"),
        ("https://h/a/b.txt?x=/y#z", "b.txt"),
        ("https://h/a/", "a"),
        ("https://h/a%20b", "a b"),
        ("https://h/a%2fb", "b"),
        ("https://h", "__unnamed__"),
        ("https://h/", "__unnamed__"),
        ("https://h/a/..", "__unnamed__"),
        ("https://h?q=/x", "__unnamed__"),
    ] {
        assert_eq!(file_name(url), want, "{url}");
    }
    assert!(is_url("http://h/a") && !is_url("https://h/a.git") && !is_url("a"));
}

#[test]
fn who_logs_in_is_not_shown() {
    for (text, shown, without) in [
        ("https://u:p@h/a@b", "https://xxxxx:xxxxx@h/a@b", "https://h/a@b"),
        ("https://token@h/a", "https://xxxxx@h/a", "https://h/a"),
        (
            "ADD https://u:p@h/a http://v:q@g /",
            "ADD https://xxxxx:xxxxx@h/a http://xxxxx:xxxxx@g /",
            "ADD https://h/a http://g /",
        ),
        ("ssh://git@h/a", "ssh://git@h/a", "ssh://git@h/a"),
        ("git+ssh://git:p@h/a", "git+ssh://git:xxxxx@h/a", "git+ssh://git@h/a"),
        ("https://h/?x=a:b@c", "https://h/?x=a:b@c", "https://h/?x=a:b@c"),
        ("nothing", "nothing", "nothing"),
    ] {
        assert_eq!((redacted(text).as_str(), without_logins(text).as_str()), (shown, without));
    }
}
