use super::*;

fn matcher(patterns: &[&str]) -> Matcher {
    let patterns: Vec<String> = patterns.iter().map(|pattern| pattern.to_string()).collect();
    Matcher::new(&patterns).expect("well formed")
}

#[test]
fn the_last_match_decides() {
    let cases: [(&[&str], &str, bool); 16] = [
        (&["docs", "!docs/keep"], "docs/keep", false),
        (&["docs", "!docs/keep"], "docs/other", true),
        (&["!docs/keep", "docs"], "docs/keep", true),
        (&["*", "!src"], "src/a/b.c", false),
        (&["*", "!src", "src/*.tmp"], "src/x.tmp", true),
        (&["*", "!src", "src/*.tmp"], "src/a/x.tmp", false),
        (&["**/*.o"], "a/b/c.o", true),
        (&["*.o"], "a/c.o", false),
        (&["a**b"], "axb", false),
        (&["a**b"], "ax/b", true),
        (&["a/**/b"], "a/b", true),
        (&["a/**"], "a", false),
        (&["./a//b/"], "a/b/c", true),
        (&["build/*/out"], "build/x/out/y", true),
        (&["[^a]"], "b", true),
        (&["a\\*"], "a*", true),
    ];
    for (patterns, path, expected) in cases {
        assert_eq!(matcher(patterns).matches(path), expected, "{patterns:?} {path}");
    }
}

#[test]
fn patterns_match_a_path_or_one_of_its_parents() {
    let cases: [(&str, &str, bool); 60] = [
        ("**", "f", true),
        ("**", "d/f/", true),
        ("**/", "f", true),
        ("**/", "d/f", true),
        ("**/**", "d/f", true),
        ("d/**", "d", false),
        ("d/**", "d/e/f", true),
        ("**/d", "d", true),
        ("**/d", "x/d/f", true),
        ("**/d", "xd", false),
        ("**d", "xd", true),
        ("**/e/*", "d/e/f", true),
        ("**/e/*", "d/e", false),
        ("**/e/**", "d/e/g/f", true),
        ("**/f*", "d/d/f.txt", true),
        ("**/f*txt", "d/f.txt", true),
        ("**/f*.txt*", "f.txt", true),
        ("**/**/*.txt", "f.txt", true),
        ("**/**/*.txt", "d/d/f.md", false),
        ("a**/*.txt", "a/d/d/f.txt", true),
        ("a**/*.txt", "a/f.txt", true),
        ("a/*.txt", "a/d/f.txt", false),
        ("a/*.txt**", "a/f.txt.d/e", true),
        ("**/a/b", "a/b", true),
        ("**/a/b", "c/a/b/d", true),
        ("**/a/b", "a/c/b", false),
        ("a[b-d]e", "ace", true),
        ("a[b-d]e", "ae", false),
        ("a[b-d]e", "aae", false),
        ("a[^b-d]e", "aze", true),
        ("a[^b]c", "a/c", true),
        ("a[b/]c", "a/c", true),
        ("a?c", "a/c", false),
        ("a*c", "a/c", false),
        (".*", ".f", true),
        (".*", "f", false),
        ("a.c", "abc", false),
        ("a?c", "a☺c", true),
        ("a[^a]c", "a☺c", true),
        ("a???c", "a☺c", false),
        ("[a-ζ]*", "α", true),
        ("*[a-ζ]", "A", false),
        ("[\\]a]", "]", true),
        ("[x\\-]", "-", true),
        ("[\\-x]", "x", true),
        ("[x\\-]", "z", false),
        ("a\\\\", "a\\", true),
        ("a\\*b", "a*b", true),
        ("a\\*b", "axb", false),
        ("\\!a", "!a", true),
        ("a(b)c/d", "a(b)c/d", true),
        ("a.|)$(}+{b*", "a.|)$(}+{bc", true),
        ("dist/*.whl", "dist/x-2.4.0rc3.dev36+g08ac-py3.whl", true),
        ("a]b*", "a]bc", true),
        ("  a  ", "a", true),
        ("a/../b", "b/c", true),
        ("./a", "./a/b", true),
        ("a//b/", "a/b", true),
        ("*", "a/b/c", true),
        ("*x", "xxx", true),
    ];
    for (pattern, path, expected) in cases {
        assert_eq!(matcher(&[pattern]).matches(path), expected, "{pattern:?} {path}");
    }
}

#[test]
fn malformed_patterns_are_refused() {
    let bad = ["[", "[^", "[^bc", "a[", "[]a]", "[-]", "[x-]", "[-x]", "[a-b-c]", "\\", "a\\", "[a", "!"];
    for pattern in bad {
        assert!(Matcher::new(&[pattern.to_owned()]).is_err(), "{pattern:?}");
    }
}

#[test]
fn the_root_is_never_excluded() {
    for path in [".", ""] {
        assert!(!matcher(&["*", "**"]).matches(path));
    }
}

