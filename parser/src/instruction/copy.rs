//! COPY and ADD.

use super::Reader;
use crate::ast::{Copy, CopySource, Heredoc, Word};
use crate::diagnostic::Diagnostic;
use crate::flags::Flags;
use crate::{go, grammar};

impl Reader<'_> {
    pub(super) fn copy(&mut self, keyword: &str, rest: &str, flags: &Flags) -> Option<Copy> {
        let mut words = self.json_or_list(rest)?;
        let destination = words.pop().filter(|_| !words.is_empty());
        let Some(destination) = destination else {
            return self.refuse(format!(
                "{keyword} requires at least two arguments, but only one was provided. \
                 Destination could not be determined"
            ));
        };
        if !self.heredocs.is_empty() && grammar::heredoc_marker(&destination.value).is_some() {
            let message = format!("{keyword} cannot accept a heredoc as a destination");
            self.diagnostics.push(Diagnostic::error(destination.span, message));
            return None;
        }
        Some(Copy {
            sources: self.sources(keyword, words)?,
            destination,
            from: flags.one("from"),
            chown: flags.one("chown"),
            chmod: flags.one("chmod"),
            link: flags.switch("link").unwrap_or(false),
            parents: flags.switch("parents").unwrap_or(false),
            exclude: flags.many("exclude"),
            checksum: flags.one("checksum"),
            keep_git_dir: flags.switch("keep-git-dir"),
            unpack: flags.switch("unpack"),
        })
    }

    /// Words that are heredoc markers become the bodies that follow the line, in the same order.
    fn sources(&mut self, keyword: &str, words: Vec<Word>) -> Option<Vec<CopySource>> {
        for heredoc in self.heredocs.iter().filter(|heredoc| !is_file_name(&heredoc.name)) {
            let message =
                format!("invalid heredoc name {}: it is no name of a file", go::quote(&heredoc.name));
            let hint = format!(
                "the body becomes a file of this name; give its path as the destination of {keyword}"
            );
            self.diagnostics.push(Diagnostic::error(self.line.span, message).hint(hint));
        }
        let mut bodies = std::mem::take(&mut self.heredocs).into_iter();
        let sources = words.into_iter().map(|word| source(word, &mut bodies)).collect();
        match bodies.next() {
            None => Some(sources),
            Some(left) => {
                let hint =
                    "the marker of a heredoc is one word, without spaces, and stands before the destination";
                let message = format!("heredoc {:?} is no source of {keyword}", left.name);
                self.diagnostics.push(Diagnostic::error(self.line.span, message).hint(hint));
                None
            }
        }
    }
}

/// BuildKit writes the file into an empty directory, where no other name leads anywhere.
fn is_file_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains('/')
}

fn source(word: Word, bodies: &mut impl Iterator<Item = Heredoc>) -> CopySource {
    let is_marker = grammar::heredoc_marker(&word.value).is_some();
    match is_marker.then(|| bodies.next()).flatten() {
        Some(body) => CopySource::Heredoc(body),
        None => CopySource::Path(word),
    }
}
