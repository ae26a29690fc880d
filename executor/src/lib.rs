//! The part of the builder that touches this machine: sources, snapshots on disk, copying, the sandbox, the local cache.
//!
//! [`LocalExecutor`](executor) joins the parts and implements the traits of `solver`; nothing here knows what a
//! Dockerfile is, and nothing here makes an image. Two rules hold in every module: a path that came from outside (a
//! tar, an image, a context, a Dockerfile) is resolved by the kernel inside a directory we hold open, never by a
//! string; and what is on disk below the store's `snapshots/` is complete, because it arrives there by one rename.
//!
//! `unsafe` is allowed in one module, `sandbox::sys`.
#![deny(unsafe_code)]

pub mod agents;
pub mod archive;
mod background;
pub mod beneath;
mod bring;
pub mod cache;
pub mod cache_mounts;
pub mod catalogue;
mod cdi;
pub mod compare;
pub mod container;
pub mod contents;
pub mod context;
mod copies;
pub mod copy;
pub mod diff;
mod error;
pub mod executor;
pub mod form;
pub mod fsck;
mod fuse;
pub mod gc;
pub mod git;
pub mod image;
pub mod imprint;
pub mod inventory;
pub mod jobserver;
pub mod listing;
mod lock;
pub mod mount;
mod once;
pub mod pipe;
pub mod remote;
pub mod retry;
pub mod rootfs;
pub mod sandbox;
pub mod secrets;
pub mod snapshot;
pub mod tarball;
#[cfg(test)]
mod testing;
pub mod unpack;
pub mod users;
pub mod view;
pub mod whiteout;

pub use agents::{AgentSource, Agents};
pub use cache::{LocalCache, Words};
pub use container::{Container, FailedStep, FailedSteps};
pub use context::ContextOrigin;
pub use executor::{ExecutorOptions, LocalExecutor, Reads, looking_steps, virtual_steps};
pub use image::ImageResolver;
pub use retry::Retry;
pub use secrets::{SecretSource, Secrets};
pub use snapshot::{Events, SnapshotError, Snapshots, Writable};
pub use view::View;
