//! What differs between two pre-images, in the words of whoever wrote the Dockerfile.

use std::collections::{BTreeMap, BTreeSet};

use oci::TreeDigest;

use super::{Change, Inventories, Reason, Unknown, changes, split, text_of};
use crate::key::pre_image::{
    ARGUMENT, EXPANDED, FILES, HEREDOC, INPUT, INSTRUCTION, PARENT, VARIABLE, is_remark,
};

type Fields = BTreeMap<String, String>;
type Roots<'a> = BTreeMap<&'a str, BTreeSet<String>>;

/// What a number of fields say that do not stand in the instruction itself, and what to call it.
const SETTINGS: [(&str, &str); 10] = [
    ("platform", "platform"),
    ("user", "user"),
    ("owner", "user"),
    ("workdir", "working directory"),
    ("hostname", "host name"),
    ("timestamps", "timestamps"),
    ("host ", "address of "),
    ("ulimit ", "limit of "),
    ("allowed of the sandbox", "what --sandbox-allow allows"),
    ("size of /dev/shm", "size of /dev/shm"),
];

/// How a step on no base calls it.
const SCRATCH: &str = "scratch";

/// All that differs between what a step was made of and what it is made of now. `roots` are the steps of this build that
/// ran, and what each of their changes began with.
pub(super) fn differences(
    old: &Fields,
    new: &Fields,
    roots: &Roots<'_>,
    inventories: &Inventories<'_>,
) -> Vec<Reason> {
    let mut told = Told { old, new, roots, inventories, reasons: Vec::new(), compared: Vec::new() };
    told.instruction();
    told.variables();
    told.settings();
    told.inputs();
    told.leave_out_hits();
    if told.reasons.is_empty() {
        told.everything();
    }
    told.reasons
}

struct Told<'a> {
    old: &'a Fields,
    new: &'a Fields,
    roots: &'a Roots<'a>,
    inventories: &'a Inventories<'a>,
    reasons: Vec<Reason>,
    /// Digests of files that have been compared.
    compared: Vec<(String, String)>,
}

impl<'a> Told<'a> {
    fn add(&mut self, reason: Reason) {
        if !self.reasons.contains(&reason) {
            self.reasons.push(reason);
        }
    }

    fn differs(&self, field: &str) -> bool {
        self.old.get(field) != self.new.get(field)
    }

    /// Fields that differ, with both values.
    fn differing(&self) -> Vec<(&'a str, Option<&'a String>, Option<&'a String>)> {
        let names: BTreeSet<&'a String> = self.old.keys().chain(self.new.keys()).collect();
        let values = names.into_iter().map(|name| (name.as_str(), self.old.get(name), self.new.get(name)));
        values.filter(|(_, old, new)| old != new).collect()
    }

    /// The text, or else the variables that it was expanded with, or else what became of it.
    fn instruction(&mut self) {
        let of_instruction: Vec<_> =
            self.differing().into_iter().filter(|(name, ..)| is_of_instruction(name)).collect();
        if of_instruction.is_empty() {
            return;
        }
        let expanded = self.expanded();
        if self.differs(INSTRUCTION) {
            self.text();
        } else if expanded.is_empty() {
            of_instruction.into_iter().for_each(|(name, from, to)| self.part(name, from, to));
        }
        expanded.into_iter().for_each(|reason| self.add(reason));
    }

    fn text(&mut self) {
        let text = |fields: &Fields| fields.get(INSTRUCTION).cloned().unwrap_or_default();
        self.add(Reason::Instruction { from: text(self.old), to: text(self.new) });
    }

    /// A part of an instruction that differs though the text does not.
    fn part(&mut self, field: &str, from: Option<&String>, to: Option<&String>) {
        let words = |text: Option<&String>| serde_json::from_str::<Vec<String>>(text?).ok();
        let (name, from, to) = match (words(from), words(to)) {
            (Some(mut from), Some(mut to)) if field == "args" => {
                // A shell, and what it is given.
                let (old, new) = (from.pop(), to.pop());
                match old == new {
                    true => ("shell", Some(from.join(" ")), Some(to.join(" "))),
                    false => ("command", old, new),
                }
            }
            _ => {
                let number = |c: char| c.is_ascii_digit() || c == ' ';
                let name = if field.starts_with("script ") { field } else { field.trim_end_matches(number) };
                (name, from.cloned(), to.cloned())
            }
        };
        self.add(Reason::Setting { name: name.to_owned(), from, to });
    }

