use super::*;
use crate::fixtures;

#[test]
fn the_fixtures_agree() {
    let Some(folder) = fixtures::path("parser") else { return };
    let mut count = 0;
    for case in std::fs::read_dir(folder).expect("the folder can be read") {
        let case = case.expect("its entries too").path();
        let read = |name: &str| std::fs::read_to_string(case.join(name)).expect("a case has both files");
        let dumped = dump(&read("Dockerfile")).expect("the fixture is well formed");
        assert_eq!(dumped.trim(), read("result").trim(), "{}", case.display());
        count += 1;
    }
    assert!(count >= 12, "only {count} fixtures");
}

fn messages(errors: Vec<Diagnostic>) -> Vec<String> {
    errors.into_iter().map(|error| error.message).collect()
}

#[test]
fn the_negative_fixtures_are_refused_for_the_right_reason() {
    let Some(folder) = fixtures::path("parser-negative") else { return };
    let cases = [
        ("empty_dockerfile", "file with no instructions"),
        ("env_no_value", "ENV must have two arguments"),
        ("shykes-nested-json", "when using JSON array syntax, arrays must be comprised of strings only"),
    ];
    for (case, expected) in cases {
        let text = std::fs::read_to_string(folder.join(case).join("Dockerfile")).expect("the case is there");
        assert_eq!(messages(dump(&text).expect_err(case)), [expected], "{case}");
        let errors = crate::parse(&text).diagnostics;
        let errors = errors.into_iter().filter(|found| found.severity == crate::Severity::Error);
        assert_eq!(messages(errors.collect()), [expected], "{case}");
    }
}

#[test]
fn every_form_is_dumped_as_buildkit_does() {
    let cases = [
        ("COPY --from=a --link x y", r#"(copy ["--from=a" "--link"] "x" "y")"#),
        ("COPY --any=\"1 2\" -- --x y", r#"(copy ["--any=1 2"] "--x" "y")"#),
        ("CMD --x=1 -- [ ]\nCMD --x [\"a\"]", "(cmd [\"--x=1\"])\n(cmd [\"--x\"] \"a\")"),
        ("ONBUILD RUN <<E\nx\nE\nVOLUME [\"/a\"]", "(onbuild (run \"<<E\"))\n(volume \"/a\")"),
        ("ONBUILD ONBUILD CMD [\"a\"]", r#"(onbuild (onbuild (cmd "a")))"#),
        ("ONBUILD", "(onbuild)"),
        ("ONBUILD --x RUN --y z", r#"(onbuild ["--x"] (run ["--y"] "z"))"#),
        ("ENV a=1 b=\"2 3\" c='d\\'e''", r#"(env "a" "1" "=" "b" "\"2 3\"" "=" "c" "'d\\'e''" "=")"#),
        ("ENV a b=c  d\nENV =x", "(env \"a\" \"b=c  d\" \"\")\n(env \"\" \"x\" \"=\")"),
        ("LABEL a=\"b \\\n  c\" \\\n\n d=\"e\\n\" \\", r#"(label "a" "\"b   c\"" "=" "d" "\"e\\n\"" "=")"#),
        ("ARG A B=1 C=\"x y\"", r#"(arg "A" "B=1" "C=\"x y\"")"#),
        ("HEALTHCHECK\nHEALTHCHECK CMD", "(healthcheck)\n(healthcheck \"CMD\")"),
        (
            "HEALTHCHECK --interval=5s \\\n  CMD [\"a\", \"b\"]\nHEALTHCHECK PING  a b",
            "(healthcheck [\"--interval=5s\"] \"CMD\" \"a\" \"b\")\n(healthcheck \"PING\" \"a b\")",
        ),
        (r#"CMD ["♥", "\" \\ \/ \b \f \n \r \t \u0000"]"#, r#"(cmd "♥" "\" \\ / \b \f \n \r \t \x00")"#),
        ("RUN [\"a\", 'b']\nRUN [\"a\"", "(run \"[\\\"a\\\", 'b']\")\n(run \"[\\\"a\\\"\")"),
        (
            "SHELL bash\nWORKDIR a  b\nUSER [\"x\"]",
            "(shell \"bash\")\n(workdir \"a  b\")\n(user \"[\\\"x\\\"]\")",
        ),
        ("EXPOSE 1\t2\nFROM a AS b c", "(expose \"1\" \"2\")\n(from \"a\" \"AS\" \"b\" \"c\")"),
        ("Foo bar baz\nADD", "(foo \"\")\n(add)"),
        ("# escape=`\nRUN a `\n b\\\nCMD `", "(run \"a  b\\\\\")\n(cmd)"),
        ("RUN a \\\n# c\n\n  b\nRUN c", "(run \"a   b\")\n(run \"c\")"),
        ("\\\n", "(\"\")"),
        ("RUN a\u{a0}b\u{7f}\u{1f}é", r#"(run "a\u00a0b\x7f\x1fé")"#),
        ("COPY <<A <<-'B' /c\nFROM x\nA\n\ty\n\tB\nUSER a", "(copy \"<<A\" \"<<-'B'\" \"/c\")\n(user \"a\")"),
    ];
    for (text, expected) in cases {
        let dumped = dump(text).unwrap_or_else(|errors| panic!("{text}: {errors:?}"));
        assert_eq!(dumped.trim_end(), expected, "{text}");
    }
}

#[test]
fn what_cannot_be_cut_is_refused() {
    let cases = [
        ("", "file with no instructions"),
        ("# only a comment\n\n", "file with no instructions"),
        ("ENV a", "ENV must have two arguments"),
        ("LABEL a=b c", "Syntax error - can't find = in \"c\". Must be of the form: name=value"),
        ("ONBUILD CMD [[\"a\"]]", "when using JSON array syntax, arrays must be comprised of strings only"),
        ("HEALTHCHECK CMD [1]", "when using JSON array syntax, arrays must be comprised of strings only"),
        ("RUN <<E\na\n", "unterminated heredoc"),
        ("# escape=x\nRUN a", "invalid escape token 'x' does not match ` or \\"),
        ("# syntax=a\n# syntax=b\nRUN a", "only one syntax parser directive can be used"),
    ];
    for (text, expected) in cases {
        assert_eq!(messages(dump(text).expect_err(text)), [expected], "{text}");
    }
    let deep = "ONBUILD ".repeat(100_000);
    assert!(dump(&deep).is_ok_and(|dumped| dumped.ends_with("))\n")));
}
