//! Where the result of a build goes: `--output`, `--tag` and `--push` worked into one list, as buildx does it.

use std::path::Path;

use exporter::{Destination, ExportError, FilesOutput, ImageOutput, Packing, Tagging};
use oci::Reference;

use crate::{
    args::ProgressMode,
    spec::output::{ImageOptions, OutputSpec},
};

/// Where the result goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Where.
    pub to: exporter::Output,
    /// How it is packed, where the result is an image.
    pub packing: Packing,
}

/// Why the outputs cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// One of them asks for what there is not.
    #[error(transparent)]
    Unsupported(#[from] ExportError),
    /// Archive and digest for the same stream.
    #[error("standard output cannot take both an archive and the digest of --quiet: give dest=FILE")]
    Quiet,
    /// Two archives for the same stream.
    #[error("only one output can go to standard output: give dest=FILE")]
    TwoArchives,
}

impl Output {
    fn image(to: ImageOutput, packing: Packing) -> Self {
        Self { to: exporter::Output::Image(to), packing }
    }

    fn files(to: FilesOutput) -> Self {
        Self { to: exporter::Output::Files(to), packing: Packing::default() }
    }

    /// The names an image gets there.
    pub fn names(&self) -> &[Reference] {
        match &self.to {
            exporter::Output::Image(
                ImageOutput::OciLayout { names, .. }
                | ImageOutput::OciArchive { names, .. }
                | ImageOutput::Registry { names, .. },
            ) => names,
            _ => &[],
        }
    }

    /// The names it is pushed to.
    pub fn pushed_names(&self) -> &[Reference] {
        match &self.to {
            exporter::Output::Image(ImageOutput::Registry { names, .. }) => names,
            _ => &[],
        }
    }

    /// The file that is written there.
    pub fn file(&self) -> Option<&Path> {
        match &self.to {
            exporter::Output::Image(ImageOutput::OciArchive {
                destination: Destination::File(path), ..
            })
            | exporter::Output::Files(FilesOutput::Tar(Destination::File(path))) => Some(path),
            _ => None,
        }
    }

    /// The directory that is filled there.
    pub fn directory(&self) -> Option<&Path> {
        match &self.to {
            exporter::Output::Image(ImageOutput::OciLayout { directory, .. })
            | exporter::Output::Files(FilesOutput::Local(directory)) => Some(directory),
            _ => None,
        }
    }

    fn is_stdout(&self) -> bool {
        matches!(
            self.to,
            exporter::Output::Image(ImageOutput::OciArchive { destination: Destination::Stdout, .. })
                | exporter::Output::Files(FilesOutput::Tar(Destination::Stdout))
        )
    }
}

/// `-o` with `-t` and `--push` worked in.
pub fn resolve(specs: &[OutputSpec], tags: &[Reference], push_tags: bool) -> Vec<Output> {
    let mut outputs: Vec<Output> = specs.iter().filter_map(|spec| output(spec, tags, push_tags)).collect();
    let pushes = specs.iter().any(|spec| matches!(spec, OutputSpec::Image { .. }));
    if push_tags && !pushes {
        let (names, tagging) = (tagged(tags), Tagging::Tags);
        outputs.push(Output::image(ImageOutput::Registry { names, tagging }, Packing::default()));
    }
    outputs
}

/// The names with the tag that they mean.
fn tagged(names: &[Reference]) -> Vec<Reference> {
    names.iter().map(Reference::with_default_tag).collect()
}

/// What one `-o` asks for. `--push` makes every image output push.
fn output(spec: &OutputSpec, tags: &[Reference], push_tags: bool) -> Option<Output> {
    let as_given = |image: &ImageOptions| match image.names.is_empty() {
        true => tags.to_vec(),
        false => image.names.clone(),
    };
    let names = |image: &ImageOptions| tagged(&as_given(image));
    Some(match spec {
        OutputSpec::Image { push, tagging, image, .. } if *push || push_tags => {
            let names = match tagging {
                Tagging::Tags => names(image),
                Tagging::DigestOnly => as_given(image),
            };
            Output::image(ImageOutput::Registry { names, tagging: *tagging }, image.packing)
        }
        OutputSpec::Image { image, .. } => Output::image(ImageOutput::ImageStore, image.packing),
        OutputSpec::OciArchive { destination, image } => {
            let (destination, names) = (destination.clone(), names(image));
            Output::image(ImageOutput::OciArchive { destination, names }, image.packing)
        }
        OutputSpec::OciLayout { directory, image } => {
            let (directory, names) = (directory.clone(), names(image));
            Output::image(ImageOutput::OciLayout { directory, names }, image.packing)
        }
        OutputSpec::Tar(destination) => Output::files(FilesOutput::Tar(destination.clone())),
        OutputSpec::Local(directory) => Output::files(FilesOutput::Local(directory.clone())),
        OutputSpec::CacheOnly => return None,
    })
}

