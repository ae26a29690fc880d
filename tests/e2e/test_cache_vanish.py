"""A registry that loses what a remote cache has while a build runs, and builders that are killed while they publish: the image is
the right one, and so are the next machine's.

Each point is a build and one of its requests: before it is passed on, tags, manifests or blobs of the cache's repository vanish, by
a seed. `LAYERWRIGHT_NIGHTLY=1` runs 200 points and 40 kills, `LAYERWRIGHT_SEED=N` one, and `N-M` those from N up to M, so that
several processes can share them.
"""

import hashlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import threading
import unittest

import support
from forger import Storage, document_of
from proxy import Proxy

DOCKERFILE = f"""\
FROM busybox AS tool
RUN {support.held("tool")}mkdir /tool && seq 30000 > /tool/seq && ln /tool/seq /tool/same && ln -s seq /tool/link
FROM busybox AS lines
RUN {support.held("lines")}seq 20000 40000 > /lines
FROM busybox
RUN {support.held("first")}mkdir -p /d/e && seq 5000 > /d/e/f && chmod 600 /d/e/f
COPY a /a
RUN {support.held("second")}rm -r /d/e && cat /a > /d/b
COPY --from=tool /tool /t
COPY --from=lines /lines /lines
RUN {support.held("third")}cat /t/seq /lines /a | md5sum > /sum
COPY last /last
RUN {support.held("last")}cat /last /sum /t/link > /end
"""
STEPS = 10
RUNS = ["tool", "lines", "first", "second", "third", "last"]
# What is built: what the cache has, and what has to read its layers: a RUN on top, a COPY --from and a whiteout.
FILES = {"same": {}, "top": {"last": "2\n"}, "middle": {"a": "2\n"}}
OUTPUTS = ("same registry", "other registry", "layout")
FILLED = ("read", "read and filled", "read, and another filled")
NIGHTLY = "LAYERWRIGHT_NIGHTLY" in os.environ


def seeds(nightly, short):
    if seed := os.environ.get("LAYERWRIGHT_SEED"):
        first, _, last = seed.partition("-")
        return range(int(first), int(last or first) + 1)
    return range(nightly if NIGHTLY else short)


class Repository:
    """A repository of a registry, as it lies on its disk."""

    def __init__(self, data, name):
        self.root = data / "docker" / "registry" / "v2"
        self.own = self.root / "repositories" / name
        self.tags = self.own / "_manifests" / "tags"

    def names(self):
        """What every tag stands for."""
        return {tag.name: (tag / "current" / "link").read_text() for tag in sorted(self.tags.glob("*"))
                if (tag / "current" / "link").is_file()}

    def things(self):
        """All that can vanish: tags, manifests, blobs out of the repository, and their bytes out of the registry."""
        manifests = sorted((self.own / "_manifests" / "revisions" / "sha256").glob("*"))
        links = sorted((self.own / "_layers" / "sha256").glob("*"))
        bytes_of = lambda link: self.root / "blobs" / "sha256" / link.name[:2] / link.name
        stored = [bytes_of(link) for link in links + manifests]
        return {"tag": sorted(self.tags.glob("*")), "manifest": manifests, "blob": links,
                "bytes": [path for path in stored if path.exists()]}


class Vanishing:
    """A proxy's rule: at the k-th request something vanishes, or begins to, one thing at every request. That ends: blobs that the
    image shares with the cache are lost with it, and a push gives up when they are lost as often as it brings them again."""

    DECAY = 12

    def __init__(self, repository, k, seed):
        self.repository, self.k, self.random = repository, k, random.Random(seed)
        self.count, self.lock, self.gone = 0, threading.Lock(), []
        self.amount = self.random.choices(["one", "some", "all blobs", "all bytes", "all tags", "ever more"], [10, 4, 1, 1, 1, 3])[0]

    def __call__(self, _):
        with self.lock:
            self.count += 1
            if self.count == self.k or self.amount == "ever more" and self.k < self.count < self.k + self.DECAY:
                self.vanish()

    def vanish(self):
        things = self.repository.things()
        everything = {"all blobs": "blob", "all bytes": "bytes", "all tags": "tag"}
        if kind := everything.get(self.amount):
            chosen = things[kind]
        else:
            # Kinds are as likely as each other, however many there are of each.
            kinds = [kind for kind, paths in things.items() if paths]
            chosen = [self.random.choice(things[self.random.choice(kinds)])
                      for _ in range(4 if self.amount == "some" else 1) if kinds]
        for path in chosen:
            shutil.rmtree(path, ignore_errors=True)
            self.gone.append(str(path.relative_to(self.repository.root)))


