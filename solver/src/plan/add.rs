//! ADD of what is on no disk of ours: URLs and git repositories.

use parser::{
    Diagnostic, Span,
    ast::{self, CopySource},
};

use super::{PlanError, stage::Walk, survey::Task};
use crate::{
    op::{CopyItem, HttpFile, Place, Selector},
    remote::{self, ReadGit},
};

/// A source path of COPY or ADD, expanded.
pub(super) struct SourcePath {
    /// As written, variables replaced.
    pub(super) text: String,
    /// Where it is, unless it is a path in a context, stage or image.
    pub(super) elsewhere: Option<Place>,
}

/// What `--checksum` and `--keep-git-dir` say about the sources of an ADD.
#[derive(Default)]
pub(super) struct RemoteFlags {
    checksum: Option<(String, Span)>,
    keep_git_dir: Option<bool>,
}

impl Walk<'_, '_> {
    /// The flags of ADD that speak of remote sources.
    pub(super) fn remote_flags(&mut self, task: &Task, copy: &ast::Copy) -> Result<RemoteFlags, PlanError> {
        let mut flags = RemoteFlags { keep_git_dir: copy.keep_git_dir, checksum: None };
        let Some(word) = &copy.checksum else { return Ok(flags) };
        let value = self.expand(task, word)?;
        let paths = copy.sources.iter().filter(|source| matches!(source, CopySource::Path(_)));
        if paths.count() != 1 {
            return Err(self.mistake(task, word.span, "checksum can't be specified for multiple sources"));
        }
        flags.checksum = Some((value, word.span)).filter(|(value, _)| !value.is_empty());
        Ok(flags)
    }

    /// Where a source of ADD is, and that COPY takes none from elsewhere.
    pub(super) fn source_path(
        &self,
        task: &Task,
        text: String,
        span: Span,
        flags: Option<&RemoteFlags>,
    ) -> Result<SourcePath, PlanError> {
        let git = remote::read_git(&text).transpose();
        let git = git.map_err(|error| self.mistake(task, span, error.to_string()))?;
        let elsewhere = match (git, flags) {
            (Some(_), None) => return Err(self.mistake(task, span, "source can't be a git ref for COPY")),
            (Some(git), Some(flags)) => Some(Place::Git(self.repository(task, git, span, flags)?.address)),
            (None, None) if remote::is_url(&text) => {
                let found = Diagnostic::error(task.place(span), "source can't be a URL for COPY");
                return Err(found.hint("ADD takes URLs").into());
            }
            (None, Some(flags)) if remote::is_url(&text) => Some(self.download(task, &text, flags)?),
            (None, Some(RemoteFlags { checksum: Some((_, span)), .. })) => {
                return Err(self.mistake(task, *span, "checksum requires HTTP(S) or Git sources"));
            }
            (None, _) => None,
        };
        Ok(SourcePath { text, elsewhere })
    }

    fn download(&self, task: &Task, url: &str, flags: &RemoteFlags) -> Result<Place, PlanError> {
        let checksum = flags.checksum.as_ref().map(|(text, span)| {
            text.parse().map_err(|error| {
                let found = format!("invalid --checksum {text:?}: {error}");
                let hint = "the checksum of a URL is written sha256:HEX";
                PlanError::from(Diagnostic::error(task.place(*span), found).hint(hint))
            })
        });
        let name = remote::file_name(url);
        Ok(Place::Http(HttpFile { url: url.to_owned(), name, checksum: checksum.transpose()? }))
    }

    /// A repository with what the flags say about it; they must not contradict the address.
    fn repository(
        &self,
        task: &Task,
        mut git: ReadGit,
        span: Span,
        flags: &RemoteFlags,
    ) -> Result<ReadGit, PlanError> {
        if let (Some(flag), Some(query)) = (flags.keep_git_dir, git.keep_git_dir)
            && flag != query
        {
            return Err(self.mistake(task, span, "inconsistent keep-git-dir configuration"));
        }
        git.address.keep_git_dir |= flags.keep_git_dir.unwrap_or(false);
        let Some((checksum, place)) = &flags.checksum else { return Ok(git) };
        remote::check_commit(checksum).map_err(|error| self.mistake(task, *place, error.to_string()))?;
        match &git.address.checksum {
            Some(query) if query != checksum => {
                let message = format!("checksum mismatch {checksum:?} != {query:?}");
                Err(self.mistake(task, *place, message))
            }
            _ => {
                git.address.checksum = Some(checksum.clone());
                Ok(git)
            }
        }
    }
}

/// What is picked of a place that an ADD names: all of a repository, the one file of a URL.
pub(super) fn picked(place: &Place, exclude: &[String]) -> Selector {
    let path = match place {
        Place::Http(file) => file.name.as_str(),
        Place::Git(_) | Place::Context(_) => "",
    };
    Selector { exclude: exclude.to_vec(), follow_links: false, ..Selector::of_path(path) }
}

/// How it is copied. Archives are only unpacked when that is asked for, and never out of a repository.
pub(super) fn item(place: &Place, input: usize, selector: Selector, unpack: Option<bool>) -> CopyItem {
    let unpack = matches!(place, Place::Http(_)) && unpack == Some(true);
    CopyItem { input, selector, unpack }
}
