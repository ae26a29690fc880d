//! Finds QEMU's emulators of programs that need no other file: only those work in a root that is not ours.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use super::machine::Machine;

/// Where distributions install them, whatever PATH says.
const DIRECTORIES: [&str; 2] = ["/usr/local/bin", "/usr/bin"];

/// What is read of a file: its headers stand in the beginning.
const HEAD: u64 = 4096;

/// The emulator of a machine's programs.
pub fn find(machine: &Machine) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let own = std::env::split_paths(&path).filter(|directory| directory.is_absolute());
    find_in(&own.chain(DIRECTORIES.map(PathBuf::from)).collect::<Vec<_>>(), machine)
}

fn find_in(directories: &[PathBuf], machine: &Machine) -> Option<PathBuf> {
    let names = [format!("qemu-{}-static", machine.qemu), format!("qemu-{}", machine.qemu)];
    let places = names.iter().flat_map(|name| directories.iter().map(move |directory| directory.join(name)));
    places.filter(|place| place.to_str().is_some()).find(|place| is_static(place))
}

/// Whether a file is a 64-bit program of this machine that asks for no dynamic loader.
fn is_static(path: &Path) -> bool {
    const LOADER: u32 = 3; // PT_INTERP
    let mut head = Vec::new();
    let read = File::open(path).and_then(|file| file.take(HEAD).read_to_end(&mut head));
    let is_program = read.is_ok() && head.starts_with(b"\x7fELF\x02\x01\x01");
    let segments = || -> Option<Vec<u32>> {
        let at = |place: usize| Some(u16::from_le_bytes(head.get(place..place + 2)?.try_into().ok()?).into());
        let first = u64::from_le_bytes(head.get(32..40)?.try_into().ok()?);
        let (first, size, count): (usize, usize, usize) = (first.try_into().ok()?, at(54)?, at(56)?);
        let kind = |number: usize| {
            let place = first.checked_add(size * number)?;
            Some(u32::from_le_bytes(head.get(place..place.checked_add(4)?)?.try_into().ok()?))
        };
        (0..count).map(kind).collect()
    };
    is_program && segments().is_some_and(|kinds| !kinds.contains(&LOADER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_needs_a_loader_is_none() {
        let directory = tempfile::tempdir().expect("a directory");
        let machine = Machine::of("mips64").expect("known");
        let ours = || find_in(&[directory.path().to_owned()], machine);
        std::fs::write(directory.path().join("qemu-mips64-static"), "#!/bin/sh\n").expect("written");
        assert_eq!(ours(), None, "no ELF file");
        std::fs::copy("/bin/sh", directory.path().join("qemu-mips64-static")).expect("copied");
        assert_eq!(ours(), None, "dynamically linked");
        let static_program = Machine::of(&oci::Platform::host().architecture).expect("known").program();
        std::fs::write(directory.path().join("qemu-mips64"), static_program).expect("written");
        assert_eq!(ours(), Some(directory.path().join("qemu-mips64")));
    }
}