/// Refuses what cannot be done before anything is done: what [`exporter::check`] refuses, and two things that want
/// standard output.
///
/// # Errors
/// [`OutputError`]
pub fn check(outputs: &[Output], progress: ProgressMode) -> Result<(), OutputError> {
    outputs.iter().try_for_each(|output| exporter::check(&output.to))?;
    match outputs.iter().filter(|output| output.is_stdout()).count() {
        0 => Ok(()),
        1 if progress == ProgressMode::Quiet => Err(OutputError::Quiet),
        1 => Ok(()),
        _ => Err(OutputError::TwoArchives),
    }
}

/// The registries of outputs with `registry.insecure=true`, to be trusted without TLS.
pub fn insecure_registries(specs: &[OutputSpec], outputs: &[Output]) -> Vec<String> {
    let mut hosts = Vec::new();
    if specs.iter().any(|spec| matches!(spec, OutputSpec::Image { insecure: true, .. })) {
        hosts.extend(outputs.iter().flat_map(Output::pushed_names).map(|name| name.registry.clone()));
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

    fn resolved(specs: &[&str], tags: &[&str], push: bool) -> Vec<Output> {
        let specs: Vec<OutputSpec> = specs.iter().map(|text| text.parse().expect("an output")).collect();
        resolve(&specs, &references(tags), push)
    }

    fn push(names: &[&str]) -> Output {
        let tagging = Tagging::Tags;
        Output::image(ImageOutput::Registry { names: references(names), tagging }, Packing::default())
    }

    #[test]
    fn tags_and_push_are_worked_in() {
        assert_eq!(resolved(&[], &["a:1"], false), []);
        assert_eq!(resolved(&[], &["a:1"], true), [push(&["a:1"])]);
        assert_eq!(resolved(&["type=registry"], &["a:1", "b:1"], false), [push(&["a:1", "b:1"])]);
        assert_eq!(resolved(&["type=image,name=c:1"], &["a:1"], true), [push(&["c:1"])]);
        assert_eq!(resolved(&[], &["a"], true), [push(&["a:latest"])]);
        let by_digest = "type=image,push=true,push-by-digest=true";
        for (tag, is_refused) in [("a", false), ("a:1", true)] {
            let outputs = resolved(&[by_digest], &[tag], false);
            let tagging = Tagging::DigestOnly;
            let want = ImageOutput::Registry { names: references(&[tag]), tagging };
            assert_eq!(outputs, [Output::image(want, Packing::default())]);
            assert_eq!(check(&outputs, ProgressMode::Plain).is_err(), is_refused);
        }
        let local = Output::files(FilesOutput::Local("out".into()));
        assert_eq!(resolved(&["out"], &["a:1"], true), [local, push(&["a:1"])]);
        assert_eq!(resolved(&["type=cacheonly"], &["a:1"], false), []);
    }

    #[test]
    fn what_cannot_be_made_is_refused() {
        let refused = |specs: &[&str], push| check(&resolved(specs, &[], push), ProgressMode::Plain).is_err();
        assert!(refused(&["type=registry"], false) && refused(&[], true) && refused(&["type=image"], false));
        assert!(!refused(&["out"], false));
    }

    #[test]
    fn an_oci_layout_is_called_as_the_tags_unless_it_has_names() {
        for (spec, want) in [("type=oci,dest=x", "a:1"), ("type=oci,tar=false,dest=x,name=b:2", "b:2")] {
            assert_eq!(resolved(&[spec], &["a:1"], false)[0].names(), references(&[want]));
        }
    }

    #[test]
    fn standard_output_takes_one_thing() {
        // Under a test runner that does not capture it, standard output may be a terminal; all are refused then.
        let archives = |count| vec![Output::files(FilesOutput::Tar(Destination::Stdout)); count];
        assert!(check(&archives(1), ProgressMode::Quiet).is_err());
        assert!(check(&archives(2), ProgressMode::Plain).is_err());
        assert!(check(&[Output::files(FilesOutput::Local("d".into()))], ProgressMode::Quiet).is_ok());
    }

    #[test]
    fn an_insecure_output_names_its_registries() {
        let specs = ["type=registry,registry.insecure=true".parse().expect("an output")];
        let outputs = [push(&["h:5000/a:1"])];
        assert_eq!(insecure_registries(&specs, &outputs), ["h:5000"]);
        assert_eq!(insecure_registries(&[], &outputs), [""; 0]);
    }
}
