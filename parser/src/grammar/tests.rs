use super::*;

#[test]
fn flags_are_split_from_the_rest() {
    type Flags = &'static [(&'static str, Option<&'static str>)];
    let cases: [(&str, &str, Flags, &str); 11] = [
        ("RUN", "RUN", &[], ""),
        ("RUN echo  a ", "RUN", &[], "echo  a"),
        ("COPY\t--from=a --link  x y", "COPY", &[("from", Some("a")), ("link", None)], "x y"),
        ("RUN --mount=type=x,id=\"a b\" c", "RUN", &[("mount", Some("type=x,id=a b"))], "c"),
        ("RUN --a='b\\'c' d", "RUN", &[("a", Some("b'c"))], "d"),
        ("RUN --a=b\\ c d", "RUN", &[("a", Some("b c"))], "d"),
        ("RUN --a=b -- --c d", "RUN", &[("a", Some("b"))], "--c d"),
        ("RUN -- x", "RUN", &[], "x"),
        ("RUN -x --y", "RUN", &[], "-x --y"),
        ("RUN --a=\"b c", "RUN", &[("a", Some("b c"))], ""),
        ("RUN --a=é\\", "RUN", &[("a", Some("é"))], ""),
    ];
    for (text, keyword, flags, rest) in cases {
        let parts = parts(text);
        assert_eq!((parts.keyword, parts.rest), (keyword, rest), "{text}");
        let found: Vec<_> =
            parts.flags.iter().map(|flag| (flag.name.as_str(), flag.value.as_deref())).collect();
        assert_eq!(found, flags, "{text}");
    }
    assert_eq!(parts("RUN --a=\"b c\" d").flags[0].source, "--a=\"b c\"");
}

#[test]
fn words_keep_their_quotes() {
    let cases: [(&str, &[&str]); 10] = [
        ("a b", &["a", "b"]),
        ("  a='b c' \"d e\"=f ", &["a='b c'", "\"d e\"=f"]),
        ("a=b\\ c d", &["a=b\\ c", "d"]),
        ("a=\"b\\\" c\" d", &["a=\"b\\\" c\"", "d"]),
        ("a='b\\' c", &["a='b\\'", "c"]),
        ("a=b\\", &["a=b"]),
        ("a=\"b \\", &["a=\"b "]),
        ("a=b\\\\", &["a=b\\\\"]),
        ("a='b c", &["a='b c"]),
        ("\\", &[]),
    ];
    for (text, expected) in cases {
        assert_eq!(words(text, '\\'), expected, "{text}");
    }
    assert_eq!(words("a=b` c\\ d", '`'), ["a=b` c\\", "d"]);
}

#[test]
fn arrays_of_strings_are_told_from_other_text() {
    let strings = |text| match json(text) {
        Json::Strings(strings) => strings.into_iter().map(|(value, _)| value).collect::<Vec<_>>(),
        other => panic!("{text}: {other:?}"),
    };
    assert_eq!(strings("[]"), Vec::<String>::new());
    assert_eq!(strings("[ \"a\" , \"b\\\"\\u00e9\\n\" ]\t"), ["a", "b\"é\n"]);
    assert_eq!(json("[\"a\", 1]"), Json::OtherArray);
    assert_eq!(json("[\"a\", [\"b\"]]"), Json::OtherArray);
    for text in ["", "a", "['a']", "[\"a\"] b", "[\"a\"", "[\"a\",]", "[ -f x ]", "{\"a\": 1}", "[\"\\x\"]"] {
        assert_eq!(json(text), Json::No, "{text}");
    }
}

#[test]
fn heredoc_markers_are_found() {
    let found = |text: &str| {
        let markers = heredoc_markers(text).into_iter();
        markers.map(|marker| (marker.name, marker.fd, marker.chomp, marker.quoted)).collect::<Vec<_>>()
    };
    let marker = |name: &str, fd, chomp, quoted| (name.to_owned(), fd, chomp, quoted);
    assert_eq!(found("RUN <<EOF"), [marker("EOF", 0, false, false)]);
    assert_eq!(found("RUN cat <<-'E O' 3<<B"), [marker("E O", 0, true, true), marker("B", 3, false, false)]);
    assert_eq!(found("RUN cat <<  EOF"), [marker("EOF", 0, false, false)]);
    assert_eq!(
        found("COPY <<a.txt <<\"b\" /"),
        [marker("a.txt", 0, false, false), marker("b", 0, false, true)]
    );
    for text in
        ["RUN cat <<<EOF", "RUN echo \"<<EOF\"", "RUN a<<EOF", "RUN a << ", "RUN \\<<EOF", "RUN ' <<E"]
    {
        assert_eq!(found(text), [], "{text}");
    }
}

#[test]
fn the_old_form_has_a_key_and_a_rest() {
    assert_eq!(key_and_rest("KEY  the value "), Some(("KEY", "the value ")));
    assert_eq!(key_and_rest("KEY"), None);
}

proptest::proptest! {
    #[test]
    fn any_line_is_split(text in "[A-Z]{0,3}[ \t=a\"'\\\\`<\\[\\]-]{0,30}é?") {
        let parts = parts(&text);
        words(parts.rest, '\\');
        words(parts.rest, '`');
        json(parts.rest);
        heredoc_markers(&text);
    }
}
