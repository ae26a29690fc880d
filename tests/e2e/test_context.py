"""Contexts: what has not changed is not opened, and what changes while it is read is never taken for something else."""

import os
import random
import re
import shutil
import subprocess
import threading
import time
import unittest

from support import WATCHDOG, Case, Layout

NIGHTLY = "LAYERWRIGHT_NIGHTLY" in os.environ
# RELIABILITY F2 asks for 500.
TRIALS = 500 if NIGHTLY else 25
SETTLED = 4  # seconds: what was written longer ago is believed by its lstat


class Unchanged(Case):
    def traced(self, context):
        """What a build opens in its context, and how often it asks for the state of a file there."""
        log = self.scratch / "trace"
        command = ["strace", "-f", "-qq", "-y", "-o", log, "-e",
                   "trace=open,openat,openat2,newfstatat,statx,fstat,read,pread64,getdents64",
                   *self.command("build", "--progress", "plain", context)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=WATCHDOG,
                              stdin=subprocess.DEVNULL)
        self.assertEqual(done.returncode, 0, done.stdout)
        lines = [line for line in log.read_text().splitlines() if str(context) in line]
        opened = [line for line in lines if re.search(r"= \d+<[^>]*/f\d+>", line)]
        read = [line for line in lines if re.search(r"(read|pread64)\(\d+<[^>]*/f\d+>", line)]
        looked = [line for line in lines if "newfstatat(" in line and re.search(r'"f\d+"', line)]
        return opened + read, looked

    def settle(self, context):
        """Waits: the times of the last change cannot be set, and are believed when they are a while ago."""
        newest = max(path.lstat().st_ctime for path in context.rglob("*"))
        deadline = time.monotonic() + WATCHDOG
        while time.time() < newest + SETTLED:
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.1)

    def test_a_change_is_seen_whatever_was_remembered(self):
        files = {f"d__f{number}": "1" * 10 for number in range(4)}
        context = self.context(Dockerfile="FROM scratch\nCOPY d /d\n", **files)
        files = context / "d"
        (files / "link").symlink_to("f0")
        os.utime(files / "f0", (1000, 1000))
        self.settle(context)

        def same_size_and_time():
            (files / "f0").write_text("2" * 10)
            os.utime(files / "f0", (1000, 1000))

        def other_link():
            (files / "link").unlink()
            (files / "link").symlink_to("f1")

        changes = [
            ("nothing", lambda: None),
            ("content, same size and time", same_size_and_time),
            ("mode", lambda: (files / "f1").chmod(0o600)),
            ("name", lambda: (files / "f1").rename(files / "g1")),
            ("a directory more", lambda: (files / "empty").mkdir()),
            ("mode of a directory", lambda: (files / "empty").chmod(0o711)),
            ("a link elsewhere", other_link),
            ("one file by two names", lambda: os.link(files / "f2", files / "f2-too")),
            ("a file less", lambda: (files / "f3").unlink()),
            ("the ignore file", lambda: (context / ".dockerignore").write_text("d/f0\n")),
        ]
        digests = []
        for number, (change, make) in enumerate(changes):
            make()
            # Twice: the second one goes by what the first has remembered.
            for time_of_build in range(2):
                digest = Layout(self.build(context, root=self.scratch / "kept", name=f"kept-{number}-{time_of_build}")).digest
                fresh = Layout(self.build(context, root=self.scratch / f"fresh-{number}-{time_of_build}",
                                          name=f"fresh-{number}-{time_of_build}")).digest
                self.assertEqual(digest, fresh, change)
            digests.append(digest)
            if number == 0:
                self.assertTrue(any((self.scratch / "kept" / "glances").iterdir()), "what was settled is remembered")
        self.assertEqual(len(set(digests)), len(changes), "every change is another image")
        os.utime(files / "f2", (2000, 2000))
        self.assertEqual(Layout(self.build(context, root=self.scratch / "kept", name="touched")).digest, digests[-1])

    def test_a_context_that_has_not_changed_is_not_opened(self):
        if not shutil.which("strace"):
            print("SKIPPED: there is no strace")
            return
        files = {f"d{number % 7}__f{number}": str(number) for number in range(100)}
        context = self.context(Dockerfile="FROM scratch\nCOPY . /all\nCOPY d1 /some\n", **files)
        past = time.time() - 1000
        for path in context.rglob("*"):
            os.utime(path, (past, past))
        self.settle(context)
        opened, _ = self.traced(context)
        self.assertGreaterEqual(len(opened), 100, "all are read once")
        opened, looked = self.traced(context)
        self.assertEqual(opened, [])
        some = sum(1 for _ in (context / "d1").iterdir())
        self.assertEqual(len(looked), 100 + some, "one lstat a file and COPY")


