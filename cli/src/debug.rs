//! `layerwright debug`: the builder's own view of things, for people who compare it with another's.

use std::{io::Read, path::Path};

use crate::{
    failure::Failure,
    inputs::{Source, read_dockerfile},
};

/// The syntax tree of a Dockerfile, as BuildKit's own parser dumps it.
///
/// # Errors
/// The file cannot be read, or cannot be cut into instructions; then its text comes with the failure.
pub fn ast(file: &Path, stdin: &mut dyn Read) -> Result<String, (Failure, Option<Source>)> {
    let source = read_dockerfile(file, stdin).map_err(|error| (error.into(), None))?;
    match parser::dump::dump(&source.text) {
        Ok(dump) => Ok(dump),
        Err(diagnostics) => Err((Failure::Dockerfile { diagnostics }, Some(source))),
    }
}
