//! Where the result of a build goes: `--output`, `--tag` and `--push` worked into one list, as buildx does it.

use std::path::PathBuf;

use oci::Reference;

use crate::{
    args::ProgressMode,
    output_spec::{Compression, Destination, LayoutForm, OutputSpec},
};

/// Where the result goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Pushed to registries.
    Push {
        /// At least one.
        names: Vec<Reference>,
        /// How its layers are packed.
        compression: Compression,
    },
    /// An OCI layout.
    Oci {
        /// Where.
        destination: Destination,
        /// Archive or directory.
        form: LayoutForm,
        /// Names in its index.
        names: Vec<Reference>,
        /// How its layers are packed.
        compression: Compression,
    },
    /// The root file system as an archive.
    Tar(Destination),
    /// The root file system as a directory.
    Local(PathBuf),
}

/// Why the outputs cannot be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OutputError {
    /// A push without a name.
    #[error("a push needs a name: give -t REGISTRY/REPOSITORY:TAG")]
    NoName,
    /// An archive for a terminal.
    #[error("an archive is not written to a terminal: give dest=FILE, or redirect standard output")]
    Terminal,
    /// Archive and digest for the same stream.
    #[error("standard output cannot take both an archive and the digest of --quiet: give dest=FILE")]
    Quiet,
    /// Two archives for the same stream.
    #[error("only one output can go to standard output: give dest=FILE")]
    TwoArchives,
}

/// `-o` with `-t` and `--push` worked in, as buildx does it.
///
/// # Errors
/// [`OutputError::NoName`] for a push without a name.
pub fn resolve(
    specs: &[OutputSpec],
    tags: &[Reference],
    push_tags: bool,
) -> Result<Vec<Output>, OutputError> {
    let mut outputs = Vec::new();
    let mut pushes = false;
    let names_or_tags = |names: &[Reference]| if names.is_empty() { tags.to_vec() } else { names.to_vec() };
    for spec in specs {
        match spec {
            OutputSpec::Image { push, image, .. } if *push || push_tags => {
                pushes = true;
                outputs.push(push_output(names_or_tags(&image.names), image.compression)?);
            }
            OutputSpec::Image { .. } | OutputSpec::CacheOnly => {}
            OutputSpec::Oci { destination, form, image } => outputs.push(Output::Oci {
                destination: destination.clone(),
                form: *form,
                names: names_or_tags(&image.names),
                compression: image.compression,
            }),
            OutputSpec::Tar(destination) => outputs.push(Output::Tar(destination.clone())),
            OutputSpec::Local(directory) => outputs.push(Output::Local(directory.clone())),
        }
    }
    if push_tags && !pushes {
        outputs.push(push_output(tags.to_vec(), Compression::Gzip)?);
    }
    Ok(outputs)
}

fn push_output(names: Vec<Reference>, compression: Compression) -> Result<Output, OutputError> {
    match names.is_empty() {
        true => Err(OutputError::NoName),
        false => Ok(Output::Push { names, compression }),
    }
}

/// One thing at most may be written to standard output, and an archive not to a terminal.
///
/// # Errors
/// Which of the two is not so.
pub fn check_stdout(
    outputs: &[Output],
    progress: ProgressMode,
    is_terminal: bool,
) -> Result<(), OutputError> {
    let to_stdout = |output: &&Output| {
        matches!(
            output,
            Output::Oci { destination: Destination::Stdout, .. } | Output::Tar(Destination::Stdout)
        )
    };
    match outputs.iter().filter(to_stdout).count() {
        0 => Ok(()),
        1 if is_terminal => Err(OutputError::Terminal),
        1 if progress == ProgressMode::Quiet => Err(OutputError::Quiet),
        1 => Ok(()),
        _ => Err(OutputError::TwoArchives),
    }
}

/// The registries to be trusted without TLS: those named, and those of outputs with `registry.insecure=true`.
pub fn insecure_registries(mut hosts: Vec<String>, specs: &[OutputSpec], outputs: &[Output]) -> Vec<String> {
    let asked = specs.iter().any(|spec| matches!(spec, OutputSpec::Image { insecure: true, .. }));
    if asked {
        let names = outputs.iter().filter_map(|output| match output {
            Output::Push { names, .. } => Some(names),
            _ => None,
        });
        hosts.extend(names.flatten().map(|name| name.registry.clone()));
    }
    hosts.sort();
    hosts.dedup();
    hosts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn references(texts: &[&str]) -> Vec<Reference> {
        texts.iter().map(|text| text.parse().expect("a reference")).collect()
    }

    fn resolved(specs: &[&str], tags: &[&str], push: bool) -> Result<Vec<Output>, OutputError> {
        let specs: Vec<OutputSpec> = specs.iter().map(|text| text.parse().expect("an output")).collect();
        resolve(&specs, &references(tags), push)
    }

    fn push(names: &[&str]) -> Output {
        Output::Push { names: references(names), compression: Compression::Gzip }
    }

    #[test]
    fn tags_and_push_are_worked_in() {
        assert_eq!(resolved(&[], &["a:1"], false), Ok(vec![]));
        assert_eq!(resolved(&[], &["a:1"], true), Ok(vec![push(&["a:1"])]));
        assert_eq!(resolved(&["type=registry"], &["a:1", "b:1"], false), Ok(vec![push(&["a:1", "b:1"])]));
        assert_eq!(resolved(&["type=image,name=c:1"], &["a:1"], true), Ok(vec![push(&["c:1"])]));
        assert_eq!(resolved(&["type=image"], &["a:1"], false), Ok(vec![]));
        assert_eq!(resolved(&["out"], &["a:1"], true), Ok(vec![Output::Local("out".into()), push(&["a:1"])]));
        assert_eq!(resolved(&["type=registry"], &[], false), Err(OutputError::NoName));
        assert_eq!(resolved(&[], &[], true), Err(OutputError::NoName));
    }

    #[test]
    fn an_oci_layout_is_called_as_the_tags_unless_it_has_names() {
        for (spec, want) in [("type=oci,dest=x", "a:1"), ("type=oci,dest=x,name=b:2", "b:2")] {
            let outputs = resolved(&[spec], &["a:1"], false).expect("valid");
            let [Output::Oci { names, .. }] = &outputs[..] else { panic!("{outputs:?}") };
            assert_eq!(names, &references(&[want]));
        }
    }

    #[test]
    fn standard_output_takes_one_thing() {
        let archive = || Output::Tar(Destination::Stdout);
        let check = |outputs: &[Output], mode, terminal| check_stdout(outputs, mode, terminal);
        assert_eq!(check(&[archive()], ProgressMode::Plain, false), Ok(()));
        assert_eq!(check(&[archive()], ProgressMode::Plain, true), Err(OutputError::Terminal));
        assert_eq!(check(&[archive()], ProgressMode::Quiet, false), Err(OutputError::Quiet));
        assert_eq!(check(&[archive(), archive()], ProgressMode::Plain, false), Err(OutputError::TwoArchives));
        assert_eq!(check(&[Output::Local("d".into())], ProgressMode::Quiet, true), Ok(()));
    }

    #[test]
    fn an_insecure_output_names_its_registries() {
        let specs = ["type=registry,registry.insecure=true".parse().expect("an output")];
        let outputs = [push(&["h:5000/a:1"])];
        assert_eq!(insecure_registries(vec!["x".into(), "x".into()], &specs, &outputs), ["h:5000", "x"]);
        assert_eq!(insecure_registries(vec![], &[], &outputs), [""; 0]);
    }
}
