"""Base images: what is read of them, what is not, and all forms that their layers have in registries."""

import gzip
import hashlib
import io
import json
import resource
import subprocess
import tarfile
import unittest
import urllib.request

import craft
from support import USERS, Case, Layout, Registry

TYPES = {
    "application/vnd.oci.image.layer.v1.tar": bytes,
    "application/vnd.oci.image.layer.v1.tar+gzip": lambda tar: gzip.compress(tar, mtime=0),
    "application/vnd.oci.image.layer.v1.tar+zstd": lambda tar: zstd(tar),
    "application/vnd.docker.image.rootfs.diff.tar": bytes,
    "application/vnd.docker.image.rootfs.diff.tar.gzip": lambda tar: gzip.compress(tar, mtime=0),
}
DOCKERFILE = "WORKDIR /l/sub\nCOPY --chown=app f ./\nCOPY f /l/\nCOPY f /data/old\n"


def zstd(tar):
    return subprocess.run(["zstd", "-q", "-c"], input=tar, stdout=subprocess.PIPE, check=True).stdout


def tar(*entries):
    """(name, kind, argument) of each entry: a directory, a link and its target, or a file and its text."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, kind, argument in entries:
            entry = tarfile.TarInfo(name)
            entry.mtime, entry.mode = 1_000_000_000, 0o755
            data = b""
            if kind == "dir":
                entry.type = tarfile.DIRTYPE
            elif kind == "link":
                entry.type, entry.linkname = tarfile.SYMTYPE, argument
            else:
                data = argument.encode()
                entry.size, entry.mode = len(data), 0o644
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def layers():
    """Three layers: directories and a user, a link to a directory, a whiteout."""
    return [
        tar(("data", "dir", ""), ("data/old", "file", "old"), ("data/gone", "file", "gone"), ("etc", "dir", ""),
            ("etc/passwd", "file", "root:x:0:0::/:/bin/sh\napp:x:40:41::/:/bin/sh\n"), ("etc/group", "file", "app:x:41:\n")),
        tar(("l", "link", "/data")),
        tar(("data/.wh.gone", "file", ""), ("data/new/f", "file", "new")),
    ]


class Pusher:
    """Puts images into a registry by hand, blob by blob."""

    def __init__(self, registry, repository):
        self.base = f"http://{registry.host}/v2/{repository}"

    def call(self, method, url, data=b"", **headers):
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        return urllib.request.urlopen(urllib.request.Request(url, data=data, method=method, headers=headers))

    def blob(self, media_type, data):
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        location = self.call("POST", f"{self.base}/blobs/uploads/").headers["Location"]
        self.call("PUT", f"{location}&digest={digest}", data, Content_Type="application/octet-stream")
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    def image(self, tag, tars, media_type):
        """An image whose layers have this type."""
        kind = "docker" if ".docker." in media_type else "oci"
        config_type, manifest_type = {
            "docker": ("application/vnd.docker.container.image.v1+json", "application/vnd.docker.distribution.manifest.v2+json"),
            "oci": ("application/vnd.oci.image.config.v1+json", "application/vnd.oci.image.manifest.v1+json"),
        }[kind]
        pack = TYPES.get(media_type, bytes)
        blobs = [self.blob(media_type, pack(tar)) for tar in tars]
        diff_ids = [f"sha256:{hashlib.sha256(tar).hexdigest()}" for tar in tars]
        config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}}
        manifest = {"schemaVersion": 2, "mediaType": manifest_type,
                    "config": self.blob(config_type, json.dumps(config).encode()), "layers": blobs}
        self.call("PUT", f"{self.base}/manifests/{tag}", json.dumps(manifest).encode(), Content_Type=manifest_type)
        return blobs


class Base(Case):
    def unpacked(self, user="root"):
        return [path for path in (self.store(user) / "snapshots").iterdir() if (path / "meta.json").exists()]

    def test_layers_of_all_types_are_read_and_unpacked(self):
        with Registry(self.scratch / "registry") as registry:
            pusher = Pusher(registry, "base")
            own = set()
            for number, media_type in enumerate(TYPES):
                pusher.image(f"t{number}", layers(), media_type)
                context = self.context(f"c{number}", Dockerfile=f"FROM {registry.host}/base:t{number} AS base\n{DOCKERFILE}", f="new")
                store = self.scratch / f"store-{number}"
                layout = self.build(context, name=f"looked{number}", root=store)
                Layout(layout).validate()
                self.assertEqual([], list((store / "snapshots").iterdir()), "nothing is unpacked")
                self.assertEqual(3, len(list((store / "catalogues").iterdir())))
                own.add(json.dumps(Layout(layout).manifest["layers"][3:]))

                # Where another step reads it on disk, it is unpacked and looked at there.
                store = self.scratch / f"store-unpacked-{number}"
                text = (context / "Dockerfile").read_text()
                (context / "Dockerfile").write_text(f"{text}FROM base\nCOPY --from=base /l/sub/f /data/new/f /\n")
                self.assertEqual(b"new", Layout(self.build(context, name=f"copied{number}", root=store)).read("f"))
                self.assertEqual([], list((store / "catalogues").iterdir()))
                (context / "Dockerfile").write_text(text)
                unpacked = self.build(context, "--no-cache", name=f"unpacked{number}", root=store)
                self.assertEqual(Layout(layout).digest, Layout(unpacked).digest)
                self.assertEqual([], list((store / "catalogues").iterdir()))
            self.assertEqual(1, len(own), "the layers of the steps are the same on a base of any form")

    def test_a_base_of_more_layers_than_a_login_may_open_files(self):
        image = craft.Image(*(craft.file(b"f%d" % at, b"x") + craft.END for at in range(300)))
        image.write(self.scratch / "deep")
        context = self.context(Dockerfile="FROM busybox\nRUN --mount=from=deep,target=/m ls /m | wc -l > /count; ulimit -Sn >> /count\n")
        layout = self.build(context, "--build-context", f"deep=oci-layout://{self.scratch}/deep",
                            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (128, 4096)))
        self.assertEqual(b"300\n1024\n", Layout(layout).read("count"), "the limit of a step is its own")

    def test_a_base_that_is_only_looked_at_is_read_once_and_never_unpacked_or_sent(self):
        with Registry(self.scratch / "registry") as registry:
            blobs = Pusher(registry, "base").image("latest", layers(), "application/vnd.docker.image.rootfs.diff.tar.gzip")
            digests = [blob["digest"] for blob in blobs]
            for user in USERS:
                context = self.context(f"context-{user}", Dockerfile=f"FROM {registry.host}/base\n{DOCKERFILE}", f=f"new {user}")
                name = f"{registry.host}/{user}"
                before = len(registry.requests())
                self.run_layerwright("build", "-t", name, "--push", context, user=user)
                requests = registry.requests()[before:]
                read = [path for method, path, _ in requests if method == "GET" and "/blobs/" in path]
                self.assertEqual(1, min(sum(digest in path for path in read) for digest in digests), "each is read")
                self.assertEqual(1, max(sum(digest in path for path in read) for digest in digests), "and once")
                sent = [path for method, path, _ in requests if method in ("PUT", "PATCH") and any(d in path for d in digests)]
                self.assertEqual([], sent, "nothing of the base goes up")
                self.assertEqual([], self.unpacked(user))

                (context / "f").write_text(f"newer {user}")
                before = len(registry.requests())
                self.run_layerwright("build", "-t", name, "--push", context, user=user)
                read = [path for method, path, _ in registry.requests()[before:] if method == "GET" and "/blobs/" in path]
                self.assertEqual([], read, "the next build knows what the base holds")

    def test_what_cannot_be_unpacked_is_refused_by_a_look_too(self):
        with Registry(self.scratch / "registry") as registry:
            pusher = Pusher(registry, "base")
            bad = {"above": (tar(("../f", "file", "x")), 'its path holds ".."'),
                   "cut": (tar(("f", "file", "x" * 2000))[:1000], "the archive ends"),
                   "wrong": (tar(("f", "file", "x")), "its diff ID is")}
            for tag, (content, reason) in bad.items():
                tars = [content]
                if tag == "wrong":
                    # The config speaks of another layer than the manifest.
                    blobs = pusher.image(tag, [tar(("g", "file", "y"))], "application/vnd.oci.image.layer.v1.tar")
                    manifest = json.loads(pusher.call("GET", f"{pusher.base}/manifests/{tag}", None,
                                                      Accept="application/vnd.oci.image.manifest.v1+json").read())
                    manifest["layers"] = [pusher.blob(blobs[0]["mediaType"], content)]
                    pusher.call("PUT", f"{pusher.base}/manifests/{tag}", json.dumps(manifest).encode(), Content_Type=manifest["mediaType"])
                else:
                    pusher.image(tag, tars, "application/vnd.oci.image.layer.v1.tar")
                context = self.context(tag, Dockerfile=f"FROM {registry.host}/base:{tag}\nCOPY g /\n", g="new")
                done = self.run_layerwright("build", "-o", f"type=oci,dest={self.scratch}/out", context, code=None)
                self.assertNotEqual(0, done.returncode)
                self.assertIn(reason, done.stderr)
                self.assertEqual([], list((self.store() / "catalogues").iterdir()))


if __name__ == "__main__":
    unittest.main()
