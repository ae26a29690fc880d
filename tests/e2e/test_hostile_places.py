"""Hostile places in an image: wherever a build mounts, enters, reads or writes, it stays inside, or says why it does not."""

import gzip
import os
import subprocess
import unittest
from concurrent.futures import ThreadPoolExecutor

from craft import Image
from hostile import NIGHTLY, Hostile, kinds
from hostile_places import places
from support import Layout

ALL = NIGHTLY or bool(os.environ.get("UPDATE_EXPECT"))
# Seconds in which each is done, so that none waits for a fifo.
PATIENCE = 30
# By day they have every so-manieth of one of every family and of every error.
SAMPLES = {"root": 1 if ALL else 3, "lw-sub": 1 if NIGHTLY else 10}


class Places(Hostile):
    def setUp(self):
        super().setUp()
        base = Layout(self.base)
        content = base.blob(base.manifest["layers"][0]).read_bytes()
        self.busybox = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content

    def attempt(self, number, case, user):
        """What the build has added to the image, or the failure."""
        tar, instructions = self.table[case]
        path = self.scratch / "layouts" / str(number)
        if not path.exists():
            Image(self.busybox, tar).write(path)
        context = self.context(f"context-{number}-{user}", Dockerfile=f"FROM hostile\n{instructions}", secret="own")
        out = self.directory(f"out-{number}-{user}", user)
        command = self.command("build", "--progress", "plain", "-o", f"type=oci,tar=false,dest={out}/layout", "--secret", f"id=s,src={context}/secret",
                               "--build-context", f"hostile=oci-layout://{path}", context, user=user)
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=self.scratch, timeout=PATIENCE)
        done.stderr = done.stderr.decode()
        failure = self.failure(done)
        if failure:
            return failure
        lines = []
        # In another stage nothing of the base is left.
        below = 0 if "\nFROM scratch" in f"\n{instructions}" else 1 if "\nFROM busybox" in f"\n{instructions}" else 2
        for layer in list(Layout(out / "layout").layers())[below:]:
            for name, member in layer.items():
                kind = "link" if member.issym() else "same" if member.islnk() else "dir" if member.isdir() else "file" if member.isreg() else "node"
                lines.append(f"{kind} /{name} {member.linkname or member.size}")
        return self.plain("\n".join(lines) or "(nothing)")

    def test_all(self):
        self.table = places(str(self.canary))
        self.assertGreaterEqual(len(self.table), 250)
        written = self.golden("places")
        sampled = set(kinds(self.table, written))
        for user, step in SAMPLES.items():
            self.store(user)
            cases = [(at, case) for at, case in enumerate(self.table) if ALL or case in sampled][::step]
            with ThreadPoolExecutor(2) as pool:
                found = dict(zip([case for _, case in cases], pool.map(lambda pair: self.attempt(*pair, user), cases)))
            if user == "root":
                self.check("places", found)
                written = self.golden("places")
            for case, text in found.items():
                # Device nodes of an image are left out for an ordinary user, which is told.
                if "a device" not in case:
                    self.assertEqual(text, written[case], f"{case}, by {user}")
            self.assert_unharmed(self.store(user), *self.scratch.glob(f"out-*-{user}"))
            self.assert_sound(self.store(user), user)


if __name__ == "__main__":
    unittest.main()
