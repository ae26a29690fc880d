//! What the machine can do at best with a tree of files, for `bench/run` to compare with: `limits lstat DIR` asks for the
//! metadata of every file, `limits blake3 DIR` reads and hashes every file as well, both with as many threads as there
//! are processors, and neither remembers anything.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use rayon::prelude::*;

fn main() -> ExitCode {
    let mut arguments = env::args_os().skip(1);
    let mode = arguments.next().unwrap_or_default();
    let visit: fn(&Path) -> io::Result<()> = match mode.to_str() {
        Some("lstat") => |_| Ok(()),
        Some("blake3") => hash,
        _ => return ExitCode::from(2),
    };
    match arguments.next().map(|directory| walk(&PathBuf::from(directory), visit)) {
        Some(Ok(())) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn walk(directory: &Path, visit: fn(&Path) -> io::Result<()>) -> io::Result<()> {
    let entries = fs::read_dir(directory)?.collect::<io::Result<Vec<_>>>()?;
    entries.par_iter().with_min_len(16).try_for_each(|entry| {
        let path = entry.path();
        match fs::symlink_metadata(&path)?.is_dir() {
            true => walk(&path, visit),
            false => visit(&path),
        }
    })
}

fn hash(path: &Path) -> io::Result<()> {
    blake3::Hasher::new().update_reader(fs::File::open(path)?).map(drop)
}
