//! RUN --mount: what a command sees beside the file system of its stage.
//!
//! The options are the parser's to read; here they get BuildKit's defaults, and what they name is looked up.

use parser::{
    Diagnostic, Span,
    ast::{self, Word},
    mount,
};

use super::{
    PlanError,
    bases::Base,
    path,
    source::{self, Inputs, Taker},
    stage::Walk,
    survey::Task,
};
use crate::{
    graph::VertexId,
    op::{
        self, BindMount, CacheMount, CopyItem, Mount, MountedFile, Op, Place, SecretMount, Selector, Sharing,
        Source, SshMount,
    },
};

/// Where BuildKit puts secrets.
const SECRETS: &str = "/run/secrets";
/// The build argument that sets cache mounts apart from those of other projects.
const NAMESPACE: &str = "BUILDKIT_CACHE_MOUNT_NS";

/// What the mounts of a RUN come to.
#[derive(Default)]
pub(super) struct Mounts {
    pub(super) mounts: Vec<Mount>,
    pub(super) inputs: Inputs,
    ssh: usize,
}

/// Files of another vertex, as an input of the step.
struct Files {
    input: usize,
    /// Absolute clean path in it.
    source: String,
}

impl Walk<'_, '_> {
    /// The mounts of a RUN and the inputs that they need. Mistakes of all of them are told together.
    pub(super) fn mounts(&mut self, task: &Task, words: &[Word]) -> Result<Mounts, PlanError> {
        let mut mounts = Mounts::default();
        let mut mistakes = Vec::new();
        for word in words {
            match self.mount(task, word, &mut mounts) {
                Ok(mount) => mounts.mounts.push(mount),
                Err(PlanError::Dockerfile { diagnostics }) => mistakes.extend(diagnostics),
                Err(failure) => return Err(failure),
            }
        }
        if mistakes.is_empty() { Ok(mounts) } else { Err(PlanError::Dockerfile { diagnostics: mistakes }) }
    }

    fn mount(&mut self, task: &Task, word: &Word, mounts: &mut Mounts) -> Result<Mount, PlanError> {
        let mut expand = |value: &str| self.expand_text(task, value).map_err(|error| error.to_string());
        let read = mount::parse_expanding(&word.value, &mut expand).map_err(|error| Diagnostic {
            hint: error.hint,
            ..Diagnostic::error(task.place(word.span), error.message)
        })?;
        match read {
            ast::Mount::Bind(bind) => self.bind(task, word.span, bind, mounts),
            ast::Mount::Cache(cache) => self.cache(task, word.span, cache, mounts),
            ast::Mount::Tmpfs(tmpfs) => self.tmpfs(task, word.span, tmpfs),
            ast::Mount::Secret(secret) => self.secret(task, word.span, secret),
            ast::Mount::Ssh(agent) => self.ssh(task, word.span, agent, mounts),
        }
    }

    fn bind(
        &mut self,
        task: &Task,
        span: Span,
        bind: ast::BindMount,
        mounts: &mut Mounts,
    ) -> Result<Mount, PlanError> {
        let ast::BindMount { from, source, target, writable } = bind;
        let target = self.mount_target(task, span, target.as_deref())?;
        let base = match from {
            None => Base::Directory(String::new()),
            Some(ref name) => self.mounted_from(task, span, name, &target)?,
        };
        let written = from.as_deref().unwrap_or("");
        let Files { input, source } = self.mounted(task, span, base, written, source.as_deref(), mounts)?;
        Ok(Mount::Bind(BindMount { target, input, source, writable }))
    }

    fn cache(
        &mut self,
        task: &Task,
        span: Span,
        cache: ast::CacheMount,
        mounts: &mut Mounts,
    ) -> Result<Mount, PlanError> {
        let ast::CacheMount { id, target: written, from, source, sharing, mode, uid, gid, read_only } = cache;
        let target = self.mount_target(task, span, written.as_deref())?;
        let base = match &from {
            None => Base::Scratch,
            Some(name) => self.mounted_from(task, span, name, &target)?,
        };
        let whole = source.as_deref().is_none_or(|source| path::clean(source) == "/");
        let seed = match base {
            Base::Scratch if whole => None,
            Base::Scratch => {
                let found = Diagnostic::error(task.place(span), "a cache mount with source= needs from=");
                return Err(found.hint("a new cache is empty unless from= says what is in it").into());
            }
            base => {
                let written = from.as_deref().unwrap_or("");
                let files = self.mounted(task, span, base, written, source.as_deref(), mounts)?;
                Some((files.input, files.source))
            }
        };
        Ok(Mount::Cache(CacheMount {
            id: self.cache_id(id, written.as_deref().unwrap_or("")),
            target,
            sharing: sharing.map_or(Sharing::Shared, sharing_of),
            seed,
            mode: mode.unwrap_or(0o755),
            uid: uid.unwrap_or(0),
            gid: gid.unwrap_or(0),
            read_only,
        }))
    }

    /// BuildKit's name of a cache: the namespace, then `id=` or the target as it is written.
    fn cache_id(&self, id: Option<String>, target: &str) -> String {
        let namespace = self.planner.options.build_args.get(NAMESPACE).map_or("", String::as_str);
        let id = id.filter(|id| !id.is_empty()).unwrap_or_else(|| match target.starts_with('/') {
            true => path::clean(target),
            false => path::relative(target),
        });
        format!("{namespace}/{id}")
    }

