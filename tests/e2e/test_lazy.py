"""Layers that only a remote cache has: what is brought of them, that they are what their steps made, and what becomes of a build
whose cache loses them."""

import hashlib
import json
import os
import pathlib
import random
import shutil
import stat
import unittest

import support
from proxy import Proxy

NIGHTLY = bool(os.environ.get("LAYERWRIGHT_NIGHTLY"))
NORMALISED = 1735689600  # 2025-01-01: times from then on are those of the machine

# Sets an attribute: busybox has no tool that can.
SETX = r"""
#include <stdio.h>
#include <string.h>
#include <sys/xattr.h>
int main(int count, char **words) {
    if (count != 4) return 2;
    /* cap_net_raw+ep, revision 2 (linux/capability.h) */
    static const unsigned char cap[20] = {1, 0, 0, 2, 0, 0x20};
    if (!strcmp(words[2], "security.capability")) return lsetxattr(words[1], words[2], cap, sizeof cap, 0) ? 1 : 0;
    return lsetxattr(words[1], words[2], words[3], strlen(words[3]), 0) ? 1 : 0;
}
"""
PATHS = ("a", "b", "c", "d", "d/a", "d/b", "d/e", "d/e/a", "d/e/f", "sp ace", "l")
WITNESS = r"""
cd /t
find . | sort | while read -r path; do
  time=$(stat -c %Y "$path"); [ "$time" -lt 1735689600 ] || time=now
  # How many links and bytes a directory has depends on how many layers show it.
  form='%A %u:%g %h %s'; [ -L "$path" ] || [ ! -d "$path" ] || form='%A %u:%g'
  echo "$(stat -c "$form" "$path") $time $path $(readlink "$path")"
  [ -L "$path" ] || [ ! -f "$path" ] || [ ! -r "$path" ] || sha256sum < "$path"
done > /out
mv d moved || true
chmod -R g+w . || true
ls -l / > /dev/null
"""


def change(noise):
    """A shell command that changes something below the current directory, if it can."""
    path, other = (f"'{noise.choice(PATHS)}'" for _ in range(2))
    name = noise.choice("nopq")
    return noise.choice((
        f"rm -rf {path}; echo {noise.random()} > {path}",
        f"echo {noise.random()} > {path}",
        f"seq {noise.randint(1, 30000)} > {path}/{name}",
        f"mkdir -p {path}",
        f"rm -rf {path}",
        f"rm -rf {path}; mkdir -p {path}; echo new > {path}/{name}",
        f"rm -rf {path}; ln -s {other} {path}",
        f"ln -f {path} {other}",
        f"ln -f {path} {path}.{name}",
        f"mv {path} {other}",
        f"chmod {noise.choice(('0', '111', '600', '1777', '2750', '4755', '7777'))} {path}",
        f"chown {noise.randint(0, 3)}:{noise.randint(0, 3)} {path}",
        f"touch -h -d @{noise.randint(1, NORMALISED - 1)} {path}",
        f"touch -d @{noise.randint(NORMALISED, 1_800_000_000)} {path}",
        # Under a name that nobody writes to: that would wait for a reader.
        f"rm -f {path}/pipe; mkfifo {path}/pipe",
        f"setx {path} user.{name} {noise.randint(0, 9)}",
        f"setx {path} security.capability -",
    ))


def on_disk(directory):
    """What a layer's directory holds, by path: whether it hides what is below, and all else that can be compared."""
    found, first_names = {}, {}
    paths = (os.path.join(above, name) for above, *names in os.walk(directory) for name in sum(names, []))
    for path in map(pathlib.Path, sorted(paths)):
        info, name = path.lstat(), str(path.relative_to(directory))
        kind = stat.S_IFMT(info.st_mode)
        attributes = {key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path, follow_symlinks=False)}
        is_opaque = any(key.endswith(".overlay.opaque") for key in attributes)
        attributes = {key: value.hex() for key, value in attributes.items() if ".overlay." not in key}
        content = os.readlink(path) if kind == stat.S_IFLNK else None
        if kind == stat.S_IFREG:
            content = hashlib.sha256(path.read_bytes()).hexdigest(), info.st_size
        time = info.st_mtime_ns if info.st_mtime_ns < NORMALISED * 10**9 else "now"
        first = first_names.setdefault(info.st_ino, name)
        found[name] = is_opaque, (oct(info.st_mode), info.st_uid, info.st_gid, info.st_rdev, time, content, attributes, first)
    return found


