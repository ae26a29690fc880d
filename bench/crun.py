"""What crun takes for a step that does nothing: `crun.py ROOT SCRATCH COUNT` runs /bin/true of the directory ROOT as often as
that and prints the microseconds of each, from the mounting of its overlay to the unmounting, as executor/examples/step.rs.

Runs in a mount namespace of its own, as root of it. Control groups are hidden there, or crun refuses to start on a host with
both versions of them; and the step has the caller's network, as ours has by default.
"""

import ctypes
import json
import os
import pathlib
import subprocess
import sys
import time

LIBC = ctypes.CDLL(None, use_errno=True)
OVERLAY = "lowerdir={},upperdir=upper,workdir=work{}"
FRESH = {"/proc": "proc", "/dev": "tmpfs", "/dev/pts": "devpts", "/dev/shm": "tmpfs", "/dev/mqueue": "mqueue"}
MASKED = ("/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/scsi")
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


def check(result):
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def mount(source, target, kind, data=""):
    check(LIBC.mount(source.encode(), target.encode(), kind.encode(), 0, data.encode()))


def umount(target):
    check(LIBC.umount2(target.encode(), 0))


def config():
    mounts = [{"destination": place, "type": kind, "source": kind} for place, kind in FRESH.items()]
    mounts.append({"destination": "/sys", "type": "none", "source": "/sys", "options": ["rbind", "ro"]})
    return {"ociVersion": "1.0.2", "hostname": "bench", "mounts": mounts, "root": {"path": "rootfs"},
            "process": {"args": ["/bin/true"], "user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/bin"]},
            "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")],
                      "maskedPaths": MASKED, "readonlyPaths": READ_ONLY}}


def main():
    root, scratch, count = sys.argv[1:]
    mount("none", "/sys/fs/cgroup", "tmpfs")
    # Only so may a user's namespace write an overlay's attributes.
    attributes = "" if open("/proc/self/uid_map").read().split() == ["0", "0", "4294967295"] else ",userxattr"
    for number in range(int(count)):
        place = pathlib.Path(scratch, str(number))
        for name in ("upper", "work", "rootfs"):
            (place / name).mkdir(parents=True)
        (place / "config.json").write_text(json.dumps(config()))
        os.chdir(place)
        begin = time.perf_counter()
        mount("overlay", "rootfs", "overlay", OVERLAY.format(root, attributes))
        # Waits without a pipe and without a shell.
        subprocess.run(["crun", "--cgroup-manager=disabled", "--root", f"{scratch}/state", "run", f"step-{number}"],
                       stdin=subprocess.DEVNULL, close_fds=False, check=True)
        umount("rootfs")
        print(round(1e6 * (time.perf_counter() - begin)))


main()
