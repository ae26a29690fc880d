"""Somebody who can write a remote cache: changes what is stored there, below everybody's feet.

`Directory` and `Storage` are the two places where a cache lies, a directory and what a docker-registry keeps on its disk;
`Forger` knows the format (docs/remote-cache.md), and makes every checksum and digest right again that a change has made
wrong. Whatever it writes anew says `forged` where it says in which build it was made.
"""

import base64
import copy
import functools
import hashlib
import json
import pathlib
import random
import struct
import subprocess

MARK = "forged"


def sha256(content):
    return "sha256:" + hashlib.sha256(content).hexdigest()


def piped(command, content):
    return subprocess.run(command, input=content, check=True, capture_output=True, timeout=60).stdout


def blake3(content):
    return piped(["b3sum", "--no-names"], content).decode().strip()


def dense(value):
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def document_of(manifest):
    """The document that is embedded in an artifact's manifest."""
    return base64.b64decode(json.loads(manifest)["config"]["data"])


class Directory:
    """A cache in a directory."""

    def __init__(self, path):
        self.path = pathlib.Path(path)

    def names(self):
        return sorted(file.stem for file in (self.path / "names").iterdir())

    def manifest(self, name):
        return (self.path / "names" / f"{name}.json").read_bytes()

    def put(self, name, manifest):
        (self.path / "names" / f"{name}.json").write_bytes(manifest)

    def drop(self, name):
        (self.path / "names" / f"{name}.json").unlink()

    def blob(self, digest):
        return self.path / "blobs" / digest.replace(":", "/")

    def put_blob(self, content):
        self.blob(sha256(content)).write_bytes(content)


class Storage:
    """A repository in what a docker-registry has on disk."""

    def __init__(self, path, repository):
        root = pathlib.Path(path) / "docker" / "registry" / "v2"
        self.blobs, self.repository = root / "blobs", root / "repositories" / repository
        self.tags = self.repository / "_manifests" / "tags"

    def names(self):
        return sorted(tag.name for tag in self.tags.iterdir())

    def manifest(self, name):
        return self.blob((self.tags / name / "current" / "link").read_text()).read_bytes()

    def put(self, name, manifest):
        digest = sha256(manifest)
        self.store(manifest)
        place = digest.replace(":", "/")
        revision = self.repository / "_manifests" / "revisions" / place
        for directory in (self.tags / name / "current", self.tags / name / "index" / place, revision):
            directory.mkdir(parents=True, exist_ok=True)
            (directory / "link").write_text(digest)

    def drop(self, name):
        (self.tags / name / "current" / "link").unlink()

    def blob(self, digest):
        algorithm, digits = digest.split(":")
        return self.blobs / algorithm / digits[:2] / digits / "data"

    def store(self, content):
        file = self.blob(sha256(content))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)

    def put_blob(self, content):
        self.store(content)
        link = self.repository / "_layers" / sha256(content).replace(":", "/")
        link.mkdir(parents=True, exist_ok=True)
        (link / "link").write_text(sha256(content))


class Forger:
    """One who changes a cache, by a seed."""

    def __init__(self, place, seed, bundle="main"):
        self.place, self.random, self.bundle = place, random.Random(seed), bundle

    # What is there

    def records(self):
        return [name for name in self.place.names() if name.startswith("lw1-")]

    def document(self, name):
        return document_of(self.place.manifest(name))

    @functools.cached_property
    def contents(self):
        """What every record says, by its document: each once, under its names or in the bundle. As it was in the beginning."""
        documents = sorted({self.document(name) for name in self.records()} | {document for document, _ in self.unpacked()[0]})
        said = [(document, json.loads(document)["content"]) for document in documents]
        # Not by their digests, which are others each time: a seed chooses the same record in every run.
        return dict(sorted(said, key=lambda pair: (pair[1]["definition"], pair[1]["content"], pair[1]["made"]["by"]["build"])))

    def built(self):
        """The records of steps that wrote something, as they are."""
        return [document for document, content in self.contents.items() if content["steps"][-1] in content["layers"]]

    def layers(self):
        """What is said of every layer, by its tree."""
        return {tree: layer for content in self.contents.values() for tree, layer in content["layers"].items()}

    # Bytes

    def flip(self, digest):
        content = bytearray(self.place.blob(digest).read_bytes())
        content[self.random.randrange(len(content))] ^= 1 << self.random.randrange(8)
        self.place.blob(digest).write_bytes(content)

    def cut(self, digest):
        content = self.place.blob(digest).read_bytes()
        self.place.blob(digest).write_bytes(content[:self.random.randrange(len(content))])

    def exchange(self, digests):
        one, other = (self.place.blob(digest) for digest in self.random.sample(digests, 2))
        content = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(content)

    def manifests(self, change, names):
        """Changes manifests as they are stored, whatever that gives."""
        for name in names:
            manifest = json.loads(self.place.manifest(name))
            change(manifest)
            self.place.put(name, dense(manifest))

    # Documents, with all their digests

    def write(self, name, document):
        """Puts a document where a name is."""
        manifest = json.loads(self.place.manifest(name))
        manifest["config"] |= {"digest": sha256(document), "size": len(document)}
        manifest["config"]["data"] = base64.b64encode(document).decode()
        manifest["config"].pop("data") if len(document) > 512 << 10 else None
        self.place.put_blob(document)
        self.place.put(name, dense(manifest))

    def sealed(self, content, version=1):
        """A record with its checksum."""
        rest = b'"version":%d,"content":%s}' % (version, dense(content))
        return b'{"digest":"blake3:%s",%s\n' % (blake3(rest).encode(), rest)

    def unpacked(self):
        """The entries of the bundle: records with their signatures, and the bytes of what else is in it."""
        content = piped(["zstd", "-dcq"], self.document(self.bundle)[44:])
        records, at = [], 0
        while at < len(content) and content[at] == 1:
            length, signed = struct.unpack_from("<IB", content, at + 1)
            at += 6 + signed + length
            records.append((content[at - length:at], content[at - length - signed:at - length]))
        return records, content[at:]

    def pack(self, content, version=1):
        head = b"lwbundle" + struct.pack("<I", version) + bytes.fromhex(blake3(content))
        self.write(self.bundle, head + piped(["zstd", "-cq"], content))

    def forge(self, change, only=None, version=1):
        """Changes what records say (all, or those of the documents `only`), under their names and in the bundle, and makes
        everything right again but their signatures, which are what they were."""
        new = {}
        for document, content in self.contents.items():
            if only is None or document in only:
                content = copy.deepcopy(content)
                content["made"]["by"]["build"] = MARK
                change(content)
                content["layers"] = dict(sorted(content["layers"].items()))
                new[document] = self.sealed(content, version)
        for name in self.records():
            if (document := self.document(name)) in new:
                self.write(name, new[document])
        records, rest = self.unpacked()
        entry = lambda document, signature: b"\x01" + struct.pack("<IB", len(document), len(signature)) + signature + document
        changed = sorted({(new.get(document, document), signature) for document, signature in records})
        self.pack(b"".join(entry(*record) for record in changed) + rest)

    def drop_bundle(self):
        """So that records are asked for one by one."""
        self.place.drop(self.bundle)
