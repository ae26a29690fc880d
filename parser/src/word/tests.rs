use super::*;

fn environment(name: &str) -> Option<String> {
    let value = match name {
        "HOME" => "/home/me",
        "EMPTY" => "",
        "PATH_LIST" => "/bin:/usr/bin:/sbin",
        "FILE" => "archive.tar.gz",
        "SPACED" => "a  b c",
        "LINES" => "one\ntwo",
        _ => return None,
    };
    Some(value.to_owned())
}

fn value(word: &str) -> Result<String, WordProblem> {
    expand(word, '\\', &environment).map(|expanded| expanded.value).map_err(|error| error.problem)
}

#[test]
fn operators_expand() {
    let cases = [
        ("$HOME/x", "/home/me/x"),
        ("${HOME}x", "/home/mex"),
        ("${EMPTY-word}", ""),
        ("${EMPTY:-word}", "word"),
        ("${MISSING-word}", "word"),
        ("${EMPTY+word}", "word"),
        ("${EMPTY:+word}", ""),
        ("${MISSING+word}", ""),
        ("${HOME?message}", "/home/me"),
        ("${EMPTY?message}", ""),
        ("${FILE#*.}", "tar.gz"),
        ("${FILE##*.}", "gz"),
        ("${FILE%.*}", "archive.tar"),
        ("${FILE%%.*}", "archive"),
        ("${FILE#nothing}", "archive.tar.gz"),
        ("${FILE%?z}", "archive.tar."),
        ("${FILE/a/A}", "Archive.tar.gz"),
        ("${FILE//a/A}", "Archive.tAr.gz"),
        ("${FILE//[a]/A}", "archive.tar.gz"),
        ("${PATH_LIST//:/ }", "/bin /usr/bin /sbin"),
        ("${PATH_LIST/\\/bin/x}", "x:/usr/bin:/sbin"),
        ("${PATH_LIST//\\/*bin/x}", "x"),
        ("${FILE//*/x}", "x"),
        ("${EMPTY//*/x}", "x"),
        ("${FILE///-}", "-a-r-c-h-i-v-e-.-t-a-r-.-g-z-"),
        ("${LINES//*/x}", "x\nx"),
        ("${MISSING#x}", ""),
        ("${HOME:-${", "error"),
        ("\"$HOME\" '$HOME' \\$HOME", "/home/me $HOME $HOME"),
        ("\"a\\b\\\"c\"", "a\\b\"c"),
        ("$", "$"),
        ("a$.b", "a$.b"),
    ];
    for (word, expected) in cases {
        match value(word) {
            Ok(value) => assert_eq!(value, expected, "{word}"),
            Err(problem) => assert_eq!("error", expected, "{word}: {problem}"),
        }
    }
}