def meta(store, name):
    return json.loads((store / "snapshots" / name / "meta.json").read_text())["content"]


def merged(store, name, known):
    """The file system of a snapshot, as overlayfs shows it."""
    if name in known:
        return known[name]
    parent = meta(store, name)["parent"]
    view = dict(merged(store, parent.split(":")[-1], known)) if parent else {}
    for path, (is_opaque, entry) in on_disk(store / "snapshots" / name / "fs").items():
        is_directory = entry[0].startswith("0o4")
        if is_opaque or not is_directory:
            view = {other: entry for other, entry in view.items() if not other.startswith(path + "/")}
        view[path] = entry
        if entry[0].startswith("0o2") and entry[3] == 0:
            del view[path]  # a whiteout
    known[name] = view
    return view


class Lazy(support.Case):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.setx = cls.program("setx", SETX)

    def steps_of(self, build):
        """Which steps ran, by their instructions' first words."""
        cached = [line.split()[0] for line in build.stderr.splitlines() if " CACHED" in line]
        begun = [line for line in build.stderr.splitlines() if "] RUN " in line or "] COPY " in line]
        return {line.split("] ", 1)[1] for line in begun if line.split()[0] not in cached}

    # What comes out of a cache is what the step made.

    def test_trees_through_the_cache_are_what_their_steps_made(self):
        for user, by_day in zip(support.USERS, (8, 0, 4)):
            count = 40 if NIGHTLY else by_day
            if count:
                with self.subTest(user=user):
                    self.check_trees(user, count)

    def check_trees(self, user, count):
        context = self.context(f"trees-{user}", witness=WITNESS)
        shutil.copy2(self.setx, context)
        noise = random.Random(count)
        lines = ["FROM busybox", "COPY --chmod=755 setx /bin/", "COPY c* w* /s/", "RUN mkdir /t"]
        for step in range(count):
            changes = [f"{change(noise)}" for _ in range(noise.randint(3, 9))]
            text = "cd /t\n" + "".join(f"{{ {one}; }} 2>/dev/null || true\n" for one in changes)
            (context / f"c{step}").write_text(text)
            lines.append(f"RUN sh /s/c{step}")
        lines += ["ARG AGAIN=0", "RUN : $AGAIN; sh /s/witness"]
        (context / "Dockerfile").write_text("\n".join(lines) + "\n")
        first, second, cache = (self.directory(f"{name}-{user}", user) for name in ("first", "second", "cache"))
        # The cache has blobs of another encoder than the image.
        self.build(context, "--cache-to", f"type=local,dest={cache},compression=zstd", root=first, user=user, name=f"{user}-0")
        again = ("--build-arg", "AGAIN=1")
        ran = support.Layout(self.build(context, *again, root=first, user=user, name=f"{user}-1"))
        brought = self.build(
            context, *again, "--cache-from", f"type=local,src={cache}", root=second, user=user, name=f"{user}-2")
        # Nobody waits for a cache: a busy machine may have begun before it heard of it.
        ran_again = self.steps_of(self.last)
        self.assertTrue("RUN : 1; sh /s/witness" in ran_again and len(ran_again) <= 4, self.last.stderr)
        brought = support.Layout(brought)
        self.assertEqual(ran.read("out"), brought.read("out"))
        self.assertEqual(ran.digest, brought.digest)
        snapshots = [path.name for path in (second / "snapshots").iterdir() if (path / "meta.json").exists()]
        self.assertGreaterEqual(len(snapshots), count)
        known = ({}, {})
        for name in snapshots:
            if not (first / "snapshots" / name).exists():
                continue  # Only the one that reads from a cache has the layer of a COPY on disk by itself.
            made, written = (merged(store, name, views) for store, views in zip((first, second), known))
            self.assertEqual({path: (made.get(path), written.get(path)) for path in made.keys() | written.keys()
                              if made.get(path) != written.get(path)}, {}, name)
            self.assertEqual(*(meta(store, name)["owners"] for store in (first, second)))
            self.assertEqual(*((store / "snapshots" / name / "brought").read_bytes() for store in (first, second)))
        # Few steps do not have all that these do; `test_cache_trees` has each kind by itself.
        if count == 40 and user == "root":
            entries = [entry for view in known[0].values() for path, entry in view.items() if path.startswith("t/")]
            attributes = {key.split(".")[0] for entry in entries for key in entry[6]}
            self.assertEqual(attributes, {"user", "security"}, "the test shows nothing that it does not try")
            self.assertTrue({"0o1", "0o4"} <= {entry[0][:3] for entry in entries})
            self.assertTrue(any(int(entry[0], 8) & 0o7000 and entry[1] for entry in entries))

    def test_the_digest_does_not_tell_who_filled_the_cache_nor_how(self):
        context = self.context(Dockerfile="FROM busybox\nCOPY f /app/f\nRUN cp /app/f /g\nRUN seq 9999 > /app/h\n", f="f")
        digests = {}
        for compression in ("gzip", "zstd"):
            out = ("-o", f"type=oci,tar=false,dest={self.scratch}/{compression},compression={compression}")
            self.run_layerwright("build", *out, context)
            digests[compression] = support.Layout(self.scratch / compression).digest
        for filled in ("gzip", "zstd", "uncompressed"):
            cache = self.scratch / f"cache-{filled}"
            self.run_layerwright(
                "build", "--cache-to", f"type=local,dest={cache},compression={filled}", context,
                root=self.directory(f"filler-{filled}"))
            for wanted, digest in digests.items():
                if wanted == filled and not NIGHTLY:
                    continue  # The usual way, of which all other tests are.
                name = f"{filled}-{wanted}"
                out = ("-o", f"type=oci,tar=false,dest={self.scratch}/{name},compression={wanted}")
                self.last = self.run_layerwright(
                    "build", "--progress", "plain", *out, "--cache-from", f"type=local,src={cache}", context,
                    root=self.directory(f"reader-{name}"))
                self.assertEqual(self.steps_of(self.last), set(), self.last.stderr)
                self.assertEqual(support.Layout(self.scratch / name).digest, digest, name)

    # Nothing is brought that nobody reads.

    STAGES = """FROM busybox AS one
RUN mkdir /one && head -c 3000000 /dev/urandom > /one/big
FROM busybox AS two
RUN mkdir /two && head -c 2000000 /dev/urandom > /two/big
ARG TWO=0
RUN wc -c < /two/big > /two/size; : $TWO
FROM busybox
COPY --from=one /one /one
COPY --from=two /two/size /two/
COPY f /two/f
"""

    def pulled(self, registry, since, repository="cache"):
        """The blobs of a repository that were read, with their sizes."""
        data = registry.directory / "data/docker/registry/v2/blobs/sha256"
        found = {}
        for method, path, status in registry.requests()[since:]:
            if method == "GET" and path.startswith(f"/v2/{repository}/blobs/") and status == 200:
                digest = path.rsplit(":", 1)[1]
                found[digest] = (data / digest[:2] / digest / "data").stat().st_size
        return found

    def test_what_nobody_reads_stays_where_it_is(self):
        context = self.context(Dockerfile=self.STAGES, f="1")
        with support.Registry(self.scratch / "registry") as registry:
            ref = f"type=registry,ref={registry.host}/cache:main"

            def build(store, *arguments):
                since = len(registry.requests())
                self.last = self.run_layerwright(
                    "build", "--progress", "plain", "-t", f"{registry.host}/{store}", "--push", *arguments, context,
                    root=self.directory(store))
                return self.pulled(registry, since), self.last

            build("filler", "--cache-to", ref)
            pulled, done = build("same", "--cache-from", ref)
            self.assertEqual((pulled, self.steps_of(done)), ({}, set()), done.stderr)
            (context / "f").write_text("2")
            pulled, done = build("copied", "--cache-from", ref)
            self.assertEqual(self.steps_of(done), {"COPY f /two/f"})
            self.assertLess(sum(pulled.values()), 2000, "trees, and no layer")
            pulled, done = build("run", "--cache-from", ref, "--build-arg", "TWO=1")
            large = [size for size in pulled.values() if size > 100_000]
            self.assertTrue(len(large) == 1 and 1_900_000 < large[0] < 2_100_000, f"only its own chain: {pulled}")

    def test_what_was_brought_is_local(self):
        context = self.context(Dockerfile=self.STAGES.split("FROM busybox\n")[0], f="1")
        cache, store = self.scratch / "cache", self.directory("reader")
        self.build(context, "--cache-to", f"type=local,dest={cache}", name="0")
        self.build(context, "--cache-from", f"type=local,src={cache}", "--build-arg", "TWO=1", root=store, name="1")
        shutil.rmtree(cache)
        self.build(context, "--build-arg", "TWO=1", root=store, name="2")
        self.assertEqual(self.steps_of(self.last), set(), self.last.stderr)
        # What was not read is not here, and no record says it is.
        self.build(context, root=store, name="3")
        self.assertEqual(self.steps_of(self.last), {"RUN wc -c < /two/big > /two/size; : 0"})

    # What a cache loses is made again.

    LOSABLE = """FROM busybox
RUN mkdir /app && seq 20000 > /app/a
RUN cp /app/a /app/b
ARG LAST=0
RUN cat /app/a /app/b > /app/c; : $LAST
"""
    DAMAGES = {
        "gone": lambda path: path.unlink(),
        "half": lambda path: path.write_bytes(path.read_bytes()[:path.stat().st_size // 2]),
        "damaged": lambda path: path.write_bytes(bytes(byte ^ (at == 20) for at, byte in enumerate(path.read_bytes()))),
    }

    def blobs(self, cache):
        """The blobs of layers and trees in a cache."""
        kinds = {}
        for name in (cache / "names").iterdir():
            for blob in json.loads(name.read_text())["layers"]:
                kind = "tree" if "tree" in blob["mediaType"] else "layer" if "image.layer" in blob["mediaType"] else None
                if kind:
                    kinds[blob["digest"].split(":")[1]] = kind
        return kinds

    def test_what_is_gone_or_damaged_is_made_again_with_the_same_digest(self):
        context = self.context(Dockerfile=self.LOSABLE)
        cache = self.scratch / "cache"
        again = ("--build-arg", "LAST=1")
        self.build(context, "--cache-to", f"type=local,dest={cache}", name="filler")
        wanted = support.Layout(self.build(context, *again, name="wanted")).digest
        wanted_cached = support.Layout(self.scratch / "out-filler" / "layout").digest
        points = [(blob, kind, how) for blob, kind in sorted(self.blobs(cache).items()) for how in self.DAMAGES]
        self.assertEqual({kind for _, kind, _ in points}, {"tree", "layer"})
        if not NIGHTLY:
            points = random.Random(1).sample(points, 3)
        for number, (blob, kind, how) in enumerate(points):
            with self.subTest(kind=kind, how=how, blob=blob):
                copy = self.scratch / f"cache-{number}"
                shutil.copytree(cache, copy)
                path = copy / "blobs/sha256" / blob
                path.chmod(0o600)
                self.DAMAGES[how](path)
                for name, arguments, digest in (("run", again, wanted), ("cached", (), wanted_cached)):
                    out = self.build(
                        context, *arguments, "--cache-from", f"type=local,src={copy}", root=self.directory(f"{name}-{number}"),
                        name=f"{name}-{number}")
                    self.assertEqual(support.Layout(out).digest, digest, self.last.stderr)

    def lossy(self, rule, **options):
        """Builds with a cache behind a proxy that follows a rule, whose argument is the request; gives the build."""
        context = self.context(Dockerfile=self.LOSABLE)
        with support.Registry(self.scratch / "registry") as registry, support.Registry(self.scratch / "other") as other:
            self.run_layerwright("build", "--cache-to", f"type=registry,ref={registry.host}/cache:main", context)
            wanted = support.Layout(self.build(context, "--build-arg", "LAST=1", name="wanted")).digest
            with Proxy(registry.host, rule) as proxy:
                done = self.run_layerwright(
                    "build", "--progress", "plain", "-t", f"{other.host}/app", "--push", "--cache-from",
                    f"type=registry,ref={proxy.host}/cache:main", *options.get("arguments", ()), context,
                    root=self.directory("reader"))
        return done, wanted

    def test_a_cache_that_loses_a_layer_before_the_push_reads_it(self):
        gone = (404, {"Content-Type": "application/json"}, b'{"errors": [{"code": "BLOB_UNKNOWN"}]}')
        done, _ = self.lossy(lambda request: gone if "/cache/blobs/" in request.path else None)
        self.assertIn("a remote cache has lost a layer", done.stderr)
        self.assertEqual(len(self.steps_of(done)), 3, done.stderr)

    def test_a_cache_that_is_down_when_its_bytes_are_needed_is_done_without(self):
        down = (503, {}, b"")
        arguments = ("--build-arg", "LAST=1")
        done, wanted = self.lossy(lambda request: down if "/cache/blobs/" in request.path else None, arguments=arguments)
        self.assertIn("a remote cache has lost a layer", done.stderr)
        self.assertIn("503", done.stderr)
        self.assertIn(wanted, done.stderr + done.stdout)
        self.assertEqual(done.stderr.count("is made once more"), 1, "all of it is lost at once")

    def test_what_is_deleted_under_a_running_build_is_made_again(self):
        context = self.context(Dockerfile=self.LOSABLE)
        again = ("--build-arg", "LAST=1")
        with support.Registry(self.scratch / "registry") as registry:
            data = registry.directory / "data/docker/registry/v2"
            self.run_layerwright("build", "--cache-to", f"type=registry,ref={registry.host}/cache:main", context)
            digests = [support.Layout(self.build(context, *arguments, name=f"wanted{len(arguments)}")).digest
                       for arguments in ((), again)]
            whole = self.scratch / "whole"
            shutil.copytree(data, whole)

            def losing(at, what):
                """A rule that deletes some things before the `at`th request is passed on, if the image has no name by then."""
                seen = []

                def rule(request):
                    seen.append(request)
                    named = any(other.method == "PUT" and "/app/manifests/" in other.path for other in seen[:-1])
                    if len(seen) == at and not named:
                        what()
                    self.seen = len(seen)
                return rule

            def read(number, at, what):
                shutil.rmtree(data)
                shutil.copytree(whole, data)
                with Proxy(registry.host, losing(at, what)) as proxy:
                    self.last = self.run_layerwright(
                        "build", "--progress", "plain", "-t", f"{proxy.host}/app", "--push", "--cache-from",
                        f"type=registry,ref={proxy.host}/cache:main", *(again if number % 2 else ()), context,
                        root=self.directory(f"reader-{number}"))
                self.assertIn(digests[number % 2], self.last.stderr + self.last.stdout)
                def stored(digest):
                    blob = digest.split(":")[1]
                    return (data / "blobs/sha256" / blob[:2] / blob / "data").read_bytes()

                manifest = json.loads(stored(digests[number % 2]))
                for blob in [manifest["config"], *manifest["layers"]]:
                    self.assertEqual(len(stored(blob["digest"])), blob["size"], self.last.stderr)

            blobs = {path.name for path in (whole / "repositories/cache/_layers/sha256").iterdir()}
            self.seen = 0
            read(0, 0, None)
            requests = self.seen
            noise = random.Random(2)
            for number in range(1, 201 if NIGHTLY else 4):
                some = noise.sample(sorted(blobs), noise.choice((1, 2, len(blobs))))

                def delete(some=some, tags=noise.random() < 0.3):
                    for blob in some:
                        shutil.rmtree(data / "blobs/sha256" / blob[:2] / blob, ignore_errors=True)
                    if tags:
                        shutil.rmtree(data / "repositories/cache/_manifests", ignore_errors=True)

                at = noise.randint(1, requests)
                with self.subTest(number=number, at=at, deleted=len(some)):
                    read(number, at, delete)


if __name__ == "__main__":
    unittest.main()
