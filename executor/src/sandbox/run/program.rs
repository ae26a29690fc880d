//! What an init is started from.

use std::{fs::File, io, sync::OnceLock, thread, time::Duration};

use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create},
    io::Errno,
};

use crate::sandbox::SandboxError;

/// How often, and how far apart, it is tried to seal the copy of our own program.
const SEAL_ATTEMPTS: u32 = 200;
const SEAL_PAUSE: Duration = Duration::from_millis(10);

/// Our own program, copied into memory that nobody can write. An init runs inside of a container for a moment, and
/// what runs there can be made to hand out its own file, open, to the image (CVE-2019-5736): it gets the copy.
pub fn sealed_program() -> Result<&'static File, SandboxError> {
    static PROGRAM: OnceLock<File> = OnceLock::new();
    if let Some(program) = PROGRAM.get() {
        return Ok(program);
    }
    let copied = copy_program().map_err(|error| SandboxError::io("copy own program", &error))?;
    Ok(PROGRAM.get_or_init(|| copied))
}

fn copy_program() -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Since Linux 6.3 a machine can want to hear that it is meant to be executed; older ones do not know the word.
    let memory = memfd_create("layerwright", flags | MemfdFlags::EXEC).or_else(|errno| match errno {
        Errno::INVAL => memfd_create("layerwright", flags),
        errno => Err(errno),
    })?;
    let mut program = File::from(memory);
    io::copy(&mut File::open("/proc/self/exe")?, &mut program)?;
    seal(&program)?;
    Ok(program)
}

/// Makes memory unchangeable. While the kernel itself still holds one of its pages for a moment (another processor's
/// list of new pages, on a busy machine), it says EBUSY.
fn seal(memory: &File) -> Result<(), Errno> {
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    for _ in 0..SEAL_ATTEMPTS {
        match fcntl_add_seals(memory, seals) {
            Err(Errno::BUSY) => thread::sleep(SEAL_PAUSE),
            sealed => return sealed,
        }
    }
    fcntl_add_seals(memory, seals)
}
