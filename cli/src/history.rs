//! `layerwright history`: the builds of a store, what each did, how long it took and what the cache saved.
//!
//! Every build leaves an [`Entry`] when it ends, well or not, and the log that its plain progress would have shown. Writing
//! it is the last thing a build does and can fail none.

mod entry;
mod log;
mod recorder;

use std::path::Path;

use oci::store::Store;

use self::log::KeptLog;
pub use self::{
    entry::{Asked, BuildId, BuildIdError, Ending, Entry, HistoryError, Outcome, Step, find, list, read},
    recorder::{Record, Recorder},
};
use crate::{
    inputs,
    outputs::Output,
    redact::redact,
    request::{BuildRequest, DockerfilePlace},
    spec::context::{ContextSpec, FilesSource},
};

/// A recorder for a build of this name.
pub fn recorder(id: BuildId, request: &BuildRequest) -> Recorder {
    Recorder::new(id, asked(request), KeptLog::new(&request.secrets))
}

/// Keeps what is to be remembered of a build.
///
/// # Errors
/// The store does not take it.
pub fn write(store: &Store, record: &Record) -> Result<(), HistoryError> {
    entry::write(store, &record.entry, &record.log)
}

fn asked(request: &BuildRequest) -> Asked {
    let context = match &request.places.context {
        ContextSpec::Stdin => "-".to_owned(),
        ContextSpec::Files(FilesSource::Directory(path)) => absolute(path),
        ContextSpec::Files(FilesSource::Git(address)) => redact(&inputs::git_name(address)).into_owned(),
        ContextSpec::Files(FilesSource::Url(url)) => redact(url).into_owned(),
    };
    let dockerfile = match &request.places.dockerfile {
        DockerfilePlace::Default => "Dockerfile".to_owned(),
        DockerfilePlace::Path(path) => path.display().to_string(),
        DockerfilePlace::Stdin => "-".to_owned(),
        DockerfilePlace::Url(url) => redact(url).into_owned(),
    };
    let mut tags: Vec<String> = Vec::new();
    for name in request.outputs.iter().flat_map(Output::names).map(ToString::to_string) {
        if !tags.contains(&name) {
            tags.push(name);
        }
    }
    let platforms = request.platform.iter().map(ToString::to_string).collect();
    Asked { dockerfile, context, target: request.target.clone(), platforms, tags }
}

/// Paths are told from wherever the history is read.
fn absolute(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string()
}
