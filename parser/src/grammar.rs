//! What an instruction's line is made of: keyword, flags, words, JSON arrays, `key=value` pairs, heredoc markers.
//!
//! All functions work on slices of one joined line ([`crate::lexer::Line`]) and give slices of it back wherever the
//! text is kept as written, so that every part can be traced to the file.

use nom::branch::alt;
use nom::bytes::complete::{is_not, tag, take_till, take_while, take_while1};
use nom::character::complete::{anychar, char, digit0, satisfy};
use nom::combinator::{eof, opt, value, verify};
use nom::multi::{fold_many0, many0, many0_count, separated_list0};
use nom::sequence::{delimited, preceded, terminated};
use nom::{IResult, Parser};

use crate::{go, word};

/// What is wrong with a JSON array that does not hold strings alone.
pub(crate) const NOT_STRINGS: &str = "when using JSON array syntax, arrays must be comprised of strings only";

/// What is wrong with a word that is no pair among pairs.
pub(crate) fn no_equals_sign(word: &str) -> String {
    format!("Syntax error - can't find = in {}. Must be of the form: name=value", go::quote(word))
}

/// White space between the words of a line, as BuildKit's regular expression has it.
fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\u{b}' | '\u{c}' | '\r')
}

/// An instruction: keyword, flags, and the rest without white space around it.
#[derive(Debug, Clone)]
pub(crate) struct Parts<'a> {
    /// As written; empty only for an empty line.
    pub(crate) keyword: &'a str,
    pub(crate) flags: Vec<Flag<'a>>,
    pub(crate) rest: &'a str,
}

/// `--name` or `--name=value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Flag<'a> {
    /// As written, quotes and escapes included.
    pub(crate) source: &'a str,
    pub(crate) name: String,
    /// What follows the first equals sign, without quotes.
    pub(crate) value: Option<String>,
}

/// Splits an instruction's text. Any text can be split.
pub(crate) fn parts(text: &str) -> Parts<'_> {
    let grammar = (take_till(is_space), flags);
    let (rest, (keyword, flags)) = infallible(grammar, text.trim());
    Parts { keyword, flags, rest: rest.trim() }
}

/// Flags end at the first word that does not begin with `--`, or after a bare `--`.
fn flags(text: &str) -> IResult<&str, Vec<Flag<'_>>> {
    let (text, flags) = many0(preceded(take_while(char::is_whitespace), flag)).parse(text)?;
    let bare = (take_while(char::is_whitespace), tag("--"), alt((eof, take_while1(char::is_whitespace))));
    let (text, _) = opt(bare).parse(text)?;
    Ok((text, flags))
}

fn flag(text: &str) -> IResult<&str, Flag<'_>> {
    let (after_dashes, _) = tag("--")(text)?;
    let (rest, word) = flag_word(after_dashes)?;
    if word.is_empty() {
        return Err(nom::Err::Error(nom::error::make_error(text, nom::error::ErrorKind::Verify)));
    }
    let source = &text[..text.len() - rest.len()];
    let flag = match word.split_once('=') {
        Some((name, value)) => Flag { source, name: name.to_owned(), value: Some(value.to_owned()) },
        None => Flag { source, name: word, value: None },
    };
    Ok((rest, flag))
}

/// In flags quotes are removed when the line is read, and `\` escapes whatever the escape character is.
fn flag_word(text: &str) -> IResult<&str, String> {
    let plain = satisfy(|c| !c.is_whitespace() && !matches!(c, '\\' | '\'' | '"')).map(Some);
    let unquoted = alt((escaped, plain)).map(|c| c.into_iter().collect());
    let piece = alt((quoted('"'), quoted('\''), unquoted));
    fold_many0(piece, String::new, |word, piece: String| word + &piece).parse(text)
}

fn quoted<'a>(quote: char) -> impl Parser<&'a str, Output = String, Error = nom::error::Error<&'a str>> {
    let inside = alt((escaped, satisfy(move |c| c != quote && c != '\\').map(Some)));
    let text = fold_many0(inside, String::new, |mut text, c| {
        text.extend(c);
        text
    });
    delimited(char(quote), text, opt(char(quote)))
}

/// `\` and the character it escapes; at the end of the line it stands for nothing.
fn escaped(text: &str) -> IResult<&str, Option<char>> {
    preceded(char('\\'), opt(anychar)).parse(text)
}

/// Words between white space; no quoting.
pub(crate) fn list(text: &str) -> Vec<&str> {
    text.split(is_space).filter(|word| !word.is_empty()).collect()
}

/// Words between white space outside of quotes, quotes and escapes kept: the pairs of ENV, LABEL and ARG.
pub(crate) fn words(text: &str, escape: char) -> Vec<&str> {
    let word = taken(many0_count(|text| word_piece(text, escape)));
    let word = verify(word, |word: &str| !word.is_empty());
    let separated = many0(preceded(take_while(char::is_whitespace), word));
    let (_, mut words) = infallible(separated, text);
    drop_final_escape(&mut words, text, escape);
    words
}

fn word_piece(text: &str, escape: char) -> IResult<&str, ()> {
    let escaped = || taken((char(escape), opt(anychar)));
    let double = (
        char('"'),
        many0_count(alt((escaped(), taken(satisfy(|c| c != '"' && c != escape))))),
        opt(char('"')),
    );
    let single = (char('\''), take_till(|c| c == '\''), opt(char('\'')));
    let plain = satisfy(|c: char| !c.is_whitespace());
    let piece = alt((escaped(), taken(double), taken(single), taken(plain)));
    value((), piece).parse(text)
}