class Changing(Case):
    """Whatever becomes of a file during a build, its key is that of the bytes in the layer, or the build fails."""

    VERSIONS = [None, "", "1" * 10, "2" * 10, "3" * 200_000, "4" * 200_000, "5" * 1_500_000, "link"]

    def put(self, path, version, atomic):
        """Makes the file this version, at once or by and by."""
        if version is None:
            path.unlink(missing_ok=True)
        elif version == "link":
            path.unlink(missing_ok=True)
            path.symlink_to("other")
        elif atomic or path.is_symlink():
            self.outside.write_text(version)
            self.outside.rename(path)
        else:
            path.write_text(version)

    def built(self, root, name):
        """The digest of the image of what is there now."""
        return Layout(self.build(self.quiet, root=root, name=name)).digest

    def test_a_file_that_changes_while_it_is_read(self):
        context = self.context(Dockerfile="FROM scratch\nCOPY files /files\nCOPY . /all\n", files__other="other")
        path = context / "files" / "f"
        # On the same file system, and in no directory that is read.
        self.outside = self.scratch / "new"
        # What each version gives where nothing ever changed under a build.
        self.quiet = context
        expected = {}
        for number, version in enumerate(self.VERSIONS):
            self.put(path, version, atomic=False)
            expected[version] = self.built(self.scratch / f"fresh-{number}", f"fresh-{number}")
        self.assertEqual(len(set(expected.values())), len(self.VERSIONS))
        racing, choice = self.scratch / "racing", random.Random(4)
        failures = 0
        for trial in range(TRIALS):
            stop = threading.Event()
            versions = [(choice.choice(self.VERSIONS), choice.random() < 0.3) for _ in range(50)]
            changer = threading.Thread(target=self.change, args=(path, versions, stop))
            changer.start()
            try:
                shutil.rmtree(self.scratch / "out-racing", ignore_errors=True)
                out = self.build(context, root=racing, name="racing", code=None)
            finally:
                stop.set()
                changer.join()
            if self.last.returncode:
                failures += 1
                self.assertRegex(self.last.stderr, "changed while reading|not found", f"trial {trial}")
            else:
                Layout(out).validate()
            # Nothing that was remembered of the race is believed of what is there now.
            now = "link" if path.is_symlink() else path.read_text() if path.exists() else None
            shutil.rmtree(self.scratch / "out-after", ignore_errors=True)
            self.assertEqual(self.built(racing, "after"), expected[now], f"trial {trial}: {self.last.stderr}")
        for version in self.VERSIONS:
            self.put(path, version, atomic=True)
            shutil.rmtree(self.scratch / "out-after", ignore_errors=True)
            self.assertEqual(self.built(racing, "after"), expected[version], "no key stands for other bytes")
        print(f"{TRIALS} trials, of which {failures} failed as they should")

    def change(self, path, versions, stop):
        while not stop.is_set():
            for version, atomic in versions:
                if stop.is_set():
                    return
                self.put(path, version, atomic)


if __name__ == "__main__":
    unittest.main()
