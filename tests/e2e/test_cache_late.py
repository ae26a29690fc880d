"""A remote cache that answers late, or never: what runs meanwhile is stopped when it has become needless, and no build waits."""

import json
import os
import subprocess
import unittest

import proxy
import support
from forger import Storage, document_of

# Proxy arguments are in no key: with one the step would never end by itself.
DOCKERFILE = """\
FROM busybox AS tools
RUN --mount=type=cache,target=/c if [ -n "$NO_PROXY" ]; then echo half > /c/half; echo begun; sleep 1000; fi; echo tool > /tool
FROM busybox
COPY --from=tools /tool /tool
RUN wc -c /tool > /size
"""


def is_of_cache(request):
    return request.path.startswith("/v2/cache/manifests/")


class Late(support.Case):
    def start(self, user, context, cache, out):
        command = self.command(
            "build", "--progress", "plain", "--cache-from", cache, "--build-arg", "NO_PROXY=x",
            "-o", f"type=oci,tar=false,dest={out}", context, user=user, root=self.store(f"{user}"))
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                text=True, env=os.environ, cwd=self.scratch)

    def late(self, user):
        context = self.context(f"context-{user}", Dockerfile=DOCKERFILE + f"# {user}\n")
        with support.Registry(self.scratch / f"registry-{user}") as registry:
            def late(request):
                if is_of_cache(request):
                    far.when(lambda: "begun" in far.names)
            with proxy.Proxy(registry.host, late) as far:
                built = support.Layout(self.build(
                    context, "--cache-to", f"type=registry,ref={registry.host}/cache", root=self.scratch / f"other-{user}",
                    name=f"built-{user}"))
                out = self.scratch / f"out-{user}"
                out.mkdir()
                os.chown(out, *self.ids(user))
                running = self.start(user, context, f"type=registry,ref={far.host}/cache", out / "layout")
                lines = []
                with running.stderr:
                    for line in running.stderr:
                        lines.append(line)
                        if "begun" in line and "RUN" not in line:
                            far.say("begun")
                text = "".join(lines)
                self.assertEqual(running.wait(support.WATCHDOG), 0, text)
        self.assertEqual(support.Layout(out / "layout").digest, built.digest, text)
        self.assertIn("3 steps, 3 cached", text)
        self.assertRegex(text, r"begun\n(.*\n)*#\d+ CACHED")

    def ids(self, user):
        store = os.stat(self.store(user))
        return store.st_uid, store.st_gid

    def test_what_runs_is_stopped_when_the_cache_has_it(self):
        for user in support.USERS:
            with self.subTest(user=user):
                self.late(user)

    def test_a_cache_that_never_answers_is_not_waited_for(self):
        context = self.context(Dockerfile=DOCKERFILE)
        with support.Registry(self.scratch / "registry") as registry:
            def never(request):
                if is_of_cache(request):
                    far.when(lambda: "end" in far.names)
            with proxy.Proxy(registry.host, never) as far:
                done = self.run_layerwright(
                    "build", "--progress", "plain", "--cache-from", f"type=registry,ref={far.host}/cache", context)
                asked = [request for request in far.requests if is_of_cache(request)]
                self.assertTrue(asked and not any(request.answered for request in asked), asked)
                far.say("end")
        self.assertIn("3 steps, 0 cached", done.stderr)
        self.assertIn("has not answered before the build ended", done.stderr)

    def test_while_a_cache_is_waited_for_the_base_is_pulled(self):
        """No answer before the base has been asked for, which without the waiting would be the other way round."""
        context = self.context(Dockerfile="FROM small\nRUN echo first > /first\n")
        with support.Registry(self.scratch / "registry") as registry:
            subprocess.run(["skopeo", "copy", "--dest-tls-verify=false", f"oci:{self.base}:latest", f"docker://{registry.host}/busybox:1"],
                           check=True, timeout=support.WATCHDOG, stdout=subprocess.DEVNULL)

            def build(host, option, store):
                return self.run_layerwright(
                    "build", "--progress", "plain", "--build-context", f"small=docker-image://{host}/busybox:1", option,
                    f"type=registry,ref={host}/cache:main", "-o", f"type=oci,tar=false,dest={self.scratch / store}-out", context,
                    root=self.scratch / store)
            build(registry.host, "--cache-to", "first")
            # Its largest blob is the layer; the config is small.
            layer = max(support.Layout(self.scratch / "first-out").manifest["layers"], key=lambda layer: layer["size"])["digest"]
            digests = [support.Layout(self.scratch / "first-out").digest]

            def waits(request):
                if is_of_cache(request):
                    far.wait_for(lambda other: other.path.endswith(f"/blobs/{layer}"), "the layer of the base")
            with proxy.Proxy(registry.host, waits) as far:
                done = build(far.host, "--cache-from", "second")
                pulled = [request for request in far.requests if request.path.endswith(f"/blobs/{layer}")]
            self.assertTrue(pulled, done.stderr)
            digests.append(support.Layout(self.scratch / "second-out").digest)
            self.assertEqual(digests[0], digests[1], done.stderr)

    def test_a_cache_that_has_nothing_or_is_not_there_is_named(self):
        context = self.context(Dockerfile="FROM busybox\nRUN echo first > /first\n")
        with support.Registry(self.scratch / "registry") as registry:
            cache = f"{registry.host}/mistyped"
            done = self.run_layerwright("build", "--progress", "plain", "--cache-from", f"type=registry,ref={cache}:main", context)
            self.assertIn(f"found nothing in the cache {cache}:main\n", done.stderr)
            fill = ("build", "--progress", "plain", "--cache-to", f"type=registry,ref={cache}:main")
            self.run_layerwright(*fill, context, root=self.scratch / "other")
            done = self.run_layerwright("build", "--progress", "plain", "--cache-from", f"type=registry,ref={cache}:main", context,
                                        root=self.scratch / "third")
            self.assertIn("1 cached", done.stderr)
            self.assertNotIn("found nothing", done.stderr)
            # Without a name a bundle is that of a Dockerfile: who has changed all of it finds nothing, in a cache that has something.
            plain = ("build", "--progress", "plain", "--cache-from", f"{cache}", "--cache-to", f"{cache}")
            self.run_layerwright(*plain, context, root=self.scratch / "fifth")
            other = self.context("changed", Dockerfile="FROM busybox\nRUN echo other > /other\n")
            done = self.run_layerwright(*plain, other, root=self.scratch / "sixth")
            self.assertIn(f"found nothing of this Dockerfile in the cache {cache}\n", done.stderr)
            done = self.run_layerwright(*plain, other, root=self.scratch / "seventh")
            self.assertNotIn("found nothing", done.stderr)
            # A branch's first build: its bundle is not there yet, and what it is of is found.
            branch = ("build", "--progress", "plain", "--cache-from", f"{cache}:main,{cache}:branch", context)
            done = self.run_layerwright(*branch, root=self.scratch / "fourth")
            self.assertIn("1 cached", done.stderr)
            self.assertNotIn("found nothing", done.stderr)

    def test_what_a_stopped_step_was_bringing_is_not_lost(self):
        """The cache tells of the second step when that has begun to bring the first one's layer, and what it brings hangs."""
        steps = "FROM busybox\nRUN echo one > /one\nRUN cp /one /two\nRUN cp /two /"
        with support.Registry(self.scratch / "registry") as registry:
            filled = self.build(self.context("filled", Dockerfile=steps + "three\n"), "--cache-to", f"{registry.host}/cache:main",
                                root=self.scratch / "other", name="filled")
            stored = Storage(self.scratch / "registry" / "data", "cache")
            second = [name for name in stored.names() if name.startswith("lw1-") and
                      json.loads(document_of(stored.manifest(name)))["content"]["preImage"]["~instruction"] == "RUN cp /one /two"]
            self.assertEqual(len(second), 2, stored.names())
            stored.drop("main")
            layer = support.Layout(filled).manifest["layers"][1]["digest"]

            def asked():
                return [request for request in far.requests if request.method == "GET" and request.path.endswith(layer)]

            def hangs(request):
                if request.path.rpartition("/")[2] in second:
                    far.wait_for(lambda _: asked(), "the layer that the second step stands on")
                if asked() == [request]:
                    far.when(lambda: len(asked()) > 1)
            with proxy.Proxy(registry.host, hangs) as far:
                self.build(self.context("built", Dockerfile=steps + "four\n"), "--cache-from", f"{far.host}/cache:main",
                           root=self.scratch / "store", name="built")
                self.assertEqual(len(asked()), 2, self.last.stderr)
        self.assertIn("3 steps, 2 cached", self.last.stderr)
        self.assertNotIn("once more", self.last.stderr)


if __name__ == "__main__":
    unittest.main()
