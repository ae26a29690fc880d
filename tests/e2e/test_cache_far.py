"""What a remote cache costs: requests, round trips one after the other and bytes, counted at a proxy before a real registry;
and that nobody waits for one that does not answer. Order and counts only, no seconds."""

import contextlib
import json
import re
import subprocess
import unittest

import support
from proxy import Proxy, SlowProxy
from servers import repository

STEPS = 20
# What is added to every round trip, so that requests that could overlap do.
FAR = 0.05
# Of the last layer: whether it is there, a place to put it, its bytes, whether all is there now; then the manifest, and that it stays.
# Beside that the layer is mounted into the cache, and named. One more was under way when the mark was made.
TAIL = 7


class Far(support.Case):
    def setUp(self):
        super().setUp()
        self.registry = self.enterContext(support.Registry(self.scratch / "registry"))
        subprocess.run(["skopeo", "copy", "--dest-tls-verify=false", f"oci:{self.base}:latest", f"docker://{self.registry.host}/busybox:1"],
                       check=True, timeout=support.WATCHDOG, stdout=subprocess.DEVNULL)
        image = support.Layout(self.base).manifest
        self.base_config, self.base_layer = (f"/v2/busybox/blobs/{part['digest']}" for part in (image["config"], *image["layers"]))
        steps = "".join(f"RUN echo {step} > /f{step}\n" for step in range(STEPS))
        self.steps = self.context("steps", Dockerfile=f"FROM small\n{steps}")

    def run_build(self, host, *arguments, store="store", **options):
        """With a base from the registry, as most have it."""
        base = f"small=docker-image://{host}/busybox:1"
        return self.run_layerwright("build", "--progress", "plain", "--build-context", base, *arguments,
                                    root=self.scratch / store, **options)

    def fill(self, *arguments):
        return self.run_build(self.registry.host, "--cache-to", f"type=registry,ref={self.registry.host}/cache:main", *arguments,
                              self.steps, store="first")

    @contextlib.contextmanager
    def without_base(self, proxy):
        """On a busy machine the base may be asked for before the cache is heard; that is called back. The base is given to nobody
        before the end, so a build that waits for it hangs."""
        def held(request):
            if request.method == "GET" and request.path == self.base_layer:
                proxy.when(lambda: "ended" in proxy.names)
                return 504, {}, b""
            return None
        proxy.rule = held
        yield
        proxy.say("ended")

    def test_twenty_cached_steps_are_five_round_trips_away(self):
        self.fill()
        with SlowProxy(self.registry.host, FAR) as proxy:
            done = self.run_build(proxy.host, "--cache-from", f"type=registry,ref={proxy.host}/cache:main", self.steps)
            self.assertIn(f"{STEPS} steps, {STEPS} cached", done.stderr)
            self.assertLessEqual(proxy.sequential(), 5, proxy.requests)
            self.assertLessEqual(len(proxy.requests), 10, proxy.requests)

    def test_the_same_build_again_is_a_look_at_the_base_the_cache_and_the_name(self):
        with Proxy(self.registry.host) as proxy:
            place = f"type=registry,ref={proxy.host}/cache:main"
            def push(store, *cache):
                proxy.requests.clear()
                done = self.run_build(proxy.host, "--push", "-t", f"{proxy.host}/app:1", *cache, self.steps, store=store)
                return done.stderr, list(proxy.requests)
            both = ("--cache-from", place, "--cache-to", place)
            push("first", *both)
            looks = [("GET", "/v2/cache/manifests/main"), ("HEAD", "/v2/app/manifests/1"), ("HEAD", "/v2/busybox/manifests/1")]
            for cache, expected in ((both, looks), (both[:2], looks), ((), looks[1:])):
                told, requests = push("first", *cache)
                self.assertIn(f"{STEPS} steps, {STEPS} cached", told)
                self.assertEqual(sorted((request.method, request.path) for request in requests), expected)
            # Another machine asks what the base is, where the cache, which tells that too, is not heard before.
            with self.without_base(proxy):
                told, requests = push("second", *both)
            self.assertIn(f"{STEPS} steps, {STEPS} cached", told)
            base = [("GET", path) for path in ("/v2/busybox/manifests/1", self.base_config, self.base_layer)]
            asked = [(request.method, request.path) for request in requests]
            self.assertEqual(sorted(one for one in asked if one not in base), looks)

    def test_a_commit_under_another_name_is_a_lookup_and_a_tag(self):
        repository(self.scratch / "origin.git", {"Dockerfile": (self.steps / "Dockerfile").read_text()})
        with Proxy(self.registry.host) as proxy:
            place = f"type=registry,ref={proxy.host}/cache:main"
            both = ("--cache-from", place, "--cache-to", place)
            def push(tag, store, *arguments, code=0):
                proxy.requests.clear()
                done = self.run_build(proxy.host, "--git", "HEAD", "--push", "-t", f"{proxy.host}/app:{tag}", *arguments,
                                      self.scratch / "origin.git", store=store, code=code)
                asked = [(request.method, request.path) for request in proxy.requests]
                return done.stderr, [(method, re.sub("sha256:.*", "sha256", path.removeprefix("/v2/"))) for method, path in asked]
            push("{git.sha}", "first", *both)
            base, cache = ("HEAD", "busybox/manifests/1"), ("GET", "cache/manifests/main")
            named = lambda tag: [("HEAD", "app/manifests/sha256"), ("PUT", f"app/manifests/{tag}")]
            # Where the results are, and from an empty store with the cache. What the base's tag stands for is asked besides.
            self.assertEqual(push("v1", "first")[1], [base, *named("v1")])
            with self.without_base(proxy):
                _, asked = push("v2", "second", *both)
            brought = ("busybox/manifests/1", "busybox/blobs/sha256")
            asked = [one for one in asked if one[0] != "GET" or one[1] not in brought]
            self.assertEqual((sorted(asked[:-2]), asked[-2:]), ([cache, base], named("v2")))
            # A registry whose tags may not change takes none twice: what stands for the image is right, all else is refused.
            def refusing(status, code, message):
                answer = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
                return lambda request: (status, {}, answer) if request.method == "PUT" and "/manifests/" in request.path else None
            proxy.rule = refusing(400, "TAG_INVALID", "the tag is immutable")
            self.assertEqual(push("v1", "first")[1], [base, *named("v1"), ("HEAD", "app/manifests/v1")])
            told, _ = push("v3", "first", code=3)
            self.assertIn("the tag is immutable", told)
            # But not if the registry says that it has lost what the image consists of.
            proxy.rule = refusing(404, "MANIFEST_BLOB_UNKNOWN", "it is gone")
            told, _ = push("v1", "first", code=3)
            self.assertIn("it is gone", told)

    def test_a_fully_cached_push_moves_no_layer(self):
        name = "app:1"
        first = self.fill("-t", f"{self.registry.host}/{name}", "--push", "--metadata-file", self.scratch / "first.json")
        self.assertIn(f"{STEPS} steps, 0 cached", first.stderr)
        with Proxy(self.registry.host) as proxy:
            with self.without_base(proxy):
                done = self.run_build(proxy.host, "--cache-from", f"type=registry,ref={proxy.host}/cache:main", "-t",
                                      f"{proxy.host}/{name}", "--push", "--metadata-file", self.scratch / "second.json", self.steps)
            self.assertIn(f"{STEPS} steps, {STEPS} cached", done.stderr)
            layers = STEPS + 1
            self.assertLessEqual(len(proxy.requests), 10 + layers, proxy.requests)
            self.assertLessEqual(sum(request.received for request in proxy.requests), 100_000, proxy.requests)
            self.assertEqual(proxy.uploads("app"), [])
        digests = [json.loads((self.scratch / file).read_text())["containerimage.digest"] for file in ("first.json", "second.json")]
        self.assertEqual(digests[0], digests[1])

    def test_the_tail_of_an_export_is_few_round_trips(self):
        # What the last step leaves is pushed and cached when it has ended: blobs, then records and image, then what names them.
        with SlowProxy(self.registry.host, FAR) as proxy:
            steps = self.context("marked", Dockerfile=f"""\
FROM small
RUN echo first > /first
RUN echo last > /last && wget -q -O- http://{proxy.host}/mark
""")
            done = self.run_build(proxy.host, "--cache-to", f"type=registry,ref={proxy.host}/cache:main",
                                  "-t", f"{proxy.host}/tail:1", "--push", steps)
            marks = [at for at, request in enumerate(proxy.requests) if request.path == "/mark"]
            self.assertEqual(len(marks), 1, done.stderr)
            tail = proxy.requests[marks[0] + 1:]
            self.assertTrue([request for request in tail if request.path.endswith("/manifests/main")], tail)
            self.assertLessEqual(proxy.sequential(tail), TAIL, tail)

    def test_nobody_waits_for_a_cache_that_does_not_answer(self):
        # Nothing of the cache is answered before the build has ended, so it hangs if it waits for anything.
        with Proxy(self.registry.host) as proxy:
            def held(_):
                proxy.when(lambda: "ended" in proxy.names)
            proxy.rule = held
            done = self.run_build(self.registry.host, "--cache-from", f"type=registry,ref={proxy.host}/cache:main", self.steps)
            answered = [request for request in proxy.requests if request.answered]
            proxy.say("ended")
            self.assertTrue(proxy.requests, "the cache was asked")
            self.assertEqual(answered, [], "the build has not waited")
            self.assertIn(f"{STEPS} steps, 0 cached", done.stderr)


if __name__ == "__main__":
    unittest.main()
