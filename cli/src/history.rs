//! `layerwright history`: the builds of a store, what each did, how long it took and what the cache saved.
//!
//! Every build leaves an [`Entry`] when it ends, well or not, and the log that its plain progress would have shown. Writing it
//! is the last thing a build does and can fail none.

mod entry;

pub use self::entry::{
    Asked, BuildId, BuildIdError, Ending, Entry, HistoryError, Outcome, Step, find, list, read,
};
