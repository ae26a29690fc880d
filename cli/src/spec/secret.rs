//! `--secret` and `--ssh`: what steps may be given that no image keeps.

use std::{convert::Infallible, path::PathBuf, str::FromStr};

use super::csv;

/// One `--secret id=ID[,src=PATH|,env=NAME]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretSpec {
    /// What the Dockerfile calls it.
    pub id: String,
    /// Where its value is.
    pub source: SecretPlace,
}

/// Where the value of a secret is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretPlace {
    /// In a file.
    File(PathBuf),
    /// In an environment variable.
    Variable(String),
    /// Not said: the variable of the secret's name if there is one, else the file of that name.
    Either,
}

/// Why something is no secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecretSpecError {
    /// The record cannot be read.
    #[error(transparent)]
    Csv(#[from] csv::CsvError),
    /// A field without `=`; it may be the secret itself, so it is not repeated.
    #[error("every field must be a key=value pair: id=ID, src=PATH, env=NAME or type=file|env")]
    NotAPair,
    /// A key that means nothing.
    #[error("unexpected key {key:?}{hint}: expected id=, src=, env= or type=")]
    Key {
        /// The key.
        key: String,
        /// What it may have been meant to be.
        hint: String,
    },
    /// A type nobody knows.
    #[error("unsupported secret type {0:?}: expected file or env")]
    Type(String),
    /// No `id=`.
    #[error("id= is missing: RUN --mount=type=secret,id=ID finds a secret by it")]
    NoId,
}

impl FromStr for SecretSpec {
    type Err = SecretSpecError;

    fn from_str(text: &str) -> Result<Self, SecretSpecError> {
        let (mut id, mut file, mut variable, mut is_env) =
            (String::new(), String::new(), String::new(), false);
        for field in csv::fields(text)? {
            let (key, value) = field.split_once('=').ok_or(SecretSpecError::NotAPair)?;
            match key.to_ascii_lowercase().as_str() {
                "id" => id = value.to_owned(),
                "src" | "source" => file = value.to_owned(),
                "env" => variable = value.to_owned(),
                "type" => match value {
                    "file" => is_env = false,
                    "env" => is_env = true,
                    _ => return Err(SecretSpecError::Type(value.to_owned())),
                },
                other => return Err(unexpected(other)),
            }
        }
        if is_env && variable.is_empty() {
            variable = std::mem::take(&mut file);
        }
        let source = match (variable.is_empty(), file.is_empty()) {
            // As in buildx, the variable wins over the file.
            (false, _) => SecretPlace::Variable(variable),
            (true, false) => SecretPlace::File(PathBuf::from(file)),
            (true, true) => SecretPlace::Either,
        };
        if id.is_empty() { Err(SecretSpecError::NoId) } else { Ok(Self { id, source }) }
    }
}

fn unexpected(key: &str) -> SecretSpecError {
    let near = solver::pattern::suggest::nearest(key, ["id", "src", "source", "env", "type"]);
    let hint = near.map(|near| format!(" (did you mean {near}=?)")).unwrap_or_default();
    SecretSpecError::Key { key: key.to_owned(), hint }
}

/// One `--ssh ID[=PATH[,PATH]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshSpec {
    /// What the Dockerfile calls it; `default` where it says nothing.
    pub id: String,
    /// The socket of an agent, or the files of keys; none: the agent of SSH_AUTH_SOCK.
    pub paths: Vec<PathBuf>,
}

impl FromStr for SshSpec {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let (id, paths) = text.split_once('=').unwrap_or((text, ""));
        let paths = paths.split(',').filter(|path| !path.is_empty()).map(PathBuf::from).collect();
        let id = if id.is_empty() { "default" } else { id };
        Ok(Self { id: id.to_owned(), paths })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_read_as_buildx_reads_them() {
        let file = |path: &str| SecretPlace::File(path.into());
        let variable = |name: &str| SecretPlace::Variable(name.to_owned());
        for (text, id, source) in [
            ("id=a", "a", SecretPlace::Either),
            ("id=a,src=f", "a", file("f")),
            ("id=a,source=/x/f", "a", file("/x/f")),
            ("ID=a,type=file,src=f", "a", file("f")),
            ("id=a,env=E", "a", variable("E")),
            ("type=env,id=a", "a", SecretPlace::Either),
            ("type=env,id=a,src=E", "a", variable("E")),
            ("id=a,src=f,env=E", "a", variable("E")),
            ("id=a,\"src=x,y\"", "a", file("x,y")),
        ] {
            let want = SecretSpec { id: id.to_owned(), source };
            assert_eq!(text.parse(), Ok(want), "{text}");
        }
        for (text, want) in [
            ("a", "must be a key=value pair"),
            ("src=f", "id= is missing"),
            ("id=,src=f", "id= is missing"),
            ("id=a,type=vault", "unsupported secret type \"vault\""),
            ("id=a,scr=f", "unexpected key \"scr\" (did you mean src=?)"),
            ("id=a,\"src=f", "must end with a quote"),
        ] {
            let error = text.parse::<SecretSpec>().expect_err(text).to_string();
            assert!(error.contains(want), "{text}: {error}");
        }
    }

    #[test]
    fn agents_have_names_and_paths() {
        for (text, id, paths) in [
            ("default", "default", &[][..]),
            ("", "default", &[]),
            ("default=", "default", &[]),
            ("work=/run/agent", "work", &["/run/agent"]),
            ("keys=a,b", "keys", &["a", "b"]),
        ] {
            let want = SshSpec { id: id.to_owned(), paths: paths.iter().map(PathBuf::from).collect() };
            assert_eq!(text.parse(), Ok(want), "{text}");
        }
    }
}
