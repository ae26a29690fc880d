//! Git repositories, downloads and archives from real servers on loopback: `git http-backend`, `git daemon`, `sshd`, and an
//! HTTP server that misbehaves on demand.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

mod archive;
mod git;
mod ground;
mod http;
mod partial;
mod server;
