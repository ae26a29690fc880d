//! COPY and ADD.

use std::collections::BTreeMap;

use oci::Platform;
use parser::ast::{self, CopySource, Heredoc, InstructionKind, Word};
use parser::word;

use super::{
    PlanError,
    bases::{self, Base},
    lint, path,
    stage::{Walk, context_label},
    survey::{self, Task},
};
use crate::{
    graph::VertexId,
    op::{Chmod, ContextSource, Copy, CopyItem, Op, Place, Selector, Source},
};

/// The flags and paths of an instruction, expanded.
struct Expanded {
    paths: Vec<String>,
    inline: BTreeMap<String, String>,
    heredocs: Vec<String>,
    destination: String,
    chown: Option<String>,
    chmod: Option<String>,
    exclude: Vec<String>,
}

impl Walk<'_, '_> {
    pub(super) fn copy(&mut self, task: &Task, copy: &ast::Copy) -> Result<(), PlanError> {
        let is_add = matches!(task.instruction.kind, InstructionKind::Add(_));
        self.refuse(task, "ADD --checksum", copy.checksum.as_ref())?;
        self.refuse_flags(task, copy)?;
        let expanded = self.expand_copy(task, copy)?;
        for (path, source) in expanded.paths.iter().zip(&copy.sources) {
            self.refuse_remote(task, is_add, path, source)?;
        }
        if copy.from.is_none() {
            let ignore = &self.planner.options.ignore;
            self.planner.report.extend(lint::copy_ignored_file(task.span(), is_add, &expanded.paths, ignore));
        }
        let chmod = self.chmod(task, copy, expanded.chmod.as_deref())?;
        let selector = self.selector(copy, &expanded);
        let mut inputs = Vec::new();
        if !expanded.paths.is_empty() {
            inputs.push(self.copied(task, copy, &selector)?);
        }
        let unpack = copy.unpack.unwrap_or(is_add);
        let item = |include: &String| CopyItem {
            input: 1,
            selector: Selector { include: vec![include.clone()], ..selector.clone() },
            unpack,
        };
        let mut items: Vec<CopyItem> = selector.include.iter().map(item).collect();
        if !expanded.heredocs.is_empty() {
            inputs.push(self.inline(task, expanded.inline.clone()));
            let input = inputs.len();
            let selector = |name: &String| Selector { include: vec![name.clone()], ..Selector::default() };
            let item = |name| CopyItem { input, selector: selector(name), unpack: false };
            items.extend(expanded.heredocs.iter().map(item));
        }
        let op = Copy {
            items,
            destination: path::join(&self.state.config.config.working_dir, &expanded.destination),
            into_directory: path::is_directory(&expanded.destination),
            chown: expanded.chown.clone(),
            chmod,
            timestamps: self.planner.options.timestamps,
        };
        let shown = self.shown(task);
        self.step(task, Op::Copy(op), inputs, &shown, Vec::new());
        self.commit(created_by(is_add, copy.parents, &expanded), true);
        Ok(())
    }

    fn refuse_flags(&self, task: &Task, copy: &ast::Copy) -> Result<(), PlanError> {
        // BuildKit, too, makes an ordinary copy of --link with --chmod.
        let linked = copy.link && copy.chmod.is_none();
        let refused = [("--link", linked), ("--keep-git-dir", copy.keep_git_dir.is_some())];
        match refused.iter().find(|(_, used)| *used) {
            Some((flag, _)) => {
                Err(self.mistake(task, task.instruction.span, format!("{flag} is not supported yet")))
            }
            None => Ok(()),
        }
    }

    fn expand_copy(&mut self, task: &Task, copy: &ast::Copy) -> Result<Expanded, PlanError> {
        let mut expanded = Expanded {
            chown: copy.chown.as_ref().map(|word| self.expand(task, word)).transpose()?,
            chmod: copy.chmod.as_ref().map(|word| self.expand(task, word)).transpose()?,
            exclude: copy.exclude.iter().map(|word| self.expand(task, word)).collect::<Result<_, _>>()?,
            destination: self.expand(task, &copy.destination)?,
            paths: Vec::new(),
            inline: BTreeMap::new(),
            heredocs: Vec::new(),
        };
        expanded.chown = expanded.chown.filter(|owner| !owner.is_empty());
        expanded.chmod = expanded.chmod.filter(|mode| !mode.is_empty());
        for source in &copy.sources {
            match source {
                CopySource::Path(word) => expanded.paths.push(self.expand(task, word)?),
                CopySource::Heredoc(heredoc) => {
                    let content = self.heredoc(task, heredoc)?;
                    expanded.inline.insert(heredoc.name.clone(), content);
                    expanded.heredocs.push(heredoc.name.clone());
                }
            }
        }
        Ok(expanded)
    }

