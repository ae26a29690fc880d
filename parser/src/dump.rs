//! BuildKit's first pass over a Dockerfile, in the form that its own tests dump it: one line an instruction,
//! `(keyword ["--flag=value"] "argument" ...)`, strings quoted as Go does.
//!
//! This pass knows how each instruction's arguments are cut, and nothing of what they mean: a keyword it does not know
//! is kept with an empty argument, flags are not checked, stages do not matter. So it takes more than [`crate::parse`]
//! does, and refuses the same where the text itself cannot be cut.

use crate::ast::Span;
use crate::diagnostic::Diagnostic;
use crate::go::quote;
use crate::grammar::{self, Json, Parts};
use crate::instruction::read_heredocs;
use crate::lexer::{Lexer, Line};
use crate::{MAX_ERRORS, directives, parse};

/// Dumps what a Dockerfile's instructions are made of, one a line, each line with its end.
///
/// # Errors
/// Every mistake that keeps the text from being cut into instructions and arguments.
pub fn dump(text: &str) -> Result<String, Vec<Diagnostic>> {
    if let Some(error) = parse::too_large(text) {
        return Err(vec![error]);
    }
    let mut errors = Vec::new();
    let (directives, start) = directives::read(text, &mut errors);
    let mut lexer = Lexer::new(text, start, directives.escape);
    let mut dump = String::new();
    while let Some(line) = lexer.next_line() {
        let parts = grammar::parts(&line.text);
        match instruction(&line, parts, directives.escape) {
            Ok(instruction) => dump += &format!("({instruction})\n"),
            Err(error) => errors.push(error),
        }
        read_heredocs(&line, &grammar::parts(&line.text), &mut lexer, &mut errors);
        if errors.len() > MAX_ERRORS {
            break;
        }
    }
    if dump.is_empty() && errors.is_empty() {
        let end = Span { start: text.len(), end: text.len() };
        errors.push(Diagnostic::error(end, "file with no instructions"));
    }
    if errors.is_empty() { Ok(dump) } else { Err(errors) }
}

/// An instruction; triggers stand in each other as deep as they are written.
fn instruction(line: &Line, mut parts: Parts<'_>, escape: char) -> Result<String, Diagnostic> {
    let mut shown = String::new();
    let mut depth = 0;
    loop {
        shown += &parts.keyword.to_lowercase();
        shown += &flags(&parts);
        if !parts.keyword.eq_ignore_ascii_case("ONBUILD") || parts.rest.is_empty() {
            break;
        }
        shown += " (";
        depth += 1;
        parts = grammar::parts(parts.rest);
    }
    let arguments = arguments(&parts.keyword.to_ascii_uppercase(), parts.rest, escape);
    let arguments = arguments.map_err(|message| Diagnostic::error(line.span_of_part(parts.rest), message))?;
    for argument in arguments {
        // An instruction without a keyword begins with its argument.
        let space = if shown.is_empty() || shown.ends_with('(') { "" } else { " " };
        shown = shown + space + &quote(&argument);
    }
    Ok(shown + &")".repeat(depth))
}

fn flags(parts: &Parts<'_>) -> String {
    if parts.flags.is_empty() {
        return String::new();
    }
    let flags = parts.flags.iter().map(|flag| match &flag.value {
        Some(value) => quote(&format!("--{}={value}", flag.name)),
        None => quote(&format!("--{}", flag.name)),
    });
    format!(" [{}]", flags.collect::<Vec<_>>().join(" "))
}

/// How the rest of the line is cut depends on the keyword alone.
fn arguments(keyword: &str, rest: &str, escape: char) -> Result<Vec<String>, String> {
    let owned = |words: Vec<&str>| words.into_iter().map(str::to_owned).collect();
    match keyword {
        "ADD" | "COPY" | "VOLUME" => Ok(strings(rest)?.unwrap_or_else(|| owned(grammar::list(rest)))),
        "EXPOSE" | "FROM" => Ok(owned(grammar::list(rest))),
        "ARG" => Ok(owned(grammar::words(rest, escape))),
        "ENV" | "LABEL" => pairs(keyword, rest, escape),
        "HEALTHCHECK" => {
            let (kind, command) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            Ok([one(kind), command_line(command.trim_start())?].concat())
        }
        "MAINTAINER" | "STOPSIGNAL" | "USER" | "WORKDIR" | "ONBUILD" => Ok(one(rest)),
        "CMD" | "ENTRYPOINT" | "RUN" | "SHELL" => command_line(rest),
        _ => Ok(vec![String::new()]),
    }
}

fn one(text: &str) -> Vec<String> {
    if text.is_empty() { vec![] } else { vec![text.to_owned()] }
}

fn command_line(text: &str) -> Result<Vec<String>, String> {
    Ok(strings(text)?.unwrap_or_else(|| one(text)))
}

fn strings(text: &str) -> Result<Option<Vec<String>>, String> {
    match grammar::json(text) {
        Json::Strings(strings) => Ok(Some(strings.into_iter().map(|(value, _)| value).collect())),
        Json::OtherArray => Err(grammar::NOT_STRINGS.to_owned()),
        Json::No => Ok(None),
    }
}

/// Name, value and what stood between them: an equals sign, or nothing in the form with one pair.
fn pairs(keyword: &str, rest: &str, escape: char) -> Result<Vec<String>, String> {
    let words = grammar::words(rest, escape);
    let Some(first) = words.first() else { return Ok(Vec::new()) };
    if !first.contains('=') {
        let (key, value) = grammar::key_and_rest(rest).ok_or(format!("{keyword} must have two arguments"))?;
        return Ok(vec![key.to_owned(), value.to_owned(), String::new()]);
    }
    let mut arguments = Vec::new();
    for word in words {
        let (key, value) = word.split_once('=').ok_or_else(|| grammar::no_equals_sign(word))?;
        arguments.extend([key.to_owned(), value.to_owned(), "=".to_owned()]);
    }
    Ok(arguments)
}

#[cfg(test)]
mod tests;
