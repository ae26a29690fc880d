//! A whole Dockerfile: its instructions in order, gathered into stages, with all that is wrong with it.

use crate::ast::{Dockerfile, Instruction, InstructionKind, Span, Spanned, Stage};
use crate::diagnostic::{Diagnostic, Severity};
use crate::instruction::{self, Statement};
use crate::lexer::Lexer;
use crate::{directives, lint};

/// Bytes a Dockerfile may have. A reader need not take in more than one byte beyond this.
pub const MAX_BYTES: usize = 16 << 20;

/// Instructions a Dockerfile may have.
pub const MAX_INSTRUCTIONS: usize = 100_000;

/// Words a Dockerfile's instructions may have, heredoc bodies aside.
pub const MAX_WORDS: usize = 500_000;

/// Mistakes after which reading stops: nobody reads more, and a hostile file could make millions.
pub const MAX_ERRORS: usize = 100;

/// What [`parse`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// The syntax tree; `None` exactly when `diagnostics` holds an error.
    pub dockerfile: Option<Dockerfile>,
    /// Where there are errors: the tree without the instructions that are wrong, to look for what else is wrong, never
    /// to build. `None` where what is missing would make others look wrong: a FROM, an ARG or an ENV.
    pub remains: Option<Dockerfile>,
    /// Every mistake and every finding of a lint rule, in the order of the text. Whether findings are errors
    /// (`# check=error=true`) is for whoever knows which of them count ([`lint::Checks::violation`]).
    pub diagnostics: Vec<Diagnostic>,
}

/// Parses a whole Dockerfile. Lint rules speak only where there are no mistakes.
pub fn parse(text: &str) -> Parsed {
    parse_checked(text, None)
}

/// The same, with what `BUILDKIT_DOCKERFILE_CHECK` says in the place of the Dockerfile's own `# check=`.
pub fn parse_checked(text: &str, check: Option<&str>) -> Parsed {
    let mut diagnostics = Vec::new();
    let mut read = match refuse_outright(text) {
        Some(error) => {
            diagnostics.push(error);
            None
        }
        None => read(text, &mut diagnostics),
    };
    if let (Some(read), Some(check)) = (&mut read, check) {
        let check = Spanned { value: check.to_owned(), span: Span::default() };
        read.dockerfile.directives.check = Some(check);
    }
    if let (Some(read), false) = (&read, has_errors(&diagnostics)) {
        diagnostics = lint::run(&read.dockerfile, text, diagnostics);
    }
    let (dockerfile, remains) = match read {
        Some(read) if has_errors(&diagnostics) => (None, read.remains(&diagnostics)),
        read => (read.map(|read| read.dockerfile), None),
    };
    diagnostics.sort_by_key(|diagnostic| diagnostic.span);
    if count_errors(&diagnostics) > MAX_ERRORS {
        diagnostics.retain(|diagnostic| diagnostic.severity == Severity::Error);
        diagnostics.truncate(MAX_ERRORS);
        let end = Span { start: text.len(), end: text.len() };
        diagnostics.push(Diagnostic::error(end, "too many mistakes; the rest is left out"));
    }
    Parsed { dockerfile, remains, diagnostics }
}

/// Parses one instruction: an ONBUILD trigger as a base image's config holds it.
pub fn parse_instruction(text: &str, escape: char) -> Result<Instruction, Vec<Diagnostic>> {
    if let Some(error) = refuse_outright(text) {
        return Err(vec![error]);
    }
    let mut diagnostics = Vec::new();
    let mut statements = statements(&mut Lexer::new(text, 0, escape), &mut diagnostics);
    if has_errors(&diagnostics) {
        return Err(diagnostics);
    }
    let whole = Span { start: 0, end: text.len() };
    let refuse = |message: &str| Err(vec![Diagnostic::error(whole, message)]);
    match (statements.pop(), statements.pop()) {
        (Some(Statement::From(_) | Statement::RefusedFrom), None) => {
            refuse("FROM isn't allowed as an ONBUILD trigger")
        }
        (Some(Statement::Instruction(instruction)), None) => match instruction.kind {
            InstructionKind::Onbuild { .. } => refuse("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"),
            InstructionKind::Maintainer(_) => refuse("MAINTAINER isn't allowed as an ONBUILD trigger"),
            _ => Ok(instruction),
        },
        _ => refuse("onbuild trigger should be a single expression"),
    }
}

/// Texts that are not worth reading: too long, or not text.
fn refuse_outright(text: &str) -> Option<Diagnostic> {
    too_large(text).or_else(|| {
        let at = text.find('\0')?;
        Some(Diagnostic::error(Span { start: at, end: at + 1 }, "the Dockerfile holds a NUL byte"))
    })
}

pub(crate) fn too_large(text: &str) -> Option<Diagnostic> {
    if text.len() <= MAX_BYTES {
        return None;
    }
    let at = text.floor_char_boundary(MAX_BYTES);
    let message = format!("the Dockerfile is larger than {} MiB", MAX_BYTES >> 20);
    Some(Diagnostic::error(Span { start: at, end: at }, message))
}

/// What could be read.
struct Read {
    dockerfile: Dockerfile,
    /// Whether every FROM, ARG and ENV is there.
    has_all_names: bool,
}

impl Read {
    /// [`Parsed::remains`]
    fn remains(mut self, diagnostics: &[Diagnostic]) -> Option<Dockerfile> {
        // Findings of lint rules are told where nothing is wrong.
        self.dockerfile.directives.check = None;
        let is_sound = self.has_all_names && count_errors(diagnostics) <= MAX_ERRORS;
        Some(self.dockerfile).filter(|dockerfile| is_sound && !dockerfile.stages.is_empty())
    }
}

