"""What somebody does to a remote cache that he can write, by name: I1 of what a cache must bear.

VISIBLE is what digests, checksums and the records themselves show, if layers are used in one of the ways that stand with it: *mounted*
where they lie, *streamed* to another registry, or *read* by a step that has to run. A build that meets one of these runs a
step that it would have found, and gets the right image. LIES are consistent, every checksum made right again: what docs/remote-cache.md
says of them stands with them. All change something that the build uses.
"""

import base64
import json

from forger import Forger, document_of, sha256

MOUNTED, STREAMED, READ = WAYS = ("mounted", "streamed", "read")
# A build that has to read layers runs so many steps anyhow, the last ones.
RUN_ANYHOW = {MOUNTED: 0, STREAMED: 0, READ: 2}


class Tampering(Forger):
    """Changes of what a build of a way uses."""

    def __init__(self, place, seed, way):
        super().__init__(place, seed)
        longest = sorted(self.contents, key=lambda document: len(self.contents[document]["steps"]))
        # Without a later hit nobody stands for its chain.
        self.top = longest[-1 - RUN_ANYHOW[way]]
        steps = self.contents[self.top]["steps"]
        self.used = [tree for tree in sorted(self.contents[self.top]["layers"]) if tree in steps]

    def used_blobs(self, kind):
        layers = [self.contents[self.top]["layers"][tree] for tree in self.used]
        found = {layer["tree"]["digest"] for layer in layers} if kind == "tree" else {
            blob["digest"] for layer in layers for blob in layer["blobs"].values()}
        return sorted(found)

    def names_of(self, document):
        return [name for name in self.records() if self.document(name) == document]


def of_layer(change):
    """Changes what all records say of one layer."""
    def forge(forger):
        tree = forger.random.choice(forger.used)
        forger.forge(lambda content: change(content["layers"][tree]) if tree in content["layers"] else None)
    return forge


def of_one_record(change):
    """Changes what one record says of a layer of which others speak, too. What the bundle answers nobody looks up by its name."""
    def forge(forger):
        bundled = {document for document, _ in forger.unpacked()[0]}
        said = [(document, tree) for document in forger.built() if document in bundled
                for tree in forger.contents[document]["layers"] if tree in forger.used]
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
        one, other = forger.random.sample(forger.used, 2)
        swap = {one: said[other], other: said[one]}

        def change(content):
            for tree in swap.keys() & content["layers"].keys():
                content["layers"][tree] |= {part: swap[tree][part] for part in parts}
        forger.forge(change)
    return forge


def lie(forger):
    """The step of a record has left the layer of another, and all is as it should be."""
    documents = forger.contents
    victim = forger.top
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
    """Two records belong to the keys of each other, by their own word, and stand where each other stood. One has more steps
    below than the other; with as many it would be a lie like `lie`."""
    other = forger.top
    height = lambda document: len(forger.contents[document]["steps"])
    one = forger.random.choice([document for document in forger.built() if height(document) != height(other)])
    keys = {document: {key: forger.contents[document][key] for key in ("definition", "content")} for document in (one, other)}
    swap = {keys[one]["content"]: keys[other], keys[other]["content"]: keys[one]}
    forger.forge(lambda content: content.update(swap[content["content"]]), {one, other})
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
    own = forger.names_of(forger.top)
    forger.drop_bundle()
    names = forger.records()
    manifests = {name: forger.place.manifest(name) for name in names}
    good = {manifests[name] for name in own}
    while True:
        shuffled = forger.random.sample(names, len(names))
        if not any(manifests[other] in good for name, other in zip(names, shuffled) if name in own):
            break
    for name, other in zip(names, shuffled):
        forger.place.put(name, manifests[other])


def foreign(forger):
    """The bundle is that of the other platform, or of the other Dockerfile, and so are the records."""
    forger.place.put(forger.bundle, forger.place.manifest(forger.random.choice(["foreign", "other"])))
    others = forger.place.manifest("foreign"), forger.place.manifest("other")
    for name in forger.records():
        forger.place.put(name, forger.random.choice(others))


def record_gone(forger):
    for name in forger.names_of(forger.top):
        forger.place.drop(name)
    forger.drop_bundle()


def kinds_exchanged(forger):
    """A record is where the bundle should be, and the bundle where records should be. It is not the one that stands for all that is
    used: a good record is good wherever it is found."""
    bundle = forger.place.manifest(forger.bundle)
    others = [name for name in forger.records() if not set(forger.used) <= set(forger.contents[forger.document(name)]["steps"])]
    forger.place.put(forger.bundle, forger.place.manifest(forger.random.choice(others)))
    for name in forger.records():
        forger.place.put(name, bundle)


def a_million(forger):
    """A bundle of 10^6 records, or one that unpacks without end; or a record of millions of things."""
    kind = forger.random.randrange(4)
    if kind < 2:
        forger.pack(bytes(200 << 20) if kind else b"".join(b"\x01\x04\0\0\0\0%04x" % (n & 0xffff) for n in range(1_000_000)))
        return [forger.place.drop(name) for name in forger.records()]
    fields = {f"~{n}": "x" for n in range(300_000)}
    steps = lambda content: content.update(steps=content["steps"][-1:] * 50_000)
    return forger.forge(steps if kind == 2 else lambda content: content["preImage"].update(fields), {forger.top})


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


