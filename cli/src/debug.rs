//! `layerwright debug`: the builder's own view of things, for people who compare it with another's.

use std::{io::Read, path::Path};

use crate::{
    failure::Failure,
    inputs::{InputError, Source, read_dockerfile},
};

/// Why there is no tree.
#[derive(Debug)]
pub struct NoTree {
    /// What is wrong.
    pub failure: Failure,
    /// With what, if it could be read.
    pub source: Option<Source>,
}

/// The syntax tree of a Dockerfile, as BuildKit's own parser dumps it.
///
/// # Errors
/// The file cannot be read, or cannot be cut into instructions.
pub fn ast(file: &Path, stdin: &mut dyn Read) -> Result<String, Box<NoTree>> {
    let unread = |error: InputError| NoTree { failure: error.into(), source: None };
    let source = read_dockerfile(file, stdin).map_err(unread)?;
    let failure = match parser::dump::dump(source.text()) {
        Ok(dump) => return Ok(dump),
        Err(diagnostics) => Failure::Dockerfile { diagnostics },
    };
    Err(Box::new(NoTree { failure, source: Some(source) }))
}
