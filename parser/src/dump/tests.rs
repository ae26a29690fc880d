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
