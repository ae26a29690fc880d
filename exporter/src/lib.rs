//! From solved images to bytes, and from bytes to where they are wanted.
//!
//! [`layer`] writes the tar of a built layer, [`chunk`] and [`encode`] make a blob of it, [`seal`] does so in the
//! background and remembers the result, [`assemble`] writes configs, manifests and the index, and [`outputs`] brings
//! them to a registry, a layout, a tar or a directory. Every byte is a pure function of the images and the options:
//! no clock, no thread count, no order of completion reaches it.
#![forbid(unsafe_code)]

pub mod ahead;
pub mod annotations;
mod archive;
pub mod assemble;
pub mod cache;
pub mod chunk;
mod courtesy;
pub mod encode;
pub mod index;
pub mod layer;
mod monitor;
mod old;
pub mod outputs;
pub mod packing;
mod parallel;
mod pax;
mod pipeline;
mod places;
mod produce;
pub mod seal;
mod seed;
mod sha256;
mod source;
pub mod upload;

pub use ahead::SealAhead;
pub use annotations::{Annotations, PlatformAnnotations};
pub use archive::ArchiveError;
pub use assemble::{AssembleError, AssembleOptions, Assembled, AssembledImage, assemble};
pub use encode::{Encoder, GzipLevel, ZstdLevel};
pub use index::{IndexError, Joining, join};
pub use layer::{LayerError, TimePolicy, write_tar};
pub use outputs::{
    Destination, ExportError, Exported, FileSystem, FilesOutput, ImageOutput, LoadError, LoadHelper, Loader,
    Output, PlatformSplit, Tools, check, check_platforms, export_files, export_image, metadata,
};
pub use packing::{BaseLayers, Form, MediaTypes, Packing};
pub use pax::HeaderError;
pub use seal::{Courtesy, SealError, SealOptions, SealedLayer, Sealer};
pub use source::DirectorySource;
pub use upload::{Push, Tagging, UploadOptions, Uploads};
