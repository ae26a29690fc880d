//! COPY, ADD and WORKDIR into a mounted root (owner: FILES).
