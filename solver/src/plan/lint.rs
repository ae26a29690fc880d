//! The findings that need expanded values or a base image: rules of BuildKit's linter, by its names. All others are
//! the parser's.

use parser::{
    Diagnostic, Span,
    ast::{self, Word},
    ignore, suggest, word,
};

use super::{path, variables::Environment};

/// A variable that nobody has set. BuildKit asks of one that an ARG before the first FROM declares whether it is meant
/// itself; what is missing is that ARG in the stage.
pub(super) fn undefined_var<'n>(
    span: Span,
    name: &str,
    globals: &Environment,
    known: impl Iterator<Item = &'n str>,
) -> Diagnostic {
    let found = Diagnostic::warning("UndefinedVar", span, format!("Usage of undefined variable '${name}'"));
    if globals.get(name).is_some() {
        let message = format!(
            "{} (its ARG stands before the first FROM: repeat ARG {name} in this stage)",
            found.message
        );
        return Diagnostic { message, ..found };
    }
    did_you_mean(found, suggest::nearest(name, known).map(|near| format!("${near}")))
}

/// A working directory that is relative once its variables are replaced; what holds none is the parser's to judge.
pub(super) fn workdir_relative_path(span: Span, path: &str) -> Diagnostic {
    let what = "can have unexpected results if the base image changes";
    Diagnostic::warning("WorkdirRelativePath", span, format!("Relative workdir {path:?} {what}"))
}

/// A command in shell form, of an image in which nobody has set a shell.
pub(super) fn json_args_recommended(span: Span, instruction: &str) -> Diagnostic {
    let keyword = instruction.split_whitespace().next().unwrap_or_default();
    let why = "to prevent unintended behavior related to OS signals";
    let message = format!("JSON arguments recommended for {keyword} {why}");
    Diagnostic::warning("JSONArgsRecommended", span, message)
}

/// A variable in FROM that no global ARG declares.
pub(super) fn undefined_arg_in_from(span: Span, name: &str, globals: &Environment) -> Diagnostic {
    let found =
        Diagnostic::warning("UndefinedArgInFrom", span, format!("FROM argument '{name}' is not declared"));
    did_you_mean(found, suggest::nearest(name, globals.names()).map(str::to_owned))
}

/// An ARG by which a proxy's user information is recorded, as with Docker. No rule of BuildKit's linter, and with a place all
/// the same.
pub(super) fn proxy_in_history(span: Span, name: &str) -> Diagnostic {
    let message = format!(
        "ARG {name} puts the proxy's user and password into the image's history and this build's records: give it with \
         --build-arg or in docker's config.json, and leave the ARG out: steps have the variable all the same"
    );
    Diagnostic { span, ..Diagnostic::notice(message) }
}

fn did_you_mean(found: Diagnostic, near: Option<String>) -> Diagnostic {
    match near {
        Some(near) => {
            let message = format!("{} (did you mean {near}?)", found.message);
            Diagnostic { message, ..found }
        }
        None => found,
    }
}

/// A FROM that means nothing unless a build argument is given.
pub(super) fn invalid_default_arg_in_from(stage: &ast::Stage) -> Diagnostic {
    let what = "results in empty or invalid base image name";
    let message = format!("Default value for ARG {} {what}", stage.base.value);
    Diagnostic::warning("InvalidDefaultArgInFrom", stage.span, message)
}

/// A `--platform` that says what holds anyway.
pub(super) fn redundant_target_platform(
    stage: &ast::Stage,
    word: &Word,
    expanded: &word::Expanded,
    globals: &Environment,
) -> Option<Diagnostic> {
    let only_target = expanded.unmatched.is_empty() && expanded.matched == ["TARGETPLATFORM"];
    if !only_target || globals.get("TARGETPLATFORM") != Some(&expanded.value) {
        return None;
    }
    let message = format!(
        "Setting platform to predefined {} in FROM is redundant as this is the default behavior",
        word.value
    );
    Some(Diagnostic::warning("RedundantTargetPlatform", stage.span, message))
}

/// A base image for another platform than the one asked for.
pub(super) fn invalid_base_image_platform(
    stage: &ast::Stage,
    wanted: &oci::Platform,
    has: &oci::Platform,
) -> Option<Diagnostic> {
    if wanted.os == has.os && wanted.architecture == has.architecture {
        return None;
    }
    let message = format!(
        "Base image {} was pulled with platform {:?}, expected {:?} for current build",
        stage.base.value,
        has.to_string(),
        wanted.to_string()
    );
    Some(Diagnostic::warning("InvalidBaseImagePlatform", stage.span, message))
}

/// Sources that the ignore file takes out of the context. Where it has exceptions, that cannot be said from names
/// alone; of the context's root, only a pattern that takes out everything in it can.
pub(super) fn copy_ignored_file(
    span: Span,
    is_add: bool,
    sources: &[String],
    patterns: &[String],
) -> Vec<Diagnostic> {
    let has_exceptions = patterns.iter().any(|pattern| pattern.starts_with('!'));
    let Ok(matcher) = ignore::Matcher::new(patterns) else { return Vec::new() };
    let takes_all = patterns.iter().any(|pattern| matches!(pattern.as_str(), "*" | "**" | "**/*"));
    let ignored = |source: &&String| {
        let path = path::relative(source);
        if path.is_empty() { takes_all } else { matcher.matches(&path) }
    };
    let verb = if is_add { "Add" } else { "Copy" };
    let finding = |source: &String| {
        let message = format!("Attempting to {verb} file {source:?} that is excluded by .dockerignore");
        Diagnostic::warning("CopyIgnoredFile", span, message)
    };
    sources.iter().filter(|_| !has_exceptions).filter(ignored).map(finding).collect()
}
