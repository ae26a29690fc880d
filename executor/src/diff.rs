//! From an overlay upper directory to a Tree (owner: FILES).
