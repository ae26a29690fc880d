//! The nouns of the OCI world that every other crate shares, and the leaves that move their bytes.
//!
//! Nouns ([`digest`], [`descriptor`], [`platform`], [`reference`], [`manifest`], [`config`], [`tree`], [`layer`])
//! are plain values: they can be cloned, compared and printed, and none of them does I/O. The leaves are
//! [`store`] (content-addressed files on disk), [`registry`] (the distribution-spec client), [`layout`] (reading an OCI layout),
//! [`documents`] (what names an image, wherever that lies), [`elsewhere`] (built layers that a remote cache has), [`fetch`]
//! (a blob from wherever it lies, into the store), [`packed`] (small documents of a remote cache) and [`mod@unpacked`] (the tar
//! in a layer's blob).
//!
//! Nothing here knows what a Dockerfile is.
#![forbid(unsafe_code)]

pub mod canonical;
pub mod config;
pub mod descriptor;
pub mod digest;
pub mod document;
pub mod documents;
pub mod elsewhere;
pub mod fetch;
pub mod image;
pub mod layer;
pub mod layout;
pub mod manifest;
pub mod packed;
pub mod platform;
pub mod reference;
pub mod registry;
pub mod store;
pub mod threads;
pub mod tree;
pub mod unpacked;
pub mod validate;
pub mod verify;

pub use config::{History, ImageConfig};
pub use descriptor::{Descriptor, MediaType};
pub use digest::{ContentDigest, DiffId, Sha256Digest, TreeDigest};
pub use elsewhere::{RemoteLayer, RemoteLayers};
pub use fetch::Fetcher;
pub use layer::{BaseLayer, BlobOrigin, FileSource, Layer, LayerContents, Snapshot};
pub use platform::Platform;
pub use reference::Reference;
pub use registry::{Registry, RegistryOptions};
pub use store::Store;
pub use tree::{Entry, EntryKind, EntryTime, Metadata, Tree};
