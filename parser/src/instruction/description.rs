//! Comments right above FROM and ARG that say what a stage or an argument is for: `# name description`.

use std::collections::BTreeMap;

use super::Reader;
use crate::diagnostic::Diagnostic;

impl Reader<'_> {
    /// What the comments say about each of `names`; the first line about a name counts. Where the last line is about
    /// none of them, the rule for those who want it is told.
    pub(super) fn describe<'n>(&mut self, keyword: &str, names: &[&'n str]) -> BTreeMap<&'n str, String> {
        let mut descriptions: BTreeMap<&str, Option<&str>> = names.iter().map(|name| (*name, None)).collect();
        let mut last = None;
        for line in self.comments.lines() {
            let comment = line.trim_start().trim_start_matches('#').trim();
            let (name, description) = comment.split_once(' ').unwrap_or((comment, ""));
            let known = descriptions.get_mut(name);
            last = Some(known.is_some());
            if let Some(known) = known.filter(|_| !description.is_empty()) {
                known.get_or_insert(description);
            }
        }
        if last == Some(false) && !names.is_empty() {
            self.tell_description(keyword, names);
        }
        let found = descriptions.into_iter();
        found.filter_map(|(name, description)| Some((name, description?.to_owned()))).collect()
    }

    fn tell_description(&mut self, keyword: &str, names: &[&str]) {
        let example = if let [name] = names { name } else { "<arg_key>" };
        let message = format!("Comment for {keyword} should follow the format: `# {example} <description>`");
        let finding = Diagnostic::warning("InvalidDefinitionDescription", self.line.span, message);
        self.diagnostics.push(finding);
    }
}