#[test]
fn the_deciding_pattern_is_named() {
    let matcher = matcher(&["", "a", "!a/b", "a/b/c"]);
    assert_eq!(matcher.decide("a"), Some(1));
    assert_eq!(matcher.decide("a/x"), Some(1));
    assert_eq!(matcher.decide("a/b"), None);
    assert_eq!(matcher.decide("a/b/c/d"), Some(3));
    assert_eq!(matcher.decide("z"), None);
}

#[test]
fn a_walk_and_a_question_agree() {
    let matcher = matcher(&["d/f", "!d", "**/x*", "!**/xy", "e/**", "!e/*/z"]);
    for path in ["d", "d/f", "d/f/x", "d/x/xy", "e/a/z", "e/a/b/z", "xy/q"] {
        let mut verdict = matcher.root();
        for (at, _) in path.match_indices('/').chain([(path.len(), "")]) {
            verdict = matcher.enter(&verdict, &path[..at]);
        }
        assert_eq!(verdict.excluded(), matcher.matches(path), "{path}");
    }
    // As BuildKit walks: `!d` had nothing to take back at `d`, so it does not speak for `d/f` either.
    assert!(matcher.matches("d/f"));
}

#[test]
fn directories_are_pruned_only_where_nothing_comes_back() {
    let cases: [(&[&str], &str, bool); 14] = [
        (&["a"], "a", true),
        (&["a"], "a/b", true),
        (&["a"], "b", false),
        (&["a", "!a/b"], "a", false),
        (&["a", "!a/b"], "a/c", true),
        (&["a", "!ab"], "a", true),
        (&["!a/b", "a"], "a", true),
        (&["a", "!**/keep"], "a", false),
        (&["a", "!*/b"], "a", false),
        (&["a", "!*/b"], "a/c", true),
        (&["a", "!a/b/**"], "a/b", false),
        (&["a", "!a/b**"], "a/bc", false),
        (&["**", "!x/*/y"], "x/1", false),
        (&["**", "!x/*/y"], "z", true),
    ];
    for (patterns, directory, expected) in cases {
        assert_eq!(matcher(patterns).can_prune(directory), expected, "{patterns:?} {directory}");
    }
}

#[test]
fn the_file_is_read() {
    let text = "\u{feff}# comment\r\n\r\n /abs/x \r\n#no\n # kept\n!  /y/../z/ \n!\n/\n./a//b/\n";
    let expected = [(3, "abs/x"), (5, "# kept"), (6, "!z"), (7, "!"), (8, "/"), (9, "a/b")];
    let read: Vec<_> = read_lines(text);
    assert_eq!(read.iter().map(|(line, text)| (*line, text.as_str())).collect::<Vec<_>>(), expected);
    assert_eq!(Matcher::new(&super::read(text)).expect_err("a lone !"), IgnoreError::LoneExclamation);
}

#[test]
fn paths_are_cleaned_as_in_go() {
    let cases = [
        ("", "."),
        ("a/./b//c/", "a/b/c"),
        ("a/../../b", "../b"),
        ("/../a", "/a"),
        ("/", "/"),
        ("../..", "../.."),
        ("a/..", "."),
    ];
    for (path, expected) in cases {
        assert_eq!(clean(path), expected, "{path}");
    }
}

#[test]
fn the_table_holds() {
    #[derive(serde::Deserialize)]
    struct Row {
        patterns: Vec<String>,
        path: String,
        #[serde(rename = "match")]
        matches: Option<bool>,
        #[serde(default)]
        error: bool,
    }
    let Some(rows) = crate::fixtures::json::<Vec<Row>>("tables/dockerignore.json") else {
        return;
    };
    for row in &rows {
        let result = Matcher::new(&row.patterns).map(|matcher| matcher.matches(&row.path)).ok();
        assert_eq!(result, row.matches, "{:?} {}", row.patterns, row.path);
        assert_eq!(row.error, row.matches.is_none(), "{:?}", row.patterns);
    }
    assert!(rows.len() >= 73, "the table has shrunk");
}

proptest::proptest! {
    #[test]
    fn any_pattern_and_path_are_answered(
        patterns in proptest::collection::vec("!?[a-c*?/.\\[\\]^\\\\-]{0,8}", 0..5),
        path in "[a-c/.]{0,12}",
    ) {
        if let Ok(matcher) = Matcher::new(&patterns) {
            let excluded = matcher.matches(&path);
            proptest::prop_assert_eq!(excluded, matcher.decide(&path).is_some());
            if matcher.can_prune(&path) {
                for below in ["a", "b/c", "*"] {
                    let child = format!("{}/{below}", path.trim_end_matches('/'));
                    proptest::prop_assert!(matcher.matches(&child), "{child} below a pruned directory");
                }
            }
        }
    }

    #[test]
    fn any_file_is_read(text in "(.|\n|\r){0,60}") {
        let _ = Matcher::new(&read(&text));
    }
}
