//! Where what was made goes: outputs, and the files that say what came of a build. All of them are tried before the build
//! begins, and written after everything in the store is durable.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use executor::{LocalExecutor, SnapshotError};
use exporter::{
    AssembleOptions, Assembled, FileSystem, Form, ImageOutput, Push, Sealer, TimePolicy, Tools,
    cache::InlineKeys,
    outputs::file::{try_directory, try_file, write_file},
};
use oci::{Reference, threads::both, tree::NORMAL_TIME};
use solver::Image;

use super::{commit, sending::Sending};
use crate::{failure::Failure, inputs::BuiltFrom, outputs::Output, request::BuildRequest};

/// What the steps of a build have made.
pub(super) struct Made {
    /// One for each target and platform.
    pub(super) images: Vec<Image>,
    /// The same as every kind of output wants them, the first output's first.
    pub(super) assembled: Vec<(Form, Assembled)>,
}

/// Tries every path that the build is to write, before it begins: what is no place for files is refused with the request,
/// and what does not let this user write must not cost a build either.
///
/// # Errors
/// [`Failure::Write`] for the first that takes nothing.
pub fn try_destinations(request: &BuildRequest) -> Result<(), Failure> {
    let refused = |path: &Path| {
        let path = path.to_owned();
        move |source| Failure::Write { path, source }
    };
    let written = request.outputs.iter().filter_map(Output::file);
    let beside = [&request.iidfile, &request.metadata_file, &request.depfile]
        .into_iter()
        .flatten()
        .map(PathBuf::as_path);
    let mut files = written.chain(beside);
    files.try_for_each(|path| try_file(path).map_err(refused(path)))?;
    let mut directories = request.outputs.iter().filter_map(Output::directory);
    directories.try_for_each(|path| try_directory(path).map_err(refused(path)))
}

/// A build that fails must not leave the ID of another one behind.
///
/// # Errors
/// [`Failure::Write`]
pub fn remove_iidfile(request: &BuildRequest) -> Result<(), Failure> {
    let Some(path) = &request.iidfile else { return Ok(()) };
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::Write { path: path.clone(), source })
        }
        _ => Ok(()),
    }
}

/// The images as every kind of output wants them, the first output's first.
pub(super) fn assemble_all(
    request: &BuildRequest,
    epoch: Option<i64>,
    commit: Option<&BuiltFrom>,
    images: &[Image],
    sealers: &[Arc<Sealer>],
    inline: Option<&Arc<InlineKeys>>,
) -> Result<Vec<(Form, Assembled)>, Failure> {
    let created = epoch.or(commit.map(|commit| commit.time)).unwrap_or(NORMAL_TIME);
    let assemble = |form: Form| {
        let sealer = sealers.iter().find(|sealer| sealer.packs(&form.packing));
        let sealer = sealer.expect("there is one for each packing");
        let Form { packing, mut annotations } = form.clone();
        if let Some(commit) = commit.filter(|_| request.git_labels) {
            commit::annotate(&mut annotations, packing.media_types, commit);
        }
        let (media_types, inline) = (packing.media_types, inline.cloned());
        let options = AssembleOptions { created, media_types, annotations, inline };
        Ok((form, exporter::assemble(images, sealer, &options)?))
    };
    request.forms().into_iter().map(assemble).collect()
}

impl Made {
    /// Brings the result to all outputs, and lets names point at it last of all, when everything is where it belongs and
    /// durable here; returns where it went, in words.
    pub(super) fn deliver(
        &self,
        request: &BuildRequest,
        times: TimePolicy,
        executor: &LocalExecutor,
        sending: &Sending<'_>,
        tools: &Tools<'_>,
    ) -> Result<Vec<String>, Failure> {
        let store = tools.fetcher.store();
        let pushed: Vec<_> = request.outputs.iter().map(|output| self.push(output, sending)).collect();
        let pushes: Vec<_> = pushed.iter().flatten().collect();
        let bring = || -> Result<_, Failure> {
            let write = |output: &Output| self.write(request, output, times, executor, tools);
            let written = request.outputs.iter().map(write).collect::<Result<Vec<_>, _>>()?;
            Ok((written, sending.uploads.bring(&pushes)?))
        };
        let (synced, brought) = both(|| store.sync(), bring);
        let (written, brought) = brought?;
        synced?;
        sending.uploads.name(brought)?;
        let gone = |(output, push): (&Output, &Option<Push>)| {
            Some(self.gone(request, output, push.as_ref()?.told()))
        };
        let pushed = request.outputs.iter().zip(&pushed).map(gone);
        Ok(written.into_iter().zip(pushed).filter_map(|(written, pushed)| written.or(pushed)).collect())
    }

