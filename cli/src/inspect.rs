//! `layerwright inspect` and `layerwright index inspect`: what a name stands for, down to the instruction that made each
//! layer. Nothing is written and no store is needed.

mod json;
pub mod look;
mod text;

pub use self::text::one_line;

use std::str::FromStr;

use oci::image::ImageError;

use self::look::{Depth, look};
use crate::{
    args::InspectArgs, call::pretty, client, failure::Failure, place::ImagePlace, request::RequestError,
    spec::call::Format,
};

/// `layerwright inspect`: what goes to standard output.
///
/// # Errors
/// The image cannot be had, or is none.
pub fn run(args: &InspectArgs) -> Result<String, Failure> {
    show(args, Depth::Images)
}

/// `layerwright index inspect`: the index, or the manifest, and none of what it names.
///
/// # Errors
/// As those of [`run`].
pub fn index(args: &InspectArgs) -> Result<String, Failure> {
    show(args, Depth::Root)
}

fn show(args: &InspectArgs, depth: Depth) -> Result<String, Failure> {
    let place = ImagePlace::from_str(&args.name).map_err(RequestError::from)?;
    let registry = client::asking(&args.registries)?;
    let failed = |source: ImageError| Failure::Inspect { name: place.to_string(), source: Box::new(source) };
    let documents = place.documents(&registry).map_err(failed)?;
    if args.raw {
        let bytes = look::raw(&documents, args.platform.as_ref()).map_err(failed)?;
        return Ok(String::from_utf8_lossy(&bytes).into_owned());
    }
    let found = look(&documents, args.platform.as_ref(), depth).map_err(failed)?;
    let name = place.to_string();
    Ok(match if args.json { Format::Json } else { args.format } {
        Format::Json => pretty(&json::shown(&name, &found)),
        Format::Text => text::shown(&name, &found),
    })
}