class Machines(support.Case):
    """A registry with a full cache that can be had again and again, another registry, and what images must be."""

    def setUp(self):
        super().setUp()
        self.registry = self.enterContext(support.Registry(self.scratch / "registry"))
        self.other = self.enterContext(support.Registry(self.scratch / "other"))
        self.data, self.good = self.scratch / "registry" / "data", self.scratch / "good"
        self.contexts = {name: self.context(name, Dockerfile=DOCKERFILE, **{"a": "1\n" * 3000, "last": "1\n", **files})
                         for name, files in FILES.items()}

    def make(self, context, store, *arguments, **options):
        """The digest of what was built, and how many of its steps were cached."""
        done = self.last = self.run_layerwright("build", "--progress", "plain", *arguments, self.contexts[context], root=store, **options)
        told = re.search(r"^Built (\S+) in \S+: (\d+) steps?, (\d+) cached$", done.stderr, re.MULTILINE)
        self.assertIsNotNone(told, done.stderr)
        return told[1], int(told[3])

    def reset(self, good=True):
        """Both registries as they were."""
        for data in (self.data, self.scratch / "other" / "data"):
            shutil.rmtree(data, ignore_errors=True)
            data.mkdir()
        if good:
            shutil.copytree(self.good, self.data, dirs_exist_ok=True)

    def fill(self):
        """What each context gives, and the cache of the first."""
        self.wanted = {}
        for name in self.contexts:
            store = self.machine()
            self.wanted[name], cached = self.make(name, store)
            self.assertEqual(cached, 0)
            shutil.rmtree(store)
        store = self.machine()
        self.assertEqual(self.make("same", store, "--cache-to", f"{self.registry.host}/cache:main"), (self.wanted["same"], 0))
        shutil.rmtree(store)
        shutil.copytree(self.data, self.good)

    def check_image(self, host):
        """Every blob of the image is there and has its digest."""
        def blob(kind, name):
            done = subprocess.run(["curl", "-sSf", "-H", "Accept: application/vnd.oci.image.manifest.v1+json",
                                   f"http://{host}/v2/app/{kind}/{name}"], capture_output=True, timeout=support.WATCHDOG)
            self.assertEqual(done.returncode, 0, (name, done.stderr))
            return done.stdout
        manifest = json.loads(blob("manifests", "1"))
        for descriptor in [manifest["config"], *manifest["layers"]]:
            self.assertEqual("sha256:" + hashlib.sha256(blob("blobs", descriptor["digest"])).hexdigest(), descriptor["digest"])


