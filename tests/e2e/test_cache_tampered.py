"""A remote cache that somebody has damaged: whatever becomes of it, the image is the one that the steps make.

Each case damages a copy of a good cache in one way, by a seed, and builds with an empty store: once by anybody's word, once
with a trust key. `LAYERWRIGHT_NIGHTLY=1` runs 300 of them, `LAYERWRIGHT_SEED=N` runs one. What documents a forger may write is
tested beside the format (exporter::cache): here is what becomes of whole builds.
"""

import base64
import gzip
import hashlib
import json
import os
import random
import shutil
import subprocess
import unittest

from support import Case

DOCKERFILE = """\
FROM busybox AS tool
RUN mkdir -p /d/e && echo tool > /d/tool && ln /d/tool /d/same && ln -s tool /d/link
FROM busybox
WORKDIR /work
COPY . .
RUN cat a b > ab && rm a && chmod 600 b
COPY --from=tool /d /d
"""
STEPS = 5


def seeds():
    if seed := os.environ.get("LAYERWRIGHT_SEED"):
        return [int(seed)]
    return range(300 if "LAYERWRIGHT_NIGHTLY" in os.environ else len(KINDS))


class Cache:
    """A cache in a directory, in somebody's hands."""

    def __init__(self, directory, seed):
        self.directory, self.random = directory, random.Random(seed)
        self.names = sorted((directory / "names").iterdir())
        self.blobs = sorted((directory / "blobs" / "sha256").iterdir())

    def one(self, paths):
        return self.random.choice(paths)

    def write(self, path, content):
        path.unlink()
        path.write_bytes(content)

    def flip(self, path):
        content = bytearray(path.read_bytes())
        content[self.random.randrange(len(content))] ^= 1 << self.random.randrange(8)
        self.write(path, content)

    def cut(self, path):
        content = path.read_bytes()
        self.write(path, content[:self.random.randrange(len(content))])

    def swap(self, paths):
        one, other = self.random.sample(paths, 2)
        content = one.read_bytes()
        self.write(one, other.read_bytes())
        self.write(other, content)

    def rewrite(self, change, names=None):
        """Changes documents, and whatever names them, so that only the document itself can tell."""
        for name in names or self.names:
            manifest = json.loads(name.read_bytes())
            document = change(base64.b64decode(manifest["config"]["data"]), manifest)
            digest = hashlib.sha256(document).hexdigest()
            (self.directory / "blobs" / "sha256" / digest).write_bytes(document)
            manifest["config"] |= {"digest": f"sha256:{digest}", "size": len(document),
                                   "data": base64.b64encode(document).decode()}
            self.write(name, json.dumps(manifest, separators=(",", ":")).encode())

    def sign(self, key, names=None):
        """Signs records as they are with a key; bundles are only their records."""
        def change(document, manifest):
            if "cache.record" in manifest["artifactType"]:
                message = self.directory / "message"
                message.write_bytes(b"layerwright cache record\0\x01\0\0\0" + document)
                signature = subprocess.run(["openssl", "pkeyutl", "-sign", "-rawin", "-inkey", key, "-in", message],
                                           check=True, capture_output=True)
                manifest["annotations"] = {"dev.layerwright.cache.signature": base64.b64encode(signature.stdout).decode()}
            return document
        self.rewrite(change, names)

    def bundles(self):
        return [name for name in self.names if not name.name.startswith("lw1-")]

    def records(self):
        return [name for name in self.names if name.name.startswith("lw1-")]


def edited(cache, document):
    """A document with one number, digest or word changed, as a person would with an editor."""
    text = document.decode("utf-8", "surrogateescape")
    edits = [('"version":1', '"version":2'), ('"size":', '"size":1'), ("sha256:", "sha256:0"), ("tar+gzip", "tar"),
             ('"steps":["blake3:', '"steps":["blake3:../'), ("gzip-", "../gzip-"), ('"took_ms":', '"took_ms":9'),
             ("RUN", "RAN"), ('"layers":{', '"layers":{"x":{},'), ("blake3:", "blake3:f")]
    possible = [(old, new) for old, new in edits if old in text]
    if not possible:
        return document[:-1]
    old, new = cache.random.choice(possible)
    return text.replace(old, new, 1).encode("utf-8", "surrogateescape")


def without_bundle(cache, change):
    """The records one by one: with a bundle nobody would look at them."""
    for bundle in cache.bundles():
        bundle.unlink()
    cache.names = cache.records()
    change()


# What somebody does to it, by name.
KINDS = {
    "a blob has another bit": lambda c: c.flip(c.one(c.blobs)),
    "every blob has another bit": lambda c: [c.flip(blob) for blob in c.blobs],
    "a blob is cut": lambda c: c.cut(c.one(c.blobs)),
    "a blob is gone": lambda c: c.one(c.blobs).unlink(),
    "all blobs are gone": lambda c: [blob.unlink() for blob in c.blobs],
    "two blobs have changed places": lambda c: c.swap(c.blobs),
    "the bundle has another bit": lambda c: c.flip(c.one(c.bundles())),
    "the bundle is cut": lambda c: c.cut(c.one(c.bundles())),
    "the bundle's document has another bit": lambda c: c.rewrite(
        lambda document, _: bytes([*document[:-9], document[-9] ^ 4, *document[-8:]]), c.bundles()),
    "a record is where the bundle should be": lambda c: shutil.copy(c.one(c.records()), c.bundles()[0]),
    "a bundle is where records should be": lambda c: [shutil.copy(c.bundles()[0], name) for name in c.records()],
    "there is no bundle, and a record has another bit":
        lambda c: without_bundle(c, lambda: c.flip(c.one(c.names))),
    "there is no bundle, and two records have changed places": lambda c: without_bundle(c, lambda: c.swap(c.names)),
    "there is no bundle, and records are edited":
        lambda c: without_bundle(c, lambda: c.rewrite(lambda document, _: edited(c, document))),
    "there is no bundle, and a record is gone": lambda c: without_bundle(c, lambda: c.one(c.names).unlink()),
    "there is nothing": lambda c: shutil.rmtree(c.directory / "names"),
    "names are something else": lambda c: [c.write(name, c.random.choice([b"", b"{}", b"[" * 100_000, b"null"]))
                                           for name in c.names],
}


