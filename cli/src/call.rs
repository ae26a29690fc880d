//! `--check` and `--call`: what is said about a Dockerfile instead of building it, in the words of buildx and, for
//! programs, in its JSON.
//!
//! Nothing is written and nothing runs; of base images only the configs are asked for.

mod check;
mod json;
mod outline;
mod table;
mod targets;

pub use json::pretty;
pub use table::table;

use solver::plan::{self, Checked};

use crate::{
    build,
    failure::Failure,
    inputs::{Inputs, Outside},
    request::BuildRequest,
    spec::call::{Call, Format},
};

/// What is said.
#[derive(Debug)]
pub struct Answer {
    /// For standard output.
    pub text: String,
    /// What is to be told beside it.
    pub warnings: Vec<String>,
    /// What is wrong with the Dockerfile, after all that is doubtful about it has been said.
    pub failure: Option<Failure>,
    /// 0, or that of a build that failed where there are findings.
    pub exit_code: u8,
}

impl From<String> for Answer {
    fn from(text: String) -> Self {
        Self { text, warnings: Vec::new(), failure: None, exit_code: 0 }
    }
}

/// Answers what `--call` asks.
///
/// # Errors
/// The Dockerfile is wrong, or an image cannot be had.
pub fn answer(request: &BuildRequest, inputs: &Inputs, outside: &Outside) -> Result<Answer, Failure> {
    let source = &inputs.dockerfile;
    let check = request.build_args.get("BUILDKIT_DOCKERFILE_CHECK").map(String::as_str);
    let parsed = parser::parse_checked(source.text(), check);
    let Some(dockerfile) = parsed.dockerfile else {
        let diagnostics = build::mistakes(request, inputs, parsed);
        if request.call.call == Call::Check {
            let checked = Checked { diagnostics, unavailable: None };
            return Ok(check::answer(checked, source, request.call));
        }
        return Err(Failure::Dockerfile { diagnostics });
    };
    let options = build::plan_options(request, inputs, parsed.diagnostics);
    Ok(match (request.call.call, request.call.format) {
        (Call::Check, _) => {
            let checked = plan::check(&dockerfile, &options, &outside.resolver()?);
            check::answer(checked, source, request.call)
        }
        (Call::Targets, Format::Text) => Answer::from(targets::text(&plan::targets(&dockerfile))),
        (Call::Targets, Format::Json) => Answer::from(targets::json(&plan::targets(&dockerfile), source)),
        (_, format) => {
            let outline =
                plan::outline(&dockerfile, &options, &outside.resolver()?).map_err(build::plan_failure)?;
            let text = match format {
                Format::Text => outline::text(&outline),
                Format::Json => outline::json(&outline, source),
            };
            Answer { warnings: outline.notices, ..Answer::from(text) }
        }
    })
}
