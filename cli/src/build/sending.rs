//! How the image gets to registries while its steps still run.

use std::sync::Arc;

use exporter::{Assembled, ExportError, Packing, UploadOptions, Uploads, seal::OnSealed, upload::Parcel};
use oci::fetch::Fetcher;
use solver::Cancel;

use super::Surroundings;
use crate::{outputs::Output, request::BuildRequest};

/// What brings the image of a build to registries.
pub(super) struct Sending<'a> {
    pub(super) uploads: Uploads,
    fetcher: &'a Fetcher,
    /// Stops the steps: with the user's signal, or when a registry refuses what they make.
    pub(super) stop: Cancel,
}

impl<'a> Sending<'a> {
    /// Contacts nobody yet.
    pub(super) fn new(request: &BuildRequest, fetcher: &'a Fetcher, surroundings: &Surroundings) -> Self {
        let Surroundings { events, cancel, .. } = surroundings;
        let stop = cancel.child();
        let names = request.outputs.iter().flat_map(Output::pushed_names);
        let options = UploadOptions {
            registry: fetcher.registry().clone(),
            events: Arc::clone(events),
            cancel: Cancel::clone(cancel),
            refused: stop.clone(),
        };
        let uploads = Uploads::new(options, &names.cloned().collect::<Vec<_>>());
        Self { uploads, fetcher, stop }
    }

    /// Takes the layers that are packed like this to where images are pushed that are.
    pub(super) fn taker(&self, request: &BuildRequest, packing: &Packing) -> OnSealed {
        let layers = |packing: &Packing| (packing.encoder, packing.base);
        let takes = |output: &&Output| layers(&output.form.packing) == layers(packing);
        let names = request.outputs.iter().filter(takes).flat_map(Output::pushed_names);
        self.uploads.taker(&names.cloned().collect::<Vec<_>>(), self.fetcher)
    }

    /// The image on its way.
    pub(super) fn parcel(&self, assembled: &Assembled) -> Parcel {
        self.uploads.parcel(assembled, self.fetcher)
    }

    /// Why the steps were stopped, if a registry was the reason.
    pub(super) fn take_refusal(&self) -> Option<ExportError> {
        self.uploads.take_refusal()
    }
}
