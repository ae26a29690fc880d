//! One instruction: from its line to its place in the syntax tree.
//!
//! Every mistake of a line is reported, in BuildKit's words where it has them; a line with a mistake gives no
//! instruction, and the next line is read as if it had been right.

mod copy;
mod description;
mod healthcheck;
mod run;

use crate::ast::{
    ArgDeclaration, CommandLine, Heredoc, Instruction, InstructionKind, KeyValues, Span, Spanned, Stage, Word,
};
use crate::diagnostic::Diagnostic;
use crate::flags::Flags;
use crate::grammar::{self, Json, Parts};
use crate::lexer::{Lexer, Line};
use crate::parse::MAX_WORDS;
use crate::suggest;

/// All instructions of the language.
const INSTRUCTIONS: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// What a line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Statement {
    /// FROM: a stage without instructions yet.
    From(Stage),
    /// Anything else.
    Instruction(Instruction),
    /// A FROM, or what was meant to be one, that could not be read; what is wrong with it has been reported.
    RefusedFrom,
    /// The same for ARG and ENV, whose names others use.
    RefusedName,
    /// Anything else that could not be read.
    Refused,
}

/// Reads the next instruction and the bodies of its heredocs; `None` at the end of the text.
pub(crate) fn next(lexer: &mut Lexer<'_>, diagnostics: &mut Vec<Diagnostic>) -> Option<Statement> {
    let line = lexer.next_line()?;
    if lexer.words() > MAX_WORDS {
        let message = format!("the Dockerfile has more than {MAX_WORDS} words");
        diagnostics.push(Diagnostic::error(Span { start: line.span.start, end: line.span.start }, message));
        return None;
    }
    if let Some(span) = line.empty_continuation {
        diagnostics.push(Diagnostic::warning("NoEmptyContinuation", span, "Empty continuation line"));
    }
    let parts = grammar::parts(&line.text);
    let heredocs = read_heredocs(&line, &parts, lexer, diagnostics);
    let span = Span { start: line.span.start, end: heredocs.end.unwrap_or(line.span.end) };
    let (escape, comments) = (lexer.escape(), lexer.text(line.comments));
    let mut reader = Reader {
        line: &line,
        escape,
        comments,
        heredocs: heredocs.found,
        heredoc_text: heredocs.text,
        diagnostics,
    };
    if parts.keyword.eq_ignore_ascii_case("FROM") {
        return Some(reader.from(&parts).map_or(Statement::RefusedFrom, Statement::From));
    }
    let refused = match suggest::nearest(parts.keyword, INSTRUCTIONS) {
        Some("FROM") => Statement::RefusedFrom,
        Some("ARG" | "ENV") => Statement::RefusedName,
        _ => Statement::Refused,
    };
    Some(reader.instruction(&parts, &line.text, span).map_or(refused, Statement::Instruction))
}

/// What [`read_heredocs`] found.
#[derive(Debug, Default)]
pub(crate) struct Heredocs {
    found: Vec<Heredoc>,
    /// Markers' bodies as they go into an ONBUILD trigger's text.
    text: String,
    /// End of the last body's delimiter.
    end: Option<usize>,
}

/// Reads the bodies of the heredocs that a line opens, if it is one that may.
pub(crate) fn read_heredocs(
    line: &Line,
    parts: &Parts<'_>,
    lexer: &mut Lexer<'_>,
    diagnostics: &mut Vec<Diagnostic>,
) -> Heredocs {
    let mut heredocs = Heredocs::default();
    if !line.text.contains("<<") || !takes_heredocs(parts) {
        return heredocs;
    }
    for marker in grammar::heredoc_markers(&line.text) {
        let body = lexer.heredoc(&marker);
        if !body.terminated {
            let hint = format!("a line that holds only {} is missing", marker.name);
            diagnostics.push(Diagnostic::error(line.span, "unterminated heredoc").hint(hint));
            break;
        }
        heredocs.text += &format!("\n{}{}", body.content, marker.name);
        heredocs.end = Some(body.end);
        let content = if marker.chomp { without_leading_tabs(body.content) } else { body.content.to_owned() };
        heredocs.found.push(Heredoc {
            written: (content != body.content).then(|| body.content.to_owned()),
            content,
            name: marker.name,
            fd: marker.fd,
            expand: !marker.quoted,
            chomp: marker.chomp,
            span: body.span,
        });
    }
    heredocs
}

