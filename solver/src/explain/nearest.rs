//! Which of all steps that are known a step is compared with.
//!
//! First those with the same instruction, then those of the same Dockerfile and context, then those that ran on the very
//! same file system, then those that have most in common; the newest of equals. A step with another instruction is only
//! looked at where it is not in this build as well, and
//! where two things say that somebody has edited it: it stood at the same place, is of the same Dockerfile and context, has
//! about the same words.

use std::{cmp::Reverse, collections::BTreeMap};

use super::{Known, Project, Step, split, text_of};
use crate::{
    cache::Miss,
    key::{
        hidden::{hide, seen_beside},
        pre_image::{INPUT, INSTRUCTION, LABEL, PARENT, is_remark},
    },
};

type Fields = BTreeMap<String, String>;

/// The step that is most like one that ran, if any is like it.
pub(super) fn nearest<'k>(miss: &Miss, steps: &[Step<'_>], known: &'k [Known]) -> Option<&'k Known> {
    let (new, hidden) = (&miss.pre_image, hide(&miss.pre_image));
    let seen = known.iter().map(|known| (known, seen_beside(&known.pre_image, new, &hidden)));
    let alike = seen.filter(|(known, old)| is_like(old, known.project, miss, steps));
    let nearest = alike.max_by_key(|(known, old)| {
        (
            instruction(old) == instruction(new),
            known.project,
            old.get(PARENT) == new.get(PARENT),
            Reverse(differing(old, new)),
            place_before(old) == place_before(new),
            &known.origin,
        )
    });
    nearest.map(|(known, _)| known)
}

fn is_like(old: &Fields, project: Project, miss: &Miss, steps: &[Step<'_>]) -> bool {
    let new = &miss.pre_image;
    if old.get("op") != new.get("op") {
        return false;
    }
    if instruction(old) == instruction(new) {
        return true;
    }
    let signs = [
        old.get(PARENT) == new.get(PARENT) || text_before(old) == text_before(new),
        project == Project::Same,
        share_words(instruction(old), instruction(new)),
    ];
    let is_edited = signs.into_iter().filter(|sign| *sign).count() >= 2;
    is_edited && !steps.iter().any(|step| is_still_there(step, old))
}

/// How many fields of the keys differ.
fn differing(old: &Fields, new: &Fields) -> usize {
    let counts = |name: &&String| !is_remark(name);
    let changed = new.iter().filter(|(name, value)| counts(name) && old.get(*name) != Some(value)).count();
    changed + old.keys().filter(|name| counts(name) && !new.contains_key(*name)).count()
}

fn instruction(fields: &Fields) -> &str {
    fields.get(INSTRUCTION).map_or("", String::as_str)
}

fn before(fields: &Fields) -> &str {
    fields.get(&format!("{INPUT}0")).map_or("", String::as_str)
}

/// Where the step below stands: `[build 2/4]`.
fn place_before(fields: &Fields) -> &str {
    split(before(fields)).0
}

fn text_before(fields: &Fields) -> &str {
    text_of(before(fields))
}

/// Whether a step of this build has the instruction of an earlier one.
fn is_still_there(step: &Step<'_>, old: &Fields) -> bool {
    match step.miss {
        Some(miss) => instruction(&miss.pre_image) == instruction(old),
        None => old.get(LABEL).is_some_and(|label| can_be(text_of(label), text_of(step.label))),
    }
}

/// Whether a label is that of a step. In one that another machine has told, variables are not replaced: all other words are
/// there.
fn can_be(told: &str, label: &str) -> bool {
    let mut words = label.split_whitespace();
    let mut is_there = |word: &str| words.any(|known| known == word);
    told == label
        || told.contains('$') && told.split_whitespace().filter(|word| !word.contains('$')).all(&mut is_there)
}

/// Whether at least half of the words of each are also in the other.
fn share_words(a: &str, b: &str) -> bool {
    let shared = |a: &str, b: &str| {
        let there: Vec<&str> = b.split_whitespace().collect();
        let (mut all, mut common) = (0, 0);
        for word in a.split_whitespace() {
            (all, common) = (all + 1, common + usize::from(there.contains(&word)));
        }
        2 * common >= all
    };
    shared(a, b) && shared(b, a)
}