    fn tmpfs(&self, task: &Task, span: Span, tmpfs: ast::TmpfsMount) -> Result<Mount, PlanError> {
        let ast::TmpfsMount { target, size, read_only } = tmpfs;
        if read_only {
            let found = Diagnostic::error(task.place(span), "a read-only tmpfs mount is not supported");
            return Err(found.hint("nothing could ever be in it").into());
        }
        let target = self.mount_target(task, span, target.as_deref())?;
        Ok(Mount::Tmpfs { target, size: size.filter(|size| *size > 0) })
    }

    fn secret(&self, task: &Task, span: Span, secret: ast::SecretMount) -> Result<Mount, PlanError> {
        let ast::SecretMount { id, target, env, required, mode, uid, gid } = secret;
        let target = target.filter(|target| !target.is_empty());
        let id = id.filter(|id| !id.is_empty()).or_else(|| Some(base_name(target.as_deref()?).to_owned()));
        let Some(id) = id else {
            return Err(self.mistake(task, span, "one of source, target required"));
        };
        let standard = || env.is_none().then(|| format!("{SECRETS}/{}", base_name(&id)));
        let file = |target: String| {
            let target = self.mount_target(task, span, Some(&target))?;
            let (uid, gid) = (uid.unwrap_or(0), gid.unwrap_or(0));
            Ok::<_, PlanError>(MountedFile { target, mode: mode.unwrap_or(0o400), uid, gid })
        };
        let file = target.or_else(standard).map(file).transpose()?;
        Ok(Mount::Secret(SecretMount { id, required, file, variable: env }))
    }

    /// The sockets of a RUN are counted, so that each has a place of its own.
    fn ssh(
        &self,
        task: &Task,
        span: Span,
        agent: ast::SshMount,
        mounts: &mut Mounts,
    ) -> Result<Mount, PlanError> {
        let ast::SshMount { id, target, required, mode, uid, gid } = agent;
        let standard = format!("/run/buildkit/ssh_agent.{}", mounts.ssh);
        mounts.ssh += 1;
        let target = target.filter(|target| !target.is_empty()).unwrap_or(standard);
        let socket = MountedFile {
            target: self.mount_target(task, span, Some(&target))?,
            mode: mode.unwrap_or(0o600),
            uid: uid.unwrap_or(0),
            gid: gid.unwrap_or(0),
        };
        let id = id.filter(|id| !id.is_empty()).unwrap_or_else(|| "default".to_owned());
        Ok(Mount::Ssh(SshMount { id, required, socket }))
    }

    fn mount_target(&self, task: &Task, span: Span, target: Option<&str>) -> Result<String, PlanError> {
        let target = path::join(&self.state.config.config.working_dir, target.unwrap_or(""));
        if target == "/" {
            return Err(self.mistake(task, span, "invalid mount target \"/\""));
        }
        Ok(target)
    }

    fn mounted_from(&self, task: &Task, span: Span, name: &str, target: &str) -> Result<Base, PlanError> {
        let taker = Taker::Mount(target.to_owned());
        Ok(source::named(self.planner, self.number, self.target, name, &taker, task.place(span))?)
    }

    /// Makes what a mount shows an input of the step.
    fn mounted(
        &mut self,
        task: &Task,
        span: Span,
        base: Base,
        written: &str,
        source: Option<&str>,
        mounts: &mut Mounts,
    ) -> Result<Files, PlanError> {
        let source = path::clean(source.unwrap_or(""));
        let vertex = match base {
            Base::Directory(context) => self.copy_of_context(task, context, &source),
            base => self.files_of(task, base, written, span, &Selector::default())?,
        };
        Ok(Files { input: mounts.inputs.number(vertex), source })
    }

    /// The part of a context that a mount shows, as a file system that holds nothing else. It lies there at its own
    /// path, whether it is a file or a directory.
    fn copy_of_context(&mut self, task: &Task, context: String, source: &str) -> VertexId {
        let selector = Selector::of_path(&source[1..]);
        let shown = match context.as_str() {
            "" => "the build context".to_owned(),
            name => format!("the context {name}"),
        };
        let label = format!("[internal] mount {source} of {shown}");
        let files = self.context(task, Place::Context(context), selector.clone());
        let platform = self.state.platform.clone();
        let nothing =
            self.planner.add_source(Source::Scratch, &platform, "FROM scratch".to_owned(), task.span());
        let copy = op::Copy {
            items: vec![CopyItem { input: 1, selector, unpack: false }],
            destination: source.to_owned(),
            into_directory: source == "/",
            chown: None,
            chmod: None,
            timestamps: self.planner.options.timestamps,
        };
        self.add(task, Op::Copy(copy), vec![nothing, files], label, Vec::new())
    }
}

fn sharing_of(sharing: ast::Sharing) -> Sharing {
    match sharing {
        ast::Sharing::Shared => Sharing::Shared,
        ast::Sharing::Private => Sharing::Private,
        ast::Sharing::Locked => Sharing::Locked,
    }
}

fn base_name(path: &str) -> &str {
    path.trim_end_matches('/').rsplit('/').next().unwrap_or(path)
}