    /// The variables that the instruction names and that differ.
    fn expanded(&self) -> Vec<Reason> {
        let reason = |(name, from, to): (&str, Option<&String>, Option<&String>)| {
            let (from, to) = (from.cloned(), to.cloned());
            if let Some(name) = name.strip_prefix(ARGUMENT) {
                return Some(Reason::Arg { name: name.to_owned(), from, to });
            }
            let name = name.strip_prefix(EXPANDED)?;
            Some(Reason::Env { name: name.to_owned(), from, to })
        };
        // One that became the other (an ARG that an ENV hides) is told of once, with both values.
        let mut reasons: Vec<Reason> = Vec::new();
        for reason in self.differing().into_iter().filter_map(reason) {
            match (reasons.iter_mut().find(|known| name_of(known) == name_of(&reason)), reason) {
                (None, reason) => reasons.push(reason),
                (Some(known), Reason::Env { name, from, to }) => {
                    let Reason::Arg { from: was, to: is, .. } = known else { continue };
                    *known = Reason::Env { name, from: from.or(was.take()), to: to.or(is.take()) };
                }
                (Some(_), _) => {}
            }
        }
        reasons.retain(|reason| match reason {
            Reason::Arg { from, to, .. } | Reason::Env { from, to, .. } => from != to,
            _ => true,
        });
        reasons
    }

    /// What a command can see.
    fn variables(&mut self) {
        for (name, from, to) in self.differing() {
            let Some(variable) = name.strip_prefix(VARIABLE) else { continue };
            // It goes with the other, which is told of.
            if variable == "SOURCE_DATE_EPOCH" && self.differs("timestamps") {
                continue;
            }
            let (name, from, to) = (variable.to_owned(), from.cloned(), to.cloned());
            let argument = format!("{ARGUMENT}{variable}");
            let is_argument =
                self.new.contains_key(&argument) || (to.is_none() && self.old.contains_key(&argument));
            self.reasons.retain(|reason| name_of(reason) != Some(variable));
            self.add(match is_argument {
                true => Reason::Arg { name, from, to },
                false => Reason::Env { name, from, to },
            });
        }
    }

    fn settings(&mut self) {
        for (field, from, to) in self.differing() {
            let setting = SETTINGS.iter().find(|(name, _)| match name.ends_with(' ') {
                true => field.starts_with(name),
                false => field == *name,
            });
            let Some((name, called)) = setting else { continue };
            let name = format!("{called}{}", field.strip_prefix(name).unwrap_or_default());
            self.add(Reason::Setting { name, from: from.cloned(), to: to.cloned() });
        }
    }

    /// The file system below, and what is taken from elsewhere.
    fn inputs(&mut self) {
        for (field, from, to) in self.differing() {
            let (Some(from), Some(to)) = (from, to) else { continue };
            if field == PARENT {
                self.below();
            } else if let Some(picked) = field.strip_prefix(FILES) {
                self.picked(picked, from, to);
            }
        }
    }

    fn below(&mut self) {
        let field = format!("{INPUT}0");
        let label = |fields: &'a Fields| fields.get(&field).map_or("", String::as_str);
        let (from, to) = (label(self.old), label(self.new));
        if let Some(roots) = self.roots.get(to) {
            roots.iter().for_each(|root| self.add(Reason::Step { label: root.clone() }));
            return;
        }
        match (image(from), image(to)) {
            // With --link, or without it any more.
            (Some(SCRATCH), Some(_)) | (Some(_), Some(SCRATCH)) if self.differs(INSTRUCTION) => self.text(),
            (Some(from), Some(to)) => self.add(Reason::Base { from: from.to_owned(), to: to.to_owned() }),
            _ if text_of(from) == text_of(to) => self.add(Reason::Step { label: to.to_owned() }),
            _ => self.add(Reason::Place { from: text_of(from).to_owned(), to: to.to_owned() }),
        }
    }