class Vanish(Machines):
    def arguments(self, host, output, filled):
        """What a build is told. The bundle is under a TAG, or there is none by the name that is asked for."""
        cache = f"type=registry,ref={host}/cache:main"
        told = ["--cache-from", cache]
        if filled == FILLED[1]:
            told += ["--cache-to", cache]
        if filled == FILLED[2]:
            told += ["--cache-to", f"type=registry,ref={self.other.host}/filled:main"]
        if output == "layout":
            shutil.rmtree(self.scratch / "out", ignore_errors=True)
            (self.scratch / "out").mkdir(mode=0o777)
            (self.scratch / "out").chmod(0o777)
            return [*told, "--output", f"type=oci,tar=false,dest={self.scratch / 'out' / 'image'}"]
        return [*told, "--push", "-t", f"{host if output == 'same registry' else self.other.host}/app:1"]

    def points(self, count):
        """Requests of every kind of build, in an order that has all kinds among the first. Where the cache has no bundle keys are
        asked for one by one."""
        kinds = [(kind, number % 2 == 0) for number, kind in enumerate(itertools.product(FILES, OUTPUTS, FILLED))]
        random.Random(0).shuffle(kinds)
        if not NIGHTLY and count > 1:
            # No build has fewer requests than a look and a push; which there are beyond is not known without having built.
            return [(*kind, 1 + 2 * number) for number, kind in enumerate(kinds)]
        found = []
        for number, kind in enumerate(kinds):
            rule = Vanishing(Repository(self.data, "cache"), 0, 0)
            self.attempt(*kind, rule, "root")
            found.append([(*kind, k) for k in range(1, rule.count + 1)])
            random.Random(number).shuffle(found[-1])
        return [point for turn in itertools.zip_longest(*found) for point in turn if point]

    def attempt(self, kind, bundle, rule, user):
        """One build on an empty store while `rule` is at work; gives how many steps were cached, and the store."""
        context, output, filled = kind
        self.reset()
        if not bundle:
            shutil.rmtree(Repository(self.data, "cache").tags / "main")
        store = self.machine(user)
        with Proxy(self.registry.host, rule) as proxy:
            self.requests = proxy.requests
            digest, cached = self.make(context, store, *self.arguments(proxy.host, output, filled), user=user)
            self.assertEqual(digest, self.wanted[context])
        if output == "layout":
            layout = support.Layout(self.scratch / "out" / "image")
            for path in (layout.path / "blobs" / "sha256").iterdir():
                self.assertEqual(hashlib.sha256(path.read_bytes()).hexdigest(), path.name)
        return cached, store

    def check_next(self, kind, machine, user):
        """The cache is as the first build has left it; the machine is the same, or another one."""
        context, output, filled = kind
        told = self.arguments(self.registry.host, output, filled)
        self.assertEqual(self.make(context, machine, *told, user=user)[0], self.wanted[context])
        if output != "layout":
            self.check_image(self.registry.host if output == "same registry" else self.other.host)
        self.run_layerwright("fsck", "--root", machine, user=user)
        shutil.rmtree(machine)

    def test_what_vanishes_under_a_build_changes_nothing_but_what_runs(self):
        self.fill()
        chosen = seeds(200, 4)
        points = self.points(len(chosen))
        outcomes = []
        for seed in chosen:
            kind, bundle, k = points[seed % len(points)]
            user = support.USERS[seed % 3]
            rule = Vanishing(Repository(self.data, "cache"), k, seed)
            with self.subTest(seed=seed, kind=kind, bundle=bundle, k=k, amount=rule.amount, user=user):
                try:
                    cached, store = self.attempt(kind, bundle, rule, user)
                    outcomes.append((cached, bool(rule.gone)))
                    if seed // 3 % 2:
                        shutil.rmtree(store)
                        store = self.machine(user)
                    self.check_next(kind, store, user)
                except AssertionError as error:
                    raise AssertionError(f"{error}\ngone: {rule.gone}\n{getattr(self, 'requests', None)}") from None
        if len(outcomes) > 1:
            hit = sum(1 for cached, _ in outcomes if cached)
            print(f"{len(outcomes)} right of {len(chosen)}; {len(points)} points are known; "
                  f"{sum(gone for _, gone in outcomes)} lost something, {hit} had steps cached")
            self.assertTrue(any(cached for cached, _ in outcomes) and any(gone for _, gone in outcomes))


    def test_what_else_is_gone_costs_no_further_build(self):
        """Every layer that the second build has to read is gone, and it finds that out at the first."""
        self.fill()
        for output in OUTPUTS:
            with self.subTest(output):
                self.reset()
                for blob in Repository(self.data, "cache").things()["blob"]:
                    shutil.rmtree(blob)
                arguments = self.arguments(self.registry.host, output, FILLED[0])
                self.assertEqual(self.make("middle", self.machine(), *arguments), (self.wanted["middle"], 0))
                self.assertEqual(self.last.stderr.count("the build is made once more"), 1, self.last.stderr)

    def test_a_registry_that_fails_costs_what_it_fails_with(self):
        """For good: one blob, or all. Faults that pass are tried again (oci/tests/all/caches.rs)."""
        self.fill()
        for fails, once_more in [("one", 1), ("all", 2)]:
            with self.subTest(fails):
                failing = []

                def rule(request):
                    if not request.path.startswith("/v2/cache/blobs/") or request.method not in ("GET", "HEAD"):
                        return None
                    if request.method == "GET" and (fails == "all" or not failing):
                        failing.append(request.path)
                    return (500, {}, b"") if fails == "all" or request.path in failing else None
                cached, store = self.attempt(("middle", "layout", FILLED[0]), True, rule, "root")
                told = self.last.stderr
                given_up = told.count("no more layers are read of the cache")
                self.assertEqual((cached > 0, given_up), (True, 0) if fails == "one" else (False, 1), told)
                self.assertTrue(1 <= told.count("the build is made once more") <= once_more, told)
                shutil.rmtree(store)


