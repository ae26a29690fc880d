//! The values of flags that are little languages of their own, each read into its type and nothing else: no file, no
//! variable and no network is looked at here.

pub mod allow;
pub mod annotation;
pub mod cache;
pub mod call;
pub mod context;
mod csv;
pub mod duration;
pub mod host;
pub mod limit;
pub mod mount;
mod options;
pub mod output;
pub mod registry;
pub mod secret;
pub mod tag;
