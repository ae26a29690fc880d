"""The base images of the cases, made in memory and pushed to a registry with plain HTTP.

`busybox` (users root, daemon 1, www-data 33, alice 1000:1001 also in staff 50 and users 100, nobody 65534; tags latest is
gzip, plain, zstd, docker is Docker's media types), `rich` (every field of the config), `onbuild` (three triggers), `layers`
(whiteout, opaque directory, changes of type, hard link, setuid, capability, fifo), `multi` (an index: amd64, arm64 and an
attestation).
"""

import gzip
import io
import json
import shutil
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request

from image import digest

MTIME = 1_000_000_000
CREATED = "2001-09-09T01:46:40Z"
PATH = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
DIRECTORIES = (
    ("bin", 0o755), ("dev", 0o755), ("etc", 0o755), ("home", 0o755), ("proc", 0o755), ("root", 0o700), ("sys", 0o755),
    ("tmp", 0o1777), ("usr", 0o755), ("usr/bin", 0o755), ("usr/sbin", 0o755), ("sbin", 0o755), ("var", 0o755),
    ("var/tmp", 0o1777))
PASSWD = b"""root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
alice:x:1000:1001:alice:/home/alice:/bin/sh
nobody:x:65534:65534:nobody:/home:/bin/false
"""
GROUP = b"""root:x:0:
daemon:x:1:
www-data:x:33:
staff:x:50:alice
users:x:100:alice
alice:x:1001:
nogroup:x:65534:
"""
CAPABILITY = "\x01\x00\x00\x02\x00\x04\x00\x00" + "\x00" * 12
MEDIA_TYPES = {  # manifest, config, layer, prefix of a layer's compression
    "oci": ("application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.config.v1+json",
            "application/vnd.oci.image.layer.v1.tar", "+"),
    "docker": ("application/vnd.docker.distribution.manifest.v2+json", "application/vnd.docker.container.image.v1+json",
               "application/vnd.docker.image.rootfs.diff.tar", "."),
}
INDEX = "application/vnd.oci.image.index.v1+json"


class Layer:
    """A tar in the making; `raw()` ends it."""

    def __init__(self):
        self.buffer = io.BytesIO()
        self.tar = tarfile.open(fileobj=self.buffer, mode="w", format=tarfile.PAX_FORMAT)

    def add(self, name, kind, mode, content=b"", **attributes):
        member = tarfile.TarInfo(name)
        member.type, member.mode, member.mtime, member.size = kind, mode, MTIME, len(content)
        for key, value in attributes.items():
            setattr(member, key, value)
        self.tar.addfile(member, io.BytesIO(content))

    def directories(self, *names):
        for name, mode in names:
            self.add(name, tarfile.DIRTYPE, mode)

    def file(self, name, content, mode=0o644, **attributes):
        self.add(name, tarfile.REGTYPE, mode, content, **attributes)

    def link(self, name, target, kind=tarfile.SYMTYPE):
        self.add(name, kind, 0o777, linkname=target)

    def raw(self):
        self.tar.close()
        return self.buffer.getvalue()


class Registry:
    def __init__(self, host):
        self.host = host

    def request(self, method, path, content=None, media_type=None):
        url = path if path.startswith("http") else f"http://{self.host}{path}"
        request = urllib.request.Request(url, data=content, method=method)
        if media_type:
            request.add_header("Content-Type", media_type)
        return urllib.request.urlopen(request, timeout=30)

    def blob(self, repository, content):
        try:
            self.request("HEAD", f"/v2/{repository}/blobs/{digest(content)}")
        except urllib.error.HTTPError:
            place = self.request("POST", f"/v2/{repository}/blobs/uploads/", b"").headers["Location"]
            place += ("&" if "?" in place else "?") + "digest=" + digest(content)
            self.request("PUT", place, content, "application/octet-stream")
        return {"digest": digest(content), "size": len(content)}

    def manifest(self, repository, tag, document, media_type):
        content = json.dumps(document).encode()
        self.request("PUT", f"/v2/{repository}/manifests/{tag}", content, media_type)
        return {"mediaType": media_type, "digest": digest(content), "size": len(content)}

    def image(self, repository, tag, layers, config, architecture="amd64", compression="gzip", kind="oci"):
        """Pushes an image of raw tars and gives its descriptor."""
        manifest_type, config_type, layer_type, joint = MEDIA_TYPES[kind]
        suffix = joint + compression if compression else ""
        descriptors = [
            {"mediaType": layer_type + suffix, **self.blob(repository, compressed(raw, compression))} for raw in layers]
        image = {
            "created": CREATED, "architecture": architecture, "os": "linux", "config": config,
            "rootfs": {"type": "layers", "diff_ids": [digest(raw) for raw in layers]},
            "history": [{"created": CREATED, "created_by": f"base layer {number}"} for number in range(len(layers))]}
        document = {
            "schemaVersion": 2, "mediaType": manifest_type, "layers": descriptors,
            "config": {"mediaType": config_type, **self.blob(repository, json.dumps(image).encode())}}
        return self.manifest(repository, tag, document, manifest_type)