def each(change, kind):
    return lambda forger: [change(forger, digest) for digest in forger.used_blobs(kind)]


def one(change, kind):
    return lambda forger: change(forger, forger.random.choice(forger.used_blobs(kind)))


def gone(forger, digest):
    forger.place.blob(digest).unlink(missing_ok=True)


def edited_document(forger, manifest):
    """The document says something else, and its digest is right; the checksum in it is not."""
    data = bytearray(base64.b64decode(manifest["config"]["data"]))
    data[forger.random.randrange(len(data))] ^= 1
    manifest["config"] |= {"digest": sha256(data), "data": base64.b64encode(data).decode()}


def edited_by_hand(forger, manifest):
    """A number, digest or word is another one, as a person would change it with an editor."""
    text = document_of(json.dumps(manifest)).decode("utf-8", "surrogateescape")
    edits = [('"version":1', '"version":2'), ('"size":', '"size":1'), ("sha256:", "sha256:0"), ("tar+gzip", "tar"),
             ('"steps":["blake3:', '"steps":["blake3:../'), ("gzip-", "../gzip-"), ('"took_ms":', '"took_ms":9'),
             ("RUN", "RAN"), ('"layers":{', '"layers":{"x":{},'), ("blake3:", "blake3:f")]
    possible = [edit for edit in edits if edit[0] in text]
    text = text.replace(*forger.random.choice(possible), 1) if possible else text[:-1]
    data = text.encode("utf-8", "surrogateescape")
    manifest["config"] |= {"digest": sha256(data), "size": len(data), "data": base64.b64encode(data).decode()}


# Layers that are only mounted nobody looks at: who has damaged bytes below a registry has damaged what it has of images, too.
LOOKED_AT = (STREAMED, READ)
VISIBLE = {
    # Bytes
    "a blob has another bit": (one(Forger.flip, "blob"), LOOKED_AT),
    "every layer has another bit": (each(Forger.flip, "blob"), LOOKED_AT),
    "a blob is cut": (one(Forger.cut, "blob"), LOOKED_AT),
    "two layers' blobs have changed places": (lambda f: f.exchange(f.used_blobs("blob")), LOOKED_AT),
    "a tree has another bit": (one(Forger.flip, "tree"), (READ,)),
    "every tree has another bit": (each(Forger.flip, "tree"), (READ,)),
    "two trees' blobs have changed places": (lambda f: f.exchange(f.used_blobs("tree")), (READ,)),
    "a blob is gone": (one(gone, "blob"), WAYS),
    "a tree is gone": (one(gone, "tree"), (READ,)),
    "all blobs are gone": (lambda f: (each(gone, "blob")(f), each(gone, "tree")(f)), WAYS),
    # Names and manifests
    "a record is gone": (record_gone, WAYS),
    "records are under names of others": (places_exchanged, WAYS),
    "all is another platform's, or another build's": (foreign, WAYS),
    "records and the bundle are in each other's place": (kinds_exchanged, WAYS),
    "names are something else": (nested, WAYS),
    "documents have another bit": (manifests(edited_document), WAYS),
    "documents are edited by hand": (one_by_one(manifests(edited_by_hand)), WAYS),
    "manifests name paths": (manifests(lambda _, manifest: manifest["config"].update(digest="sha256:../../../etc/passwd")), WAYS),
    "manifests say other sizes": (manifests(lambda _, manifest: manifest["config"].update(size=1 << 60)), WAYS),
    # Documents, with all checksums right
    "versions are other ones": (lambda f: f.forge(lambda _: None, version=f.random.choice([0, 2, 1 << 31])), WAYS),
    "the bundle has another version": (lambda f: (f.pack(b"", version=2), [f.place.drop(name) for name in f.records()]), WAYS),
    "a step stands on itself": (cycle, WAYS),
    "keys and names are paths": (path_like, WAYS),
    "a record has the keys of another, and its place": (under_other_keys, WAYS),
    "there is a million of something": (a_million, WAYS),
    "records are looked up one by one, and a step stands on itself": (one_by_one(cycle), WAYS),
    "one record has another diff ID of a layer": (of_one_record(other_diff_id), WAYS),
    "one record has another size of a layer": (of_one_record(other_size), WAYS),
    "a layer has another diff ID": (of_layer(other_diff_id), LOOKED_AT),
    "a layer has another size": (of_layer(other_size), LOOKED_AT),
    "two layers have each other's blobs": (other_layers("blobs"), LOOKED_AT),
    "two layers have each other's trees": (other_layers("tree"), (READ,)),
    "two layers have changed places": (other_layers("blobs", "diffId"), (READ,)),
    "two layers have changed places, trees and all": (other_layers("blobs", "diffId", "tree"), (READ,)),
}

# In which ways what is forged is not found without a key: the table of docs/remote-cache.md.
LIES = {
    "a layer has another diff ID": (of_layer(other_diff_id), (MOUNTED,)),
    "a layer has another size": (of_layer(other_size), (MOUNTED,)),
    "two layers have each other's blobs": (other_layers("blobs"), (MOUNTED,)),
    "two layers have changed places": (other_layers("blobs", "diffId"), (MOUNTED, STREAMED)),
    "two layers have changed places, trees and all": (other_layers("blobs", "diffId", "tree"), (MOUNTED, STREAMED)),
    "a record has another's layer": (lie, WAYS),
}
