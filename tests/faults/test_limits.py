"""Stores that cannot be used and processes that may do little: a clear error or a good build, and never a panic."""

import resource
import subprocess
import unittest

from ground import Faults
from support import WATCHDOG


class Limits(Faults):
    def told(self, context, store, *words, user="root", **options):
        """A build that must fail, with these words and no panic."""
        self.assertIsNone(self.image(context, store, user=user, code=None, **options))
        self.assertEqual(self.last.returncode, 4, self.last.stderr)
        self.assertNotIn("panicked", self.last.stderr)
        for word in words:
            self.assertIn(word, self.last.stderr)

    def test_a_read_only_store(self):
        context, store = self.everything(), self.store()
        self.image(context, store)
        subprocess.run(["mount", "--bind", store, store], check=True)
        try:
            subprocess.run(["mount", "-o", "remount,ro,bind", store], check=True)
            told = f"the store {store} is on a read-only file system"
            self.told(context, store, told, "--root")
            for looking in (["fsck"], ["du"], ["gc", "--dry-run"]):
                self.assertIn(told, self.run_layerwright(*looking, "--root", store, code=4).stderr)
        finally:
            subprocess.run(["umount", store], check=True)

    def test_a_store_of_somebody_else(self):
        context, store = self.everything(), self.store("lw-sub")
        self.image(context, store, user="lw-sub")
        self.told(context, store, str(store), "belongs to")

    def limited(self, limit, context, out):
        """A build of a user with a limit of the shell's."""
        command = self.command("build", "--no-cache", "-o", f"type=oci,dest={out}", context, user="lw-one")
        command[4:4] = ["bash", "-c", f"ulimit {limit}; exec \"$@\"", "-"]
        return subprocess.run(command, capture_output=True, text=True, timeout=WATCHDOG, cwd=self.scratch)

    def test_few_processes(self):
        """With as few as there can be, up to all that a build takes: it tells why not, or makes the same image."""
        context = self.context(Dockerfile="FROM busybox\nRUN echo x > /x\nCOPY Dockerfile /\n")
        out = self.directory("out", "lw-one")
        self.assertEqual(self.limited("-u unlimited", context, out / "all").returncode, 0)
        failed = 0
        for limit in range(2, 20):
            done = self.limited(f"-u {limit}", context, out / str(limit))
            with self.subTest(limit=limit, told=done.stderr):
                self.assertNotIn("panicked", done.stderr)
                if done.returncode == 0:
                    self.assertEqual((out / str(limit)).read_bytes(), (out / "all").read_bytes())
                    continue
                failed += 1
                self.assertEqual(done.returncode, 4)
                self.assertIn("Resource temporarily unavailable", done.stderr)
                self.assertIn("`ulimit -u` of the user", done.stderr)
        self.assertGreater(failed, 0)
        self.assertEqual(self.limited("-u unlimited", context, out / "after").returncode, 0)
        self.assertEqual((out / "after").read_bytes(), (out / "all").read_bytes())

    def test_few_open_files(self):
        context = self.context(Dockerfile="FROM busybox\nRUN echo x > /x\n")
        out = self.directory("out", "lw-one")
        for limit in (5, 6, 12):
            done = self.limited(f"-n {limit}", context, out / str(limit))
            with self.subTest(limit=limit, told=done.stderr):
                self.assertEqual(done.returncode, 4)
                self.assertIn("Too many open files", done.stderr)
                self.assertIn("`ulimit -n 1024`", done.stderr)

    def test_no_proc(self):
        context = self.context(Dockerfile="FROM scratch\nCOPY Dockerfile /\n")
        for command in (["build", "--root", self.store(), context], ["du", "--root", self.store()], ["doctor"]):
            with self.subTest(command[0]):
                apart = ["unshare", "--mount", "sh", "-c", "umount -l /proc && exec \"$@\"", "-"]
                done = subprocess.run([*apart, self.binary, *command], capture_output=True, text=True)
                self.assertEqual(done.returncode, 4, done.stderr)
                self.assertIn("mount -t proc proc /proc", done.stdout + done.stderr)

    def test_few_descriptors(self):
        context = self.everything()
        digest = self.image(context, self.store())
        few = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))  # noqa: E731
        other = self.scratch / "few"
        found = self.image(context, other, code=None, preexec_fn=few)
        self.assertNotIn("panicked", self.last.stderr)
        if found is None:
            self.assertIn("Too many open files", self.last.stderr)
        self.assertIn(found, (None, digest))
        self.assertEqual(self.image(context, other), digest)
        self.clean(other)

    def test_few_descriptors_are_the_machines_fault(self):
        """Wherever they run out: while a context is read, a layer unpacked, or a registry asked."""
        context = self.everything()
        digest = self.image(context, self.store())
        failed = 0
        for limit in range(12, 32, 2):
            few = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))  # noqa: B023, E731
            found = self.image(context, self.machine(), code=None, preexec_fn=few)
            with self.subTest(limit=limit, told=self.last.stderr):
                self.assertIn(found, (None, digest))
                if found is None:
                    failed += 1
                    self.assertEqual(self.last.returncode, 4)
                    self.assertIn("Too many open files", self.last.stderr)
                    self.assertIn("`ulimit -n 1024`", self.last.stderr)
        self.assertGreater(failed, 0)

    def test_small_files_only(self):
        context = self.everything()
        digest = self.image(context, self.store())
        for limit in (1000, 30_000, 300_000):
            with self.subTest(limit=limit):
                other = self.scratch / f"small-{limit}"
                small = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # noqa: B023, E731
                self.assertIsNone(self.image(context, other, code=None, preexec_fn=small))
                self.assertNotIn("panicked", self.last.stderr)
                self.assertGreater(self.last.returncode, 0, "no signal ended it")
                self.assertIn("File too large", self.last.stderr)
                self.assertEqual(self.image(context, other), digest)
                self.clean(other)

    def test_no_store(self):
        done = self.run_layerwright("fsck", "--root", self.scratch / "none", code=2)
        self.assertIn("there is no store", done.stderr)
        self.assertFalse((self.scratch / "none").exists())


if __name__ == "__main__":
    unittest.main()
