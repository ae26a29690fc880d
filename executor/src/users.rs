//! User and group names looked up inside an image (owner: FILES).