    fn heredoc(&mut self, task: &Task, heredoc: &Heredoc) -> Result<String, PlanError> {
        if !heredoc.expand {
            return Ok(heredoc.content.clone());
        }
        let lookup = |name: &str| self.state.environment.get(name).map(str::to_owned);
        let expanded = word::expand_heredoc(&heredoc.content, &lookup)
            .map_err(|error| self.mistake(task, heredoc.span, error.to_string()))?;
        self.report_undefined(task, &expanded);
        Ok(expanded.value)
    }

    fn refuse_remote(
        &self,
        task: &Task,
        is_add: bool,
        path: &str,
        source: &CopySource,
    ) -> Result<(), PlanError> {
        let span = match source {
            CopySource::Path(word) => word.span,
            CopySource::Heredoc(_) => task.instruction.span,
        };
        let kind = match remote(path) {
            Some(kind) => kind,
            None => return Ok(()),
        };
        let message = match (kind, is_add) {
            (Remote::Url, false) => "source can't be a URL for COPY",
            (Remote::Git, false) => "source can't be a git ref for COPY",
            (Remote::Url, true) => "ADD of a URL is not supported yet",
            (Remote::Git, true) => "ADD of a git repository is not supported yet",
        };
        Err(self.mistake(task, span, message))
    }

    fn chmod(&self, task: &Task, copy: &ast::Copy, mode: Option<&str>) -> Result<Option<Chmod>, PlanError> {
        let (Some(mode), Some(word)) = (mode, &copy.chmod) else { return Ok(None) };
        match chmod(mode) {
            Some(chmod) => Ok(Some(chmod)),
            None => {
                let what = "it should be octal between 0 and 07777, or symbolic";
                Err(self.mistake(task, word.span, format!("invalid chmod parameter: {mode:?}: {what}")))
            }
        }
    }

    fn selector(&self, copy: &ast::Copy, expanded: &Expanded) -> Selector {
        let include = |path: &String| match path.split_once("/./") {
            Some((base, rest)) if copy.parents => {
                format!("{}/./{}", path::relative(base), path::relative(rest))
            }
            _ => path::relative(path),
        };
        Selector {
            include: expanded.paths.iter().map(include).collect(),
            exclude: expanded.exclude.clone(),
            follow_links: true,
            parents: copy.parents,
        }
    }

    /// The input that the paths are in.
    fn copied(&mut self, task: &Task, copy: &ast::Copy, selector: &Selector) -> Result<VertexId, PlanError> {
        let found = survey::copied_from(self.planner, self.number, copy);
        let written = copy.from.as_ref();
        let span = written.map_or(task.instruction.span, |word: &Word| word.span);
        let base = found.map_err(|(message, hint)| {
            let found = parser::Diagnostic::error(task.place(span), message);
            PlanError::from(parser::Diagnostic { hint, ..found })
        })?;
        let platform = self.target.clone();
        let context =
            |name: String| ContextSource { place: Place::Context(name), selector: selector.clone() };
        match base {
            None => Ok(self.context(task, context(String::new()), &platform)),
            Some(Base::Directory(name)) => Ok(self.context(task, context(name), &platform)),
            Some(Base::Scratch) => Ok(self.planner.add_source(
                Source::Scratch,
                &platform,
                "FROM scratch".to_owned(),
                task.span(),
            )),
            Some(Base::Image(name)) => {
                let written = written.map_or("", |word| word.value.as_str());
                let image = self.planner.images.get(&name, written, &platform, task.place(span))?;
                let label = format!("FROM {}", image.pinned);
                Ok(self.planner.add_source(bases::source(&image), &platform, label, task.span()))
            }
            // Without a state, the stage has mistakes of its own; then nothing is built, and any input will do.
            Some(Base::Stage(stage)) => Ok(self.done.get(&stage).map_or(self.state.tip, |state| state.tip)),
        }
    }

