//! Cache records in the store.