/// What BuildKit's lexer is tested for besides its tables.
#[test]
fn patterns_are_shell_patterns() {
    let variable = |name: &str| {
        let value = match name {
            "V" => "xxyy",
            "SPECIAL" => "()[]{}^$.*?|\\x",
            "STARS" => "a***yy*",
            "MARKS" => "???y",
            "FILES" => "/foo*/*/*.txt",
            "DEEP" => "/tmp/tmp/bar.txt",
            "URL" => "http://example.com",
            "X" => "x",
            "STAR_SLASH" => "\\*/",
            "ANY" => "/?/",
            "TMP" => "/tmp",
            "HTTP" => "http://",
            "NONE" => "",
            "KOREAN" => "한국어",
            _ => return None,
        };
        Some(value.to_owned())
    };
    let cases = [
        ("${SPECIAL#()[]{\\}^$.\\*\\?|\\\\}", "x"),
        ("${STARS%%\\**}", "a"),
        ("${STARS%%\\**\\*}", "a"),
        ("${STARS%\\*}", "a***yy"),
        ("${V#*x*y}", "y"),
        ("${V#*}", "xxyy"),
        ("${V##*}", ""),
        ("${V%*}", "xxyy"),
        ("${V%%*}", ""),
        ("${V#$X}", "xyy"),
        ("${V#$NONE}", "xxyy"),
        ("${V#}", "xxyy"),
        ("${V##*x}", "yy"),
        ("${V##}", "xxyy"),
        ("${V%}", "xxyy"),
        ("${V%%$NONE}", "xxyy"),
        ("${V%%y*}", "xx"),
        ("${MARKS#?\\?}", "?y"),
        ("${MARKS##\\?*}", ""),
        ("${FILES/$STAR_SLASH/.}", "/foo.*/*.txt"),
        ("${FILES//$STAR_SLASH/.}", "/foo..*.txt"),
        ("${DEEP/$TMP/}", "/tmp/bar.txt"),
        ("${DEEP//$TMP/}", "/bar.txt"),
        ("${DEEP//$ANY/+}", "/tmp/tmp/bar.txt"),
        ("${URL/$HTTP/https://}", "https://example.com"),
        ("${DEEP//\\//\\/}", "\\/tmp\\/tmp\\/bar.txt"),
        ("${V/$NONE/ww}", "wwxxyy"),
        ("${V///}", "xxyy"),
        ("${UNSET///}", ""),
        ("${UNSET:-.}${V%x}${UNSET:-.}", ".xxyy."),
        ("${KOREAN#?}${KOREAN%?}${KOREAN/국/X}", "국어한국한X어"),
        ("${V:-${UNSET:-${X}}}", "xxyy"),
        ("${UNSET:-${ALSO:-${X}}}", "x"),
        ("${UNSET:-a b}", "a b"),
        ("${UNSET:-\"a}b\"}", "a}b"),
        ("${UNSET:-'$X'}", "$X"),
        ("${UNSET:-a\\}b}", "a}b"),
        ("${V:+${X}}-${NONE:+y}-${NONE+z}", "x--z"),
        ("$1${10}$*$#$0x", "x"),
        ("$$X", "X"),
        ("${X}${X?no}${X:?no}", "xxx"),
    ];
    for (word, expected) in cases {
        let value = expand(word, '\\', &variable).map(|expanded| expanded.value);
        assert_eq!(value.as_deref(), Ok(expected), "{word}");
    }
    for word in [
        "${V//ww}",
        "${V//}",
        "${V/a}",
        "${V#\\}",
        "${V#\\x}",
        "${V%\\\\\\}",
        "${V=}",
        "${V=:a}",
        "${V^}",
        "${V,,}",
    ] {
        assert!(expand(word, '\\', &variable).is_err(), "{word}");
    }
}

#[test]
fn mistakes_are_named() {
    let required = |message: &str| WordProblem::Required { name: "X".into(), message: message.into() };
    let cases = [
        ("${", WordProblem::MissingBrace),
        ("${HOME", WordProblem::MissingBrace),
        ("${HOME:-a", WordProblem::MissingBrace),
        ("${HOME/a", WordProblem::MissingSlash),
        ("${HOME/a/b", WordProblem::MissingBrace),
        ("${}", WordProblem::BadSubstitution),
        ("${{x}", WordProblem::BadSubstitution),
        ("${HOME=a}", WordProblem::UnsupportedModifier("=".into())),
        ("${HOME:=a}", WordProblem::UnsupportedModifier(":=".into())),
        ("'abc", WordProblem::SingleQuote),
        ("\"abc", WordProblem::DoubleQuote),
        ("${X?}", required("is not allowed to be unset")),
        ("${X:?say $HOME}", required("say /home/me")),
    ];
    for (word, expected) in cases {
        assert_eq!(value(word), Err(expected), "{word}");
    }
    let empty = WordProblem::Required { name: "EMPTY".into(), message: "is not allowed to be empty".into() };
    assert_eq!(value("${EMPTY:?}"), Err(empty));
    let pattern =
        WordProblem::InvalidPattern { pattern: "\\a".into(), reason: "invalid escape '\\a'".into() };
    assert_eq!(value("${HOME#\\a}"), Err(pattern));
}

#[test]
fn an_error_shows_the_word() {
    let error = expand("a ${}", '\\', &environment).expect_err("no name");
    assert_eq!(error.to_string(), "failed to process \"a ${}\": syntax error: bad substitution");
}

#[test]
fn hostile_words_cost_an_error() {
    let deep = "${a:-".repeat(100_000);
    assert_eq!(value(&deep), Err(WordProblem::TooDeep));
    let closed = format!("{}{}", "${a:-".repeat(MAX_NESTING), "}".repeat(MAX_NESTING));
    assert_eq!(value(&closed), Ok(String::new()));
    let quoted = "\"${a:-".repeat(100_000);
    assert_eq!(value(&quoted), Err(WordProblem::TooDeep));
    let half = "x".repeat(MAX_EXPANDED / 2);
    let double = expand("$a$a$a", '\\', &|_| Some(half.clone())).map_err(|error| error.problem);
    assert_eq!(double, Err(WordProblem::TooLong));
    let long = "a".repeat(1 << 20);
    let costly = format!("${{v//{}b/c}}", "a".repeat(1 << 12));
    let costly = expand(&costly, '\\', &|_| Some(long.clone())).map_err(|error| error.problem);
    assert_eq!(costly, Err(WordProblem::TooLong));
}

