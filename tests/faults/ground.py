"""What the fault tests share: a build with one of everything, its right digest, and a look at what is left behind.

The short forms run in `make test`, the long ones in `make test-nightly` ($LAYERWRIGHT_NIGHTLY). What is random comes from
a seed, which is told when a test fails; $LAYERWRIGHT_SEED gives another one.
"""

import hashlib
import json
import os
import pathlib
import shutil
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))

from support import WATCHDOG, Case, Failed, Layout  # noqa: E402

NIGHTLY = bool(os.environ.get("LAYERWRIGHT_NIGHTLY"))
SEED = int(os.environ.get("LAYERWRIGHT_SEED", "4"))

# Two stages, hard links, whiteouts, an opaque directory, a cache mount, COPY from context and stage, COPY --link.
DOCKERFILE = """\
FROM busybox AS tools
RUN mkdir -p /opt/z/y && echo one > /opt/z/one && ln /opt/z/one /opt/z/two && ln -s one /opt/z/link
COPY tree /tree
FROM busybox
COPY --from=tools /opt /opt
RUN rm -rf /opt/z && mkdir -p /opt/z && echo one > /opt/z/one && chmod 4755 /opt/z/one
COPY tree /tree
RUN --mount=type=cache,target=/cache echo hit >> /cache/hits; rm /bin/vi; rm -rf /home; mkdir /home
COPY --link Dockerfile /linked/
RUN cat /linked/Dockerfile /tree/b/1 > /out
"""


class Faults(Case):
    def everything(self):
        """A context for DOCKERFILE."""
        context = self.context(Dockerfile=DOCKERFILE)
        for index in range(12):
            path = context / "tree" / "abc"[index % 3] / str(index)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(hashlib.sha256(bytes([index])).digest() * (100 * index + 1))
        return context

    def image(self, context, store, *arguments, user="root", **options):
        """Builds, verifies every blob of the image, and gives its digest."""
        out = self.scratch / f"image-{os.urandom(4).hex()}"
        out.mkdir()
        shutil.chown(out, user, user)
        try:
            self.last = self.run_layerwright(
                "build", "--progress", "plain", "-o", f"type=oci,tar=false,dest={out}/layout", *arguments, context,
                user=user, root=store, **options)
            if self.last.returncode:
                return None
            layout = Layout(out / "layout")
            for blob in (out / "layout" / "blobs" / "sha256").iterdir():
                self.assertEqual(hashlib.sha256(blob.read_bytes()).hexdigest(), blob.name, "a blob is not what it says")
            return layout.digest
        finally:
            shutil.rmtree(out, ignore_errors=True)

    def fsck(self, store, *arguments, user="root", code=0):
        """Runs fsck; gives its findings."""
        done = self.run_layerwright("fsck", "--format", "json", "--root", store, *arguments, user=user, code=code)
        self.last_fsck = done
        return json.loads(done.stdout)["findings"] if done.stdout else []

    def clean(self, store, user="root"):
        findings = self.fsck(store, user=user, code=None)
        self.assertEqual((self.last_fsck.returncode, findings), (0, []), self.last_fsck.stderr)

    def copy_of(self, store, name):
        """A copy of a store, sharing blocks where the disk can."""
        target = self.scratch / name
        shutil.rmtree(target, ignore_errors=True)
        os.system(f"cp -a --reflink=auto {store} {target}")
        return target


def files(store):
    """Every file of a store that a build or a check can read, sorted; what commands keep in cache mounts is theirs."""
    found = []
    for path in sorted(pathlib.Path(store).rglob("*")):
        parts = path.relative_to(store).parts
        is_mount = parts[0] == "mounts" and "fs" in parts
        # Locks are empty, and the log of a build is text for people.
        is_data = parts[0] not in ("locks", "tmp", "gc.lock") and not path.name.endswith(".log")
        if path.is_file() and not path.is_symlink() and is_data and not is_mount:
            found.append(path)
    return found


__all__ = ["DOCKERFILE", "NIGHTLY", "SEED", "WATCHDOG", "Failed", "Faults", "Layout", "files"]
