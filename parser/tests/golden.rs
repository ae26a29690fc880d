//! `testdata/parse`: a folder is a case. `Dockerfile` is parsed; `expected` holds the tree in a
//! short form, or what is wrong, with the line and a caret. `UPDATE_EXPECT=1 cargo test` writes the expected files;
//! read them as carefully as code.
#![allow(clippy::disallowed_methods, reason = "the test itself reads the cases; the crate may not")]

use std::fmt::Write;
use std::path::Path;

use parser::ast::{
    CommandLine, Copy, CopySource, Healthcheck, Heredoc, InstructionKind, KeyValues, Run, Stage, Word,
};
use parser::{Diagnostic, Dockerfile, Instruction, Severity, Span, line_column, parse};

#[test]
fn parse_cases() {
    run("parse", 100);
}

fn run(folder: &str, at_least: usize) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata").join(folder);
    let mut cases: Vec<_> = std::fs::read_dir(&folder)
        .expect("the cases are part of the repository")
        .map(|entry| entry.expect("the folder can be read").path())
        .collect();
    cases.sort();
    assert!(cases.len() >= at_least, "only {} cases in {}", cases.len(), folder.display());
    let failed: Vec<_> =
        cases.iter().flat_map(|case| [check(case).err(), check_dump(case).err()]).flatten().collect();
    assert!(failed.is_empty(), "{}\nUPDATE_EXPECT=1 rewrites the expected files", failed.join("\n"));
}

fn check(case: &Path) -> Result<(), String> {
    let text = std::fs::read_to_string(case.join("Dockerfile")).expect("a case has a Dockerfile");
    let actual = show(&text);
    let expected_path = case.join("expected");
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(&expected_path, &actual).expect("the expected file can be written");
    }
    let expected = std::fs::read_to_string(&expected_path).unwrap_or_default();
    if actual == expected {
        return Ok(());
    }
    Err(format!("{}:\n--- expected\n{expected}+++ actual\n{actual}", case.display()))
}

/// What the raw parser says of the same text: `result`, as BuildKit's own test files call it; none where it refuses.
fn check_dump(case: &Path) -> Result<(), String> {
    let text = std::fs::read_to_string(case.join("Dockerfile")).expect("a case has a Dockerfile");
    let (path, actual) = (case.join("result"), parser::dump::dump(&text).ok());
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        match &actual {
            Some(dump) => std::fs::write(&path, dump).expect("the result can be written"),
            None => drop(std::fs::remove_file(&path)),
        }
    }
    let expected = std::fs::read_to_string(&path).ok();
    if actual == expected {
        return Ok(());
    }
    Err(format!("{}:\n--- expected\n{expected:?}+++ actual\n{actual:?}", path.display()))
}

fn show(text: &str) -> String {
    let parsed = parse(text);
    let mut out = String::new();
    if let Some(dockerfile) = &parsed.dockerfile {
        show_dockerfile(&mut out, text, dockerfile);
    }
    for diagnostic in &parsed.diagnostics {
        show_diagnostic(&mut out, text, diagnostic);
    }
    out
}

/// The terminal's renderer is the command line's; this one is just enough to see that spans are right.
fn show_diagnostic(out: &mut String, text: &str, diagnostic: &Diagnostic) {
    let (line, column) = line_column(text, diagnostic.span);
    let severity = match diagnostic.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    };
    let rule = diagnostic.rule.map(|rule| format!("[{rule}]")).unwrap_or_default();
    writeln!(out, "{line}:{column}: {severity}{rule}: {}", diagnostic.message)
        .expect("strings take everything");
    if let Some(source) = text.split('\n').nth(line - 1) {
        let source = source.trim_start_matches('\u{feff}').trim_end_matches('\r');
        let rest = source.chars().count().saturating_sub(column - 1);
        let width = text[diagnostic.span.start..diagnostic.span.end].split('\n').next().unwrap_or_default();
        let carets = "^".repeat(width.trim_end_matches('\r').chars().count().min(rest).max(1));
        let indent: String =
            source.chars().take(column - 1).map(|c| if c == '\t' { c } else { ' ' }).collect();
        writeln!(out, "  | {source}\n  | {indent}{carets}").expect("strings take everything");
    }
    if let Some(hint) = &diagnostic.hint {
        writeln!(out, "  = {hint}").expect("strings take everything");
    }
}

