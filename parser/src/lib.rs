//! Text to syntax tree, and nothing else: no file, no image, no clock, no environment.
//!
//! [`parse`] turns a Dockerfile into [`ast::Dockerfile`] and collects every mistake in one pass; [`word`] expands
//! variables; [`ignore`] decides which paths `.dockerignore` takes out of a context. All are pure functions of text.
#![forbid(unsafe_code)]

pub mod ast;
pub mod diagnostic;

pub use ast::{Dockerfile, Span};
pub use diagnostic::{Diagnostic, Severity};
