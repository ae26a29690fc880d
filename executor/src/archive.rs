//! ADD of a local tar archive (owner: FILES).
