"""A remote cache in a stranger's hands, and whole builds that push out of it: what he gets them to believe.

By seed, one change of what is stored (`tamperings`), in a directory or below a docker-registry, and one build with an empty store.
Without a key whatever digests show is a miss, and the image the one that the steps make; what they cannot show is as
docs/remote-cache.md says. With a trust key the image is always that one, and of what was changed nothing is believed.

`LAYERWRIGHT_NIGHTLY=1` makes 300 changes for each, `LAYERWRIGHT_SEED=N` one, and `N-M` those from N up to M.
"""

import base64
import os
import random
import re
import resource
import shutil
import subprocess
import time
import unittest

import support
from forger import MARK, Directory, Storage
from tamperings import LIES, RUN_ANYHOW, STREAMED, VISIBLE, WAYS, Tampering

DOCKERFILE = f"""\
FROM busybox AS tool
RUN {support.held("tool")}mkdir -p /d/e && echo tool > /d/tool && ln /d/tool /d/same && ln -s tool /d/link
RUN {support.held("more")}echo more >> /d/tool && chmod 750 /d/e
FROM busybox AS library
WORKDIR /library
COPY a b ./
RUN {support.held("both")}cat b a > both && rm b
FROM busybox
ENV WHO=nobody
WORKDIR /work
COPY a b ./
RUN {support.held("ab")}cat a b > ab && rm a && chmod 600 b
COPY --from=tool /d /d
COPY --from=library /library /library
RUN {support.held("sizes")}wc -c /library/both /d/tool > /sizes
COPY late /late
RUN {support.held("end")}cat /late /sizes > /end
"""
STEPS = 13
RUNS = ["tool", "more", "both", "ab", "sizes", "end"]
# Records of another Dockerfile, and of another platform.
OTHER = "FROM busybox\nWORKDIR /work\nRUN echo other > /other\nCOPY late /late\n"
FOREIGN = "FROM scratch\nCOPY a b /work/\nCOPY late /late\n"
SECONDS, KILOBYTES = 60, 250_000
NIGHTLY = "LAYERWRIGHT_NIGHTLY" in os.environ


def seeds(short):
    if seed := os.environ.get("LAYERWRIGHT_SEED"):
        first, _, last = seed.partition("-")
        return range(int(first), int(last or first) + 1)
    return range(300 if NIGHTLY else short)


