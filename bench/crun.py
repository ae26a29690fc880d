"""What crun takes for a step that does nothing: `crun.py ROOT SCRATCH KIND COUNT` runs /bin/true of the directory ROOT as
often as that and prints the microseconds of each, from the mounting of its overlay to the unmounting, as executor/examples/step.rs.

KIND `confined` is what ours has: the profile of system calls that container engines give crun, for a container with our
capabilities; these, limits of processes, namespaces, masks and lent files. Of the profile crun makes a filter with libseccomp each
time; with `ready` it is given the filter that it made of it once. `bare` has none of all that.

Runs in a mount namespace of its own, as root of it. Control groups are hidden there, or crun refuses to start on a host with
both versions of them; and the step has the caller's network, as ours has by default.
"""

import base64
import ctypes
import json
import os
import pathlib
import subprocess
import sys
import time

LIBC = ctypes.CDLL(None, use_errno=True)
FRESH = {"/proc": "proc", "/dev": "tmpfs", "/dev/pts": "devpts", "/dev/shm": "tmpfs", "/dev/mqueue": "mqueue"}
MASKED = ("/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/scsi")
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

# What engines have of profiles, and what executor/src/sandbox has.
PROFILE = "/usr/share/containers/seccomp.json"
MASKED_ALIKE = (*MASKED, "/proc/asound", "/proc/interrupts", "/proc/kallsyms", "/proc/key-users", "/proc/sched_debug",
                "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware")
CAPABILITIES = [f"CAP_{name}" for name in (
    "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "NET_BIND_SERVICE", "SYS_CHROOT",
    "MKNOD", "SETFCAP")]
LIMITS = {"RLIMIT_CORE": (0, 0), "RLIMIT_NOFILE": (1024, 1024), "RLIMIT_NPROC": (16384, 16384)}
LENT = ("resolv.conf", "hosts")
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def check(result):
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def mount(source, target, kind, data=""):
    check(LIBC.mount(source.encode(), target.encode(), kind.encode(), 0, data.encode()))


def mount_overlay(root):
    # Only so may a user's namespace write an overlay's attributes.
    attributes = "" if is_hosts_root() else ",userxattr"
    mount("overlay", "rootfs", "overlay", f"lowerdir={root},upperdir=upper,workdir=work{attributes}")


def umount(target):
    check(LIBC.umount2(target.encode(), 0))


def is_hosts_root():
    return open("/proc/self/uid_map").read().split() == ["0", "0", "4294967295"]


def bare():
    mounts = [{"destination": place, "type": kind, "source": kind} for place, kind in FRESH.items()]
    mounts.append({"destination": "/sys", "type": "none", "source": "/sys", "options": ["rbind", "ro"]})
    return {"ociVersion": "1.0.2", "hostname": "bench", "mounts": mounts, "root": {"path": "rootfs"},
            "process": {"args": ["/bin/true"], "user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/bin"]},
            "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")],
                      "maskedPaths": MASKED, "readonlyPaths": READ_ONLY}}


def confined():
    config = bare()
    nothing = ["nosuid", "noexec", "nodev"]
    for place in config["mounts"]:
        has_devices = place["destination"] in ("/dev", "/dev/pts")
        place["options"] = nothing[:2] if has_devices else nothing
    # A new one belongs to whoever has the network; others get an empty directory of us.
    kind = "sysfs" if is_hosts_root() else "tmpfs"
    config["mounts"][-1] = {"destination": "/sys", "type": kind, "source": kind, "options": [*nothing, "ro"]}
    config["mounts"] += [{"destination": f"/etc/{name}", "type": "bind", "source": f"../{name}", "options": ["bind", "ro", *nothing]}
                         for name in LENT]
    sets = {name: CAPABILITIES for name in ("bounding", "effective", "permitted")}
    limits = [{"type": name, "soft": soft, "hard": hard} for name, (soft, hard) in LIMITS.items()]
    config["process"] |= {"capabilities": sets, "rlimits": limits, "oomScoreAdj": 500}
    config["linux"]["namespaces"].append({"type": "cgroup"})
    config["linux"] |= {"maskedPaths": MASKED_ALIKE, "seccomp": seccomp()}
    return config


def ready(root, state):
    """The same with what crun has made of the profile for a container that it has made once."""
    config = confined()
    prepare(pathlib.Path("once"), json.dumps(config))
    mount_overlay(root)
    crun(state, "create", "once")
    compiled = pathlib.Path(state, "once", "seccomp.bpf").read_bytes()
    crun(state, "delete", "--force", "once")
    umount("rootfs")
    return config | {"annotations": {"run.oci.seccomp_bpf_data": base64.b64encode(compiled).decode()}}


def seccomp():
    """The rules of the profile that hold here, in the words of the runtime specification, which has no conditions."""
    profile, machine = json.loads(pathlib.Path(PROFILE).read_text()), ARCHITECTURES[os.uname().machine]

    def holds(rule):
        wanted, unwanted = rule.get("includes") or {}, rule.get("excludes") or {}
        return (machine in wanted.get("arches", [machine]) and machine not in unwanted.get("arches", [])
                and set(wanted.get("caps", [])) <= set(CAPABILITIES) and not set(unwanted.get("caps", [])) & set(CAPABILITIES))
    rules = [{key: rule[key] for key in ("names", "action", "args", "errnoRet") if rule.get(key) is not None}
             for rule in profile["syscalls"] if holds(rule)]
    native = f"SCMP_ARCH_{os.uname().machine.upper()}"
    others = [known["subArchitectures"] for known in profile["archMap"] if known["architecture"] == native]
    return {"defaultAction": profile["defaultAction"], "defaultErrnoRet": profile["defaultErrnoRet"], "syscalls": rules,
            "architectures": [native, *sum(others, [])]}


def prepare(place, config):
    for name in ("upper", "work", "rootfs"):
        (place / name).mkdir(parents=True)
    (place / "config.json").write_text(config)
    os.chdir(place)


def crun(state, command, *arguments):
    # Waits without a pipe and without a shell.
    subprocess.run(["crun", "--cgroup-manager=disabled", "--root", state, command, *arguments],
                   stdin=subprocess.DEVNULL, close_fds=False, check=True)


def main():
    root, scratch, kind, count = sys.argv[1:]
    mount("none", "/sys/fs/cgroup", "tmpfs")
    os.chdir(scratch)
    for name in LENT:
        pathlib.Path(name).write_text("")
    state = f"{scratch}/state"
    config = json.dumps({"bare": bare, "confined": confined, "ready": lambda: ready(root, state)}[kind]())
    for number in range(int(count)):
        prepare(pathlib.Path(scratch, str(number)), config)
        begin = time.perf_counter()
        mount_overlay(root)
        crun(state, "run", f"step-{number}")
        umount("rootfs")
        print(round(1e6 * (time.perf_counter() - begin)))


main()
