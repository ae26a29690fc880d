//! Where the result of a build goes: `--output`, `--tag` and `--push` worked into one list, as buildx does it.

use std::path::Path;

use exporter::{Destination, ExportError, FilesOutput, Form, ImageOutput, MediaTypes, Packing, Tagging};
use oci::{MediaType, Reference};

use crate::{
    args::ProgressMode,
    spec::{
        annotation::{self, AnnotationSpec},
        output::{ImageOptions, OutputSpec},
    },
};

/// Where the result goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Where.
    pub to: exporter::Output,
    /// What it is like there, where the result is an image.
    pub form: Form,
}

/// What the command line says about outputs.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// `-o`
    pub specs: &'a [OutputSpec],
    /// `-t`
    pub tags: &'a [Reference],
    /// `--annotation`
    pub annotations: &'a [AnnotationSpec],
    /// `--push`
    pub push: bool,
    /// `--load`
    pub load: bool,
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
    fn image(to: ImageOutput, form: Form) -> Self {
        Self { to: exporter::Output::Image(to), form }
    }

    fn files(to: FilesOutput) -> Self {
        Self { to: exporter::Output::Files(to), form: Form::default() }
    }

    /// The names an image gets there.
    pub fn names(&self) -> &[Reference] {
        match &self.to {
            exporter::Output::Image(
                ImageOutput::OciLayout { names, .. }
                | ImageOutput::OciArchive { names, .. }
                | ImageOutput::DockerArchive { names, .. }
                | ImageOutput::Load { names, .. }
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
            exporter::Output::Image(
                ImageOutput::OciArchive { destination: Destination::File(path), .. }
                | ImageOutput::DockerArchive { destination: Destination::File(path), .. },
            )
            | exporter::Output::Files(FilesOutput::Tar { destination: Destination::File(path), .. }) => {
                Some(path)
            }
            _ => None,
        }
    }

    /// The docker context that it is loaded into, if it is loaded: the outer `None` says that it is not.
    pub fn loaded_into(&self) -> Option<Option<&str>> {
        match &self.to {
            exporter::Output::Image(ImageOutput::Load { context, .. }) => Some(context.as_deref()),
            _ => None,
        }
    }

    /// The directory that is filled there.
    pub fn directory(&self) -> Option<&Path> {
        match &self.to {
            exporter::Output::Image(ImageOutput::OciLayout { directory, .. })
            | exporter::Output::Files(FilesOutput::Local { directory, .. }) => Some(directory),
            _ => None,
        }
    }

    fn is_stdout(&self) -> bool {
        matches!(
            self.to,
            exporter::Output::Image(
                ImageOutput::OciArchive { destination: Destination::Stdout, .. }
                    | ImageOutput::DockerArchive { destination: Destination::Stdout, .. }
            ) | exporter::Output::Files(FilesOutput::Tar { destination: Destination::Stdout, .. })
        )
    }
}

/// `-o` with `-t`, `--annotation`, `--push` and `--load` worked in. `--load` adds nothing where an output loads already.
pub fn resolve(asked: Asked<'_>) -> Vec<Output> {
    let mut outputs: Vec<Output> = asked.specs.iter().filter_map(|spec| output(spec, asked)).collect();
    let pushes = asked.specs.iter().any(|spec| matches!(spec, OutputSpec::Image { .. }));
    let names = tagged(asked.tags);
    if asked.push && !pushes {
        let (names, tagging) = (names.clone(), Tagging::Tags);
        let form = form(&ImageOptions::default(), asked);
        outputs.push(Output::image(ImageOutput::Registry { names, tagging }, form));
    }
    if asked.load && !outputs.iter().any(|output| output.loaded_into().is_some()) {
        let packing = Packing { media_types: MediaTypes::Docker, ..Packing::default() };
        let form = form(&ImageOptions { packing, ..ImageOptions::default() }, asked);
        outputs.push(Output::image(ImageOutput::Load { context: None, names }, form));
    }
    outputs
}

/// The names with the tag that they mean.
fn tagged(names: &[Reference]) -> Vec<Reference> {
    names.iter().map(Reference::with_default_tag).collect()
}

/// What one `-o` asks for. `--push` makes every image output push.
fn output(spec: &OutputSpec, asked: Asked<'_>) -> Option<Output> {
    let as_given = |image: &ImageOptions| match image.names.is_empty() {
        true => asked.tags.to_vec(),
        false => image.names.clone(),
    };
    let names = |image: &ImageOptions| tagged(&as_given(image));
    let (to, image) = match spec {
        OutputSpec::Image { push, tagging, image, .. } if *push || asked.push => {
            let names = match tagging {
                Tagging::Tags => names(image),
                Tagging::DigestOnly => as_given(image),
            };
            (ImageOutput::Registry { names, tagging: *tagging }, image)
        }
        OutputSpec::Image { image, .. } => (ImageOutput::ImageStore, image),
        OutputSpec::OciArchive { destination, image } => {
            (ImageOutput::OciArchive { destination: destination.clone(), names: names(image) }, image)
        }
        OutputSpec::OciLayout { directory, image } => {
            (ImageOutput::OciLayout { directory: directory.clone(), names: names(image) }, image)
        }
        OutputSpec::DockerArchive { destination, image } => {
            (ImageOutput::DockerArchive { destination: destination.clone(), names: names(image) }, image)
        }
        OutputSpec::Load { context, image } => {
            (ImageOutput::Load { context: context.clone(), names: names(image) }, image)
        }
        OutputSpec::Tar { destination, split } => {
            let (destination, split) = (destination.clone(), *split);
            return Some(Output::files(FilesOutput::Tar { destination, split }));
        }
        OutputSpec::Local { directory, split } => {
            let (directory, split) = (directory.clone(), *split);
            return Some(Output::files(FilesOutput::Local { directory, split }));
        }
        OutputSpec::CacheOnly => return None,
    };
    Some(Output::image(to, form(image, asked)))
}

