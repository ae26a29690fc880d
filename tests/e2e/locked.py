#!/usr/bin/python3 -B
"""A container as Docker and Kubernetes start one by default: root, Docker's capabilities, and a filter that allows neither
namespaces nor mounts nor keys.

`locked.py DIRECTORIES COMMAND...` becomes a command in one that sees the directories (a list with colons, the first for its own
needs), with the caller's environment and descriptors; there it may have keys, so that they can be stolen, and whatever personality ours leaves it.
"""

import fcntl
import os
import sys

from test_ladder import PROFILE, container, container_words

KEYS = ("keyctl", "add_key", "request_key")
# Of what podman's filter allows to everybody and Docker's does not.
FORBIDDEN = ("unshare", "setns", "mount", "umount", "umount2", "mount_setattr", "move_mount", "open_tree", "fsopen", "fsconfig",
             "fsmount", "fspick", "pivot_root", "sethostname", "setdomainname", "clone3")
# What it allows to whoever has CAP_SYS_CHROOT.
GRANTED = ("chroot",)


def locked(directory, *arguments, denied=(), **options):
    """A command of root in one, which sees the directory, and of this machine what it needs to run."""
    return container(directory, *arguments, uid=0, denied=(*FORBIDDEN, *KEYS, *denied), granted=GRANTED, **options)


def main(places, *command):
    first, *others = places.split(":")
    inherited = [number for number in range(3, 256) if is_inherited(number)]
    # The runtime passes on the first ones.
    for place, number in enumerate(inherited, 3):
        os.dup2(number, place)
    words = container_words(first, *command, uid=0, denied=FORBIDDEN, granted=(*GRANTED, *KEYS, "personality"), shown=others, env=dict(os.environ),
                            flags=f"--preserve-fds {len(inherited)}")
    os.execvp(words[0], words)


def is_inherited(number):
    try:
        return not fcntl.fcntl(number, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    except OSError:
        return False


__all__ = ["PROFILE", "locked"]

if __name__ == "__main__":
    main(*sys.argv[1:])
