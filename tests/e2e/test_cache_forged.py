"""A remote cache in a stranger's hands, and whole builds that push out of it: what he gets them to believe.

By seed, one change of what is stored (bytes, manifests, or documents with every checksum made right again), in a directory or
below a docker-registry, and one build with an empty store: its layers are mounted where they lie, streamed to another registry,
or read by a step that has to run. With a trust key the image is always the one that the steps make, and of what was changed
nothing is believed. Without one that holds but for the lies that PASSES lists, and docs/remote-cache.md with it.

`LAYERWRIGHT_NIGHTLY=1` makes 300 changes for each, `LAYERWRIGHT_SEED=N` one.
"""

import base64
import json
import os
import random
import re
import resource
import shutil
import subprocess
import time
import unittest

import support
from forger import MARK, Directory, Forger, Storage, sha256

DOCKERFILE = """\
FROM busybox AS tool
RUN mkdir -p /d/e && echo tool > /d/tool && ln /d/tool /d/same && ln -s tool /d/link
RUN echo more >> /d/tool && chmod 750 /d/e
FROM busybox AS library
WORKDIR /library
COPY a b ./
RUN cat b a > both && rm b
FROM busybox
ENV WHO=nobody
WORKDIR /work
COPY a b ./
RUN cat a b > ab && rm a && chmod 600 b
COPY --from=tool /d /d
COPY --from=library /library /library
RUN wc -c /library/both /d/tool > /sizes
COPY late /late
RUN cat /late /sizes > /end
"""
STEPS = 13
# Records of another Dockerfile, and of another platform.
OTHER = "FROM busybox\nWORKDIR /work\nRUN echo other > /other\nCOPY late /late\n"
FOREIGN = "FROM scratch\nCOPY a b /work/\nCOPY late /late\n"
SECONDS, KILOBYTES = 60, 250_000
WAYS = ("mounted", "streamed", "read")


def of_layer(change):
    """Changes what all records say of one layer."""
    def forge(forger):
        tree = forger.random.choice(sorted(forger.layers()))
        forger.forge(lambda content: change(content["layers"][tree]) if tree in content["layers"] else None)
    return forge


def of_one_record(change):
    """Changes what one record says of a layer of which others speak, too."""
    def forge(forger):
        said = [(document, tree) for document in forger.built() for tree in forger.contents[document]["layers"]]
        trees = [tree for _, tree in said]
        document, tree = forger.random.choice([pair for pair in said if trees.count(pair[1]) > 1])
        forger.forge(lambda content: change(content["layers"][tree]), {document})
    return forge


def other_diff_id(layer):
    layer["diffId"] = sha256(layer["diffId"].encode())


def other_size(layer):
    for blob in layer["blobs"].values():
        blob["size"] += 1


def other_layers(*parts):
    """Two layers exchange parts of what is said of them."""
    def forge(forger):
        said = forger.layers()
        one, other = forger.random.sample(sorted(said), 2)
        swap = {one: said[other], other: said[one]}

        def change(content):
            for tree in swap.keys() & content["layers"].keys():
                content["layers"][tree] |= {part: swap[tree][part] for part in parts}
        forger.forge(change)
    return forge


def lie(forger):
    """The step of a record has left the layer of another, and all is as it should be."""
    documents = forger.contents
    victim = forger.one_built()
    own = documents[victim]["steps"][-1]
    described = {tree: layer for tree, layer in forger.layers().items() if tree != own}
    tree = forger.random.choice(sorted(described))

    def change(content):
        content["steps"][-1] = tree
        content["layers"][tree] = described[tree]
        content["layers"] = {tree: content["layers"][tree] for tree in content["layers"] if tree in content["steps"]}
    forger.forge(change, {victim})


def cycle(forger):
    """A step stands on itself: the file system that it ran on is the one that it left, or has its own layer in it."""
    def change(content):
        if forger.random.random() < 0.5:
            content["steps"].append(content["steps"][-1])
        else:
            content["parent"] = content["content"]
    forger.forge(change)


def path_like(forger):
    evil = forger.random.choice(["../../../../etc/passwd", "/etc/passwd", "..", "a/../../b\0c", "%2e%2e%2f"])

    def change(content):
        layer = next(iter(content["layers"].values()), None)
        match forger.random.randrange(4) if layer else 0:
            case 0: content["definition"] = f"blake3:{evil}"
            case 1: layer["blobs"] = {evil: blob for blob in layer["blobs"].values()}
            case 2: layer["tree"]["digest"] = f"sha256:{evil}"
            case 3: content["inventories"] = {evil: layer["tree"]}
    forger.forge(change)