/// RUN, COPY and ADD take heredocs, also as triggers, unless they are in the JSON form.
fn takes_heredocs(parts: &Parts<'_>) -> bool {
    let nested = parts.keyword.eq_ignore_ascii_case("ONBUILD").then(|| grammar::parts(parts.rest));
    let parts = nested.as_ref().unwrap_or(parts);
    let takes = ["RUN", "COPY", "ADD"].iter().any(|name| parts.keyword.eq_ignore_ascii_case(name));
    takes && !matches!(grammar::json(parts.rest), Json::Strings(_))
}

fn without_leading_tabs(content: &str) -> String {
    content.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
}

/// Reads one line's instruction; methods give `None` after they have reported what is wrong.
struct Reader<'r> {
    line: &'r Line,
    escape: char,
    /// The lines of comments right above.
    comments: &'r str,
    heredocs: Vec<Heredoc>,
    heredoc_text: String,
    diagnostics: &'r mut Vec<Diagnostic>,
}

impl Reader<'_> {
    /// Reads the instruction in `text`, which is the line or, for a trigger, the end of it.
    fn instruction(&mut self, parts: &Parts<'_>, text: &str, span: Span) -> Option<Instruction> {
        let known_mistakes = self.diagnostics.len();
        let keyword = parts.keyword.to_ascii_uppercase();
        if !INSTRUCTIONS.contains(&keyword.as_str()) {
            return self.unknown_instruction(parts.keyword);
        }
        let flags = match keyword == "HEALTHCHECK" && parts.rest.eq_ignore_ascii_case("NONE") {
            true => self.options_of_none(&parts.flags),
            false => Flags::check(&keyword, &parts.flags, self.line, self.diagnostics),
        };
        let kind = self.kind(&keyword, parts, &flags, span)?;
        let new = &self.diagnostics[known_mistakes..];
        let clean = !new.iter().any(|diagnostic| diagnostic.severity == crate::Severity::Error);
        clean.then(|| Instruction { kind, span, text: text.trim().to_owned() })
    }

    fn kind(
        &mut self,
        keyword: &str,
        parts: &Parts<'_>,
        flags: &Flags,
        span: Span,
    ) -> Option<InstructionKind> {
        let rest = parts.rest;
        Some(match keyword {
            "ADD" => InstructionKind::Add(self.copy(keyword, rest, flags)?),
            "ARG" => InstructionKind::Arg(self.arg(rest)?),
            "CMD" => InstructionKind::Cmd(self.command_line(rest)?),
            "COPY" => InstructionKind::Copy(self.copy(keyword, rest, flags)?),
            "ENTRYPOINT" => InstructionKind::Entrypoint(self.command_line(rest)?),
            "ENV" => InstructionKind::Env(self.key_values(keyword, rest)?),
            "EXPOSE" => InstructionKind::Expose(self.at_least_one(keyword, grammar::list(rest))?),
            "HEALTHCHECK" => InstructionKind::Healthcheck(self.healthcheck(rest, flags)?),
            "LABEL" => InstructionKind::Label(self.key_values(keyword, rest)?),
            "MAINTAINER" => InstructionKind::Maintainer(self.exactly_one(keyword, rest)?),
            "ONBUILD" => self.onbuild(rest, span)?,
            "RUN" => InstructionKind::Run(self.run(rest, flags)?),
            "SHELL" => InstructionKind::Shell(self.shell(rest)?),
            "STOPSIGNAL" => InstructionKind::Stopsignal(self.exactly_one(keyword, rest)?),
            "USER" => InstructionKind::User(self.exactly_one(keyword, rest)?),
            "VOLUME" => InstructionKind::Volume(self.volume(rest)?),
            "WORKDIR" => InstructionKind::Workdir(self.exactly_one(keyword, rest)?),
            // FROM is read elsewhere where it may stand; this is one that may not.
            _ => return self.refuse("FROM isn't allowed here"),
        })
    }

    fn unknown_instruction<T>(&mut self, keyword: &str) -> Option<T> {
        let span = self.line.span_of_part(keyword);
        let error = match keyword {
            "" => Diagnostic::error(span, "a line continuation with nothing to continue"),
            _ => Diagnostic::error(span, format!("unknown instruction: {keyword}")),
        };
        let near = suggest::nearest(keyword, INSTRUCTIONS);
        self.diagnostics.push(match near {
            Some(near) => error.hint(format!("did you mean {near}?")),
            None => error,
        });
        None
    }

    fn from(&mut self, parts: &Parts<'_>) -> Option<Stage> {
        let known_mistakes = self.diagnostics.len();
        let flags = Flags::check("FROM", &parts.flags, self.line, self.diagnostics);
        let (base, name) = match grammar::list(parts.rest)[..] {
            [base] => (base, None),
            [base, keyword, name] if keyword.eq_ignore_ascii_case("AS") => (base, Some(name)),
            _ => return self.refuse("FROM requires either one or three arguments"),
        };
        let (base, name) = (self.word(base), name.map(|name| self.word(name)));
        if let Some(name) = name.as_ref().filter(|name| !is_stage_name(&name.value)) {
            let message = "invalid name for build stage: ".to_owned()
                + &format!("{:?}, name can't start with a number or contain symbols", name.value);
            self.diagnostics.push(Diagnostic::error(name.span, message));
        }
        if self.diagnostics.len() > known_mistakes {
            return None;
        }
        let (span, text) = (self.line.span, self.line.text.trim().to_owned());
        let names: Vec<&str> = name.iter().map(|name| name.value.as_str()).collect();
        let comment = self.describe("FROM", &names).into_values().next();
        let (platform, instructions) = (flags.one("platform"), Vec::new());
        Some(Stage { base, platform, name, comment, span, text, instructions })
    }

    fn arg(&mut self, rest: &str) -> Option<Vec<ArgDeclaration>> {
        let words = grammar::words(rest, self.escape);
        if words.is_empty() {
            return self.refuse("ARG requires at least one argument");
        }
        let name = |word: &'_ str| word.split_once('=').map_or(word, |(name, _)| name).to_owned();
        let names: Vec<String> = words.iter().map(|word| name(word)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut comments = self.describe("ARG", &names);
        let declarations = words.into_iter().map(|word| {
            let (name, default) = match word.split_once('=') {
                Some(("", _)) => return self.refuse_at(word, "ARG names can not be blank"),
                Some((name, default)) => (name, Some(self.word(default))),
                None => (word, None),
            };
            Some(ArgDeclaration { name: self.word(name), default, comment: comments.remove(name) })
        });
        // Collected first, so that every blank name is reported.
        declarations.collect::<Vec<_>>().into_iter().collect()
    }

    fn key_values(&mut self, keyword: &str, rest: &str) -> Option<KeyValues> {
        let words = grammar::words(rest, self.escape);
        let Some(first) = words.first() else {
            return self.refuse(format!("{keyword} requires at least one argument"));
        };
        if !first.contains('=') {
            let Some((key, value)) = grammar::key_and_rest(rest) else {
                return self.refuse(format!("{keyword} must have two arguments"));
            };
            return Some(KeyValues { pairs: vec![(self.word(key), self.word(value))], legacy: true });
        }
        let pairs = words.into_iter().map(|word| match word.split_once('=') {
            Some(("", _)) => self.refuse_at(word, format!("{keyword} names can not be blank")),
            Some((key, value)) => Some((self.word(key), self.word(value))),
            None => self.refuse_at(word, grammar::no_equals_sign(word)),
        });
        let pairs = pairs.collect::<Vec<_>>().into_iter().collect::<Option<_>>()?;
        Some(KeyValues { pairs, legacy: false })
    }

    /// CMD, ENTRYPOINT, RUN and the command of HEALTHCHECK.
    fn command_line(&mut self, rest: &str) -> Option<CommandLine> {
        match grammar::json(rest) {
            Json::Strings(strings) => Some(CommandLine::Exec(values(strings))),
            Json::OtherArray => self.refuse_array(rest),
            Json::No => Some(CommandLine::Shell(rest.to_owned())),
        }
    }

    fn shell(&mut self, rest: &str) -> Option<Vec<String>> {
        match grammar::json(rest) {
            Json::Strings(strings) if !strings.is_empty() => Some(values(strings)),
            Json::Strings(_) => self.refuse("SHELL requires at least one argument"),
            Json::No if rest.is_empty() => self.refuse("SHELL requires at least one argument"),
            Json::No => self.refuse_at(rest, "SHELL requires the arguments to be in JSON form"),
            Json::OtherArray => self.refuse_array(rest),
        }
    }

    fn volume(&mut self, rest: &str) -> Option<Vec<Word>> {
        let volumes = self.json_or_list(rest)?;
        if volumes.is_empty() {
            return self.refuse("VOLUME requires at least one argument");
        }
        let trim = |word: Word| Spanned { value: word.value.trim().to_owned(), span: word.span };
        let volumes: Vec<Word> = volumes.into_iter().map(trim).collect();
        if let Some(empty) = volumes.iter().find(|volume| volume.value.is_empty()) {
            let message = "VOLUME specified can not be an empty string";
            self.diagnostics.push(Diagnostic::error(empty.span, message));
            return None;
        }
        Some(volumes)
    }

    fn onbuild(&mut self, rest: &str, span: Span) -> Option<InstructionKind> {
        if rest.is_empty() {
            return self.refuse("ONBUILD requires at least one argument");
        }
        let parts = grammar::parts(rest);
        let forbidden = match parts.keyword.to_ascii_uppercase().as_str() {
            "ONBUILD" => Some("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed".to_owned()),
            keyword @ ("MAINTAINER" | "FROM") => {
                Some(format!("{keyword} isn't allowed as an ONBUILD trigger"))
            }
            _ => None,
        };
        if let Some(message) = forbidden {
            return self.refuse_at(parts.keyword, message);
        }
        let start = self.line.span_of_part(rest).start;
        let trigger = self.instruction(&parts, rest, Span { start, end: span.end })?;
        let text = Spanned { value: format!("{rest}{}", self.heredoc_text), span: trigger.span };
        Some(InstructionKind::Onbuild { text, trigger: Box::new(trigger) })
    }

    fn exactly_one(&mut self, keyword: &str, rest: &str) -> Option<Word> {
        if rest.is_empty() {
            return self.refuse(format!("{keyword} requires exactly one argument"));
        }
        Some(self.word(rest))
    }

    fn at_least_one(&mut self, keyword: &str, words: Vec<&str>) -> Option<Vec<Word>> {
        if words.is_empty() {
            return self.refuse(format!("{keyword} requires at least one argument"));
        }
        Some(words.into_iter().map(|word| self.word(word)).collect())
    }

    /// COPY, ADD and VOLUME: a JSON array of strings, or words between white space.
    fn json_or_list(&mut self, rest: &str) -> Option<Vec<Word>> {
        match grammar::json(rest) {
            Json::Strings(strings) => {
                let word = |(value, source)| Spanned { value, span: self.line.span_of_part(source) };
                Some(strings.into_iter().map(word).collect())
            }
            Json::OtherArray => self.refuse_array(rest),
            Json::No => Some(grammar::list(rest).into_iter().map(|word| self.word(word)).collect()),
        }
    }

    fn word(&self, part: &str) -> Word {
        Spanned { value: part.to_owned(), span: self.line.span_of_part(part) }
    }

    fn refuse_array<T>(&mut self, rest: &str) -> Option<T> {
        self.refuse_at(rest, grammar::NOT_STRINGS)
    }

    /// Reports a mistake of the line as a whole.
    fn refuse<T>(&mut self, message: impl Into<String>) -> Option<T> {
        self.diagnostics.push(Diagnostic::error(self.line.span, message));
        None
    }

    /// Reports a mistake in a part of the line.
    fn refuse_at<T>(&mut self, part: &str, message: impl Into<String>) -> Option<T> {
        self.diagnostics.push(Diagnostic::error(self.line.span_of_part(part), message));
        None
    }
}

fn values(strings: Vec<(String, &str)>) -> Vec<String> {
    strings.into_iter().map(|(value, _)| value).collect()
}

/// Names compare without case; the first character is a letter.
fn is_stage_name(name: &str) -> bool {
    let rest = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.chars().all(rest)
}