fn show_dockerfile(out: &mut String, text: &str, dockerfile: &Dockerfile) {
    let directives = &dockerfile.directives;
    for (name, word) in [("syntax", &directives.syntax), ("check", &directives.check)] {
        if let Some(word) = word {
            out.push_str(&format!("# {name} {}\n", show_word(text, word)));
        }
    }
    for local in &directives.local_checks {
        out.push_str(&format!("# check {:?} of {}\n", local.check, show_span(text, local.instruction)));
    }
    if directives.escape != '\\' {
        out.push_str(&format!("# escape {:?}\n", directives.escape));
    }
    for instruction in &dockerfile.global_args {
        show_instruction(out, text, "", instruction);
    }
    for stage in &dockerfile.stages {
        show_stage(out, text, stage);
    }
}

fn show_stage(out: &mut String, text: &str, stage: &Stage) {
    out.push_str(&format!("{} FROM {}", show_span(text, stage.span), show_word(text, &stage.base)));
    out.push_str(&show_option(text, "platform", &stage.platform));
    out.push_str(&show_option(text, "as", &stage.name));
    out.push_str(&show_comment(&stage.comment));
    out.push('\n');
    for instruction in &stage.instructions {
        show_instruction(out, text, "  ", instruction);
    }
}

fn show_comment(comment: &Option<String>) -> String {
    comment.as_ref().map(|comment| format!(" which {comment}")).unwrap_or_default()
}

fn show_instruction(out: &mut String, text: &str, indent: &str, instruction: &Instruction) {
    let place = show_span(text, instruction.span);
    out.push_str(&format!("{indent}{place} {}\n", show_kind(text, &instruction.kind)));
    out.push_str(&format!("{indent}  = {:?}\n", instruction.text));
    if let InstructionKind::Onbuild { trigger, .. } = &instruction.kind {
        show_instruction(out, text, &format!("{indent}  > "), trigger);
    }
}

fn show_kind(text: &str, kind: &InstructionKind) -> String {
    let list = |words: &[Word]| words.iter().map(|word| show_word(text, word)).collect::<Vec<_>>().join(" ");
    match kind {
        InstructionKind::Add(copy) => format!("ADD {}", show_copy(text, copy)),
        InstructionKind::Arg(declarations) => {
            let shown = declarations.iter().map(|declaration| {
                let name = show_word(text, &declaration.name);
                let comment = show_comment(&declaration.comment);
                format!("{name}{}{comment}", show_option(text, "=", &declaration.default))
            });
            format!("ARG {}", shown.collect::<Vec<_>>().join(", "))
        }
        InstructionKind::Cmd(command) => format!("CMD {}", show_command(command)),
        InstructionKind::Copy(copy) => format!("COPY {}", show_copy(text, copy)),
        InstructionKind::Entrypoint(command) => format!("ENTRYPOINT {}", show_command(command)),
        InstructionKind::Env(values) => format!("ENV {}", show_values(text, values)),
        InstructionKind::Expose(ports) => format!("EXPOSE {}", list(ports)),
        InstructionKind::Healthcheck(check) => format!("HEALTHCHECK {}", show_healthcheck(check)),
        InstructionKind::Label(values) => format!("LABEL {}", show_values(text, values)),
        InstructionKind::Maintainer(word) => format!("MAINTAINER {}", show_word(text, word)),
        InstructionKind::Onbuild { text: trigger, .. } => format!("ONBUILD {:?}", trigger.value),
        InstructionKind::Run(run) => format!("RUN {}", show_run(text, run)),
        InstructionKind::Shell(words) => format!("SHELL {words:?}"),
        InstructionKind::Stopsignal(word) => format!("STOPSIGNAL {}", show_word(text, word)),
        InstructionKind::User(word) => format!("USER {}", show_word(text, word)),
        InstructionKind::Volume(words) => format!("VOLUME {}", list(words)),
        InstructionKind::Workdir(word) => format!("WORKDIR {}", show_word(text, word)),
    }
}

