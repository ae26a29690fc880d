//! The remote cache: what one machine built, no machine builds again.
//!
//! A cache is a place that holds blobs and small *artifacts* under names ([`storage`]). There is one artifact for each key
//! of a step that ran, under a name derived from the key, so writers never overwrite each other; at its end a build
//! writes one *bundle*, which is all records it used, so the next one needs a single look. A record names the layers
//! of its file system, where their blobs are, and what its keys were made of. docs/remote-cache.md has the format byte by
//! byte.
//!
//! A cache never fails a build, never holds one up, and is never believed: what comes from it is verified when it is read.

pub mod announcement;
pub mod artifact;
pub mod bulletin;
pub mod bundle;
pub mod care;
pub mod directory;
#[cfg(test)]
mod documented;
pub mod fuzz;
pub mod gone;
pub mod inline;
pub mod names;
pub mod reader;
pub mod record;
pub mod registry;
#[cfg(test)]
mod samples;
pub mod seen;
pub mod sign;
pub mod storage;
pub mod writer;

pub use announcement::{Announcement, Builder, Said, State};
pub use bulletin::{CacheBulletin, Joining};
pub use bundle::{Bundle, SignedRecord};
pub use directory::DirectoryStorage;
pub use gone::lose_what_is_gone;
pub use inline::{Inline, InlineKeys, InlineStep};
pub use reader::{Reading, RemoteCache, Silence};
pub use record::{Described, FormatError, RemoteRecord};
pub use registry::RegistryStorage;
pub use seen::{Seen, SeenBundle, SeenRecord};
pub use sign::{KeyError, SignKey, TrustKeys};
pub use storage::{Artifact, ArtifactKind, Image, Named, Storage, StorageError, StorageErrorKind};
pub use writer::{BuildEnd, Mode, OnError, OwnChain, WriteError, Writer, WriterOptions};