    fn context(&mut self, task: &Task, context: ContextSource, platform: &Platform) -> VertexId {
        let label = context_label(&context.place);
        self.planner.add_source(Source::Context(context), platform, label, task.span())
    }

    fn inline(&mut self, task: &Task, files: BTreeMap<String, String>) -> VertexId {
        let platform = self.state.platform.clone();
        let label = "[internal] preparing inline document".to_owned();
        self.planner.add_source(Source::Inline(files), &platform, label, task.span())
    }
}

fn created_by(is_add: bool, parents: bool, expanded: &Expanded) -> String {
    let mut words = vec![if is_add { "ADD" } else { "COPY" }.to_owned()];
    words.extend(parents.then(|| "--parents".to_owned()));
    words.extend(expanded.chown.iter().map(|owner| format!("--chown={owner}")));
    words.extend(expanded.chmod.iter().map(|mode| format!("--chmod={mode}")));
    words.extend(expanded.paths.iter().cloned());
    words.extend(expanded.heredocs.iter().map(|name| format!("<<{name}")));
    words.push(expanded.destination.clone());
    words.push("# buildkit".to_owned());
    words.join(" ")
}

/// A source that is on no disk of ours.
#[derive(Debug, PartialEq, Eq)]
enum Remote {
    Url,
    Git,
}

fn remote(source: &str) -> Option<Remote> {
    let has_scheme = |schemes: &[&str]| schemes.iter().any(|scheme| source.starts_with(scheme));
    let (address, _fragment) = source.split_once('#').unwrap_or((source, ""));
    let address = address.split_once('?').map_or(address, |(address, _)| address);
    if has_scheme(&["http://", "https://"]) {
        return Some(if address.ends_with(".git") { Remote::Git } else { Remote::Url });
    }
    let user_at_host = source.split_once(':').is_some_and(|(host, path)| {
        let named = host.split_once('@').is_some_and(|(user, host)| !user.is_empty() && !host.is_empty());
        named && !host.contains('/') && !path.is_empty()
    });
    (has_scheme(&["git://", "ssh://"]) || user_at_host).then_some(Remote::Git)
}

fn chmod(mode: &str) -> Option<Chmod> {
    if mode.bytes().all(|byte| byte.is_ascii_digit()) {
        return u32::from_str_radix(mode, 8).ok().filter(|bits| *bits <= 0o7777).map(Chmod::Octal);
    }
    mode.split(',').all(is_symbolic).then(|| Chmod::Symbolic(mode.to_owned()))
}

/// `[ugoa]*([-+=]([rwxXst]*|[ugo]))+`, the language of chmod(1).
fn is_symbolic(clause: &str) -> bool {
    let actions = clause.trim_start_matches(['u', 'g', 'o', 'a']);
    let Some(first) = actions.chars().next() else { return false };
    let mut perms = actions.split(['+', '-', '=']);
    let is_perm =
        |text: &str| matches!(text, "u" | "g" | "o") || text.chars().all(|bit| "rwxXst".contains(bit));
    matches!(first, '+' | '-' | '=') && perms.next() == Some("") && perms.all(is_perm)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_elsewhere_are_recognised() {
        for (source, want) in [
            ("https://example.com/a.tar.gz", Some(Remote::Url)),
            ("https://example.com/a.git#main:sub", Some(Remote::Git)),
            ("git@example.com:a/b", Some(Remote::Git)),
            ("ssh://git@example.com/a", Some(Remote::Git)),
            ("a@b", None),
            ("dir/a@b:c", None),
            ("C:file", None),
            ("http", None),
        ] {
            assert_eq!(remote(source), want, "{source}");
        }
    }

    #[test]
    fn modes_are_octal_or_symbolic() {
        assert_eq!(chmod("0755"), Some(Chmod::Octal(0o755)));
        for mode in ["u+x", "a=rX,go-w", "+x", "u=rwx,g=u", "ug+s-w", "o="] {
            assert_eq!(chmod(mode), Some(Chmod::Symbolic(mode.to_owned())), "{mode}");
        }
        for mode in ["", "10000", "888", "rwx", "u", "u+q", "u+x,", "u+gx", "-9"] {
            assert_eq!(chmod(mode), None, "{mode}");
        }
    }
}
