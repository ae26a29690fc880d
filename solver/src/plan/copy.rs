//! COPY and ADD.

use std::collections::BTreeMap;

use parser::ast::{self, CopySource, Heredoc, InstructionKind};
use parser::{Diagnostic, word};

use super::{
    PlanError,
    add::{self, RemoteFlags, SourcePath},
    bases::Base,
    lint, modes, path,
    source::Inputs,
    stage::Walk,
    survey::Task,
};
use crate::{
    graph::VertexId,
    op::{Chmod, Copy, CopyItem, Op, SEVERAL_SOURCES, Selector, Source},
    pattern::glob,
    remote,
};

/// The flags and paths of an instruction, expanded.
struct Expanded {
    paths: Vec<SourcePath>,
    inline: BTreeMap<String, String>,
    heredocs: Vec<String>,
    destination: String,
    chown: Option<String>,
    chmod: Option<String>,
    exclude: Vec<String>,
}

impl Expanded {
    /// The paths in a context, stage or image.
    fn local(&self) -> impl Iterator<Item = &String> {
        self.paths.iter().filter(|path| path.elsewhere.is_none()).map(|path| &path.text)
    }
}

impl Walk<'_, '_> {
    pub(super) fn copy(&mut self, task: &Task, copy: &ast::Copy) -> Result<(), PlanError> {
        let is_add = matches!(task.instruction.kind, InstructionKind::Add(_));
        let expanded = self.expand_copy(task, copy, is_add)?;
        self.check_destination(task, copy, &expanded, is_add)?;
        if copy.from.is_none() {
            let local: Vec<String> = expanded.local().cloned().collect();
            let ignore = &self.planner.options.ignore;
            self.planner.report.extend(lint::copy_ignored_file(task.span(), is_add, &local, ignore));
        }
        let chmod = self.chmod(task, copy, expanded.chmod.as_deref())?;
        let mut inputs = Inputs::default();
        let mut items = self.path_items(task, copy, &expanded, &mut inputs)?;
        items.extend(self.heredoc_items(task, &expanded, &mut inputs));
        let op = Copy {
            items,
            destination: path::join(&self.state.config.config.working_dir, &expanded.destination),
            into_directory: path::is_directory(&expanded.destination),
            chown: expanded.chown.clone(),
            chmod,
            timestamps: self.planner.options.timestamps,
        };
        // BuildKit, too, makes an ordinary copy of --link with --chmod.
        if copy.link && op.chmod.is_none() {
            self.check_linked_owner(task, copy, op.chown.as_deref())?;
            self.linked_step(task, op, inputs.into_vertices());
        } else {
            let shown = self.shown(task);
            self.step(task, Op::Copy(op), inputs.into_vertices(), &shown, Vec::new());
        }
        self.commit(created_by(is_add, copy.parents, &expanded), true);
        Ok(())
    }