class Killed(Machines):
    """Kill -9 while records are published."""

    def publish(self, store, rule, user, *arguments):
        """A build that fills the cache behind a proxy; the process, and the proxy's rule may end it."""
        with Proxy(self.registry.host, rule) as proxy:
            command = self.command("build", "--progress", "plain", "--cache-to", f"{proxy.host}/cache:main", "-t",
                                   f"{proxy.host}/app:1", *arguments, self.contexts["same"], user=user, root=store)
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                       cwd=self.scratch)
            rule.process = process
            rule.started.set()
            process.wait(support.WATCHDOG)
        return process.returncode

    class Kill:
        """Ends the process before its k-th request is passed on, or before the first one after it at which `is_time`, while others
        may be on their way."""

        def __init__(self, k, is_time=lambda: True):
            self.k, self.is_time, self.is_done = k, is_time, False
            self.count, self.lock, self.started = 0, threading.Lock(), threading.Event()

        def __call__(self, _):
            with self.lock:
                self.count += 1
                if not self.is_done and 0 < self.k <= self.count and self.is_time():
                    self.is_done = True
                    self.started.wait(support.WATCHDOG)
                    self.process.kill()

    def published(self):
        """The records that the cache has, each under one name or two."""
        names = Repository(self.data, "cache").names()
        return {digest for name, digest in names.items() if name.startswith(("lw1-d-", "lw1-c-"))}

    def records(self):
        """The instructions of the records that the cache has."""
        stored, digests = Storage(self.data, "cache"), self.published()
        documents = [document_of(stored.blob(digest).read_bytes()) for digest in digests]
        return [json.loads(document)["content"]["preImage"]["~instruction"] for document in documents]

    def test_a_killed_builder_s_records_are_hits(self):
        self.fill()
        self.reset(good=False)
        whole = self.Kill(0)
        store = self.machine()
        self.assertEqual(self.publish(store, whole, "root", "--push"), 0)
        counts, kills = [], seeds(40, 2)
        for seed in kills:
            push = ["--push"] if seed % 2 else []
            k = 1 + seed * whole.count // len(kills) if len(kills) > 1 else random.Random(seed).randrange(1, whole.count)
            with self.subTest(seed=seed, k=k, push=bool(push)):
                self.reset(good=False)
                # A few kills, by day, come after the first record.
                store, rule = self.machine(), self.Kill(k, lambda: NIGHTLY or self.published())
                ended = self.publish(store, rule, "root", *push)
                there = self.records()
                cache = f"{self.registry.host}/cache:main"
                # A RUN step whose record is there does not end by itself on the other machine, however late it hears of it.
                known = {name for instruction in there for name in re.findall(r"\*:(\w+):\*", instruction)}
                digest, cached = self.make("same", self.machine(), "--cache-from", cache, *support.holding(known))
                self.assertEqual(digest, self.wanted["same"])
                self.assertGreaterEqual(cached, len(known), f"ended with {ended}")
                counts.append((len(there), cached, ended))
                # It goes on where it was, and then the cache is full.
                self.assertEqual(self.make("same", store, "--cache-from", cache, "--cache-to", cache)[0], self.wanted["same"])
                every = support.holding(RUNS)
                self.assertEqual(self.make("same", self.machine(), "--cache-from", cache, *every), (self.wanted["same"], STEPS))
        if len(counts) > 1:
            print(f"{len(counts)} right of {len(kills)} killed; records that were there, steps that were cached, how it ended: {counts}")
            self.assertTrue(any(0 < there < STEPS and ended == -signal.SIGKILL for there, _, ended in counts), counts)


if __name__ == "__main__":
    unittest.main()