class Forged(support.Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.place = cls.shared / "place"
        cls.place.mkdir(mode=0o755)
        cls.near = cls.enterClassContext(support.Registry(cls.place / "near"))
        cls.far = cls.enterClassContext(support.Registry(cls.place / "far"))
        cls.key, cls.trusted = cls.keys("ours")
        cls.wanted = {}

    @classmethod
    def keys(cls, name):
        private, public = cls.place / f"{name}.key", cls.place / f"{name}.pub"
        subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
        subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
        private.chmod(0o600)
        return private, public

    def setUp(self):
        super().setUp()
        self.cache, self.project, self.edited = (self.place / name for name in ("cache", "project", "edited"))
        self.good = {"registry": self.place / "good-registry", "directory": self.place / "good-directory"}
        if not self.wanted:
            self.fill()

    def fill(self):
        """Clean builds fill a registry and a directory, and say what is wanted. Once is enough."""
        made = self.context(Dockerfile=DOCKERFILE, a="a" * 5000, b="b", late="late\n", other=OTHER, foreign=FOREIGN)
        shutil.copytree(made, self.project)
        shutil.copytree(made, self.edited)
        (self.edited / "late").write_text("later\n")
        fill = lambda tag: ["--cache-to", f"type=registry,ref={self.near.host}/cache:{tag}",
                            "--cache-to", f"type=local,dest={self.cache},tag={tag}", "--cache-sign-key", self.key]
        image = self.made("--push", "-t", f"{self.near.host}/app", *fill("main"))
        self.made("-f", self.project / "other", "-o", "type=cacheonly", *fill("other"))
        self.made("-f", self.project / "foreign", "--platform", "linux/arm64", "-o", "type=cacheonly", *fill("foreign"))
        edited = self.made("--push", "-t", f"{self.far.host}/app", context=self.edited)
        # The image is not here yet, so its layers are mounted out of the cache.
        shutil.rmtree(self.near.directory / "data" / "docker" / "registry" / "v2" / "repositories" / "app")
        shutil.copytree(self.near.directory / "data", self.good["registry"])
        shutil.copytree(self.cache, self.good["directory"])
        self.wanted.update({way: edited if RUN_ANYHOW[way] else image for way in WAYS})

    def made(self, *arguments, context=None, code=0, fresh=True):
        """The digest that a machine gets which has nothing; with no code, nothing where a step fails."""
        if fresh:
            shutil.rmtree(self.store(), ignore_errors=True)
        begun = time.monotonic()
        self.last = self.run_layerwright("build", "--progress", "plain", *arguments, context or self.project, code=code)
        self.assertLess(time.monotonic() - begun, SECONDS)
        self.assertLess(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, KILOBYTES)
        self.assertNotIn("panic", self.last.stderr)
        built = re.search(r"^Built (sha256:[0-9a-f]{64}) ", self.last.stderr, re.MULTILINE)
        if not built:
            self.assertIn("did not complete successfully", self.last.stderr)
        return built and built[1]

    def ran(self):
        """How many steps of the last build have run, in all its attempts."""
        steps = set(re.findall(r"^#(\d+) \[.*\d+/\d+\] (?!FROM )", self.last.stderr, re.MULTILINE))
        return len(steps & set(re.findall(r"^#(\d+) DONE", self.last.stderr, re.MULTILINE)))

    def forged(self, place, seed, way, change):
        """The cache as it was, and what somebody has made of it."""
        data = self.near.directory / "data"
        for path in (data, self.cache, self.far.directory / "data"):
            shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(self.good["registry"], data)
        shutil.copytree(self.good["directory"], self.cache)
        change(Tampering(Storage(data, "cache") if place == "registry" else Directory(self.cache), seed, way))

    def found(self, place, way, *arguments, **options):
        """The same where all steps must be found, however late, but those that run anyhow."""
        return self.read(place, way, *arguments, *support.holding(RUNS[:-1] if RUN_ANYHOW[way] else RUNS), **options)

    def read(self, place, way, *arguments, **options):
        source = f"registry,ref={self.near.host}/cache:main" if place == "registry" else f"local,src={self.cache},tag=main"
        target = self.far if way == STREAMED else self.near
        return self.made("--cache-from", f"type={source}", "--push", "-t", f"{target.host}/app", *arguments,
                         context=self.edited if RUN_ANYHOW[way] else self.project, **options)

    def believed(self):
        """Whether something that was written anew has come into the store."""
        return subprocess.run(["grep", "-rqF", f'"{MARK}"', self.store()], check=False).returncode == 0

    def points(self, kinds, short):
        """Every kind as often as any other, with a way in which it counts; out of a directory nothing can be mounted."""
        names = sorted(kinds)
        for seed in seeds(short):
            kind, chosen = names[seed % len(names)], random.Random(seed)
            change, ways = kinds[kind]
            way = chosen.choice(ways)
            places = ["registry"] if way not in (STREAMED, ways[-1]) else ["registry", "registry", "directory"]
            yield seed, kind, way, chosen.choice(places), change

    def test_what_digests_show_is_a_miss(self):
        right = 0
        for seed, kind, way, place, change in self.points(VISIBLE, 9):
            with self.subTest(seed=seed, kind=kind, way=way, place=place):
                self.forged(place, seed, way, change)
                self.assertEqual(self.read(place, way), self.wanted[way], self.last.stderr)
                self.assertGreater(self.ran(), RUN_ANYHOW[way], self.last.stderr)
                right += 1
        print(f"without a key: {right} of {len(seeds(9))} tamperings were misses, with the right digest")

    def test_with_a_key_nothing_forged_is_believed(self):
        right, kinds = 0, {kind: (change, WAYS) for kind, (change, _) in (VISIBLE | LIES).items()}
        for seed, kind, way, place, change in self.points(kinds, 5):
            with self.subTest(seed=seed, kind=kind, way=way, place=place):
                self.forged(place, seed, way, change)
                self.assertEqual(self.read(place, way, "--cache-trust-key", self.trusted), self.wanted[way], self.last.stderr)
                self.assertFalse(self.believed())
                right += 1
        print(f"with a key: nothing was believed of {right} of {len(seeds(5))} tamperings, with the right digest")

    def test_what_nobody_can_find_without_a_key(self):
        """The table of docs/remote-cache.md: at night all of it, else a part."""
        for number, (kind, (change, passes)) in enumerate(sorted(LIES.items())):
            for way in WAYS if NIGHTLY else WAYS[number % 3:][:number % 2]:
                with self.subTest(kind=kind, way=way):
                    self.forged("registry", number, way, change)
                    if way in passes:
                        # Where a step stands on a lie, it may fail.
                        digest = self.found("registry", way, code=None)
                        self.assertLessEqual(self.ran(), RUN_ANYHOW[way] if digest else 1, self.last.stderr)
                    else:
                        self.assertEqual(self.read("registry", way), self.wanted[way], self.last.stderr)
                        self.assertGreater(self.ran(), RUN_ANYHOW[way], self.last.stderr)

    def test_the_good_one_has_all_steps(self):
        """Without this the others would say nothing."""
        trust = ["--cache-trust-key", self.trusted]
        for number, place in enumerate(self.good):
            for way in WAYS if NIGHTLY else WAYS[:1]:
                for told in ([], trust) if NIGHTLY else [trust]:
                    with self.subTest(place=place, way=way, trust=bool(told)):
                        self.forged(place, 0, way, lambda _: None)
                        self.assertEqual(self.found(place, way, *told), self.wanted[way])
                        self.assertEqual(self.ran(), RUN_ANYHOW[way], self.last.stderr)
            if NIGHTLY or number == 0:
                # What is only written anew is as good as it was, and for nobody who wants a signature.
                self.forged(place, 0, STREAMED, lambda forger: forger.forge(lambda _: None))
                self.assertEqual((self.found(place, STREAMED), self.ran()), (self.wanted[STREAMED], 0))
                self.assertEqual((self.read(place, STREAMED, *trust), self.ran()), (self.wanted[STREAMED], STEPS))

    def signed_by(self, key):
        """Signs records as they are, with openssl."""
        def change(manifest):
            if "cache.record" in manifest["artifactType"]:
                message = self.scratch / "message"
                message.write_bytes(b"layerwright cache record\0\x01\0\0\0" + base64.b64decode(manifest["config"]["data"]))
                done = subprocess.run(["openssl", "pkeyutl", "-sign", "-rawin", "-inkey", key, "-in", message], check=True,
                                      capture_output=True)
                manifest["annotations"] = {"dev.layerwright.cache.signature": base64.b64encode(done.stdout).decode()}
        return lambda forger: (forger.manifests(change, forger.records()), forger.drop_bundle())

    def test_who_trusts_one_key_hears_nobody_else(self):
        other, trusted = self.keys("theirs")
        for signer, key, runs in ((other, self.trusted, STEPS), (other, trusted, 0)):
            self.forged("directory", 0, STREAMED, self.signed_by(signer))
            build = self.read if runs else self.found
            self.assertEqual(build("directory", STREAMED, "--cache-trust-key", key), self.wanted[STREAMED])
            self.assertEqual(self.ran(), runs, self.last.stderr)

    def test_what_a_store_has_of_others_is_believed_by_who_believes_them(self):
        """What is read of a cache stays in the store, and steps run on top of it."""
        _, others = self.keys("others")
        alone = ["-o", "type=cacheonly"]
        for told, finders, misses in (([], [[]], [self.trusted]), (["--cache-trust-key", self.trusted], [[], [self.trusted]], [others])):
            for keys in [*finders, *[[key] for key in misses]]:
                with self.subTest(told=told, keys=keys):
                    self.forged("directory", 0, "read", lambda _: None)
                    self.found("directory", "read", *told)
                    trust = [argument for key in keys for argument in ("--cache-trust-key", key)]
                    self.made(*trust, *alone, context=self.edited, fresh=False)
                    if keys and keys[0] in misses:
                        self.assertGreaterEqual(self.ran(), STEPS - 4, self.last.stderr)
                    else:
                        self.assertEqual(self.ran(), 0, self.last.stderr)


if __name__ == "__main__":
    unittest.main()