fn read(text: &str, diagnostics: &mut Vec<Diagnostic>) -> Option<Read> {
    let (mut directives, start) = directives::read(text, diagnostics);
    let mut lexer = Lexer::new(text, start, directives.escape);
    let statements = statements(&mut lexer, diagnostics);
    directives.local_checks = lexer.into_local_checks();
    let end = Span { start: text.len(), end: text.len() };
    if statements.is_empty() {
        diagnostics.push(Diagnostic::error(end, "file with no instructions"));
        return None;
    }
    let is_name = |said: &Statement| matches!(said, Statement::RefusedFrom | Statement::RefusedName);
    let has_all_names = !statements.iter().any(is_name);
    let (global_args, stages) = stages(statements, diagnostics);
    if stages.is_empty() && !has_errors(diagnostics) {
        let error = Diagnostic::error(end, "dockerfile contains no stages to build");
        diagnostics.push(error.hint("a FROM is missing"));
    }
    Some(Read { dockerfile: Dockerfile { directives, global_args, stages }, has_all_names })
}

/// What all lines say, in order.
fn statements(lexer: &mut Lexer<'_>, diagnostics: &mut Vec<Diagnostic>) -> Vec<Statement> {
    let mut statements = Vec::new();
    let (mut known, mut errors) = (diagnostics.len(), count_errors(diagnostics));
    while let Some(statement) = instruction::next(lexer, diagnostics) {
        statements.push(statement);
        errors += count_errors(&diagnostics[known..]);
        known = diagnostics.len();
        if errors > MAX_ERRORS {
            break;
        }
        if statements.len() > MAX_INSTRUCTIONS {
            let at = Span { start: lexer.position(), end: lexer.position() };
            let message = format!("the Dockerfile has more than {MAX_INSTRUCTIONS} instructions");
            diagnostics.push(Diagnostic::error(at, message));
            break;
        }
    }
    statements
}

/// Sorts instructions into the stages they belong to. What follows a FROM that could not be read is not blamed for
/// having no stage.
fn stages(statements: Vec<Statement>, diagnostics: &mut Vec<Diagnostic>) -> (Vec<Instruction>, Vec<Stage>) {
    let mut global_args = Vec::new();
    let mut stages: Vec<Stage> = Vec::new();
    let mut from_seen = false;
    for statement in statements {
        match (statement, stages.last_mut()) {
            (Statement::From(stage), _) => stages.push(stage),
            (Statement::RefusedFrom, _) => from_seen = true,
            (Statement::RefusedName | Statement::Refused, _) => {}
            (Statement::Instruction(instruction), Some(stage)) => stage.instructions.push(instruction),
            (Statement::Instruction(_), None) if from_seen => {}
            (Statement::Instruction(instruction), None) => match instruction.kind {
                InstructionKind::Arg(_) => global_args.push(instruction),
                _ => diagnostics.push(orphan(instruction.span)),
            },
        }
    }
    (global_args, stages)
}

fn orphan(span: Span) -> Diagnostic {
    let error = Diagnostic::error(span, "no build stage in current context");
    error.hint("only ARG may stand before the first FROM")
}

fn has_errors(diagnostics: &[Diagnostic]) -> bool {
    count_errors(diagnostics) > 0
}

fn count_errors(diagnostics: &[Diagnostic]) -> usize {
    diagnostics.iter().filter(|diagnostic| diagnostic.severity == Severity::Error).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trigger_is_one_instruction() {
        let run = parse_instruction("RUN <<EOF\na\nEOF", '\\').expect("well formed");
        assert_eq!((run.text.as_str(), run.span), ("RUN <<EOF", Span { start: 0, end: 15 }));
        assert!(matches!(run.kind, InstructionKind::Run(run) if run.heredocs[0].content == "a\n"));
        assert!(parse_instruction("COPY a `\n b", '`').is_ok());
    }

    #[test]
    fn other_triggers_are_refused() {
        let cases = [
            ("", "onbuild trigger should be a single expression"),
            ("RUN a\nRUN b", "onbuild trigger should be a single expression"),
            ("FROM a", "FROM isn't allowed as an ONBUILD trigger"),
            ("ONBUILD RUN a", "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"),
            ("MAINTAINER a", "MAINTAINER isn't allowed as an ONBUILD trigger"),
            ("RUM a", "unknown instruction: RUM"),
            ("RUN a\0", "the Dockerfile holds a NUL byte"),
        ];
        for (text, expected) in cases {
            let errors = parse_instruction(text, '\\').expect_err(text);
            let messages: Vec<_> = errors.iter().map(|error| error.message.as_str()).collect();
            assert_eq!(messages, [expected], "{text}");
        }
    }

    #[test]
    fn a_tree_is_given_exactly_when_there_is_no_mistake() {
        assert!(parse("FROM a\n").dockerfile.is_some());
        assert!(parse("FROM a as b\nMAINTAINER c\n").dockerfile.is_some(), "warnings are no mistakes");
        assert!(parse("FROM a\nRUM b\n").dockerfile.is_none());
    }

    #[test]
    fn what_remains_lacks_nothing_that_others_use() {
        let stages = |text| parse(text).remains.map(|remains| remains.stages.len());
        assert_eq!(stages("FROM a\nRUM b\nFROM c\n"), Some(2));
        for text in
            ["FROM a\n", "FROM a b\nRUN c\n", "FRON a\nRUN c\n", "FROM a\nENV b\n", "FROM a\nARGS b\nRUM\n"]
        {
            assert_eq!(stages(text), None, "{text}");
        }
    }
}
