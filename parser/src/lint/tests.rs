use crate::parse;

/// The findings of a Dockerfile, as `RULE at "text": message`.
fn findings(text: &str) -> Vec<String> {
    let parsed = parse(text);
    let shown = parsed.diagnostics.iter().map(|diagnostic| {
        let place = &text[diagnostic.span.start..diagnostic.span.end];
        format!("{} at {place:?}: {}", diagnostic.rule.unwrap_or("error"), diagnostic.message)
    });
    shown.collect()
}

fn rules(text: &str) -> Vec<&'static str> {
    parse(text).diagnostics.into_iter().filter_map(|diagnostic| diagnostic.rule).collect()
}

#[test]
fn words_with_variables_are_not_judged() {
    assert_eq!(rules("FROM --platform=$X x\nWORKDIR $X\nWORKDIR a\nEXPOSE $X:80/$Y\n"), Vec::<&str>::new());
}

#[test]
fn a_stage_inherits_what_its_base_stage_has_set() {
    let base = "FROM x AS a\nWORKDIR /a\n";
    assert_eq!(rules(&format!("{base}FROM A\nWORKDIR b\n")), Vec::<&str>::new());
    assert_eq!(rules(&format!("{base}FROM y\nWORKDIR b\n")), ["WorkdirRelativePath"]);
}

#[test]
fn the_check_directive_is_honoured() {
    let body = "FROM x as A\nMAINTAINER me\n";
    assert_eq!(rules(body), ["FromAsCasing", "StageNameCasing", "MaintainerDeprecated"]);
    let skipping = |what: &str| rules(&format!("# check=skip={what}\n{body}"));
    assert_eq!(skipping("FromAsCasing, MaintainerDeprecated"), ["StageNameCasing"]);
    assert_eq!(skipping("all"), Vec::<&str>::new());
    assert_eq!(skipping("all;error=true"), Vec::<&str>::new());
    assert_eq!(skipping("Other;experimental=all;error=false").len(), 3);
}

#[test]
fn a_wrong_check_directive_is_an_error() {
    let cases = [
        ("skip", r#"error at "skip": invalid check option "skip""#),
        ("foo=bar", r#"error at "foo=bar": invalid check option "foo""#),
        ("error=x", r#"error at "error=x": failed to parse check option "error=x": invalid syntax"#),
    ];
    for (check, expected) in cases {
        assert_eq!(findings(&format!("# check={check}\nFROM x\n")), [expected]);
    }
}

#[test]
fn secrets_are_told_by_words_of_a_name() {
    let judged = |name: &str| rules(&format!("FROM x\nARG {name}\n")).len();
    for name in ["API_KEY", "token", "MY_Password_2", "auth", "GITHUB_TOKEN"] {
        assert_eq!(judged(name), 1, "{name}");
    }
    for name in ["KEYBOARD", "PUBLIC_KEY", "TOKEN_FILE", "AUTHOR", "SECRET_VERSION"] {
        assert_eq!(judged(name), 0, "{name}");
    }
}
