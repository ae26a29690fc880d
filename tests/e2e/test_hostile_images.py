"""Images that lie of themselves: each is built on, or refused with what is wrong; from a layout, and from a registry."""

import json
import os
import subprocess
import unittest
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from craft import INDEX, MANIFEST
from forger import Storage
from hostile import NIGHTLY, Hostile, kinds
from hostile_images import images
from support import Layout, Registry

ALL = NIGHTLY or bool(os.environ.get("UPDATE_EXPECT"))
PATIENCE = 60  # seconds in which each is done


class Images(Hostile):
    def setUp(self):
        super().setUp()
        self.table = images()
        self.assertGreaterEqual(len(self.table), 150)
        self.numbers = {case: number for number, case in enumerate(self.table)}
        written = self.golden("images")
        self.sampled = list(self.table) if ALL else kinds(self.table, written)[::2]

    def attempt(self, case, user, *arguments, dockerfile=None):
        """What the image that was built says of itself, or the failure."""
        name = f"{self.numbers[case]}-{user}-{len(arguments)}"
        context = self.context(f"context-{name}", Dockerfile=dockerfile or self.table[case][1])
        out = self.directory(f"out-{name}", user)
        command = self.command("build", "--progress", "plain", "-o", f"type=oci,tar=false,dest={out}/layout", *arguments, context, user=user)
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=self.scratch, timeout=PATIENCE)
        done.stderr = done.stderr.decode()
        failure = self.failure(done)
        if failure:
            return failure
        layout = Layout(out / "layout")
        return self.plain(f"{len(layout.manifest['layers'])} layers, {json.dumps(layout.config['config'])}")

    def from_layout(self, case, user):
        path = self.scratch / "layouts" / f"{self.numbers[case]:03}"
        if not path.exists():
            self.table[case][0].write(path)
        return self.attempt(case, user, "--build-context", f"hostile=oci-layout://{path}").replace(str(path.relative_to(self.scratch)), "LAYOUT")

    def test_from_a_layout(self):
        for user, cases in (("root", self.sampled), ("lw-sub", self.sampled[::1 if NIGHTLY else 6])):
            self.store(user)
            with ThreadPoolExecutor(2) as pool:
                found = dict(zip(cases, pool.map(lambda case: self.from_layout(case, user), cases)))
            if user == "root":
                self.check("images", found)
            written = self.golden("images")
            for case, text in found.items():
                self.assertEqual(text, written[case], f"{case}, by {user}")
            self.assert_unharmed(self.store(user), *self.scratch.glob(f"out-*-{user}-*"))
            self.assert_sound(self.store(user), user)

    def serves(self, registry, tag):
        request = urllib.request.Request(f"http://{registry.host}/v2/base/manifests/{tag}", headers={"Accept": f"{MANIFEST}, {INDEX}"})
        try:
            return urllib.request.urlopen(request, timeout=PATIENCE).status == 200
        except urllib.error.HTTPError:
            return False

    def test_from_a_registry(self):
        """The same documents, put onto the disk of a registry that would have refused most of them."""
        cases = self.sampled[::1 if NIGHTLY else 4]
        with Registry(self.scratch / "registry") as registry:
            storage = Storage(self.scratch / "registry" / "data", "base")
            for case in cases:
                made = self.table[case][0]
                for content in made.blobs.values():
                    storage.put_blob(content)
                entries = made.index.get("manifests") or []
                whole = json.dumps(made.index).encode()
                alone = len(entries) == 1 and entries[0].get("digest") in made.blobs and entries[0].get("mediaType") in (MANIFEST, INDEX)
                storage.put(f"t{self.numbers[case]}", made.blobs[entries[0]["digest"]] if alone else whole)
            # What the registry itself stumbles over is its failure, and asked for again until patience ends.
            served = [case for case in cases if self.serves(registry, f"t{self.numbers[case]}")]
            self.assertGreater(len(served), len(cases) // 2)
            for case in served:
                text = self.table[case][1].replace("FROM hostile", f"FROM {registry.host}/base:t{self.numbers[case]}")
                self.attempt(case, "root", dockerfile=text)
        self.assert_unharmed(self.store(), *self.scratch.glob("out-*"))
        self.assert_sound(self.store())


if __name__ == "__main__":
    unittest.main()
