"""Reading what a builder wrote: an OCI layout, verified blob by blob, and its layers merged into one tree in memory.

Nothing is unpacked, so no root is needed. What a layer has wrong but can be read around (an entry twice, an absolute name,
a hard link to nothing) is kept in `Tree.problems`; what cannot be read is `Bad`.
"""

import gzip
import hashlib
import io
import json
import pathlib
import posixpath
import subprocess
import tarfile

COMPRESSION = {
    "application/vnd.oci.image.layer.v1.tar": None,
    "application/vnd.oci.image.layer.v1.tar+gzip": "gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd": "zstd",
    "application/vnd.docker.image.rootfs.diff.tar.gzip": "gzip",
    "application/vnd.docker.image.rootfs.diff.tar": None,
}
MAX_LINKS = 40  # symbolic links on one path, as the kernel counts them


class Bad(Exception):
    """The image is malformed or cannot be read."""


def digest(content):
    return "sha256:" + hashlib.sha256(content).hexdigest()


class Image:
    """One image of a layout: `digest` of its manifest, `manifest`, `config`, `tree`, and the names in every layer."""

    def __init__(self, path, platform):
        self.path = pathlib.Path(path)
        if json.loads(self.read("oci-layout")).get("imageLayoutVersion") != "1.0.0":
            raise Bad("oci-layout: version is not 1.0.0")
        index = json.loads(self.read("index.json"))
        if index.get("schemaVersion") != 2 or not index.get("manifests"):
            raise Bad("index.json: schemaVersion is not 2, or there are no manifests")
        descriptor, self.manifest = self.pick(index["manifests"][-1], platform)
        self.digest = descriptor["digest"]
        if self.manifest.get("schemaVersion") != 2:
            raise Bad("manifest: schemaVersion is not 2")
        self.config = json.loads(self.blob(self.manifest["config"]))
        for key in ("architecture", "os", "rootfs"):
            if not self.config.get(key):
                raise Bad(f"image config lacks {key}")
        self.merge()

    def merge(self):
        self.tree, self.layers = Tree(), []
        diff_ids = self.config["rootfs"].get("diff_ids") or []
        descriptors = self.manifest.get("layers") or []  # BuildKit writes null for an image without layers
        if len(diff_ids) != len(descriptors):
            raise Bad(f"{len(descriptors)} layers but {len(diff_ids)} diff_ids")
        for number, (descriptor, diff_id) in enumerate(zip(descriptors, diff_ids)):
            raw = self.layer(number, descriptor)
            if digest(raw) != diff_id:
                raise Bad(f"layer {number}: its content is {digest(raw)}, diff_id says {diff_id}")
            self.layers.append(self.tree.apply(raw, number))
        history = self.config.get("history")
        entries = [entry for entry in history or [] if not entry.get("empty_layer")]
        if history is not None and len(entries) != len(diff_ids):
            self.tree.problems.append(f"history has {len(entries)} non-empty entries for {len(diff_ids)} layers")

    def read(self, name):
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            raise Bad(f"layout lacks {name}") from None

    def blob(self, descriptor):
        content = self.read("blobs/" + descriptor["digest"].replace(":", "/"))
        if digest(content) != descriptor["digest"]:
            raise Bad(f"blob {descriptor['digest']} has other content")
        if len(content) != descriptor["size"]:
            raise Bad(f"blob {descriptor['digest']} is {len(content)} bytes, its descriptor says {descriptor['size']}")
        return content

    def pick(self, descriptor, platform, depth=0):
        """The descriptor and manifest of a platform below a descriptor that may be an index."""
        manifest = json.loads(self.blob(descriptor))
        if "manifests" not in manifest:
            return descriptor, manifest
        if depth > 3:
            raise Bad("index nested too deep")
        for child in manifest["manifests"]:
            attested = (child.get("annotations") or {}).get("vnd.docker.reference.type") == "attestation-manifest"
            about = child.get("platform") or {}
            if not attested and (not about or f"{about.get('os')}/{about.get('architecture')}" == platform):
                return self.pick(child, platform, depth + 1)
        raise Bad(f"index has no manifest for {platform}")

    def layer(self, number, descriptor):
        """The tar of a layer, decompressed."""
        if descriptor["mediaType"] not in COMPRESSION:
            raise Bad(f"layer {number}: media type {descriptor['mediaType']}")
        content = self.blob(descriptor)
        match COMPRESSION[descriptor["mediaType"]]:
            case "gzip":
                return gzip.decompress(content)
            case "zstd":
                return subprocess.run(["zstd", "-dcq"], input=content, stdout=subprocess.PIPE, check=True).stdout
        return content

    def environment(self):
        pairs = (entry.partition("=") for entry in (self.config.get("config") or {}).get("Env") or [])
        return {name: value for name, _, value in pairs}

    def content(self, path):
        """The bytes of a file of the merged tree; None when it is no file."""
        node = self.tree.nodes.get(self.tree.resolve(path))
        return node and node.get("data")


