//! The lint rules.
use crate::{Diagnostic, Dockerfile};

pub(crate) fn run(_dockerfile: &Dockerfile, _text: &str, known: Vec<Diagnostic>) -> Vec<Diagnostic> {
    known
}