fn show_command(command: &CommandLine) -> String {
    match command {
        CommandLine::Exec(words) => format!("exec {words:?}"),
        CommandLine::Shell(text) => format!("shell {text:?}"),
    }
}

fn show_run(text: &str, run: &Run) -> String {
    let mut shown = show_command(&run.command);
    let named = |name: &'static str, words: &[Word]| {
        words.iter().map(|word| format!(" {name} {}", show_word(text, word))).collect::<String>()
    };
    shown += &named("mount", &run.mounts);
    shown += &named("device", &run.devices);
    shown += &show_option(text, "network", &run.network);
    shown += &show_option(text, "security", &run.security);
    run.heredocs.iter().fold(shown, |shown, heredoc| shown + " " + &show_heredoc(text, heredoc))
}

fn show_heredoc(text: &str, heredoc: &Heredoc) -> String {
    let expand = if heredoc.expand { " expand" } else { "" };
    let chomp = if heredoc.chomp { " chomp" } else { "" };
    let (name, place) = (&heredoc.name, show_span(text, heredoc.span));
    let written = heredoc.written.as_ref().map(|written| format!(" written {written:?}")).unwrap_or_default();
    format!("heredoc {name:?} fd {}{expand}{chomp} {place} {:?}{written}", heredoc.fd, heredoc.content)
}

fn show_copy(text: &str, copy: &Copy) -> String {
    let sources = copy.sources.iter().map(|source| match source {
        CopySource::Path(word) => show_word(text, word),
        CopySource::Heredoc(heredoc) => show_heredoc(text, heredoc),
    });
    let mut shown = sources.collect::<Vec<_>>().join(" ") + " -> " + &show_word(text, &copy.destination);
    let options =
        [("from", &copy.from), ("chown", &copy.chown), ("chmod", &copy.chmod), ("checksum", &copy.checksum)];
    for (name, word) in options {
        shown += &show_option(text, name, word);
    }
    for word in &copy.exclude {
        shown += &format!(" exclude {}", show_word(text, word));
    }
    let switches = [("link", copy.link.then_some(true)), ("parents", copy.parents.then_some(true))];
    for (name, switch) in
        switches.into_iter().chain([("keep-git-dir", copy.keep_git_dir), ("unpack", copy.unpack)])
    {
        shown += &switch.map(|on| format!(" {name} {on}")).unwrap_or_default();
    }
    shown
}

fn show_values(text: &str, values: &KeyValues) -> String {
    let pairs = values
        .pairs
        .iter()
        .map(|(key, value)| format!("{} = {}", show_word(text, key), show_word(text, value)));
    let shown = pairs.collect::<Vec<_>>().join(", ");
    if values.legacy { format!("legacy {shown}") } else { shown }
}

fn show_healthcheck(check: &Healthcheck) -> String {
    match check {
        Healthcheck::None => "none".to_owned(),
        Healthcheck::Check { command, interval, timeout, start_period, start_interval, retries } => format!(
            "{} interval {interval} timeout {timeout} start-period {start_period} start-interval {start_interval} \
             retries {retries}",
            show_command(command)
        ),
    }
}

fn show_option(text: &str, name: &str, word: &Option<Word>) -> String {
    word.as_ref().map(|word| format!(" {name} {}", show_word(text, word))).unwrap_or_default()
}

/// A word's value, and its source where that is another text.
fn show_word(text: &str, word: &Word) -> String {
    let source = &text[word.span.start..word.span.end];
    if source == word.value { format!("{source:?}") } else { format!("{:?} (from {source:?})", word.value) }
}

fn show_span(text: &str, span: Span) -> String {
    let (line, column) = line_column(text, span);
    let (end_line, end_column) = line_column(text, Span { start: span.end, end: span.end });
    format!("{line}:{column}-{end_line}:{end_column}")
}
