//! The machines whose programs an image can hold: how their ELF files begin, what emulates them, and a smallest program
//! for each, which does nothing but exit with 0. Pure; facts are from elf(5), the ABIs' supplements and
//! `scripts/qemu-binfmt-conf.sh` of QEMU.

/// A machine.
#[derive(Debug, PartialEq, Eq)]
pub struct Machine {
    /// Its Go name, as platforms have it.
    pub architecture: &'static str,
    /// What QEMU calls it.
    pub qemu: &'static str,
    bits: Bits,
    endian: Endian,
    /// `e_machine`
    number: u16,
    /// `e_flags`
    flags: u32,
    /// `exit(0)` in its instructions.
    exit: &'static [u8],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bits {
    B32,
    B64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Endian {
    Little,
    Big,
}

use Bits::{B32, B64};
use Endian::{Big, Little};

/// Those that Linux images are published for.
pub const MACHINES: [Machine; 10] = [
    // xor %edi,%edi; mov $60,%eax; syscall
    machine("amd64", "x86_64", B64, Little, 62, 0, &[0x31, 0xff, 0xb8, 60, 0, 0, 0, 0x0f, 0x05]),
    // xor %ebx,%ebx; mov $1,%eax; int $0x80
    machine("386", "i386", B32, Little, 3, 0, &[0x31, 0xdb, 0xb8, 1, 0, 0, 0, 0xcd, 0x80]),
    // mov x0, #0; mov x8, #93; svc #0
    machine(
        "arm64",
        "aarch64",
        B64,
        Little,
        183,
        0,
        &[0, 0, 0x80, 0xd2, 0xa8, 0x0b, 0x80, 0xd2, 1, 0, 0, 0xd4],
    ),
    // mov r0, #0; mov r7, #1; svc 0 (EABI 5)
    machine(
        "arm",
        "arm",
        B32,
        Little,
        40,
        0x0500_0000,
        &[0, 0, 0xa0, 0xe3, 1, 0x70, 0xa0, 0xe3, 0, 0, 0, 0xef],
    ),
    // li a0, 0; li a7, 93; ecall (double-float ABI)
    machine("riscv64", "riscv64", B64, Little, 243, 4, &[0x13, 5, 0, 0, 0x93, 8, 0xd0, 5, 0x73, 0, 0, 0]),
    // li r3, 0; li r0, 1; sc (ELF v2)
    machine("ppc64le", "ppc64le", B64, Little, 21, 2, &[0, 0, 0x60, 0x38, 1, 0, 0, 0x38, 2, 0, 0, 0x44]),
    // lghi %r2, 0; svc 1
    machine("s390x", "s390x", B64, Big, 22, 0, &[0xa7, 0x29, 0, 0, 0x0a, 1]),
    // li $a0, 0; li $v0, 5058; syscall (n64, MIPS64 release 2)
    machine(
        "mips64le",
        "mips64el",
        B64,
        Little,
        8,
        0x8000_0007,
        &[0, 0, 4, 0x24, 0xc2, 0x13, 2, 0x24, 0x0c, 0, 0, 0],
    ),
    machine(
        "mips64",
        "mips64",
        B64,
        Big,
        8,
        0x8000_0007,
        &[0x24, 4, 0, 0, 0x24, 2, 0x13, 0xc2, 0, 0, 0, 0x0c],
    ),
    // addi.w $a0, $zero, 0; addi.w $a7, $zero, 93; syscall 0 (double-float ABI, version 1)
    machine(
        "loong64",
        "loongarch64",
        B64,
        Little,
        258,
        0x43,
        &[4, 0, 0x80, 2, 0x0b, 0x74, 0x81, 2, 0, 0, 0x2b, 0],
    ),
];

const fn machine(
    architecture: &'static str,
    qemu: &'static str,
    bits: Bits,
    endian: Endian,
    number: u16,
    flags: u32,
    exit: &'static [u8],
) -> Machine {
    Machine { architecture, qemu, bits, endian, number, flags, exit }
}

/// Where the program is loaded: on a page border for every size of pages.
const ADDRESS: u64 = 0x40_0000;

/// `ET_EXEC`
const EXECUTABLE: u16 = 2;
/// `EV_CURRENT`
const VERSION: u8 = 1;
/// `PT_LOAD`
const LOAD: u32 = 1;
/// `PF_R | PF_X`
const READ_AND_EXECUTE: u32 = 5;

impl Machine {
    /// The one with this Go name.
    pub fn of(architecture: &str) -> Option<&'static Machine> {
        MACHINES.iter().find(|machine| machine.architecture == architecture)
    }

