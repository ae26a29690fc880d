"""Pushing while steps run: what is sent when, by the order of requests at a proxy in front of the real registry."""

import hashlib
import http.client
import json
import pathlib
import signal
import subprocess
import threading
import unittest

import support
from proxy import Proxy

# A step that reaches the proxy: `ask PATH` fails unless the answer is 200.
ASK = "wget -q -O /dev/null http://{host}/{path}"
LOOPBACK = ("--network", "host", "--allow", "network.host")


def call(host, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection(host, timeout=support.WATCHDOG)
    connection.request(method, path, body, headers or {})
    response = connection.getresponse()
    answer = response.status, response.headers, response.read()
    connection.close()
    return answer


ACCEPT = {"Accept": "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json"}


class Cases(support.Case):
    """A registry, proxies before it, and how to look at what came of a push."""

    def setUp(self):
        super().setUp()
        self.registry = self.enterContext(support.Registry(self.scratch / "registry"))

    def proxy(self, rule=None, registry=None):
        return self.enterContext(Proxy((registry or self.registry).host, rule))

    def dockerfile(self, host, *steps):
        """Steps that may `{ask:PATH}`."""
        lines = ["FROM busybox"]
        for step in steps:
            while "{ask:" in step:
                before, _, rest = step.partition("{ask:")
                path, _, after = rest.partition("}")
                step = before + ASK.format(host=host, path=path) + after
            lines.append(step)
        return self.context(f"context-{len(list(self.scratch.iterdir()))}", Dockerfile="\n".join(lines) + "\n")

    def push(self, context, *names, extra=(), **options):
        tags = [argument for name in names for argument in ("-t", name)]
        return self.run_layerwright("build", *(extra or ("--progress", "plain")), "--push", *LOOPBACK, *tags, context, **options)

    def manifest(self, host, name, reference):
        status, headers, body = call(host, "GET", f"/v2/{name}/manifests/{reference}", headers=ACCEPT)
        self.assertEqual(status, 200, body)
        self.assertEqual(headers["Docker-Content-Digest"], "sha256:" + hashlib.sha256(body).hexdigest())
        return json.loads(body)

    def check_whole(self, host, name, reference):
        """Everything that the manifest names is there; gives its blobs."""
        manifest = self.manifest(host, name, reference)
        blobs = [blob["digest"] for blob in [*manifest["layers"], manifest["config"]]]
        for digest in blobs:
            status, _, body = call(host, "GET", f"/v2/{name}/blobs/{digest}")
            self.assertEqual((status, "sha256:" + hashlib.sha256(body).hexdigest()), (200, digest))
        return blobs

    def in_repository(self, name):
        """The blobs that the registry has for a repository."""
        links = self.scratch / "registry/data/docker/registry/v2/repositories" / name / "_layers/sha256"
        return sorted(f"sha256:{link.name}" for link in links.iterdir() if (link / "link").exists())


class Push(Cases):
    def test_order_and_what_goes_where(self):
        proxy = self.proxy()
        self.run_layerwright("push", self.base, f"{self.registry.host}/team/base:1")
        context = self.context(Dockerfile=f"""
FROM {proxy.host}/team/base:1 AS tools
RUN echo tool > /tool
FROM {proxy.host}/team/base:1
RUN echo 1 > /one
COPY --from=tools /tool /tool
""")
        self.push(context, f"{proxy.host}/app:1", f"{proxy.host}/app:2", f"{proxy.host}/other/app:1")
        for name, tag in (("app", 1), ("app", 2), ("other/app", 1)):
            blobs = self.check_whole(self.registry.host, name, tag)
            self.assertEqual(self.in_repository(name), sorted(blobs), "nothing of the stage, nothing twice")
        base = {blob["digest"] for blob in self.manifest(self.registry.host, "team/base", 1)["layers"]}
        requests = proxy.requests
        self.assertEqual(len(proxy.uploads("app")), 3, "two layers and the config")
        self.assertTrue(base.isdisjoint(request.digest() for request in proxy.uploads("app")))
        self.assertEqual(proxy.uploads("other/app"), [], "the second repository mounts from the first")
        mounts = [request.path for request in requests if "mount=" in request.path and request.status == 201]
        self.assertEqual(len([path for path in mounts if path.endswith("from=team%2Fbase")]), len(base), mounts)
        self.assertEqual(len([path for path in mounts if path.endswith("from=app")]), len(base) + 3, mounts)
        # Every blob is there before the first manifest, every name is looked at after it was put, and that is the end.
        lines = [(request.method, request.path.split("?")[0]) for request in requests]
        first = next(index for index, line in enumerate(lines) if line[0] == "PUT" and "/manifests/" in line[1])
        self.assertFalse([line for line in lines[first:] if "/blobs/" in line[1]])
        names = [f"/v2/{name}/manifests/{tag}" for name, tag in (("app", 1), ("app", 2), ("other/app", 1))]
        self.assertEqual(sorted(lines[first:]), sorted([*(("PUT", name) for name in names), *(("HEAD", name) for name in names)]))
        for name in names:
            self.assertLess(lines.index(("PUT", name)), lines.index(("HEAD", name), first))
        # Again, without anything to run: a name that stands for the image is left alone, another is put. No blob is asked for.
        del requests[:]
        self.push(context, f"{proxy.host}/app:1", f"{proxy.host}/other/app:2")
        self.assertEqual([request.path for request in requests if "/blobs/" in request.path], [])
        image = [(request.method, request.path.split("/manifests/")[1][:7]) for request in requests if "/v2/app/manifests/" in request.path]
        self.assertEqual(image, [("HEAD", "1")])
        image = [(request.method, request.path.split("/manifests/")[1][:7]) for request in requests if "/other/app/" in request.path]
        self.assertEqual(image, [("HEAD", "2"), ("HEAD", "sha256:"), ("PUT", "2")])
        self.assertEqual([request.path for request in requests if request.method == "PUT"], ["/v2/other/app/manifests/2"])
        # A repository that does not have it is brought it, and the right to do so shows where something is moved.
        del requests[:]
        self.push(context, f"{proxy.host}/app:1", f"{proxy.host}/third:1")
        self.check_whole(self.registry.host, "third", 1)
        self.assertEqual(proxy.uploads("third"), [], "it mounts from the first")

    def test_layers_go_up_while_steps_run(self):
        """Each of ten steps waits until the layers before it are in the registry; after the last one its own is left."""
        proxy = self.proxy()
        steps = [f"RUN {{ask:uploads/app/{n}}} && echo {n} > /{n}" for n in range(1, 10)]
        context = self.dockerfile(proxy.host, *steps, "RUN {ask:uploads/app/10} && echo last > /last && {ask:mark}")
        self.push(context, f"{proxy.host}/app:1")
        self.check_whole(self.registry.host, "app", 1)
        mark = next(index for index, request in enumerate(proxy.requests) if request.path == "/mark")
        tail = proxy.requests[mark + 1:]
        self.assertEqual(len([request for request in tail if request.is_upload("app")]), 2, "the last layer and the config")
        self.assertEqual([request.path for request in tail if request.method == "PUT"][-1], "/v2/app/manifests/1")
        # What the cache has goes up at the beginning of the next build, before a step of it runs.
        proxy.requests.clear()
        more = self.context("more", Dockerfile=(context / "Dockerfile").read_text() +
                            "RUN " + ASK.format(host=proxy.host, path="uploads/new/11") + "\n")
        self.push(more, f"{proxy.host}/new:1")

    def test_ordinary_users_push_the_same_while_steps_run(self):
        digests = set()
        for user in support.USERS:
            proxy = self.proxy()
            context = self.dockerfile(proxy.host, "RUN {ask:uploads/app/1} && mkdir -p /d && echo 1 > /d/1")
            subprocess.run(["chmod", "-R", "a+rX", context], check=True)
            done = self.push(context, f"{proxy.host}/app:{user}", extra=("-q",), user=user)
            digests.add(self.manifest(self.registry.host, "app", user)["layers"][-1]["digest"])
            self.check_whole(self.registry.host, "app", done.stdout.strip())
            # The next one has to send everything.
            call(self.registry.host, "DELETE", f"/v2/app/manifests/{done.stdout.strip()}")
            for blob in self.in_repository("app"):
                call(self.registry.host, "DELETE", f"/v2/app/blobs/{blob}")
        self.assertEqual(len(digests), 1)

    def test_two_registries_at_once(self):
        """Neither registry takes a byte before the other one is asked to."""
        both = threading.Barrier(2, timeout=support.WATCHDOG / 5)
        met = threading.Event()

        def rule(request):
            if request.method == "PUT" and "/blobs/" in request.path and not met.is_set():
                both.wait()
                met.set()

        other = self.enterContext(support.Registry(self.scratch / "other"))
        proxies = self.proxy(rule), self.proxy(rule, other)
        context = self.dockerfile("", "RUN echo 1 > /1")
        done = self.push(context, *(f"{proxy.host}/app:1" for proxy in proxies))
        self.assertTrue(met.is_set())
        for registry, proxy in zip((self.registry, other), proxies):
            self.check_whole(registry.host, "app", 1)
            self.assertIn(f"to {proxy.host}/app", done.stderr, "transfers say where to")

    def test_what_is_lost_in_mid_build_is_sent_again(self):
        lost = []

        def rule(request):
            if request.path == "/lose":
                digest = proxy.uploads("app")[0].digest()
                lost.append((digest, call(self.registry.host, "DELETE", f"/v2/app/blobs/{digest}")[0]))
                return 200, {}, b""

        proxy = self.proxy(rule)
        context = self.dockerfile(proxy.host, "RUN echo 1 > /1", "RUN {ask:uploads/app/2} && {ask:lose}")
        self.push(context, f"{proxy.host}/app:1")
        [(digest, status)] = lost
        self.assertEqual(status, 202)
        self.assertIn(digest, self.check_whole(self.registry.host, "app", 1))
        self.assertEqual([request.digest() for request in proxy.uploads("app")].count(digest), 2)

    def test_what_the_registry_only_notices_at_the_manifest_is_sent_again(self):
        lost = []

        def rule(request):
            if request.method == "PUT" and "/manifests/" in request.path and not lost:
                lost.append(proxy.uploads("app")[0].digest())
                call(self.registry.host, "DELETE", f"/v2/app/blobs/{lost[0]}")

        proxy = self.proxy(rule)
        self.push(self.dockerfile("", "RUN echo 1 > /1"), f"{proxy.host}/app:1")
        self.assertIn(lost[0], self.check_whole(self.registry.host, "app", 1))

    def test_what_is_lost_again_and_again_is_sent_as_often_and_not_for_ever(self):
        def losing(times):
            puts = []

            def rule(request):
                if request.method == "PUT" and "/manifests/" in request.path:
                    puts.append(request)
                    if len(puts) <= times:
                        call(self.registry.host, "DELETE", f"/v2/app/blobs/{proxy.uploads('app')[0].digest()}")
            return rule, puts

        rule, puts = losing(6)
        proxy = self.proxy(rule)
        context = self.dockerfile("", "RUN echo 1 > /1")
        self.push(context, f"{proxy.host}/app:1")
        self.check_whole(self.registry.host, "app", 1)
        self.assertEqual(len(puts), 7)
        rule, puts = losing(1000)
        proxy.rule = rule
        done = self.push(self.dockerfile("", "RUN echo 2 > /2"), f"{proxy.host}/app:2", code=3)
        self.assertIn("blob unknown", done.stderr)
        self.assertLess(len(puts), 15)

    def test_an_early_failure_is_tried_again_in_the_end(self):
        refused = []

        def rule(request):
            if request.method == "PUT" and "/blobs/" in request.path and not refused:
                refused.append(request.path)
                proxy.say("failed")
                return 400, {}, b"{}"

        proxy = self.proxy(rule)
        self.push(self.dockerfile(proxy.host, "RUN {ask:wait/failed} && echo 1 > /1"), f"{proxy.host}/app:1")
        self.check_whole(self.registry.host, "app", 1)

    def test_a_refusal_stops_the_steps(self):
        def rule(request):
            if request.method == "PUT" and "/blobs/" in request.path:
                return 403, {}, b'{"errors":[{"code":"DENIED","message":"quota of the team is used up"}]}'

        proxy = self.proxy(rule)
        done = self.push(self.dockerfile(proxy.host, "RUN {ask:wait/never}"), f"{proxy.host}/app:1", code=3)
        self.assertIn("quota of the team is used up", done.stderr)
        self.assertEqual([request for request in proxy.requests if "/manifests/" in request.path], [])

    def test_who_may_not_push_hears_it_before_the_first_step(self):
        passwords = self.scratch / "htpasswd"
        passwords.write_bytes(subprocess.check_output(["htpasswd", "-Bbn", "user", "secret"]))
        with support.Registry(self.scratch / "closed", htpasswd=passwords) as closed:
            asked = []
            for number in (1, 5):
                steps = [f"RUN echo {step} > /{step}" for step in range(number)]
                done = self.push(self.dockerfile("", *steps), f"{self.registry.host}/app:1", f"{closed.host}/app:1", code=3)
                asked.append((self.scratch / "closed" / "log").read_text().count('"http.request.method":"POST"'))
            self.assertGreater(asked[0], 0)
            self.assertEqual(asked[1], 2 * asked[0], "once a build, however many steps there are")
        self.assertIn(f"cannot push {closed.host}/app:1", done.stderr)
        self.assertNotIn("RUN", done.stderr)
        self.assertFalse((self.scratch / "registry/data/docker/registry/v2/repositories/app/_layers").exists())

    def test_a_failed_build_changes_no_tag_and_leaves_only_the_targets_blobs(self):
        proxy = self.proxy()
        text = f"""
FROM busybox AS stage
RUN echo stage > /stage
FROM busybox
COPY --from=stage /stage /stage
RUN {ASK.format(host=proxy.host, path="uploads/app/2")} && false
"""
        self.push(self.context(Dockerfile=text), f"{proxy.host}/app:1", code=1)
        self.assertEqual(len(proxy.uploads("app")), 2, "the base and the copy")
        self.assertEqual(len(self.in_repository("app")), 2)
        self.assertFalse([request for request in proxy.requests if "/manifests/" in request.path])

    def test_a_signal_ends_a_push_that_hangs(self):
        """Once while a step runs, once in the end."""
        for steps, number, code in ((["RUN {ask:wait/never}"], signal.SIGINT, 130), ([], signal.SIGTERM, 143)):
            hanging = threading.Event()

            def rule(request):
                if request.method == "PUT" and "/blobs/" in request.path:
                    hanging.set()
                    proxy.when(lambda: "end" in proxy.names)

            proxy = self.proxy(rule)
            command = self.command("build", "--progress", "plain", "--push", *LOOPBACK, "-t", f"{proxy.host}/app:1",
                                   self.dockerfile(proxy.host, *steps))
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=self.scratch)
            self.assertTrue(hanging.wait(support.WATCHDOG / 5))
            process.send_signal(number)
            # The step is given time to end by itself, and wget does.
            _, told = process.communicate(timeout=9)
            self.assertEqual(process.returncode, code, told)
            proxy.say("end")

    def test_a_name_that_somebody_else_has_taken_is_no_success(self):
        """Somebody puts another image under the name each time before we look."""
        others = []

        def rule(request):
            if request.method == "HEAD" and "/manifests/" in request.path:
                manifest = self.manifest(self.registry.host, "app", 1) | {"layers": [], "annotations": {"whose": "theirs"}}
                body = json.dumps(manifest).encode()
                others.append("sha256:" + hashlib.sha256(body).hexdigest())
                headers = {"Content-Type": manifest["mediaType"]}
                self.assertEqual(call(self.registry.host, "PUT", request.path, body, headers)[0], 201)

        proxy = self.proxy(rule)
        done = self.push(self.dockerfile("", "RUN echo 1 > /1"), f"{proxy.host}/app:1", code=3)
        self.assertEqual(len(others), 2, "it is put once more")
        self.assertIn(f"the registry says it is {others[0]}", done.stderr)

    def test_by_digest(self):
        proxy = self.proxy()
        context, metadata = self.dockerfile("", "RUN echo 1 > /1"), self.scratch / "metadata"
        output = f"type=image,name={proxy.host}/app,push-by-digest=true,name-canonical=true,push=true"
        done = self.run_layerwright("build", "-q", "-o", output, "--metadata-file", metadata, context)
        digest = done.stdout.strip()
        self.assertEqual([r.path for r in proxy.requests if r.method == "PUT" and "/manifests/" in r.path],
                         [f"/v2/app/manifests/{digest}"])
        self.check_whole(self.registry.host, "app", digest)
        self.assertEqual(call(self.registry.host, "GET", "/v2/app/tags/list")[0], 404)
        told = json.loads(metadata.read_text())
        self.assertEqual((told["containerimage.digest"], told["image.name"]), (digest, f"{proxy.host}/app"))
        self.assertEqual(told["containerimage.descriptor"]["digest"], digest)
        refused = self.run_layerwright("build", "-o", output.replace("/app", "/app:1"), context, code=2)
        self.assertIn("by digest: it has a tag", refused.stderr)