    fn expand_copy(&mut self, task: &Task, copy: &ast::Copy, is_add: bool) -> Result<Expanded, PlanError> {
        let remote = if is_add { Some(self.remote_flags(task, copy)?) } else { None };
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
            self.expand_source(task, source, remote.as_ref(), &mut expanded)?;
        }
        Ok(expanded)
    }

    fn expand_source(
        &mut self,
        task: &Task,
        source: &CopySource,
        remote: Option<&RemoteFlags>,
        expanded: &mut Expanded,
    ) -> Result<(), PlanError> {
        match source {
            CopySource::Path(word) => {
                let text = self.expand(task, word)?;
                expanded.paths.push(self.source_path(task, text, word.span, remote)?);
            }
            CopySource::Heredoc(heredoc) => {
                let content = self.heredoc(task, heredoc)?;
                expanded.inline.insert(heredoc.name.clone(), content);
                expanded.heredocs.push(heredoc.name.clone());
            }
        }
        Ok(())
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

    /// Several files to one name: BuildKit keeps the last one, or puts them into a directory that happens to be there.
    /// How many files a wildcard stands for is the executor's to find out.
    fn check_destination(
        &self,
        task: &Task,
        copy: &ast::Copy,
        expanded: &Expanded,
        is_add: bool,
    ) -> Result<(), PlanError> {
        let single = |path: &&SourcePath| path.elsewhere.is_some() || !glob::has_wildcards(&path.text);
        let certain = expanded.paths.iter().filter(single).count() + expanded.heredocs.len();
        if certain < 2 || copy.parents || path::is_directory(&expanded.destination) {
            return Ok(());
        }
        let verb = if is_add { "ADD" } else { "COPY" };
        let message = format!("When using {verb} {SEVERAL_SOURCES}");
        let found = Diagnostic::error(task.place(copy.destination.span), message);
        Err(found.hint(format!("write {}/", expanded.destination)).into())
    }

    fn chmod(&self, task: &Task, copy: &ast::Copy, mode: Option<&str>) -> Result<Option<Chmod>, PlanError> {
        let (Some(mode), Some(word)) = (mode, &copy.chmod) else { return Ok(None) };
        match modes::chmod(mode) {
            Some(chmod) => Ok(Some(chmod)),
            None => {
                let what = "it should be octal between 0 and 07777, or symbolic";
                Err(self.mistake(task, word.span, format!("invalid chmod parameter: {mode:?}: {what}")))
            }
        }
    }

    /// What is copied by path, in the order of the instruction.
    fn path_items(
        &mut self,
        task: &Task,
        copy: &ast::Copy,
        expanded: &Expanded,
        inputs: &mut Inputs,
    ) -> Result<Vec<CopyItem>, PlanError> {
        let is_add = matches!(task.instruction.kind, InstructionKind::Add(_));
        let all = selector(copy, expanded);
        let mut includes = all.include.iter();
        let mut local = None;
        let mut items = Vec::new();
        for path in &expanded.paths {
            if let Some(place) = &path.elsewhere {
                let picked = add::picked(place, &expanded.exclude);
                let input = inputs.number(self.context(task, place.clone(), picked.clone()));
                items.push(add::item(place, input, picked, copy.unpack));
                continue;
            }
            let input = match local {
                Some(input) => input,
                None => inputs.number(self.copied(task, copy, &all)?),
            };
            local = Some(input);
            let include = includes.next().cloned().into_iter().collect();
            let selector = Selector { include, ..all.clone() };
            items.push(CopyItem { input, selector, unpack: copy.unpack.unwrap_or(is_add) });
        }
        Ok(items)
    }

    fn heredoc_items(&mut self, task: &Task, expanded: &Expanded, inputs: &mut Inputs) -> Vec<CopyItem> {
        if expanded.heredocs.is_empty() {
            return Vec::new();
        }
        let platform = self.state.platform.clone();
        let label = "[internal] preparing inline document".to_owned();
        let files = Source::Inline(expanded.inline.clone());
        let input = inputs.number(self.planner.add_source(files, &platform, label, task.span()));
        let selector = |name: &String| Selector { include: vec![name.clone()], ..Selector::default() };
        let item = |name| CopyItem { input, selector: selector(name), unpack: false };
        expanded.heredocs.iter().map(item).collect()
    }

    /// The input that the paths are in.
    fn copied(&mut self, task: &Task, copy: &ast::Copy, selector: &Selector) -> Result<VertexId, PlanError> {
        match &copy.from {
            None => self.files_of(task, Base::Directory(String::new()), "", task.span(), selector),
            Some(from) => {
                let base = self.copied_from(task, from)?;
                self.files_of(task, base, &from.value, from.span, selector)
            }
        }
    }

    /// The file system that linked files are copied to is empty, so it knows no names. BuildKit fails there, too.
    fn check_linked_owner(
        &self,
        task: &Task,
        copy: &ast::Copy,
        owner: Option<&str>,
    ) -> Result<(), PlanError> {
        let is_number = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        let (Some(owner), Some(word)) = (owner, &copy.chown) else { return Ok(()) };
        if owner.split(':').all(is_number) {
            return Ok(());
        }
        let found = format!("--chown={owner} needs numbers beside --link, which knows no users of the base");
        let hint = "write numbers, as in --chown=1000:1000, or leave --link out";
        Err(Diagnostic::error(task.place(word.span), found).hint(hint).into())
    }
}

fn selector(copy: &ast::Copy, expanded: &Expanded) -> Selector {
    let include = |path: &String| match path.split_once("/./") {
        Some((base, rest)) if copy.parents => {
            format!("{}/./{}", path::relative(base), path::relative(rest))
        }
        _ => path::relative(path),
    };
    Selector {
        include: expanded.local().map(include).collect(),
        exclude: expanded.exclude.clone(),
        follow_links: true,
        parents: copy.parents,
    }
}

/// BuildKit's words. What may be a password is not written into images.
fn created_by(is_add: bool, parents: bool, expanded: &Expanded) -> String {
    let mut words = vec![if is_add { "ADD" } else { "COPY" }.to_owned()];
    words.extend(parents.then(|| "--parents".to_owned()));
    words.extend(expanded.chown.iter().map(|owner| format!("--chown={owner}")));
    words.extend(expanded.chmod.iter().map(|mode| format!("--chmod={mode}")));
    words.extend(expanded.paths.iter().map(|path| remote::redacted(&path.text)));
    words.extend(expanded.heredocs.iter().map(|name| format!("<<{name}")));
    words.push(expanded.destination.clone());
    words.push("# buildkit".to_owned());
    words.join(" ")
}
