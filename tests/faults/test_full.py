"""Disks that fill up: a clean error that names the store, partial bytes given back, and the next build works once there
is room."""

import contextlib
import json
import os
import pathlib
import random
import re
import subprocess
import unittest

from ground import SEED, Faults

SIZES = 16
DOCKERFILE = """\
FROM busybox
COPY data /data
RUN cat /data/* > /all
RUN --mount=type=cache,target=/cache head -c 300000 /all > /cache/x && cp /cache/x /x
COPY --link data/0 /linked/
"""


def used(path):
    """Bytes that a directory takes on disk."""
    output = subprocess.run(["du", "-s", "--block-size=1", path], check=True, capture_output=True, text=True).stdout
    return int(output.split()[0])


class Full(Faults):
    def test_every_size(self):
        context = self.context(Dockerfile=DOCKERFILE)
        generator = random.Random(SEED)
        (context / "data").mkdir()
        for index in range(6):
            (context / "data" / str(index)).write_bytes(generator.randbytes(200_000))
        digest = self.image(context, self.store())
        need = used(self.store())
        results = []
        for step in range(1, SIZES + 1):
            size = need * 6 * step // (5 * SIZES)
            with self.subTest(size=size, need=need):
                results.append(self.on_disk_of(size, need, context, digest))
        self.assertIn(False, results, "the smallest is too small")
        self.assertIn(True, results, "1.2 times what is needed is enough")

    def test_a_run_that_finds_no_room_says_what_a_build_says(self):
        base = f"oci-layout://{self.base}"
        self.run_layerwright("run", "--root", self.store(), base, "true")
        need = used(self.store())
        for part in (3, 2):
            with self.subTest(part=part), self.disk(need // part) as disk:
                done = self.run_layerwright("run", "--root", disk / "store", base, "true", code=125)
                self.assertRegex(done.stderr, r"hint: the disk of the store \S+ is full.*: make room there.*--root")

    @contextlib.contextmanager
    def disk(self, size):
        disk = self.scratch / "disk"
        disk.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0755", "layerwright", disk], check=True)
        try:
            yield disk
        finally:
            subprocess.run(["umount", disk], check=True)

    def test_output_is_kept_or_counted(self):
        # A line of 100 bytes, with when it came in front.
        lines = 300_000
        script = f"yes {'x' * 99} | head -n {lines}; exit 3"
        context = self.context(Dockerfile=f"FROM busybox\nRUN {script}\n")
        need = self.need_of(context)
        for room, why in ((need + (40 << 20), "are left out: only the beginning and the end"),
                          (need + (2 << 20), "could not be kept: No space left on device")):
            with self.subTest(why=why), self.disk(room) as disk:
                done = self.run_layerwright("build", "--progress", "quiet", context, root=disk / "store", code=1)
                shown = len(re.findall(r"^\d+\.\d{3} x{99}$", done.stderr, re.M))
                (missing,) = re.findall(rf"^\((\d+) (?:earlier )?lines {why}", done.stderr, re.M)
                self.assertEqual(shown + int(missing), lines)
                self.assertGreater(shown, 10_000, "what the disk has taken stays")
                self.assertLess(used(disk / "store"), need + (1 << 20), "nothing is left of it")

    def test_the_history_of_noisy_builds_leaves_room_for_builds(self):
        # Each leaves a log of 2 MiB: of four the disk would be full.
        context = self.context(Dockerfile="FROM busybox\nARG N\nRUN yes $N | head -c 5000000\n")
        with self.disk(self.need_of(context, code=0) + (8 << 20)) as disk:
            store = disk / "store"
            for number in range(7):
                self.run_layerwright("build", "--progress", "quiet", "--build-arg", f"N={'x' * 99}{number}", context, root=store)
                listed = self.run_layerwright("history", "--format", "json", "--root", store).stdout
                self.assertGreaterEqual(len(json.loads(listed)), 1, "the last one is remembered")
            self.assertLess(used(store / "history"), 3 << 20)

    def need_of(self, context, code=1):
        """What the store takes of a build whose command writes no file."""
        self.run_layerwright("build", "--progress", "quiet", context, root=self.store(), code=code)
        return used(self.store())

    def on_disk_of(self, size, need, context, digest):
        """Whether the first build had room enough."""
        disk = self.scratch / "disk"
        disk.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0755", "layerwright", disk], check=True)
        try:
            store = disk / "store"
            found = self.image(context, store, code=None)
            self.assertNotIn("panicked", self.last.stderr)
            if found is None:
                self.assertIn(self.last.returncode, (1, 4), self.last.stderr)
                self.assertRegex(self.last.stderr, "(?i)no space left|disk .* is full", "the error says why")
                self.assertIn(str(store), self.last.stderr, "and where")
                self.assertRegex(self.last.stderr, r"\d+ bytes (are )?(needed|free)|full for this build", "and how much")
                partial = used(store / "tmp") if (store / "tmp").exists() else 0
                self.assertLess(partial, max(need // 10, 40_000), "what was half done is given back")
            else:
                self.assertEqual(found, digest)
            subprocess.run(["mount", "-o", f"remount,size={need * 3}", disk], check=True)
            self.assertEqual(self.image(context, store), digest)
            self.clean(store)
            return found is not None
        finally:
            subprocess.run(["umount", disk], check=True)


if __name__ == "__main__":
    unittest.main()