/// An escape character at the end of the text escapes nothing and is no part of the last word.
fn drop_final_escape<'a>(words: &mut Vec<&'a str>, text: &'a str, escape: char) {
    let Some(last) = words.last_mut() else { return };
    let at_end = nom::Offset::offset(text, last) + last.len() == text.len();
    if at_end && ends_in_open_escape(last, escape) {
        *last = &last[..last.len() - escape.len_utf8()];
    }
    if last.is_empty() {
        words.pop();
    }
}

fn ends_in_open_escape(word: &str, escape: char) -> bool {
    let mut quote = None;
    let mut chars = word.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (None | Some('"'), c) if c == escape => match chars.next() {
                Some(_) => {}
                None => return true,
            },
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), c) if c == open => quote = None,
            _ => {}
        }
    }
    false
}

/// The key and the rest of the line of `ENV key rest`.
pub(crate) fn key_and_rest(text: &str) -> Option<(&str, &str)> {
    let (rest, key) = infallible(take_till(is_space), text);
    let (rest, space) = infallible(take_while(is_space), rest);
    (!space.is_empty()).then_some((key, rest))
}

/// What a text is when it may be a JSON array of strings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Json<'a> {
    /// It is one: the strings, and where each stands (quotes included).
    Strings(Vec<(String, &'a str)>),
    /// An array, but not only of strings.
    OtherArray,
    /// No array, or no JSON at all: the shell form.
    No,
}

/// Looks for a JSON array of strings that makes up all of `text`.
pub(crate) fn json(text: &str) -> Json<'_> {
    if !text.starts_with('[') {
        return Json::No;
    }
    let Ok((_, sources)) = json_strings(text) else {
        let is_array = serde_json::from_str::<Vec<serde::de::IgnoredAny>>(text).is_ok();
        return if is_array { Json::OtherArray } else { Json::No };
    };
    let strings = sources.into_iter().map(|source| Some((go::json_string(source)?, source)));
    strings.collect::<Option<Vec<_>>>().map_or(Json::No, Json::Strings)
}

fn json_strings(text: &str) -> IResult<&str, Vec<&str>> {
    let space = || take_while(|c: char| matches!(c, ' ' | '\t' | '\r' | '\n'));
    let inside = alt((taken((char('\\'), anychar)), is_not("\"\\")));
    let string = taken((char('"'), many0_count(inside), char('"')));
    let elements = separated_list0(char(','), delimited(space(), string, space()));
    terminated(delimited((char('['), space()), elements, char(']')), (space(), eof)).parse(text)
}

/// `[fd]<<[-]delimiter`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HeredocMarker {
    pub(crate) fd: u32,
    pub(crate) chomp: bool,
    pub(crate) name: String,
    pub(crate) quoted: bool,
}

/// Reads one word as a heredoc's marker; `None` when it is something else.
pub(crate) fn heredoc_marker(text: &str) -> Option<HeredocMarker> {
    let delimiter = terminated(take_till(|c| c == '<'), eof);
    let grammar = (digit0, tag("<<"), opt(char('-')), take_while(char::is_whitespace), delimiter);
    let (_, (fd, _, chomp, _, delimiter)) = parse(grammar, text)?;
    let (name, quoted) = word::delimiter(delimiter).ok()??;
    Some(HeredocMarker { fd: fd.parse().unwrap_or(0), chomp: chomp.is_some(), name, quoted })
}

/// The markers of an instruction's whole text. A text with unbalanced quotes has none: it is the shell's to judge.
pub(crate) fn heredoc_markers(text: &str) -> Vec<HeredocMarker> {
    let words = word::raw_words(text).unwrap_or_default();
    words.iter().filter_map(|word| heredoc_marker(word)).collect()
}

/// The text that `grammar` takes. Stands in for nom's `recognize`, which in nom 8.0 goes by the address of the rest
/// and loses a `digit0` or `take_while` that took everything (rust-bakery/nom#1808).
pub(crate) fn taken<'a, O>(
    mut grammar: impl Parser<&'a str, Output = O, Error = nom::error::Error<&'a str>>,
) -> impl Parser<&'a str, Output = &'a str, Error = nom::error::Error<&'a str>> {
    move |text: &'a str| {
        let (rest, _) = grammar.parse(text)?;
        let (taken, rest) = text.split_at(text.len() - rest.len());
        Ok((rest, taken))
    }
}

/// The rest and what was found before it. The rest is cut anew for the same reason as in [`taken`].
fn parse<'a, O>(
    mut grammar: impl Parser<&'a str, Output = O, Error = nom::error::Error<&'a str>>,
    text: &'a str,
) -> Option<(&'a str, O)> {
    let (rest, output) = grammar.parse(text).ok()?;
    Some((&text[text.len() - rest.len()..], output))
}

fn infallible<'a, O>(
    grammar: impl Parser<&'a str, Output = O, Error = nom::error::Error<&'a str>>,
    text: &'a str,
) -> (&'a str, O) {
    parse(grammar, text).expect("every part of this grammar accepts the empty text")
}

#[cfg(test)]
mod tests;