    /// The first 20 bytes of its programs: identification, type and machine.
    fn head(&self) -> Vec<u8> {
        let bits = if self.bits == B32 { 1 } else { 2 };
        let endian = if self.endian == Little { 1 } else { 2 };
        let mut head = vec![0x7f, b'E', b'L', b'F', bits, endian, VERSION];
        head.resize(16, 0);
        self.put(&mut head, EXECUTABLE.into(), 2);
        self.put(&mut head, self.number.into(), 2);
        head
    }

    /// A whole ELF file that exits with 0.
    pub fn program(&self) -> Vec<u8> {
        let (word, head_size, segment_size) = if self.bits == B32 { (4, 52, 32) } else { (8, 64, 56) };
        let code = head_size + segment_size;
        let size = code + self.exit.len() as u64;
        let mut file = self.head();
        self.put(&mut file, VERSION.into(), 4);
        // Entry, program headers, no section headers.
        [ADDRESS + code, head_size, 0].into_iter().for_each(|value| self.put(&mut file, value, word));
        self.put(&mut file, self.flags.into(), 4);
        [head_size, segment_size, 1, 0, 0, 0].into_iter().for_each(|value| self.put(&mut file, value, 2));
        self.put(&mut file, LOAD.into(), 4);
        let flags = READ_AND_EXECUTE.into();
        if self.bits == B64 {
            self.put(&mut file, flags, 4);
        }
        // Offset, virtual and physical address, sizes in the file and in memory.
        [0, ADDRESS, ADDRESS, size, size].into_iter().for_each(|value| self.put(&mut file, value, word));
        if self.bits == B32 {
            self.put(&mut file, flags, 4);
        }
        self.put(&mut file, 0x1_0000, word);
        file.extend(self.exit);
        file
    }

    fn put(&self, file: &mut Vec<u8>, value: u64, bytes: usize) {
        match self.endian {
            Little => file.extend(&value.to_le_bytes()[..bytes]),
            Big => file.extend(&value.to_be_bytes()[8 - bytes..]),
        }
    }

    /// The line for binfmt_misc's `register`: programs of this machine, whatever their OS ABI and whether they are
    /// position-independent, are run by `interpreter`. It is opened now (F), gets the program's own first argument (P)
    /// and descriptor (O), and the program's set-user-ID bit counts (C).
    pub fn rule(&self, interpreter: &str) -> String {
        let mut mask = [0xff; 20];
        mask[7] = 0;
        // ET_EXEC is 2, ET_DYN 3.
        mask[if self.endian == Little { 16 } else { 17 }] = 0xfe;
        let escaped = |bytes: &[u8]| bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect::<String>();
        let (name, magic) = (self.architecture, escaped(&self.head()));
        format!(":layerwright-{name}:M:0:{magic}:{}:{interpreter}:OCPF", escaped(&mask))
    }

    /// Whether this is what binfmt_misc shows of a rule for this machine; see [`Machine::rule`].
    pub fn is_meant_by(&self, shown: &str) -> bool {
        let hex: String = self.head().iter().map(|byte| format!("{byte:02x}")).collect();
        // Some rules look at less of the head, or at more of the OS ABI.
        let magic = shown.lines().find_map(|line| line.strip_prefix("magic "));
        magic.is_some_and(|magic| {
            magic.len() >= hex.len() && magic[..14] == hex[..14] && magic[36..40] == hex[36..40]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_what_qemu_registers() {
        let rule = Machine::of("arm64").expect("known").rule("/usr/bin/qemu-aarch64-static");
        let magic = r"\x7f\x45\x4c\x46\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00";
        let mask = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff";
        let want = format!(":layerwright-arm64:M:0:{magic}:{mask}:/usr/bin/qemu-aarch64-static:OCPF");
        assert_eq!(rule, want);
        let rule = Machine::of("s390x").expect("known").rule("/q");
        assert!(rule.contains(r"\x00\x02\x00\x16:"), "{rule}");
        assert!(rule.contains(r"\xff\xfe\xff\xff:/q"), "{rule}");
    }

    #[test]
    fn what_the_kernel_shows_is_recognised() {
        let shown = "enabled\ninterpreter /usr/libexec/qemu-binfmt/aarch64-binfmt-P\nflags: POF\noffset 0\nmagic \
                     7f454c460201010000000000000000000200b700\nmask ffffffffffffff00fffffffffffffffffeffffff\n";
        let meant = |machine: &&Machine| machine.is_meant_by(shown);
        assert_eq!(MACHINES.iter().filter(meant).map(|m| m.qemu).collect::<Vec<_>>(), ["aarch64"]);
        assert!(!MACHINES.iter().any(|machine| machine.is_meant_by("enabled\nmagic 7f\n")));
    }

    #[test]
    fn the_program_of_this_machine_runs() {
        use std::os::unix::fs::PermissionsExt;
        let machine = Machine::of(&oci::Platform::host().architecture).expect("we run on it");
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("program");
        std::fs::write(&path, machine.program()).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("set");
        assert!(std::process::Command::new(&path).status().expect("run").success());
    }
}
