"""What the benchmarks need of registries beside docker-registry itself: base images as others pack them, and a count of what
goes over the wire."""

import gzip
import hashlib
import json
import shutil
import socket
import subprocess
import threading
import time

from harness import quiet

GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"


def repacked(source, target, scratch):
    """Copies an image to another name, each layer packed as one gzip member by gzip -6, as most images of the world are: ours
    have many members."""
    layout = scratch / "repacked"
    shutil.rmtree(layout, ignore_errors=True)
    quiet("skopeo", "copy", "--src-tls-verify=false", f"docker://{source}", f"oci:{layout}:x")
    blobs = layout / "blobs" / "sha256"

    def put(data):
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return f"sha256:{digest}", len(data)

    def blob(descriptor):
        return blobs / descriptor["digest"].split(":")[1]
    index = json.loads((layout / "index.json").read_text())
    manifest = json.loads(blob(index["manifests"][0]).read_text())
    for layer in manifest["layers"]:
        packed = subprocess.run(["gzip", "-6", "-n"], input=gzip.decompress(blob(layer).read_bytes()), stdout=subprocess.PIPE, check=True)
        layer["digest"], layer["size"] = put(packed.stdout)
        layer["mediaType"] = GZIP
    index["manifests"][0]["digest"], index["manifests"][0]["size"] = put(json.dumps(manifest).encode())
    (layout / "index.json").write_text(json.dumps(index))
    quiet("skopeo", "copy", "--dest-tls-verify=false", f"oci:{layout}:x", f"docker://{target}")
    shutil.rmtree(layout)
    return [layer["digest"] for layer in manifest["layers"]]


class Requests:
    """Counts requests in what a client writes to one connection (RFC 9112), and says where each begins."""

    def __init__(self):
        self.count, self.head, self.left, self.chunked = 0, b"", 0, False

    def feed(self, piece):
        """How many requests have been begun with this piece."""
        begun = 0
        while piece:
            if self.left:
                skipped = min(self.left, len(piece))
                self.left, piece = self.left - skipped, piece[skipped:]
                continue
            begun += not self.head and not self.chunked
            self.head += piece
            piece = b""
            end = b"\r\n" if self.chunked else b"\r\n\r\n"
            if end in self.head:
                head, _, piece = self.head.partition(end)
                self.head = b""
                self.next(head)
        self.count += begun
        return begun

    def next(self, head):
        if self.chunked:
            size = int(head.split(b";")[0], 16)
            # A chunk ends in a line end; the last one is empty, and nobody sends trailers.
            self.left, self.chunked = size + 2, size > 0
            return
        fields = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:])
        self.left = int(fields.get(b"content-length", 0))
        self.chunked = b"chunked" in fields.get(b"transfer-encoding", b"")


class Counter:
    """Stands before a registry, on a port of its own, and counts requests and bytes: those that go up to it, and those that
    come down. Lets every request wait for `delay` seconds. For a run of its own, since it takes time; a context manager."""

    def __init__(self, registry, delay=0):
        host, port = registry.split(":")
        self.registry, self.delay, self.up, self.down, self.requests = (host, int(port)), delay, 0, 0, 0

    def __enter__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.listener.close()

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection(self.registry)
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self.pump, args=(client, server, "up", Requests()), daemon=True).start()
            threading.Thread(target=self.pump, args=(server, client, "down"), daemon=True).start()

    def pump(self, source, sink, way, requests=None):
        try:
            while piece := source.recv(1 << 18):
                begun = requests.feed(piece) if requests else 0
                # Each way of a connection has a thread; the sum over threads may not lose one.
                with LOCK:
                    setattr(self, way, getattr(self, way) + len(piece))
                    self.requests += begun
                if begun:
                    time.sleep(self.delay)
                sink.sendall(piece)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            for end in (source, sink):
                end.close()

    def __str__(self):
        return f"{shown_bytes(self.down)} down, {shown_bytes(self.up)} up, {self.requests} requests"


def shown_bytes(count):
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


LOCK = threading.Lock()
