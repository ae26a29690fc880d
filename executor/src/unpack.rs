//! Unpacks layers.