class Tampered(Case):
    def setUp(self):
        super().setUp()
        self.project = self.context(Dockerfile=DOCKERFILE, a="a" * 5000, b="b")
        self.good, self.bad = self.scratch / "good", self.scratch / "bad"
        self.key, self.trusted = self.keys("ours")
        self.wanted = self.made("--cache-to", f"type=local,dest={self.good},tag=main", "--cache-sign-key", self.key)
        self.assertEqual(self.cached(), 0)

    def keys(self, name):
        private, public = self.scratch / f"{name}.key", self.scratch / f"{name}.pub"
        subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
        subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
        private.chmod(0o600)
        return private, public

    def made(self, *arguments):
        """Builds on a machine that has nothing; the digest of an image that is whole."""
        shutil.rmtree(self.store(), ignore_errors=True)
        image = self.scratch / "image"
        shutil.rmtree(image, ignore_errors=True)
        done = self.run_layerwright("build", "--progress", "quiet", "--output", f"type=oci,tar=false,dest={image}",
                                    *arguments, self.project)
        self.whole(image)
        return done.stdout.strip()

    def read(self, *arguments):
        return self.made("--cache-from", f"type=local,src={self.bad},tag=main", *arguments)

    def whole(self, image):
        """Every blob has its digest, and every layer its diff ID."""
        blob = lambda digest: (image / "blobs" / digest.replace(":", "/")).read_bytes()
        for path in (image / "blobs" / "sha256").iterdir():
            self.assertEqual(hashlib.sha256(path.read_bytes()).hexdigest(), path.name)
        manifest = json.loads(blob(json.loads((image / "index.json").read_text())["manifests"][0]["digest"]))
        config = json.loads(blob(manifest["config"]["digest"]))
        layers = [blob(layer["digest"]) for layer in manifest["layers"]]
        unpacked = [gzip.decompress(layer) if layer[:2] == b"\x1f\x8b" else layer for layer in layers]
        self.assertEqual([f"sha256:{hashlib.sha256(tar).hexdigest()}" for tar in unpacked], config["rootfs"]["diff_ids"])

    def cached(self):
        """How many steps of the last build the cache had."""
        done = self.run_layerwright("explain", "--format", "json", "--root", self.store())
        outcomes = [step["outcome"]["kind"] for step in json.loads(done.stdout)["steps"]]
        return outcomes.count("cached")

    def damaged(self, seed, change):
        shutil.rmtree(self.bad, ignore_errors=True)
        shutil.copytree(self.good, self.bad)
        change(Cache(self.bad, seed))

    def test_whatever_becomes_of_a_cache_the_image_is_the_same(self):
        kinds = sorted(KINDS)
        for seed in seeds():
            kind = kinds[seed % len(kinds)]
            # By anybody's word, and by ours: in turn, and both where there is time.
            trusts = [[], ["--cache-trust-key", self.trusted]]
            for trust in trusts if len(seeds()) != len(KINDS) else trusts[seed % 2:][:1]:
                with self.subTest(seed=seed, kind=kind, trust=bool(trust)):
                    self.damaged(seed, KINDS[kind])
                    self.assertEqual(self.read(*trust), self.wanted)

    def test_the_good_one_has_all_steps(self):
        """Without this the other test would say nothing."""
        self.damaged(0, lambda cache: None)
        for trust in [], ["--cache-trust-key", self.trusted]:
            self.assertEqual(self.read(*trust), self.wanted)
            self.assertEqual(self.cached(), STEPS)
        self.damaged(0, lambda cache: without_bundle(cache, lambda: None))
        self.assertEqual(self.read("--cache-trust-key", self.trusted), self.wanted)
        self.assertEqual(self.cached(), STEPS)

    def test_who_trusts_one_key_hears_nobody_else(self):
        trust = ["--cache-trust-key", self.trusted]
        other, _ = self.keys("theirs")
        unsigned = lambda document, manifest: manifest.pop("annotations") and document
        forgeries = {
            "unsigned": lambda cache: without_bundle(cache, lambda: cache.rewrite(unsigned)),
            "signed by another": lambda cache: without_bundle(cache, lambda: cache.sign(other)),
        }
        for name, forge in forgeries.items():
            with self.subTest(name):
                self.damaged(0, forge)
                self.assertEqual(self.read(), self.wanted)
                self.assertEqual(self.cached(), STEPS, "by anybody's word it is good")
                self.assertEqual(self.read(*trust), self.wanted)
                self.assertEqual(self.cached(), 0)
        self.damaged(0, lambda cache: without_bundle(cache, lambda: cache.sign(self.key)))
        self.assertEqual(self.read(*trust), self.wanted)
        self.assertEqual(self.cached(), STEPS, "what openssl signs with our key is ours")


if __name__ == "__main__":
    unittest.main()