def under_other_keys(forger):
    """A record belongs to the keys of another, by its own word."""
    one, other = forger.random.sample(forger.built(), 2)
    keys = {key: forger.contents[other][key] for key in ("definition", "content")}
    forger.forge(lambda content: content.update(keys), {one})
    exchange_names(forger, one, other)


def exchange_names(forger, one, other):
    """The names of two records stand for each other's manifests."""
    names = {document: [name for name in forger.records() if forger.document(name) == document] for document in (one, other)}
    manifests = {document: forger.place.manifest(found[0]) for document, found in names.items() if found}
    for document, target in ((one, other), (other, one)):
        for name in names[document] if target in manifests else []:
            forger.place.put(name, manifests[target])


def places_exchanged(forger):
    """Records stand under the names of others, of other platforms and Dockerfiles among them; no bundle tells."""
    forger.drop_bundle()
    names = forger.records()
    manifests = [forger.place.manifest(name) for name in names]
    forger.random.shuffle(manifests)
    for name, manifest in zip(names, manifests):
        forger.place.put(name, manifest)


def foreign_bundle(forger):
    """The bundle is that of the other platform, or of the other Dockerfile."""
    forger.place.put(forger.bundle, forger.place.manifest(forger.random.choice(["foreign", "other"])))


def a_million(forger):
    """A bundle of 10^6 records, or one that unpacks without end; or records of millions of things."""
    match forger.random.randrange(4):
        case 0: forger.pack(b"".join(b"\x01\x04\0\0\0\0%04x" % (n & 0xffff) for n in range(1_000_000)))
        case 1: forger.pack(bytes(200 << 20))
        case 2: forger.forge(lambda content: content.update(steps=content["steps"][-1:] * 50_000), {forger.one_built()})
        case 3:
            fields = {f"~{n}": "x" for n in range(300_000)}
            forger.forge(lambda content: content["preImage"].update(fields), {forger.one_built()})


def nested(forger):
    """What is no manifest, or an index of itself, where names are."""
    bundle = json.loads(forger.place.manifest(forger.bundle))
    itself = {"mediaType": bundle["mediaType"], "digest": sha256(forger.place.manifest(forger.bundle)),
              "size": len(forger.place.manifest(forger.bundle))}
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [itself] * 1000}
    image = bundle | {"config": bundle["config"] | {"mediaType": "application/vnd.oci.image.config.v1+json"}}
    odd = [b"", b"{}", b"[" * 100_000, b"null", json.dumps(index).encode(), json.dumps(image).encode(), bytes(5 << 20)]
    for name in [forger.bundle, *forger.records()]:
        forger.place.put(name, forger.random.choice(odd))


def manifests(change, bundle_too=True):
    return lambda forger: forger.manifests(
        lambda manifest: change(forger, manifest), forger.records() + [forger.bundle] * bundle_too)


def one_by_one(then):
    def forge(forger):
        then(forger)
        forger.drop_bundle()
    return forge


def each(change, kinds=("blobs", "tree")):
    return lambda forger: [change(forger, digest) for digest in forger.blobs(kinds)]


def one(change, kinds=("blobs", "tree")):
    return lambda forger: change(forger, forger.random.choice(forger.blobs(kinds)))


def gone(forger, digest):
    forger.place.blob(digest).unlink(missing_ok=True)


def edited_document(forger, manifest):
    """The document says something else, and its digest is right; the checksum in it is not."""
    data = bytearray(base64.b64decode(manifest["config"]["data"]))
    data[forger.random.randrange(len(data))] ^= 1
    manifest["config"] |= {"digest": sha256(data), "data": base64.b64encode(data).decode()}


