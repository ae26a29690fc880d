"""Writing a remote cache while steps run: what a killed, failed or stopped build has finished is there for the next machine; a
cache that takes nothing costs a warning; image and cache share their bytes; an image that is its own cache."""

import collections
import json
import os
import pathlib
import signal
import subprocess
import unittest

import proxy
import support

STEPS = 3
FINISHED = "FROM busybox\n" + "".join(f"RUN head -c 100000 /dev/urandom > /f{step}\n" for step in range(STEPS))
FAILS = FINISHED + "RUN exit 7\n"


def names(requests, status=201):
    """Under what records and bundles were put."""
    put = [request for request in requests if request.method == "PUT" and "/cache/manifests/" in request.path]
    return [request.path.rsplit("/", 1)[1] for request in put if request.status == status]


class Written(support.Case):
    def setUp(self):
        super().setUp()
        registry = self.enterContext(support.Registry(self.scratch / "registry"))
        self.proxy = self.enterContext(proxy.Proxy(registry.host))
        self.cache = f"type=registry,ref={self.proxy.host}/cache:main"

    def hits(self, user, dockerfile=FINISHED, steps=STEPS):
        """Another machine finds all of a Dockerfile's steps."""
        context = self.context(f"next-{user}-{os.urandom(3).hex()}", Dockerfile=dockerfile)
        done = self.run_layerwright("build", "--progress", "plain", "--cache-from", self.cache, context, user="root",
                                    root=self.scratch / f"next-{os.urandom(3).hex()}")
        self.assertIn(f"{steps} steps, {steps} cached", done.stderr)

    def start(self, user, dockerfile):
        context = self.context(f"context-{user}-{os.urandom(3).hex()}", Dockerfile=dockerfile)
        command = self.command("build", "--progress", "plain", "--cache-to", self.cache, context, user=user)
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                   text=True)
        for line in process.stderr:
            if line.rstrip().endswith("begun") and "RUN" not in line:
                return process
        raise support.Failed(f"exit code {process.wait(support.WATCHDOG)}")

    def builder(self, process, user):
        """The pid of layerwright itself: runuser stands in front of it for ordinary users."""
        if user == "root":
            return process.pid
        children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        return int(children[0])

    def test_what_a_killed_build_has_finished_is_there(self):
        for user, number in [*((user, signal.SIGKILL) for user in support.USERS), ("root", signal.SIGINT)]:
            with self.subTest(user=user, signal=number):
                # Other layers each time, and so other keys.
                finished = FINISHED.replace("/f", f"/{user}{number}")
                before = len(self.proxy.requests)
                process = self.start(user, finished + "RUN echo begun; sleep 1000\n")
                self.wait_for_records(before)
                os.kill(self.builder(process, user), number)
                with process.stderr:
                    process.stderr.read()
                process.wait(support.WATCHDOG)
                self.assertNotIn("main", names(self.proxy.requests[before:]), "nobody came to the bundle")
                self.hits(user, finished)

    def wait_for_records(self, before):
        """Until the finished steps are there under both their keys. The step that runs meanwhile does not end."""
        def all_there():
            return len([name for name in names(self.proxy.requests[before:]) if name.startswith("lw1-")]) == 2 * STEPS
        with self.proxy.changed:
            self.assertTrue(self.proxy.changed.wait_for(all_there, support.WATCHDOG / 5), self.proxy.requests)

    def test_what_a_failed_build_has_finished_is_there_and_in_the_bundle(self):
        context = self.context(Dockerfile=FAILS)
        self.run_layerwright("build", "--progress", "plain", "--cache-to", self.cache, context, code=1)
        self.assertIn("main", names(self.proxy.requests))
        before = len(self.proxy.requests)
        self.hits("root")
        looks = [request for request in self.proxy.requests[before:] if "/cache/" in request.path]
        self.assertEqual([request.path for request in looks], ["/v2/cache/manifests/main"], "one look is enough")

    def test_a_cache_that_takes_nothing_costs_a_warning(self):
        refused = json.dumps({"errors": [{"code": "DENIED", "message": "nothing is taken here"}]}).encode()
        def refuse(request):
            if request.method in ("POST", "PUT") and "/v2/cache/" in request.path:
                return 403, {}, refused
            return None
        self.proxy.rule = refuse
        context = self.context(Dockerfile=FINISHED)
        layout = self.build(context, "--cache-to", self.cache)
        support.Layout(layout).validate()
        warnings = [line for line in self.last.stderr.splitlines() if "nothing is taken here" in line]
        self.assertEqual(len(warnings), 1, self.last.stderr)
        # Each blob is offered once at most, and nothing that would stand on one.
        paths = collections.defaultdict(list)
        for request in (request for request in self.proxy.requests if "/cache/" in request.path):
            paths[request.method].append(request.path)
        self.assertEqual(paths["GET"], ["/v2/cache/manifests/main"])
        self.assertEqual(len(set(paths["HEAD"])), len(paths["HEAD"]), paths)
        self.assertLessEqual(len(paths["POST"]), len(paths["HEAD"]), paths)
        self.assertEqual(paths["PUT"], [])
        # Asked to, it fails in the end, with the image in place.
        out = self.scratch / "strict"
        done = self.run_layerwright("build", "--progress", "plain", "-o", f"type=oci,tar=false,dest={out}", "--cache-to",
                                    f"{self.cache},ignore-error=false", context, code=None)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("nothing is taken here", done.stderr)
        self.assertEqual(support.Layout(out).digest, support.Layout(layout).digest)

    def test_image_and_cache_share_their_bytes(self):
        dockerfile = FINISHED + "FROM busybox AS other\nRUN head -c 200000 /dev/urandom > /other\n"
        dockerfile += "FROM 0\nCOPY --from=other /other /other\n"
        context = self.context(Dockerfile=dockerfile.replace("FROM busybox\n", "FROM busybox AS first\n", 1).replace("FROM 0", "FROM first"))
        self.run_layerwright("build", "--progress", "plain", "--cache-to", self.cache, "-t", f"{self.proxy.host}/app:1", "--push",
                             context)
        sent = [request.digest() for request in self.proxy.requests if request.is_upload("app") or request.is_upload("cache")]
        self.assertEqual(len(sent), len(set(sent)), "no blob is sent twice")
        large = [request for request in self.proxy.requests if request.is_upload("cache") and request.size > 90_000]
        self.assertEqual(len(large), 1, "all but the layer that the image has not is mounted")

    def test_an_image_is_its_own_cache(self):
        context = self.context(Dockerfile=FINISHED)
        name = f"{self.proxy.host}/app"
        digests = []
        arguments = ["--cache-from", f"type=registry,ref={name}:1", "--cache-to", "type=inline"]
        for number, (store, cached) in enumerate([("one", 0), ("one", STEPS), ("two", STEPS)], 1):
            file = self.scratch / f"metadata-{number}"
            done = self.run_layerwright("build", "--progress", "plain", "-t", f"{name}:{number}", "--push", "--metadata-file",
                                        file, *arguments, context, root=self.scratch / store)
            self.assertIn(f"{STEPS} steps, {cached} cached", done.stderr)
            digests.append(json.loads(file.read_text())["containerimage.digest"])
        self.assertEqual(len(set(digests)), 1, "it says the same wherever its steps come from")
        # Whoever goes on from there brings what it reads.
        more = self.context("more", Dockerfile=FINISHED + f"RUN cat {' '.join(f'/f{step}' for step in range(STEPS))} | wc -c\n")
        done = self.run_layerwright("build", "--progress", "plain", *arguments, more, root=self.scratch / "three")
        self.assertIn(f"{STEPS + 1} steps, {STEPS} cached", done.stderr)
        self.assertIn(f" {STEPS * 100_000}\n", done.stderr)

    def test_mode_min_has_the_images_own_steps_only(self):
        dockerfile = "FROM busybox AS other\nRUN echo other > /other\nFROM busybox\nCOPY --from=other /other /other\nRUN echo own > /own\n"
        context = self.context(Dockerfile=dockerfile)
        for mode, records in (("min", 2), ("max", 3)):
            before = len(self.proxy.requests)
            self.run_layerwright("build", "--progress", "plain", "--cache-to", f"{self.cache}-{mode},mode={mode}", context,
                                 root=self.scratch / mode)
            put = [name for name in names(self.proxy.requests[before:]) if name.startswith("lw1-d-")]
            self.assertEqual(len(put), records, mode)


if __name__ == "__main__":
    unittest.main()
