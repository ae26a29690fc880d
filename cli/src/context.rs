//! `layerwright context ls`
use crate::{args::ContextLsArgs, failure::Failure};

/// Lists.
pub fn list(_args: ContextLsArgs) -> Result<String, Failure> {
    Ok(String::new())
}