# What is done to the cache, by name.
KINDS = {
    # Bytes
    "a blob has another bit": one(Forger.flip),
    "every layer has another bit": each(Forger.flip, ["blobs"]),
    "every tree has another bit": each(Forger.flip, ["tree"]),
    "a blob is cut": one(Forger.cut),
    "a blob is gone": one(gone),
    "all blobs are gone": each(gone),
    "two layers' blobs have changed places": lambda f: f.exchange(f.blobs(["blobs"])),
    "two trees' blobs have changed places": lambda f: f.exchange(f.blobs(["tree"])),
    # Names and manifests
    "the bundle and a record are gone": lambda f: (f.drop_bundle(), f.place.drop(f.random.choice(f.records()))),
    "records are under names of others": places_exchanged,
    "the bundle is another build's": foreign_bundle,
    "names are something else": nested,
    "documents have another bit": manifests(edited_document),
    "manifests name paths": manifests(lambda _, manifest: manifest["config"].update(digest="sha256:../../../etc/passwd")),
    "manifests say other sizes": manifests(lambda _, manifest: manifest["config"].update(size=1 << 60)),
    # Documents, made right again
    "versions are other ones": lambda f: f.forge(lambda _: None, version=f.random.choice([0, 2, 1 << 31])),
    "the bundle has another version": lambda f: (f.pack(b"", version=2), [f.place.drop(name) for name in f.records()]),
    "a step stands on itself": cycle,
    "keys and names are paths": path_like,
    "there is a million of something": a_million,
    "records are looked up one by one, and a step stands on itself": one_by_one(cycle),
    "one record has another diff ID of a layer": of_one_record(other_diff_id),
    "one record has another size of a layer": of_one_record(other_size),
    "a layer has another diff ID": of_layer(other_diff_id),
    "a layer has another size": of_layer(other_size),
    "two layers have each other's blobs": other_layers("blobs"),
    "two layers have each other's trees": other_layers("tree"),
    "two layers have changed places": other_layers("blobs", "diffId"),
    "two layers have changed places, trees and all": other_layers("blobs", "diffId", "tree"),
    "a record has another's layer": lie,
    "a record is another's": under_other_keys,
}

# What nobody can find without a signature, by the way in which the layers are used: only what is read is compared.
PASSES = {
    "a layer has another diff ID": ["mounted"],
    "a layer has another size": ["mounted"],
    "two layers have each other's blobs": ["mounted"],
    "two layers have changed places": ["mounted", "streamed"],
    "two layers have changed places, trees and all": ["mounted", "streamed"],
    "a record has another's layer": ["mounted", "streamed", "read"],
    "a record is another's": ["mounted", "streamed", "read"],
}


def seeds():
    """`LAYERWRIGHT_SEED=N`, or `N-M` for those from N up to M."""
    if seed := os.environ.get("LAYERWRIGHT_SEED"):
        first, _, last = seed.partition("-")
        return range(int(first), int(last or first) + 1)
    return range(300 if "LAYERWRIGHT_NIGHTLY" in os.environ else 24)


