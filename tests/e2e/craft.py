"""Writes tar archives and images byte by byte, also such as no archiver and no builder would write."""

import gzip
import hashlib
import json
import subprocess

BLOCK = 512
END = bytes(2 * BLOCK)
OCI = "application/vnd.oci.image."
MANIFEST, INDEX, CONFIG, TAR = (OCI + kind for kind in ("manifest.v1+json", "index.v1+json", "config.v1+json", "layer.v1.tar"))


def octal(number, width):
    return b"%0*o\0" % (width - 1, number)


def binary(number, width):
    """GNU's numbers of base 256, of which a negative one begins with a set bit."""
    return (number & (1 << 8 * width - 1) - 1 | 1 << 8 * width - 1).to_bytes(width, "big")


def header(path=b"f", kind=b"0", mode=0o644, uid=0, gid=0, size=0, mtime=1_000_000_000, link=b"", device=(0, 0),
           magic=b"ustar\x0000", prefix=b"", checksum=None):
    """A header block. A number may be bytes, which stand there as they are."""
    assert len(path) <= 100, path

    def number(value, width):
        return value if isinstance(value, bytes) else octal(value, width)

    block = bytearray(BLOCK)
    fields = ((0, path), (100, number(mode, 8)), (108, number(uid, 8)), (116, number(gid, 8)), (124, number(size, 12)),
              (136, number(mtime, 12)), (148, b" " * 8), (156, kind), (157, link), (257, magic),
              (329, number(device[0], 8)), (337, number(device[1], 8)), (345, prefix))
    for at, value in fields:
        block[at:at + len(value)] = value
    block[148:156] = checksum or b"%06o\0 " % sum(block)
    return bytes(block[:BLOCK])


def padded(content):
    return content + bytes(-len(content) % BLOCK)


def entry(path, content=b"", **fields):
    return header(path, size=fields.pop("size", len(content)), **fields) + padded(content)


def file(path, content=b"x", **fields):
    return entry(path, content, **fields)


def directory(path, **fields):
    return entry(path, kind=b"5", mode=fields.pop("mode", 0o755), **fields)


def symlink(path, target):
    return entry(path, kind=b"2", link=target) if len(target) <= 100 else pax(linkpath=target) + entry(path, kind=b"2", link=b"-")


def hardlink(path, target):
    return entry(path, kind=b"1", link=target) if len(target) <= 100 else pax(linkpath=target) + entry(path, kind=b"1", link=b"-")


def fifo(path):
    return entry(path, kind=b"6")


def record(key, value):
    body = b" " + key + b"=" + value + b"\n"
    length = len(body) + 1
    while len(b"%d" % length) + len(body) != length:
        length += 1
    return b"%d" % length + body


def pax_raw(content, kind=b"x"):
    return entry(b"PaxHeaders/x", content, kind=kind)


def pax(*records, **named):
    """A PAX header for the next entry."""
    records = (*records, *((key.encode(), value) for key, value in named.items()))
    return pax_raw(b"".join(record(*pair) for pair in records))


def xattr(name, value):
    return pax((b"SCHILY.xattr." + name, value))


def long_name(name, kind=b"L"):
    """GNU's header for a name (L) or a link target (K)."""
    return entry(b"././@LongLink", name + b"\0", kind=kind)


def zipped(tar, level=1):
    return gzip.compress(tar, level, mtime=0)


def zstd(tar, *options):
    return subprocess.run(["zstd", "-q", "-c", *options], input=tar, stdout=subprocess.PIPE, check=True).stdout


def digest(content):
    return "sha256:" + hashlib.sha256(content).hexdigest()


class Image:
    """An OCI layout in the making; what the documents say can be bent before they are written."""

    def __init__(self, *tars, pack=None, media_type=TAR, config=None):
        self.blobs = {}
        layers = [self.blob(media_type, pack(tar) if pack else tar) for tar in tars]
        self.config = {"architecture": "amd64", "os": "linux", "config": config or {},
                       "rootfs": {"type": "layers", "diff_ids": [digest(tar) for tar in tars]}}
        self.manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "layers": layers}
        self.index = {"schemaVersion": 2, "mediaType": INDEX}
        self.annotations = {}

    def blob(self, media_type, content):
        self.blobs[digest(content)] = content
        return {"mediaType": media_type, "digest": digest(content), "size": len(content)}

    def finish(self):
        """Makes the documents of each other, but for what is there already."""
        if "config" not in self.manifest:
            self.manifest["config"] = self.document(CONFIG, self.config)
        if "manifests" not in self.index:
            self.index["manifests"] = [{**self.document(MANIFEST, self.manifest), "annotations": self.annotations}]
        return self

    def document(self, media_type, document):
        return self.blob(media_type, document if isinstance(document, bytes) else json.dumps(document).encode())

    def write(self, path):
        blobs = path / "blobs" / "sha256"
        blobs.mkdir(parents=True)
        for name, content in self.finish().blobs.items():
            (blobs / name.split(":")[1]).write_bytes(content)
        (path / "index.json").write_text(json.dumps(self.index))
        (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        return path