class Tree:
    """The merged file system of an image: absolute path -> attributes; hard links share `inode`."""

    def __init__(self):
        self.nodes = {"/": implied_directory(-1)}
        self.inodes = 0
        self.problems = []

    def resolve(self, path):
        """Follows the symbolic links in the parents of a path."""
        parts, done, budget = [part for part in path.split("/") if part], "/", MAX_LINKS
        while parts:
            here = posixpath.join(done, parts.pop(0))
            node = self.nodes.get(here)
            if parts and node and node["type"] == "link" and budget:
                budget -= 1
                target = posixpath.normpath(posixpath.join(done, node["link"]))
                parts, done = [part for part in target.split("/") if part] + parts, "/"
                continue
            done = here
        return done

    def below(self, path):
        prefix = path.rstrip("/") + "/"
        return [other for other in self.nodes if other.startswith(prefix) and other != "/"]

    def drop(self, paths, layer):
        """Takes away what layers before `layer` brought."""
        for path in paths:
            if path != "/" and path in self.nodes and self.nodes[path]["layer"] < layer:
                del self.nodes[path]

    def apply(self, raw, layer):
        """Applies one layer and gives the names of its entries."""
        names = []
        try:
            members = tarfile.open(fileobj=io.BytesIO(raw), mode="r:")
        except tarfile.ReadError as error:
            if not raw.strip(b"\0"):
                return names
            raise Bad(f"layer {layer}: not a tar: {error}") from None
        for member in members:
            path = posixpath.normpath("/" + member.name)
            if member.name.startswith("/") or ".." in member.name.split("/"):
                self.problems.append(f"layer {layer}: entry {member.name!r} is absolute or has '..'")
            if path in names and path != "/":
                self.problems.append(f"layer {layer}: {path} occurs twice")
            names.append(path)
            self.enter(members, member, self.resolve(path), layer)
        return names

    def enter(self, members, member, path, layer):
        directory, name = posixpath.split(path)
        if name == ".wh..wh..opq":
            return self.drop(self.below(directory), layer)
        if name.startswith(".wh."):
            hidden = posixpath.join(directory, name[4:])
            return self.drop([*self.below(hidden), hidden], layer)
        node = self.node(members, member, layer)
        if node is None:
            return None
        replaced = self.nodes.get(path)
        if replaced is not None and replaced["type"] == "dir" and node["type"] != "dir":
            self.drop([*self.below(path), path], layer + 1)
        while directory not in self.nodes:  # parents that a layer left out
            self.nodes[directory] = implied_directory(layer)
            directory = posixpath.dirname(directory)
        self.nodes[path] = node
        return None

    def node(self, members, member, layer):
        if member.islnk():
            target = self.nodes.get(self.resolve(posixpath.normpath("/" + member.linkname)))
            if target is None:
                self.problems.append(f"layer {layer}: hard link {member.name} to missing {member.linkname}")
                return None
            return {**target, "layer": layer}
        self.inodes += 1
        node = {
            "mode": member.mode & 0o7777, "uid": member.uid, "gid": member.gid, "mtime": member.mtime,
            "layer": layer, "inode": self.inodes, "xattrs": extended_attributes(member)}
        kinds = ((member.isdir, "dir"), (member.issym, "link"), (member.isfifo, "fifo"), (member.ischr, "char"),
                 (member.isblk, "block"), (member.isfile, "file"))
        kind = next((name for is_kind, name in kinds if is_kind()), None)
        if kind is None:
            self.problems.append(f"layer {layer}: {member.name} has type {member.type!r}")
            return None
        node["type"] = kind
        if kind == "link":
            node["link"] = member.linkname
        elif kind in ("char", "block"):
            node["dev"] = [member.devmajor, member.devminor]
        elif kind == "file":
            node["data"] = members.extractfile(member).read()
            node["size"] = len(node["data"])
        return node


def implied_directory(layer):
    return {"type": "dir", "mode": 0o755, "uid": 0, "gid": 0, "layer": layer, "inode": 0, "xattrs": {}}


def extended_attributes(member):
    """Name -> hexadecimal value."""
    prefix = "SCHILY.xattr."
    headers = {key: value for key, value in (member.pax_headers or {}).items() if key.startswith(prefix)}
    return {key[len(prefix):]: value.encode("utf-8", "surrogateescape").hex() for key, value in headers.items()}