class Forged(support.Case):
    def setUp(self):
        super().setUp()
        self.project = self.context(Dockerfile=DOCKERFILE, a="a" * 5000, b="b", late="late\n", other=OTHER, foreign=FOREIGN)
        self.near = self.enterContext(support.Registry(self.scratch / "near"))
        self.far = self.enterContext(support.Registry(self.scratch / "far"))
        self.key, self.trusted = self.scratch / "ours.key", self.scratch / "ours.pub"
        subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", self.key], check=True)
        subprocess.run(["openssl", "pkey", "-in", self.key, "-pubout", "-out", self.trusted], check=True)
        self.key.chmod(0o600)
        self.fill()

    def fill(self):
        """Clean builds fill a registry and a directory, and say what is wanted."""
        fill = lambda tag: ["--cache-to", f"type=registry,ref={self.near.host}/cache:{tag}",
                            "--cache-to", f"type=local,dest=cache,tag={tag}", "--cache-sign-key", self.key]
        self.wanted = {"mounted": self.made("--push", "-t", f"{self.near.host}/app", *fill("main"))}
        self.wanted["streamed"] = self.wanted["mounted"]
        self.made("-f", self.project / "other", "-o", "type=cacheonly", *fill("other"))
        self.made("-f", self.project / "foreign", "--platform", "linux/arm64", "-o", "type=cacheonly", *fill("foreign"))
        self.edited = self.scratch / "edited"
        shutil.copytree(self.project, self.edited)
        (self.edited / "late").write_text("later\n")
        self.wanted["read"] = self.made("--push", "-t", f"{self.far.host}/app", context=self.edited)
        # The image is not here yet, so its layers are mounted out of the cache.
        shutil.rmtree(self.near.directory / "data" / "docker" / "registry" / "v2" / "repositories" / "app")
        self.good = {"registry": self.scratch / "good-registry", "directory": self.scratch / "good-directory"}
        shutil.copytree(self.near.directory / "data", self.good["registry"])
        shutil.copytree(self.scratch / "cache", self.good["directory"])

    def made(self, *arguments, context=None, code=0):
        """The digest that a machine gets which has nothing; with no code, nothing where a step fails."""
        shutil.rmtree(self.store(), ignore_errors=True)
        begun = time.monotonic()
        self.last = self.run_layerwright("build", "--progress", "plain", *arguments, context or self.project, code=code)
        self.assertLess(time.monotonic() - begun, SECONDS)
        self.assertLess(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, KILOBYTES)
        self.assertNotIn("panic", self.last.stderr)
        built = re.search(r"^Built (sha256:[0-9a-f]{64}) ", self.last.stderr, re.MULTILINE)
        if not built:
            self.assertIn("did not complete successfully", self.last.stderr)
        return built and built[1]

    def cached(self):
        return self.last.stderr.count("CACHED from")

    def forged(self, place, seed, change):
        """The cache as it was, and what somebody has made of it."""
        data, directory = self.near.directory / "data", self.scratch / "cache"
        for path in (data, directory, self.far.directory / "data"):
            shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(self.good["registry"], data)
        shutil.copytree(self.good["directory"], directory)
        forger = Forger(Storage(data, "cache") if place == "registry" else Directory(directory), seed)
        change(forger)
        return forger

    def read(self, place, way, *arguments, code=0):
        source = f"registry,ref={self.near.host}/cache:main" if place == "registry" else "local,src=cache,tag=main"
        target = self.far if way == "streamed" else self.near
        return self.made("--cache-from", f"type={source}", "--push", "-t", f"{target.host}/app", *arguments,
                         context=self.edited if way == "read" else self.project, code=code)

    def believed(self):
        """Whether something that was written anew has come into the store."""
        found = subprocess.run(["grep", "-rqF", f'"{MARK}"', self.store()], check=False)
        return found.returncode == 0

    def check(self, seed, *trust):
        kinds = sorted(KINDS)
        kind, chosen = kinds[seed % len(kinds)], random.Random(seed)
        way, place = chosen.choice(WAYS), chosen.choice(["registry", "registry", "directory"])
        with self.subTest(seed=seed, kind=kind, way=way, place=place, trust=bool(trust)):
            self.forged(place, seed, KINDS[kind])
            # Out of a directory nothing can be mounted.
            used = "streamed" if (place, way) == ("directory", "mounted") else way
            passes = not trust and used in PASSES.get(kind, [])
            # Where a step stands on a lie, it may fail.
            digest = self.read(place, way, *trust, code=None if passes else 0)
            if not passes:
                self.assertEqual(digest, self.wanted[way], self.last.stderr)
            if trust:
                self.assertFalse(self.believed())

    def test_what_is_forged_is_not_believed(self):
        """At night every seed with a key and without one; else in turn. One seed alone: both."""
        trusts = [["--cache-trust-key", self.trusted], []]
        both = bool({"LAYERWRIGHT_NIGHTLY", "LAYERWRIGHT_SEED"} & os.environ.keys())
        for seed in seeds():
            for trust in trusts if both else trusts[seed % 2:][:1]:
                self.check(seed, *trust)

    def test_the_good_one_has_all_steps(self):
        """Without this the others would say nothing."""
        every = "LAYERWRIGHT_NIGHTLY" in os.environ
        for place in self.good:
            for way in WAYS if every else WAYS[:1]:
                for trust in ([], ["--cache-trust-key", self.trusted]) if every else [[]]:
                    with self.subTest(place=place, way=way, trust=bool(trust)):
                        self.forged(place, 0, lambda _: None)
                        self.assertEqual(self.read(place, way, *trust), self.wanted[way])
                        self.assertEqual(self.cached(), STEPS - 2 * (way == "read"), self.last.stderr)
            # What is only written anew is as good as it was, and for nobody who wants a signature.
            self.forged(place, 0, lambda forger: forger.forge(lambda _: None))
            self.assertEqual(self.read(place, "streamed"), self.wanted["streamed"])
            self.assertTrue(self.cached() == STEPS and self.believed(), self.last.stderr)
            self.forged(place, 0, lambda forger: forger.forge(lambda _: None))
            self.assertEqual(self.read(place, "streamed", "--cache-trust-key", self.trusted), self.wanted["streamed"])
            self.assertTrue(self.cached() == 0 and not self.believed(), self.last.stderr)


if __name__ == "__main__":
    unittest.main()
