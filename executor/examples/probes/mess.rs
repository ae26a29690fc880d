//! What no shell makes: directories below each other whose path is longer than any path may be, and a socket.

use std::{env, fs, io, os::unix::net::UnixListener};

/// Directories called `deep`, each in the one before.
pub fn nest(directory: &str, levels: &str) -> io::Result<()> {
    env::set_current_dir(directory)?;
    for _ in 0..levels.parse::<u32>().map_err(io::Error::other)? {
        fs::create_dir("deep")?;
        env::set_current_dir("deep")?;
    }
    fs::write("bottom", "")
}

/// A socket that nobody listens at any more.
pub fn socket(path: &str) -> io::Result<()> {
    UnixListener::bind(path).map(drop)
}