def compressed(raw, compression):
    match compression:
        case "gzip":
            return gzip.compress(raw, compresslevel=1, mtime=0)
        case "zstd":
            return subprocess.run(["zstd", "-q", "-c"], input=raw, stdout=subprocess.PIPE, check=True).stdout
    return raw


def push(host):
    """Makes all bases and pushes them to the registry at `host`."""
    registry, busybox = Registry(host), busybox_layer()
    shell = {"Cmd": ["sh"], "Env": PATH}
    for tag, compression, kind in (
            ("latest", "gzip", "oci"), ("plain", None, "oci"), ("zstd", "zstd", "oci"), ("docker", "gzip", "docker")):
        registry.image("busybox", tag, [busybox], shell, compression=compression, kind=kind)
    registry.image("rich", "latest", [busybox], rich_config())
    triggers = ["ENV TRIGGERED=yes", "COPY trigger.txt /trigger.txt", "RUN echo ran > /onbuild-ran"]
    registry.image("onbuild", "latest", [busybox], {"Env": PATH, "OnBuild": triggers})
    registry.image("layers", "latest", [busybox, odd_layer(), change_layer()], {"Env": PATH})
    push_multi(registry, busybox)


def busybox_layer():
    executable = shutil.which("busybox")
    if not executable:
        sys.exit("busybox-static is not installed")
    applets = subprocess.run([executable, "--list"], stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    layer = Layer()
    layer.directories(*DIRECTORIES)
    with open(executable, "rb") as file:
        layer.file("bin/busybox", file.read(), 0o755)
    for applet in sorted(set(applets) - {"busybox"}):
        layer.link("bin/" + applet, "busybox")
    layer.link("usr/bin/env", "../../bin/busybox")
    layer.file("etc/passwd", PASSWD)
    layer.file("etc/group", GROUP)
    return layer.raw()


def rich_config():
    return {
        "Env": [*PATH, "BASE=1", "KEEP=base value"], "Entrypoint": ["/bin/entry", "--flag"], "Cmd": ["base-cmd"],
        "Labels": {"base.label": "one", "shared": "base"}, "ExposedPorts": {"80/tcp": {}}, "Volumes": {"/basevol": {}},
        "User": "daemon", "WorkingDir": "/base/dir", "StopSignal": "SIGUSR1",
        "Healthcheck": {"Test": ["CMD", "true"], "Interval": 5_000_000_000}}


def odd_layer():
    """Everything a layer can hold that the next one changes."""
    layer = Layer()
    layer.directories(("gone", 0o755), ("opaque", 0o755), ("keep", 0o700), ("opaque/old", 0o755), ("x", 0o755))
    for name, content in (("gone/file", b"gone\n"), ("opaque/old/file", b"old\n"), ("opaque/a", b"a\n")):
        layer.file(name, content)
    layer.file("keep/a", b"first\n", 0o640, uid=7, gid=8)
    layer.file("keep/setuid", b"s\n", 0o4755)
    layer.file("keep/one", b"linked\n")
    layer.link("keep/two", "keep/one", tarfile.LNKTYPE)
    layer.file("keep/cap", b"c\n", 0o755, pax_headers={"SCHILY.xattr.security.capability": CAPABILITY})
    layer.file("x/file-to-dir", b"f\n")
    layer.directories(("x/dir-to-link", 0o755))
    layer.file("x/dir-to-link/in", b"in\n")
    layer.link("x/link-to-file", "/keep/a")
    layer.add("keep/fifo", tarfile.FIFOTYPE, 0o600)
    layer.file("keep/long-" + "n" * 120, b"long name\n")
    layer.file("keep/ünï", "ü\n".encode())
    return layer.raw()


def change_layer():
    layer = Layer()
    layer.directories(("opaque", 0o755), ("keep", 0o700), ("x", 0o755))
    layer.file(".wh.gone", b"")
    layer.file("opaque/.wh..wh..opq", b"")
    layer.file("opaque/new", b"new\n")
    layer.file("keep/a", b"second\n", 0o640, uid=7, gid=8)
    layer.directories(("x/file-to-dir", 0o711))
    layer.file("x/file-to-dir/in", b"now a dir\n")
    layer.link("x/dir-to-link", "file-to-dir")
    layer.file("x/link-to-file", b"plain\n")
    return layer.raw()


def one_file(name, content):
    layer = Layer()
    layer.file(name, content)
    return layer.raw()


def push_multi(registry, busybox):
    manifests = []
    for architecture in ("amd64", "arm64"):
        own = one_file("arch", f"{architecture}\n".encode())
        layers = [busybox, own] if architecture == "amd64" else [own]
        config = {"Env": [*PATH, "ARCH_OF_BASE=" + architecture]}
        descriptor = registry.image("multi", architecture, layers, config, architecture)
        manifests.append({**descriptor, "platform": {"os": "linux", "architecture": architecture}})
    attestation = registry.image("multi", "attestation", [one_file("att", b"x")], {}, "unknown")
    attestation["platform"] = {"os": "unknown", "architecture": "unknown"}
    attestation["annotations"] = {
        "vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": manifests[0]["digest"]}
    registry.manifest(
        "multi", "latest", {"schemaVersion": 2, "mediaType": INDEX, "manifests": [*manifests, attestation]}, INDEX)
