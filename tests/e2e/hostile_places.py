"""The table of hostile places: what an image has where a build or a step wants to mount, enter, read or write something.

`places(canary)` gives (tar, instructions) by name: the tar lies on busybox, and the instructions follow. What each comes to is
in `testdata/hostile/places`. A link may lead out of the image, and has to be followed inside of it, or refused.
"""

import os

from craft import END, directory, entry, fifo, file, symlink

# What a step does with a place: whatever it can write there is its own.
AT = ('RUN p={0}; test -p $p || {{ echo own > $p; echo own > $p/file; echo own > $p/new; }} 2>/dev/null; '
      'case $p in /dev*|/proc*|/sys*) ;; *) rm -f $p/file;; esac; true\n')
MOUNTS = {"bind": "type=bind,from=busybox,source=/bin", "bind of a file": "type=bind,from=busybox,source=/bin/busybox",
          "cache": "type=cache,id={0}", "tmpfs": "type=tmpfs", "secret": "type=secret,id=s"}


def things(path, canary):
    """Tars with something odd at a path; `canary` is what a link leads to, which is a file where a file is meant."""
    up = b"../" * 12 + canary.lstrip(b"/")
    chain = symlink(path, b"/l0") + b"".join(symlink(b"l%d" % at, b"l%d" % (at + 1)) for at in range(41)) + symlink(b"l41", canary)
    return {
        "a link out": symlink(path, canary), "a link up": symlink(path, up), "a link through this process": symlink(path, b"/proc/self/root" + canary),
        "a link to a descriptor": symlink(path, b"/proc/self/fd/0"), "a link to the root": symlink(path, b"/"), "a loop": symlink(path, b"/" + path),
        "a chain of 42": chain, "a link to the parent": symlink(path, b".."), "a file": file(path, b"own"), "a directory": directory(path),
        "a fifo": fifo(path), "a device": entry(path, kind=b"3", device=(1, 3)), "a closed directory": directory(path, mode=0),
    }


def places(canary):
    steps = {place: (place, False, AT.format("/" + place)) for place in ("proc", "sys", "dev", "tmp", "etc", "root", "var/tmp", "dev/shm", "dev/pts")}
    steps |= {place: (place, True, AT.format("/" + place)) for place in ("etc/hosts", "etc/resolv.conf", "etc/hostname", "dev/null", "dev/fd", "dev/ptmx", "proc/self")}
    for name, mount in MOUNTS.items():
        for target in ("m", "m/n/o"):
            place, of_file = ("m", False) if "/" in target else (target, name in ("secret", "bind of a file"))
            where = "in the middle" if "/" in target else "target"
            steps[f"{name}, {where}"] = (place, of_file, f"RUN --mount={mount.format(os.urandom(4).hex())},target=/{target} ls -d /{target}; echo own > /{target}/file; true\n")
    steps |= {
        "working directory": ("w", False, "WORKDIR /w\nRUN pwd > file\n"), "below the working directory": ("w", False, "WORKDIR /w/x\nRUN pwd > file\n"),
        "users": ("etc/passwd", True, "USER u\nRUN id -u > /tmp/id\n"), "groups": ("etc/group", True, "USER 1:g\nRUN id -u > /tmp/id\n"),
        "owner of a copy": ("etc/passwd", True, "COPY --chown=u Dockerfile /f\n"), "where users are": ("etc", False, "USER u\nRUN id -u > /tmp/id\n"),
        "a copy's directory": ("d", False, "COPY Dockerfile /d/f\n"), "a copy's destination": ("d", True, "COPY Dockerfile /d\n"),
        "a linked copy's directory": ("d", False, "COPY --link Dockerfile /d/f\n"), "a copy's source": ("d", True, "FROM scratch\nCOPY --from=0 /d /d\n"),
        "in a copy's source": ("d", False, "FROM scratch\nCOPY --from=0 /d/file /d\n"), "a mount's source": ("d", True, "FROM busybox\nRUN --mount=type=bind,from=0,source=/d,target=/m test -f /m && cat /m > /found; true\n"),
        "the shell": ("bin/sh", True, "RUN true\n"), "the shell's directory": ("bin", False, "RUN true\n"),
    }
    table = {}
    for name, (place, of_file, instructions) in steps.items():
        target = os.fsencode(canary) + (b"/file" if of_file else b"/d")
        for thing, tar in things(place.encode(), target).items():
            table[f"{name}: {thing}"] = (tar + END, instructions)
    for place in ("/proc/self/fd/5", "/proc/1/root", "/proc/self/cwd/x", "/proc/nothing", "/sys/nothing", "/etc/passwd", "/etc/passwd/x"):
        table[f"working directory: {place}"] = (END, f"WORKDIR {place}\nRUN true\n")
        table[f"a mount's target: {place}"] = (END, f"RUN --mount=type=tmpfs,target={place} true\n")
    return table
