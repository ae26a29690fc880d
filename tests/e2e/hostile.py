"""What the tests of hostile inputs share: canaries beside a build that nobody may touch, and goldens of what came of it."""

import ctypes
import json
import os
import pathlib
import re
import resource
import secrets
import shutil
import struct
import subprocess
import tempfile

from support import REPO, WATCHDOG, Case, remove

NIGHTLY = bool(os.environ.get("LAYERWRIGHT_NIGHTLY"))
# KiB that no process of a build may have at its peak, whatever the input (RELIABILITY, promise 12).
MEMORY = 512 << 10
# open, read, write, attributes, made, removed, moved: everything that inotify(7) tells.
ALL_EVENTS = 0xFFF
SHOWN = 12  # lines of a result that a golden keeps


class Hostile(Case):
    """Tests with a directory of canaries, whose files anybody could read and write who got there."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        # The path of the canaries is in what is written down, so it is of one length, and below no mount that steps have.
        cls.shared = pathlib.Path(tempfile.mkdtemp(prefix="layerwright-e2e.", dir="/var/tmp"))
        cls.addClassCleanup(remove, cls.shared)
        cls.shared.chmod(0o755)

    def setUp(self):
        super().setUp()
        self.token = secrets.token_hex(16)
        self.canary = self.scratch / "canary"
        (self.canary / "d").mkdir(parents=True)
        for name in ("file", "d/file"):
            (self.canary / name).write_text(self.token)
        for path in (self.canary, *self.canary.rglob("*")):
            path.chmod(0o777 if path.is_dir() else 0o666)
        self.watch = Watch(self.canary, self.canary / "d")
        self.addCleanup(self.watch.close)
        # A store may hold trees that are too deep for Python's own removal.
        self.addCleanup(lambda: subprocess.run(["rm", "-rf", *self.scratch.glob("store-*"), *self.scratch.glob("out-*")], check=True))
        self.before = self.state()
        self.watch.events()

    def state(self):
        return {str(path): (path.lstat().st_mode, path.lstat().st_nlink, path.lstat().st_mtime_ns, path.lstat().st_ino)
                for path in (self.canary, *self.canary.rglob("*"))}

    def assert_unharmed(self, *places):
        """Nobody has looked at the canaries, nothing of them is in `places`, and no build took much memory."""
        self.assertEqual(self.watch.events(), [], "somebody was at the canaries")
        self.assertEqual(self.state(), self.before)
        for name in ("file", "d/file"):
            self.assertEqual((self.canary / name).read_text(), self.token)
        self.watch.events()
        found = subprocess.run(["grep", "-rlF", "-D", "skip", self.token, *places], stdout=subprocess.PIPE, text=True, timeout=WATCHDOG)
        self.assertEqual(found.stdout, "", "what is in a canary was read")
        self.assertLess(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, MEMORY)

    def assert_sound(self, store, user="root"):
        """The store is whole, and the next good build works on it."""
        if user == "root":
            self.run_layerwright("fsck", "--root", store)
        good = self.scratch / f"good-{user}"
        if not good.exists():
            self.context(good.name, Dockerfile="FROM busybox\nRUN echo good > /good\n")
        self.run_layerwright("build", good, root=store, user=user)

    def failure(self, done):
        """Exit code and message of a build that was refused in good order, without what differs from run to run."""
        self.assertNotIn("panicked", done.stderr)
        self.assertIn(done.returncode, (0, 1, 2, 3, 4), done.stderr)
        if done.returncode == 0:
            return None
        at = done.stderr.find("error: ")
        self.assertGreaterEqual(at, 0, f"no error is told: {done.stderr}")
        return f"exit {done.returncode}: {self.plain(done.stderr[at:])}"

    def plain(self, text):
        # Whose store it is must not change where a line is cut.
        text = re.sub(rf"{re.escape(str(self.scratch))}/store-(root|lw-sub)", "STORE", text)
        text = text.replace(str(self.canary), "CANARY").replace(str(self.scratch), "SCRATCH").replace(str(self.shared), "SHARED")
        text = text.replace(f'"{self.canary.parts[1]}" is refused', '"FIRST" is refused')
        text = re.sub(r"127\.0\.0\.1:\d+", "REGISTRY", text)
        text = re.sub(r"sha256:[0-9a-f]{12,64}", "sha256:HEX", text)
        lines = [line[:200] for line in text.rstrip().split("\n")]
        return "\n".join(lines[:SHOWN] + ([f"and {len(lines) - SHOWN} lines more"] if len(lines) > SHOWN else []))

    def golden(self, name):
        """What is written down of each case."""
        path = REPO / "testdata" / "hostile" / name
        if not path.exists():
            return {}
        blocks = path.read_text().split("\n== ")[1:]
        return {block.split("\n", 1)[0]: block.split("\n", 1)[1].rstrip("\n") for block in blocks}

    def check(self, name, found):
        """Compares what came of some cases with what is written down, or writes it down ($UPDATE_EXPECT)."""
        written = self.golden(name)
        if os.environ.get("UPDATE_EXPECT"):
            path = REPO / "testdata" / "hostile" / name
            path.parent.mkdir(exist_ok=True)
            head = f"What comes of every hostile input of its kind ({self.id().split('.', 1)[0]}.py); UPDATE_EXPECT=1 writes it.\n"
            path.write_text(head + "".join(f"\n== {case}\n{text}\n" for case, text in sorted({**written, **found}.items())))
            return
        for case, text in found.items():
            self.assertEqual(written.get(case), text, case)


class Watch:
    """inotify on directories: everything that is done with them and what they hold."""

    def __init__(self, *directories):
        libc = ctypes.CDLL(None, use_errno=True)
        self.descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        for directory in directories:
            if libc.inotify_add_watch(self.descriptor, os.fsencode(directory), ALL_EVENTS) < 0:
                raise OSError(ctypes.get_errno(), "inotify_add_watch")

    def events(self):
        """(mask, name) of what has happened since the last call."""
        try:
            data = os.read(self.descriptor, 1 << 16)
        except BlockingIOError:
            return []
        found, at = [], 0
        while at < len(data):
            _, mask, _, length = struct.unpack_from("iIII", data, at)
            name = data[at + 16:at + 16 + length].rstrip(b"\0").decode()
            at += 16 + length
            found.append((hex(mask), name))
        return found

    def close(self):
        os.close(self.descriptor)


def kinds(cases, told):
    """The first case of each family and of each error, whatever names and numbers the error holds."""
    first = {}
    for case in cases:
        message = told.get(case, case)
        text = message.split("\n")[0] if message.startswith("exit") else case.split(":")[0]
        first.setdefault(re.sub(r"\"[^\"]*\"|'[^']*'|\d+|\S*/\S*|n{20,}", "", text), case)
    return list(first.values())


def owned(path, user):
    """Gives a tree to a user."""
    shutil.chown(path, user, user)
    return path


def layout_contexts(layouts):
    """Arguments that name OCI layouts as images."""
    return [word for name, path in layouts.items() for word in ("--build-context", f"{name}=oci-layout://{path}")]