/// What an image is like in an output: `--annotation` goes before the output's own. Docker's media types are given up for
/// what they have no place for, as BuildKit does, where nobody has asked for them.
fn form(image: &ImageOptions, asked: Asked<'_>) -> Form {
    let annotations = annotation::sorted(image.annotations.iter().chain(asked.annotations));
    let needs_oci = !annotations.is_empty() || image.packing.encoder.media_type() == MediaType::OciLayerZstd;
    let usual = if needs_oci { MediaTypes::Oci } else { image.packing.media_types };
    let media_types = image.media_types.unwrap_or(usual);
    Form { packing: Packing { media_types, ..image.packing }, annotations }
}

/// Refuses what cannot be done before anything is done: what [`exporter::check`] refuses, and two things that want
/// standard output.
///
/// # Errors
/// [`OutputError`]
pub fn check(outputs: &[Output], platforms: usize, progress: ProgressMode) -> Result<(), OutputError> {
    outputs.iter().try_for_each(|output| exporter::check_platforms(&output.to, platforms))?;
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
    use exporter::PlatformSplit;

    use super::*;

    fn references(texts: &[&str]) -> Vec<Reference> {
        texts.iter().map(|text| text.parse().expect("a reference")).collect()
    }

    fn resolved(specs: &[&str], tags: &[&str], push: bool) -> Vec<Output> {
        let specs: Vec<OutputSpec> = specs.iter().map(|text| text.parse().expect("an output")).collect();
        resolve(Asked { specs: &specs, tags: &references(tags), annotations: &[], push, load: false })
    }

    fn push(names: &[&str]) -> Output {
        let tagging = Tagging::Tags;
        Output::image(ImageOutput::Registry { names: references(names), tagging }, Form::default())
    }

    fn local(directory: &str) -> Output {
        Output::files(FilesOutput::Local { directory: directory.into(), split: PlatformSplit::default() })
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
            assert_eq!(outputs, [Output::image(want, Form::default())]);
            assert_eq!(check(&outputs, 1, ProgressMode::Plain).is_err(), is_refused);
        }
        assert_eq!(resolved(&["out"], &["a:1"], true), [local("out"), push(&["a:1"])]);
        assert_eq!(resolved(&["type=cacheonly"], &["a:1"], false), []);
    }

    #[test]
    fn load_is_worked_in_once() {
        let resolved = |specs: &[&str], load| {
            let specs: Vec<OutputSpec> = specs.iter().map(|text| text.parse().expect("an output")).collect();
            let tags = references(&["a:1"]);
            let outputs = resolve(Asked { specs: &specs, tags: &tags, annotations: &[], push: false, load });
            outputs.iter().map(|output| output.loaded_into().is_some()).collect::<Vec<_>>()
        };
        assert_eq!(resolved(&[], true), [true]);
        assert_eq!(resolved(&["type=docker"], true), [true]);
        assert_eq!(resolved(&["type=docker,context=c"], false), [true]);
        assert_eq!(resolved(&["type=docker,dest=x", "out"], true), [false, false, true]);
    }

    #[test]
    fn media_types_fit_what_an_image_holds() {
        use MediaTypes::{Docker, Oci};
        for (spec, annotations, want) in [
            ("type=oci", &[][..], Oci),
            ("type=oci,oci-mediatypes=false", &[], Docker),
            ("type=docker", &[], Docker),
            ("type=docker,oci-mediatypes=", &[], Oci),
            ("type=docker,annotation.a=b", &[], Oci),
            ("type=docker", &["a=b"], Oci),
            ("type=docker,tar=false,dest=d", &[], Docker),
        ] {
            let annotations: Vec<AnnotationSpec> =
                annotations.iter().map(|text| text.parse().expect("an annotation")).collect();
            let specs = [spec.parse().expect("an output")];
            let asked =
                Asked { specs: &specs, tags: &[], annotations: &annotations, push: false, load: false };
            assert_eq!(resolve(asked)[0].form.packing.media_types, want, "{spec}");
        }
    }

    #[test]
    fn what_cannot_be_made_is_refused() {
        let refused =
            |specs: &[&str], push| check(&resolved(specs, &[], push), 1, ProgressMode::Plain).is_err();
        assert!(refused(&["type=registry"], false) && refused(&[], true) && refused(&["type=image"], false));
        assert!(!refused(&["out"], false));
        let docker = resolved(&["type=docker,dest=x"], &[], false);
        assert!(check(&docker, 1, ProgressMode::Plain).is_ok());
        let error = check(&docker, 2, ProgressMode::Plain).expect_err("an index").to_string();
        assert!(error.contains("one platform, not of 2"), "{error}");
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
        let tar = FilesOutput::Tar { destination: Destination::Stdout, split: PlatformSplit::default() };
        let archives = |count| vec![Output::files(tar.clone()); count];
        assert!(check(&archives(1), 1, ProgressMode::Quiet).is_err());
        assert!(check(&archives(2), 1, ProgressMode::Plain).is_err());
        assert!(check(&[local("d")], 1, ProgressMode::Quiet).is_ok());
    }

    #[test]
    fn an_insecure_output_names_its_registries() {
        let specs = ["type=registry,registry.insecure=true".parse().expect("an output")];
        let outputs = [push(&["h:5000/a:1"])];
        assert_eq!(insecure_registries(&specs, &outputs), ["h:5000"]);
        assert_eq!(insecure_registries(&[], &outputs), [""; 0]);
    }
}
