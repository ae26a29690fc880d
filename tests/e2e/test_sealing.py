"""After one file was edited: which files of the context are opened, and that the image is the one of a build from nothing."""

import random
import re
import shutil
import subprocess
import time
import unittest

import support

FILES = 500
OPENED = re.compile(r'openat2?\([^"]*"(?:[^"]*/)?(f\d{3})", [^)]*\) = \d')


@unittest.skipUnless(shutil.which("strace"), "SKIPPED: strace is not installed")
class Sealing(support.Case):
    def fill(self, context):
        noise = random.Random(5)
        (context / "d").mkdir()
        for index in range(FILES):
            (context / "d" / f"f{index:03}").write_bytes(noise.randbytes(noise.randint(1000, 9000)))

    def traced(self, context, compression, user):
        """Builds; gives the digest and the files of the context that were opened."""
        out = self.scratch / f"out-{user}-{compression}"
        if not out.exists():
            out.mkdir()
            shutil.chown(out, user, user)
        # A file for each thread, so that no line is torn.
        traces = self.scratch / "traces"
        shutil.rmtree(traces, ignore_errors=True)
        traces.mkdir()
        build = self.command(
            "build", "--progress", "plain", "-o",
            f"type=oci,tar=false,dest={out / 'layout'},compression={compression}", context, user=user)
        subprocess.run(
            ["strace", "-ff", "-qq", "-e", "trace=openat,openat2", "-o", traces / "of", *build],
            check=True, capture_output=True, cwd=self.scratch, timeout=support.WATCHDOG)
        opened = {name for trace in traces.iterdir() for name in OPENED.findall(trace.read_text(errors="replace"))}
        return support.Layout(out / "layout").digest, opened

    def test_only_the_file_that_was_edited_is_opened(self):
        for user in support.USERS:
            for compression in ("gzip", "uncompressed"):
                with self.subTest(user=user, compression=compression):
                    self.check(user, compression)

    def check(self, user, compression):
        context = self.context(f"context-{user}-{compression}", Dockerfile="FROM scratch\nCOPY d /d\n")
        self.fill(context)
        _, opened = self.traced(context, compression, user)
        self.assertEqual(len(opened), FILES, "the test shows nothing if it sees no file opened")
        # What was written a moment ago may change again within one tick of the clock, and is looked at again until then.
        deadline = time.monotonic() + 20
        while opened:
            self.assertLess(time.monotonic(), deadline, f"{len(opened)} files are opened again and again")
            _, opened = self.traced(context, compression, user)
        (context / "d" / "f250").write_text("edited")
        digest, opened = self.traced(context, compression, user)
        self.assertEqual(opened, {"f250"})
        shutil.rmtree(self.store(user))
        again, _ = self.traced(context, compression, user)
        self.assertEqual(again, digest)


if __name__ == "__main__":
    unittest.main()
