//! `--call`: what is asked about a Dockerfile instead of building it.

use std::str::FromStr;

use super::csv;

/// What a build command is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Build.
    Build,
    /// Tell what is doubtful or wrong.
    Check,
    /// Tell what the target takes: arguments, secrets, agents.
    Outline,
    /// Tell what can be built.
    Targets,
}

/// How the answer is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs, as buildx prints it.
    Json,
}

/// One `--call METHOD[,format=FORMAT][,ignorestatus=BOOL]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallSpec {
    /// What is asked.
    pub call: Call,
    /// How it is printed.
    pub format: Format,
    /// Whether findings leave the exit code at 0.
    pub ignore_status: bool,
}

impl From<Call> for CallSpec {
    fn from(call: Call) -> Self {
        Self { call, format: Format::Text, ignore_status: false }
    }
}

/// Why a call cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallSpecError {
    /// The record cannot be read.
    #[error(transparent)]
    Csv(#[from] csv::CsvError),
    /// No method, or more than one.
    #[error("expected METHOD[,format=text|json], with the method build, check, outline or targets")]
    NoMethod,
    /// A method nobody knows.
    #[error("unknown method {0:?}: expected build, check, outline or targets")]
    Method(String),
    /// An option nobody knows, or a value it does not take.
    #[error("{0} is not supported: expected format=text, format=json or ignorestatus=BOOL")]
    Option(String),
}

impl FromStr for CallSpec {
    type Err = CallSpecError;

    fn from_str(text: &str) -> Result<Self, CallSpecError> {
        let mut spec = Self::from(Call::Build);
        let mut method = None;
        for field in csv::fields(text)? {
            match field.split_once('=') {
                Some(("format", "text")) => spec.format = Format::Text,
                Some(("format", "json")) => spec.format = Format::Json,
                Some(("ignorestatus", value)) => {
                    spec.ignore_status =
                        crate::args::go_bool(value).map_err(|_| CallSpecError::Option(field.clone()))?;
                }
                Some(_) => return Err(CallSpecError::Option(field)),
                None if method.is_some() || field.is_empty() => return Err(CallSpecError::NoMethod),
                None => method = Some(field),
            }
        }
        spec.call = match method.as_deref() {
            Some("build") => Call::Build,
            Some("check" | "lint") => Call::Check,
            Some("outline") => Call::Outline,
            Some("targets") => Call::Targets,
            Some(other) => return Err(CallSpecError::Method(other.to_owned())),
            None => return Err(CallSpecError::NoMethod),
        };
        Ok(spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_and_formats_are_read() {
        let spec = |call, format, ignore_status| CallSpec { call, format, ignore_status };
        for (text, want) in [
            ("build", spec(Call::Build, Format::Text, false)),
            ("check", spec(Call::Check, Format::Text, false)),
            ("lint,format=json", spec(Call::Check, Format::Json, false)),
            ("check,ignorestatus=true", spec(Call::Check, Format::Text, true)),
            ("format=json,outline", spec(Call::Outline, Format::Json, false)),
            ("targets,format=text", spec(Call::Targets, Format::Text, false)),
        ] {
            assert_eq!(text.parse(), Ok(want), "{text}");
        }
        for text in [
            "",
            "chek",
            "check,outline",
            "check,format=xml",
            "format=json",
            "check,x=y",
            "check,ignorestatus=2",
        ] {
            assert!(text.parse::<CallSpec>().is_err(), "{text}");
        }
    }
}