class PushLayout(Cases):
    """`layerwright push`: what a build has written goes up as it is."""

    def built(self):
        out = self.scratch / "out"
        arguments = [f"type=oci,tar=false,dest={out}", f"type=oci,dest={out}.tar"]
        context = self.dockerfile("", "RUN echo 1 > /1")
        done = self.run_layerwright("build", "-q", "-t", "app:1", *(a for o in arguments for a in ("-o", o)), context)
        return out, done.stdout.strip()

    def test_a_layout_and_a_tar_of_it(self):
        out, digest = self.built()
        for source in (out, f"{out}.tar", f"{out}:1", f"{out}@{digest}"):
            proxy = self.proxy()
            name = f"repository-{len(list(self.scratch.iterdir()))}"
            pushed = self.run_layerwright("push", "-q", source, f"{proxy.host}/{name}:a", f"{proxy.host}/{name}:b")
            self.assertEqual(pushed.stdout, f"{digest}\n")
            blobs = self.check_whole(self.registry.host, name, "a")
            self.assertEqual(self.check_whole(self.registry.host, name, "b"), blobs)
            self.assertEqual(len(proxy.uploads(name)), len(blobs))
            self.run_layerwright("build", "--push", "-t", f"{proxy.host}/{name}:c", self.dockerfile("", "RUN echo 1 > /1"))
            self.assertEqual(len(proxy.uploads(name)), len(blobs), "the build's blobs are the same")
            shown = self.run_layerwright("push", "--progress", "json", source, f"{proxy.host}/{name}:a")
            self.assertEqual(json.loads(shown.stderr.splitlines()[-1])["digest"], digest)

    def test_an_index_with_all_its_images_or_one_of_them(self):
        context = self.context(Dockerfile="FROM scratch\nCOPY Dockerfile /\n")
        tar = self.scratch / "several.tar"
        out = self.build(context, "--platform", "linux/amd64,linux/arm64", "-o", f"type=oci,dest={tar}")
        index = json.loads((out / "index.json").read_text())["manifests"][0]["digest"]
        self.assertEqual(self.run_layerwright("push", "-q", out, f"{self.registry.host}/index:1").stdout.strip(), index)
        told = self.manifest(self.registry.host, "index", 1)
        for entry in told["manifests"]:
            self.check_whole(self.registry.host, "index", entry["digest"])
        self.assertEqual(len(told["manifests"]), 2)
        pushed = self.run_layerwright("push", "-q", "--platform", "linux/arm64", out, f"{self.registry.host}/one:1")
        self.assertEqual(pushed.stdout.strip(), told["manifests"][1]["digest"])
        self.run_layerwright("push", "--platform", "linux/s390x", out, f"{self.registry.host}/one:2", code=2)
        one = told["manifests"][0]["digest"]
        for source in (out, tar):
            pushed = self.run_layerwright("push", "-q", f"{source}@{one}", f"{self.registry.host}/{source.name}:1")
            self.assertEqual(pushed.stdout.strip(), one, "no index.json lists it")
            absent = f"{source}@sha256:{64 * '0'}"
            self.assertIn("has no image", self.run_layerwright("push", absent, f"{self.registry.host}/one:2", code=2).stderr)

    def test_an_image_without_an_index_is_not_pushed_for_another_platform(self):
        out = self.build(self.context(Dockerfile="FROM scratch\nCOPY Dockerfile /\n"), "--platform", "linux/amd64")
        self.run_layerwright("push", "--platform", "linux/amd64", out, f"{self.registry.host}/one:3")
        refused = self.run_layerwright("push", "--platform", "linux/arm64", out, f"{self.registry.host}/one:4", code=2)
        self.assertIn("there is no image for linux/arm64, only for linux/amd64", refused.stderr)

    def test_the_digest_that_is_printed_is_that_of_the_name(self):
        """A docker archive has a manifest of its own; what was pushed is told of whatever comes first."""
        name, archive = f"{self.registry.host}/told:1", self.scratch / "app.tar"
        outputs = ("-o", f"type=docker,dest={archive}", "-o", f"type=registry,name={name}")
        context = self.context(Dockerfile="FROM scratch\nCOPY Dockerfile /\n")
        printed = self.run_layerwright("build", "-q", *outputs, context).stdout.strip()
        status, _, _ = call(self.registry.host, "GET", f"/v2/told/manifests/{printed}", headers=ACCEPT)
        self.assertEqual(status, 200)
        told = self.run_layerwright("build", "--progress", "plain", *outputs, context).stderr
        self.assertIn(f"Built {printed} in", told)
        self.assertRegex(told, rf"docker archive {archive} \(sha256:[0-9a-f]{{64}}\)\n  pushed {name}\n")

    def test_what_cannot_be_pushed_is_told(self):
        out, _ = self.built()
        other = self.dockerfile("", "RUN echo 2 > /1")
        self.run_layerwright("build", "-t", "app:2", "-o", f"type=oci,tar=false,dest={out}", other)
        name = f"{self.registry.host}/told:1"
        for arguments, code, words in (
                ((out, name), 2, "it has 1, 2"),
                ((f"{out}:3", name), 2, 'no image "3"; it has 1, 2'),
                ((self.scratch, name), 2, "is not an OCI layout"),
                ((self.scratch / "none", name), 2, "No such file"),
                (("none.tar", name), 2, "cannot read none.tar: No such file"),
                (("none", name), 2, "there is no OCI layout of this name"),
                ((f"{out}:1", name + "@sha256:" + 64 * "0"), 2, "cannot have a digest"),
                ((f"{out}:1", "127.0.0.1:1/told:1"), 3, "cannot connect"),
        ):
            done = self.run_layerwright("push", *arguments, code=code)
            self.assertIn(words, done.stderr)
        layer = pathlib.Path(out, "blobs/sha256", support.Layout(out).manifest["layers"][-1]["digest"][7:])
        content = layer.read_bytes()
        layer.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        done = self.run_layerwright("push", f"{out}:2", name, code=4)
        self.assertIn(layer.name, done.stderr)
        self.assertEqual(call(self.registry.host, "GET", "/v2/told/manifests/1")[0], 404)

    def test_a_signal_ends_the_wait_for_an_image_that_is_to_be_joined(self):
        waiting = threading.Event()

        def rule(request):
            if "/manifests/" in request.path:
                waiting.set()
                proxy.when(lambda: "end" in proxy.names)

        proxy = self.proxy(rule)
        command = self.command("index", "create", "-t", f"{self.registry.host}/joined:1", f"{proxy.host}/app:1")
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=self.scratch)
        self.assertTrue(waiting.wait(support.WATCHDOG / 5))
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=9)
        self.assertEqual(process.returncode, 130, told)
        proxy.say("end")


if __name__ == "__main__":
    unittest.main()
