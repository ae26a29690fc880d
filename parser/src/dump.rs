//! The form in which the shared fixtures state what a Dockerfile's lines are made of: BuildKit's dump of its first
//! pass, which knows no flags and no stages yet. Made here from the lexer and the grammar, for tests alone.

use crate::grammar::{self, Json, Parts};
use crate::instruction::read_heredocs;
use crate::lexer::Lexer;
use crate::{Severity, directives, fixtures, parse};

fn dump(text: &str) -> String {
    let mut diagnostics = Vec::new();
    let escape = directives::read(text, &mut diagnostics).escape;
    let mut lexer = Lexer::new(text, escape);
    let mut dump = String::new();
    while let Some(line) = lexer.next_line() {
        let parts = grammar::parts(&line.text);
        read_heredocs(&line, &parts, &mut lexer, &mut diagnostics);
        dump += &format!("({})\n", instruction(&parts, escape));
    }
    dump
}

fn instruction(parts: &Parts<'_>, escape: char) -> String {
    let mut shown = parts.keyword.to_ascii_lowercase();
    if !parts.flags.is_empty() {
        let flags = parts.flags.iter().map(|flag| match &flag.value {
            Some(value) => format!("{:?}", format!("--{}={value}", flag.name)),
            None => format!("{:?}", format!("--{}", flag.name)),
        });
        shown += &format!(" [{}]", flags.collect::<Vec<_>>().join(" "));
    }
    if shown == "onbuild" {
        return format!("onbuild ({})", instruction(&grammar::parts(parts.rest), escape));
    }
    for argument in arguments(&parts.keyword.to_ascii_uppercase(), parts.rest, escape) {
        shown += &format!(" {argument:?}");
    }
    shown
}

fn arguments(keyword: &str, rest: &str, escape: char) -> Vec<String> {
    let owned = |words: Vec<&str>| words.into_iter().map(str::to_owned).collect();
    let strings = |text| match grammar::json(text) {
        Json::Strings(strings) => Some(strings.into_iter().map(|(value, _)| value).collect::<Vec<_>>()),
        _ => None,
    };
    let one = |text: &str| if text.is_empty() { vec![] } else { vec![text.to_owned()] };
    match keyword {
        "ADD" | "COPY" | "VOLUME" => strings(rest).unwrap_or_else(|| owned(grammar::list(rest))),
        "EXPOSE" | "FROM" => owned(grammar::list(rest)),
        "ARG" => owned(grammar::words(rest, escape)),
        "ENV" | "LABEL" => pairs(rest, escape),
        "HEALTHCHECK" => {
            let (kind, command) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            let command = command.trim_start();
            [one(kind), strings(command).unwrap_or_else(|| one(command))].concat()
        }
        "MAINTAINER" | "STOPSIGNAL" | "USER" | "WORKDIR" => one(rest),
        _ => strings(rest).unwrap_or_else(|| one(rest)),
    }
}

fn pairs(rest: &str, escape: char) -> Vec<String> {
    let words = grammar::words(rest, escape);
    if words.first().is_some_and(|word| !word.contains('=')) {
        let (key, value) = grammar::key_and_rest(rest).unwrap_or((rest, ""));
        return vec![key.to_owned(), value.to_owned(), String::new()];
    }
    let pairs = words.iter().filter_map(|word| word.split_once('='));
    pairs.flat_map(|(key, value)| [key.to_owned(), value.to_owned(), "=".to_owned()]).collect()
}

#[test]
fn the_fixtures_agree() {
    let Some(folder) = fixtures::path("parser") else { return };
    let mut count = 0;
    for case in std::fs::read_dir(folder).expect("the folder can be read") {
        let case = case.expect("its entries too").path();
        let read = |name: &str| std::fs::read_to_string(case.join(name)).expect("a case has both files");
        assert_eq!(dump(&read("Dockerfile")).trim(), read("result").trim(), "{}", case.display());
        count += 1;
    }
    assert!(count >= 12, "only {count} fixtures");
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
        let diagnostics = parse(&text).diagnostics;
        let errors = diagnostics.iter().filter(|diagnostic| diagnostic.severity == Severity::Error);
        let messages: Vec<_> = errors.map(|error| error.message.as_str()).collect();
        assert_eq!(messages, [expected], "{case}");
    }
}

#[test]
fn flags_and_triggers_are_dumped() {
    let text = "COPY --from=a --link x y\nONBUILD RUN <<E\nx\nE\nENV a=1 b=\"2 3\"\nVOLUME [\"/a\"]\n";
    let expected = r#"(copy ["--from=a" "--link"] "x" "y")
(onbuild (run "<<E"))
(env "a" "1" "=" "b" "\"2 3\"" "=")
(volume "/a")
"#;
    assert_eq!(dump(text), expected);
}
