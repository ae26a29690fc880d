"""Stores that cannot be used and processes that may do little: a clear error or a good build, and never a panic."""

import pathlib
import resource
import shutil
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

    @unittest.skipUnless(shutil.which("mkfs.ext4") and pathlib.Path("/dev/loop-control").exists(),
                         "SKIPPED: disks with an error: there is no mkfs.ext4, or no loop device")
    def test_a_disk_on_which_the_kernel_finds_an_error(self):
        """It is read-only from then on, in the middle of a step, and nobody's fault but the machine's."""
        context = self.context(Dockerfile="FROM busybox\nRUN echo begun; while touch /x 2> /dev/null; do sleep 0.1; done\n")
        image, disk = self.scratch / "disk.img", self.directory("disk")
        with open(image, "wb") as file:
            file.truncate(256 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
        subprocess.run(["mount", "-o", "loop,errors=remount-ro", image, disk], check=True)
        try:
            device = subprocess.run(["findmnt", "-no", "SOURCE", disk], check=True, capture_output=True, text=True).stdout.strip()
            fault = pathlib.Path("/sys/fs/ext4", pathlib.Path(device).name, "trigger_fs_error")
            if not fault.exists():
                self.skipTest("SKIPPED: disks with an error: this kernel makes none")
            store = disk / "store"
            build = subprocess.Popen(self.command("build", "--progress", "plain", context, root=store), text=True,
                                     stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            with build:
                told = ""
                for line in build.stderr:
                    told += line
                    if line.rstrip().endswith(" begun"):
                        fault.write_text("1")
            self.assertEqual(build.returncode, 4, told)
            self.assertRegex(told, r"hint: the file system of the store is read-only.*--root")
            self.told(context, store, "Read-only file system", "--root")
            base = f"oci-layout://{self.base}"
            self.assertIn("--root", self.run_layerwright("run", "--root", store, base, "true", code=125).stderr)
            doctor = self.run_layerwright("doctor", "--root", store, code=4).stdout
            self.assertRegex(doctor, r"root +sandbox: write to the store: Read-only file system.*\n.*the store is read-only")
        finally:
            subprocess.run(["umount", disk], check=True)

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
                self.assertIn("`ulimit -f unlimited`", self.last.stderr)
                self.assertEqual(self.image(context, other), digest)
                self.clean(other)

    def test_no_store(self):
        done = self.run_layerwright("fsck", "--root", self.scratch / "none", code=2)
        self.assertIn("there is no store", done.stderr)
        self.assertFalse((self.scratch / "none").exists())


if __name__ == "__main__":
    unittest.main()
