//! `layerwright push`

use std::path::PathBuf;

use clap::{ArgAction, Args};
use oci::{Platform, Reference};

use super::{ProgressMode, go_bool, registry::RegistryArgs, tag};

/// `layerwright push`
#[derive(Debug, Args)]
#[command(after_help = PUSH)]
pub struct PushArgs {
    /// An OCI layout, a directory or a tar, and which image of it: a tag or @DIGEST
    #[arg(value_name = "LAYOUT[:TAG]")]
    pub source: Source,

    /// Name to push to (repeatable)
    #[arg(value_name = "REF", required = true, value_parser = tag)]
    pub names: Vec<Reference>,

    /// Push the image for this platform only, not the index
    #[arg(long, value_name = "PLATFORM")]
    pub platform: Option<Platform>,

    /// On standard error: auto, tty, plain, json or quiet
    #[arg(long, value_name = "MODE")]
    pub progress: Option<ProgressMode>,

    /// Print the digest only: implies --progress quiet
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[arg(default_value = "false", hide_default_value = true, value_parser = go_bool)]
    #[arg(action = ArgAction::Set, value_name = "BOOL")]
    pub quiet: bool,

    /// How registries are reached.
    #[command(flatten)]
    pub registries: RegistryArgs,
}

/// An image in a layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The directory or tar.
    pub path: PathBuf,
    /// Which image, by tag or digest.
    pub selector: Option<String>,
}

impl From<&str> for Source {
    /// What is there is not cut, whatever its name holds.
    fn from(text: &str) -> Self {
        let whole = || Self { path: text.into(), selector: None };
        if whole().path.exists() {
            return whole();
        }
        let cut =
            text.split_once('@').or_else(|| text.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')));
        match cut {
            Some((path, selector)) => Self { path: path.into(), selector: Some(selector.to_owned()) },
            None => whole(),
        }
    }
}

const PUSH: &str = "\
Pushes what a build has written with -o type=oci, or any other OCI layout, as
it is: an index with all its images, with the digests it has there. Every
document and blob is verified when it is read; what the registry has is not
sent. The names change last, when everything else is there, in all registries
at the same time.

Exit codes: 0 every REF names the image, 2 usage, or no image of that name, 3
the registry refuses it or does not answer, 4 the layout cannot be read.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_is_there_is_not_cut() {
        let directory = tempfile::tempdir().expect("a directory");
        let odd = directory.path().join("a:b@c");
        std::fs::create_dir(&odd).expect("made");
        let odd = odd.display().to_string();
        for (text, path, selector) in [
            (odd.as_str(), odd.as_str(), None),
            ("./none", "./none", None),
            ("./none:1", "./none", Some("1")),
            ("none.tar@sha256:0", "none.tar", Some("sha256:0")),
            ("x:1/y", "x:1/y", None),
        ] {
            let want = Source { path: path.into(), selector: selector.map(str::to_owned) };
            assert_eq!(Source::from(text), want, "{text}");
        }
    }
}
