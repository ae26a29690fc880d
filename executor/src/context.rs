//! Directory contexts: walk, ignore rules, identity (owner: FILES).
