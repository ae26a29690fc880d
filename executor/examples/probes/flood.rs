//! How much a step can take of what others need as well: each is filled until the kernel says that it is full, or until far
//! more was had than there should be.

use std::{
    fs::{self, File},
    io::Write,
    process::{Child, Command, Stdio},
};

use crate::{Line, children::own_program};

/// All but processes.
pub fn all() -> Vec<Line> {
    vec![
        ("flood.descriptors".to_owned(), descriptors().to_string()),
        ("flood./dev".to_owned(), mebibytes("/dev/flood", 16)),
        ("flood./dev/shm".to_owned(), mebibytes("/dev/shm/flood", 128)),
        ("flood./sys".to_owned(), inodes("/sys")),
        ("flood./proc/acpi".to_owned(), inodes("/proc/acpi")),
    ]
}

fn descriptors() -> usize {
    let mut opened = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        opened.push(file);
        if opened.len() > 2_000_000 {
            break;
        }
    }
    opened.len() + 3
}

fn mebibytes(path: &str, most: usize) -> String {
    let piece = vec![0x55; 1 << 20];
    let Ok(mut file) = File::create(path) else { return "refused".to_owned() };
    let written = (0..most).take_while(|_| file.write_all(&piece).is_ok()).count();
    let size = file.metadata().map_or(0, |metadata| metadata.len());
    drop(file);
    let _ = fs::remove_file(path);
    if written == most { "NO END".to_owned() } else { format!("{} KiB", size >> 10) }
}

fn inodes(directory: &str) -> String {
    match fs::create_dir(format!("{directory}/flood")) {
        Ok(()) => "DONE".to_owned(),
        Err(_) => "refused".to_owned(),
    }
}

/// Runs into the limit that the test has set.
pub fn processes() -> Vec<Line> {
    const FAR_TOO_MANY: usize = 600;
    let mut children: Vec<Child> = Vec::new();
    let start = || Command::new(own_program()).args(["child", "wait"]).stdin(Stdio::null()).spawn().ok();
    while children.len() < FAR_TOO_MANY {
        let Some(child) = start() else { break };
        children.push(child);
    }
    let count = children.len();
    for mut child in children {
        let _ = child.kill();
        let _ = child.wait();
    }
    let told = if count == FAR_TOO_MANY { "NO END" } else { "bounded by --ulimit nproc" };
    vec![("flood.processes".to_owned(), told.to_owned())]
}