    /// What an output asks for, if that is on this machine.
    fn write(
        &self,
        request: &BuildRequest,
        output: &Output,
        times: TimePolicy,
        executor: &LocalExecutor,
        tools: &Tools<'_>,
    ) -> Result<Option<String>, Failure> {
        Ok(Some(match &output.to {
            exporter::Output::Image(ImageOutput::Registry { .. }) => return Ok(None),
            exporter::Output::Image(to) => {
                let exported = exporter::export_image(self.packed(output), to, tools)?;
                let words = match to {
                    ImageOutput::DockerArchive { .. } => "docker archive",
                    ImageOutput::Load { .. } => "loaded into",
                    _ => "OCI layout",
                };
                self.gone(request, output, format!("{words} {}", exported.destination))
            }
            exporter::Output::Files(to) => {
                let systems = self.images.iter().map(|image| file_system(image, executor));
                let systems = systems.collect::<Result<Vec<_>, _>>()?;
                let exported = exporter::export_files(&systems, to, times, tools)?;
                format!("files {}", exported.destination)
            }
        }))
    }

    /// What it asks for, if that is in a registry.
    fn push(&self, output: &Output, sending: &Sending<'_>) -> Option<Push> {
        let exporter::Output::Image(ImageOutput::Registry { names, tagging }) = &output.to else {
            return None;
        };
        let parcel = sending.parcel(self.packed(output));
        Some(Push { parcel, names: names.clone(), tagging: *tagging })
    }

    /// The image that is told of, by `-q` and in files: the first that is pushed, since names resolve to it, else the
    /// first output's.
    pub(super) fn told(&self, request: &BuildRequest) -> Option<&Assembled> {
        let pushed = request.outputs.iter().find(|output| !output.pushed_names().is_empty());
        let first = self.assembled.first().map(|(_, assembled)| assembled);
        pushed.map(|output| self.packed(output)).or(first)
    }

    /// Where an image went, in words, with its digest where that is not the one that is told.
    fn gone(&self, request: &BuildRequest, output: &Output, to: String) -> String {
        let digest = self.packed(output).root.digest;
        match self.told(request) {
            Some(told) if told.root.digest != digest => format!("{to} ({digest})"),
            _ => to,
        }
    }

    /// The result as an output wants it.
    fn packed(&self, output: &Output) -> &Assembled {
        let packed = self.assembled.iter().find(|(form, _)| *form == output.form);
        &packed.expect("assemble_all covers every output").1
    }
}

fn file_system(image: &Image, executor: &LocalExecutor) -> Result<FileSystem, Failure> {
    let Image { target, snapshot } = image;
    let snapshots = executor.snapshots();
    let shown = || {
        let root = snapshots.view(snapshot)?.into_root();
        let (owners, brought) = (snapshots.owners(snapshot)?, snapshots.brought(snapshot)?);
        Ok(FileSystem {
            platform: target.platform.clone(),
            snapshot: snapshot.clone(),
            root,
            owners,
            brought,
        })
    };
    shown().map_err(|error: SnapshotError| Failure::FileSystem(Box::new(error.into())))
}

/// `--iidfile` and `--metadata-file`.
pub(super) fn write_results(request: &BuildRequest, assembled: &Assembled) -> Result<(), Failure> {
    let write = |path: &Path, bytes: &[u8]| {
        write_file(path, bytes).map_err(|source| Failure::Write { path: path.to_owned(), source })
    };
    if let Some(path) = &request.iidfile {
        // As buildx has it: an index has no config, and stands for itself.
        let id = match &assembled.images[..] {
            [image] => image.config.digest,
            _ => assembled.root.digest,
        };
        write(path, id.to_string().as_bytes())?;
    }
    if let Some(path) = &request.metadata_file {
        let mut names: Vec<Reference> = Vec::new();
        for name in request.outputs.iter().flat_map(Output::names) {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        let text = serde_json::to_string_pretty(&exporter::metadata(assembled, &names));
        write(path, text.expect("plain data with string keys").as_bytes())?;
    }
    Ok(())
}
