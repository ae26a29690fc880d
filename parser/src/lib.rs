//! Text to syntax tree, and nothing else: no file, no image, no clock, no environment.
//!
//! [`parse`] turns a Dockerfile into [`ast::Dockerfile`] and collects every mistake in one pass; [`word`] expands
//! variables; [`ignore`] decides which paths `.dockerignore` takes out of a context. All are pure functions of text.
#![forbid(unsafe_code)]
// Tests read fixtures and say what they skip; the crate itself is held to its clippy.toml.
#![cfg_attr(test, allow(clippy::disallowed_methods, clippy::disallowed_macros, clippy::disallowed_types))]

pub mod ast;
pub mod diagnostic;
mod directives;
pub mod dump;
mod duration;
mod flags;
pub mod fuzz;
pub mod glob;
mod go;
mod grammar;
pub mod ignore;
mod instruction;
mod lexer;
pub mod lint;
pub mod mount;
mod parse;
pub mod size;
pub mod suggest;
mod wildcard;
pub mod word;

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod hostile;

pub use ast::{Dockerfile, Instruction, Span};
pub use diagnostic::{Diagnostic, Severity, line_column};
pub use parse::{
    MAX_BYTES, MAX_ERRORS, MAX_INSTRUCTIONS, MAX_WORDS, Parsed, parse, parse_checked, parse_instruction,
};
