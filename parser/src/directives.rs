//! `# syntax=`, `# escape=` and `# check=`: comments that mean something as long as nothing else came before them.

use nom::bytes::complete::take_while;
use nom::character::complete::{char, satisfy, space0};
use nom::combinator::rest;
use nom::{IResult, Parser};

use crate::ast::{Directives, Span, Spanned, Word};
use crate::diagnostic::Diagnostic;
use crate::grammar::taken;
use crate::lexer::skip_bom;

/// Reads the directives at the top of `text`; what is wrong with them goes to `diagnostics`. Also where the rest of the
/// text begins.
pub(crate) fn read(text: &str, diagnostics: &mut Vec<Diagnostic>) -> (Directives, usize) {
    let mut directives = Directives { syntax: None, escape: '\\', check: None, local_checks: Vec::new() };
    let mut seen: Vec<String> = Vec::new();
    let mut at = skip_bom(text);
    // BuildKit looks for syntax and check behind a shebang, for the escape character only before it.
    let shebang = text[at..].starts_with("#!");
    if shebang {
        at += text[at..].find('\n').map_or(text.len() - at, |end| end + 1);
    }
    // And they end before a line that is indented.
    let mut indented = false;
    for line in text[at..].split_inclusive('\n') {
        let line_start = at;
        indented |= line.starts_with([' ', '\t']);
        let Some((key, value)) = directive(line) else { break };
        at += line.len();
        let start = line_start + nom::Offset::offset(line, value);
        let word = Spanned { value: value.to_owned(), span: Span { start, end: start + value.len() } };
        if seen.contains(&key) {
            let message = format!("only one {key} parser directive can be used");
            diagnostics.push(Diagnostic::error(word.span, message));
            continue;
        }
        match key.as_str() {
            "syntax" | "check" if indented => {}
            "syntax" => directives.syntax = Some(word),
            "check" => directives.check = Some(word),
            _ if shebang => {}
            _ => directives.escape = escape(&word, diagnostics),
        }
        seen.push(key);
    }
    (directives, at)
}

fn escape(word: &Word, diagnostics: &mut Vec<Diagnostic>) -> char {
    match word.value.as_str() {
        "\\" => '\\',
        "`" => '`',
        other => {
            let message = format!("invalid escape token '{other}' does not match ` or \\");
            diagnostics.push(Diagnostic::error(word.span, message));
            '\\'
        }
    }
}

/// What a `# check=` among the comments above an instruction says; the first one counts.
pub(crate) fn check_above(comments: &str) -> Option<&str> {
    comments.lines().filter_map(directive).find(|(key, _)| key == "check").map(|(_, value)| value)
}

/// A known directive: its name in lower case and its value.
fn directive(line: &str) -> Option<(String, &str)> {
    let (_, (key, value)) = grammar(line.trim_end().trim_start()).ok()?;
    let key = key.to_ascii_lowercase();
    (matches!(key.as_str(), "syntax" | "escape" | "check") && !value.is_empty()).then_some((key, value))
}

fn grammar(line: &str) -> IResult<&str, (&str, &str)> {
    let name = taken((satisfy(|c| c.is_ascii_alphabetic()), take_while(|c: char| c.is_ascii_alphanumeric())));
    let (line, (_, _, key, _, _, _)) = (char('#'), space0, name, space0, char('='), space0).parse(line)?;
    let (line, value) = rest(line)?;
    Ok((line, (key, value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, syntax: Option<&str>, escape: char, check: Option<&str>, mistakes: &[&str]) {
        let mut diagnostics = Vec::new();
        let (found, _) = read(text, &mut diagnostics);
        for word in found.syntax.iter().chain(&found.check) {
            assert_eq!(&text[word.span.start..word.span.end], word.value, "{text:?}");
        }
        assert_eq!(found.syntax.map(|word| word.value).as_deref(), syntax, "{text:?}");
        assert_eq!(found.escape, escape, "{text:?}");
        assert_eq!(found.check.map(|word| word.value).as_deref(), check, "{text:?}");
        let messages: Vec<_> = diagnostics.iter().map(|diagnostic| diagnostic.message.as_str()).collect();
        assert_eq!(messages, mistakes, "{text:?}");
    }

    #[test]
    fn directives_stand_at_the_top() {
        check("# syntax=docker/dockerfile:1\n#escape=`\nFROM x", Some("docker/dockerfile:1"), '`', None, &[]);
        check("\u{feff}  # ESCAPE = ` \r\n", None, '`', None, &[]);
        check("# check = skip=all;error=true\n", None, '\\', Some("skip=all;error=true"), &[]);
        check("\n# escape=`\n", None, '\\', None, &[]);
        check("# a comment\n# escape=`\n", None, '\\', None, &[]);
        check("# unknown=x\n# escape=`\n", None, '\\', None, &[]);
        check("# escape=\n# syntax=x\n", None, '\\', None, &[]);
        check("FROM x\n# escape=`\n", None, '\\', None, &[]);
        check(
            "# check=skip=all\n # syntax=x\n# syntax=y\n\t# escape=`\n",
            None,
            '`',
            Some("skip=all"),
            &["only one syntax parser directive can be used"],
        );
        check("#!/bin/x\n# escape=`\n# syntax=y\n", Some("y"), '\\', None, &[]);
    }

    #[test]
    fn mistakes_in_directives_are_reported() {
        check("# escape=x\n", None, '\\', None, &["invalid escape token 'x' does not match ` or \\"]);
        let twice = "only one syntax parser directive can be used";
        check("# syntax=a\n# Syntax=b\n# escape=`\n", Some("a"), '`', None, &[twice]);
    }
}