#[test]
fn the_escape_character_is_a_parameter() {
    let backtick = expand("a`$HOME \\x", '`', &environment).map(|expanded| expanded.value);
    assert_eq!(backtick, Ok("a$HOME \\x".to_owned()));
}

#[test]
fn names_are_reported_once_and_in_order() {
    let expanded = expand("$B$HOME$A${B}${C:-$D}", '\\', &environment).expect("well formed");
    assert_eq!(expanded.matched, ["HOME"]);
    assert_eq!(expanded.unmatched, ["B", "A", "D", "C"]);
}

#[test]
fn words_are_split_where_nothing_is_quoted() {
    let words = |text: &str| expand_to_words(text, '\\', &environment).expect("well formed");
    assert_eq!(words("80 $SPACED \"$SPACED\" a\\ b"), ["80", "a", "b", "c", "a  b c", "a b"]);
    assert_eq!(words("'' \"\""), Vec::<String>::new());
}

#[test]
fn heredocs_keep_their_quotes() {
    let body = expand_heredoc("say '$HOME' \"\\$HOME\" ${X:-it's}\n", &environment).expect("well formed");
    assert_eq!(body.value, "say '/home/me' \"$HOME\" it's\n");
}

#[test]
fn what_is_displayed_keeps_quotes_and_unset_variables() {
    let shown = |text: &str| expand_for_display(text, '\\', &environment).expect("well formed");
    assert_eq!(shown("echo \"$HOME\" '$HOME' $X ${X} ${X:-y} ${X/a/b}"), {
        "echo \"/home/me\" '$HOME' $X ${X} ${X:-y} ${X/a/b}"
    });
}

#[test]
fn delimiters_of_heredocs_are_read() {
    let cases = [
        ("EOF", Some(("EOF", false))),
        ("'EOF'", Some(("EOF", true))),
        ("\"E O F\"", Some(("E O F", true))),
        ("E'O'F", Some(("EOF", true))),
        ("$EOF", Some(("$EOF", false))),
        ("\\EOF", Some(("EOF", false))),
        ("a b", None),
    ];
    for (text, expected) in cases {
        let found = delimiter(text).expect("well formed");
        assert_eq!(found, expected.map(|(name, quoted)| (name.to_owned(), quoted)), "{text}");
    }
    assert!(delimiter("'EOF").is_err());
}

#[test]
fn the_table_of_expansions_holds() {
    #[derive(serde::Deserialize)]
    struct Table {
        env: std::collections::BTreeMap<String, String>,
        rows: Vec<Row>,
    }
    #[derive(serde::Deserialize)]
    struct Row {
        line: u32,
        word: String,
        want: Option<String>,
        #[serde(default)]
        error: bool,
    }
    let Some(table) = crate::fixtures::json::<Table>("tables/word-expansion.json") else {
        return;
    };
    for row in &table.rows {
        let result = expand(&row.word, '\\', &|name| table.env.get(name).cloned());
        let result = result.map(|expanded| expanded.value).ok();
        assert_eq!(result, row.want, "line {}: {}", row.line, row.word);
        assert_eq!(row.error, row.want.is_none(), "line {}", row.line);
    }
    assert!(table.rows.len() >= 116, "the table has shrunk");
}

#[test]
fn the_table_of_splitting_holds() {
    #[derive(serde::Deserialize)]
    struct Row {
        line: u32,
        env: Vec<String>,
        text: String,
        want: Option<Vec<String>>,
    }
    let Some(rows) = crate::fixtures::json::<Vec<Row>>("tables/word-splitting.json") else {
        return;
    };
    for row in &rows {
        let lookup = |name: &str| {
            let pairs = row.env.iter().filter_map(|pair| pair.split_once('='));
            pairs.rev().find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
        };
        let words = expand_to_words(&row.text, '\\', &lookup).ok();
        assert_eq!(words, row.want, "line {}: {}", row.line, row.text);
    }
    assert!(rows.len() >= 11, "the table has shrunk");
}

proptest::proptest! {
    #[test]
    fn text_without_specials_is_itself(text in "[^$'\"\\\\]*") {
        proptest::prop_assert_eq!(value(&text), Ok(text.clone()));
    }

    #[test]
    fn any_text_is_expanded_or_refused(text in "[${}:?+#%/\\-'\"\\\\ab*\n]{0,40}") {
        let _ = value(&text);
        let _ = expand_to_words(&text, '`', &environment);
        let _ = expand_heredoc(&text, &environment);
        let _ = expand_for_display(&text, '\\', &environment);
        let _ = raw_words(&text);
    }
}