    /// Files of a context, a heredoc, a stage or an image.
    fn picked(&mut self, picked: &str, from: &str, to: &str) {
        let number = picked.rsplit_once("of input ").map_or("1", |(_, number)| number);
        let field = format!("{INPUT}{number}");
        let label = |fields: &'a Fields| fields.get(&field).map_or("", String::as_str);
        let (was, is) = (label(self.old), label(self.new));
        if let Some(roots) = self.roots.get(is) {
            roots.iter().for_each(|root| self.add(Reason::Step { label: root.clone() }));
            return;
        }
        let name = picked.split(" of input ").next().unwrap_or(picked);
        let heredoc = format!("{HEREDOC}{name}");
        if self.new.contains_key(&heredoc) {
            if self.old.get(&heredoc) != self.new.get(&heredoc) {
                self.add(Reason::Heredoc { name: name.to_owned() });
            }
            return;
        }
        match (image(was), image(is)) {
            (Some(from), Some(to)) => self.add(Reason::Base { from: from.to_owned(), to: to.to_owned() }),
            _ => self.files(from, to),
        }
    }

    fn files(&mut self, from: &str, to: &str) {
        let is_known = |pair: &(String, String)| pair.0 == from && pair.1 == to;
        if self.compared.iter().any(is_known) {
            return;
        }
        self.compared.push((from.to_owned(), to.to_owned()));
        // One list stands for all that is picked of a context.
        let here = |(name, old, new): (&'a str, Option<&'a String>, Option<&'a String>)| {
            let picked = name.strip_prefix(FILES)?.split(" of input ").next();
            picked.filter(|_| old.is_some_and(|old| old == from) && new.is_some_and(|new| new == to))
        };
        let picked = self.differing().into_iter().filter_map(here).collect::<Vec<_>>().join(" ");
        let picks_others = self.differing().iter().any(|(name, ..)| name.starts_with("item "));
        let inventory = |digest: &str| (self.inventories)(&digest.parse::<TreeDigest>().ok()?);
        let unknown = |unknown| Reason::SomeFiles { picked: picked.clone(), unknown };
        let reason = match (inventory(from), inventory(to)) {
            (Some(from), Some(to)) => match changes(&from, &to) {
                mut changes if picks_others => {
                    // What else is picked is another instruction's doing, and told as that.
                    changes.retain(|file| !matches!(file.change, Change::Added | Change::Removed));
                    if changes.is_empty() {
                        return;
                    }
                    Reason::Files { changes }
                }
                changes if changes.is_empty() => unknown(Unknown::SameList),
                changes => Reason::Files { changes },
            },
            _ if picks_others => return,
            _ => unknown(Unknown::NoList),
        };
        self.add(reason);
    }

    /// A step that comes after one that the cache had began with that one only where nothing of its own differs: nobody
    /// else has run it on that result.
    fn leave_out_hits(&mut self) {
        let is_root = |label: &String| self.roots.values().any(|roots| roots.contains(label));
        let follows = |reason: &Reason| matches!(reason, Reason::Step { label } if !is_root(label));
        if !self.reasons.iter().all(follows) {
            self.reasons.retain(|reason| !follows(reason));
        }
    }

    /// What nobody has words for.
    fn everything(&mut self) {
        for (name, from, to) in self.differing().into_iter().filter(|(name, ..)| !is_remark(name)) {
            self.add(Reason::Setting { name: name.to_owned(), from: from.cloned(), to: to.cloned() });
        }
    }
}

/// The variable that a reason is about.
fn name_of(reason: &Reason) -> Option<&str> {
    match reason {
        Reason::Arg { name, .. } | Reason::Env { name, .. } => Some(name),
        _ => None,
    }
}

/// Whether a field follows from the text of the instruction.
fn is_of_instruction(field: &str) -> bool {
    let exact = ["args", "network", "security", "destination", "into directory", "chown", "chmod", "path"];
    let numbered = ["script ", "mount ", "device ", "item "];
    exact.contains(&field) || numbered.iter().any(|prefix| field.starts_with(prefix))
}

/// The image that a label brings: `[build 1/4] FROM IMAGE`.
fn image(label: &str) -> Option<&str> {
    split(label).1.strip_prefix("FROM ")
}
