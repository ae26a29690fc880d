"""The remote cache: what one machine built, no machine builds again. Machines are stores; requests are seen at a proxy."""

import json
import re
import shutil
import signal
import subprocess
import unittest

import support
from proxy import Proxy

# A step that reaches the proxy: `ask PATH` fails unless the answer is 200.
ASK = "wget -q -O /dev/null http://{host}/{path}"
LOOPBACK = ("--network", "host", "--allow", "network.host")
# Nothing that compresses, and another layer each time.
BIG = "RUN head -c 400000 /dev/urandom > /{name}"
STEPS = f"""\
FROM busybox AS tool
{BIG.format(name="tool")}
FROM busybox
{BIG.format(name="base")}
COPY --from=tool /bin/busybox /copied
COPY a /a
RUN cat /a > /b
"""


class Cases(support.Case):
    """A registry, a proxy before it, and machines."""

    def setUp(self):
        super().setUp()
        self.registry = self.enterContext(support.Registry(self.scratch / "registry"))

    def proxy(self, rule=None):
        return self.enterContext(Proxy(self.registry.host, rule))

    def make(self, context, store, *arguments, **options):
        """Builds on a machine."""
        return self.run_layerwright("build", "--progress", "plain", *arguments, context, root=store, **options)

    def openssl(self, *arguments):
        subprocess.run(["openssl", *map(str, arguments)], check=True, timeout=support.WATCHDOG, capture_output=True)

    def key(self, name):
        """A pair of keys."""
        private, public = self.scratch / f"{name}.pem", self.scratch / f"{name}.pub"
        self.openssl("genpkey", "-algorithm", "ed25519", "-out", private)
        self.openssl("pkey", "-in", private, "-pubout", "-out", public)
        private.chmod(0o600)
        return private, public

    def check_cached(self, done, steps, cached, place=None):
        """So many of the steps were cached; with a place, all of them from there."""
        told = re.search(r"^Built (\S+) in \S+: (\d+) steps?, (\d+) cached$", done.stderr, re.MULTILINE)
        self.assertIsNotNone(told, done.stderr)
        self.assertEqual((int(told[2]), int(told[3])), (steps, cached), done.stderr)
        if place:
            self.assertEqual(done.stderr.count(f"CACHED from {place}\n"), cached, done.stderr)
        return told[1]


def fetched(proxy, repository):
    """Digests of the blobs whose bytes were asked for."""
    prefix = f"/v2/{repository}/blobs/"
    return [r.path.removeprefix(prefix) for r in proxy.requests if r.method == "GET" and r.path.startswith(prefix)]


class Cache(Cases):
    # Machines

    def test_a_wiped_machine_behaves_like_a_warm_one(self):
        """For every user: all is cached, the image is the same, and no byte of a layer moves in either direction."""
        for user in support.USERS:
            with self.subTest(user), Proxy(self.registry.host) as proxy:
                context = self.context(f"context-{user}", Dockerfile=STEPS + f"LABEL of={user}\n", a=f"{user}\n")
                app, cache = f"{proxy.host}/app-{user}", f"{proxy.host}/cache-{user}"
                first = self.make(context, self.machine(user), "--push", "-t", app, "--cache-to", f"{cache}:main", user=user)
                digest = self.check_cached(first, 5, 0)
                self.assertRegex(first.stderr, rf"\n  cached 5 steps in {re.escape(cache)}, 4\d\d\.\d\dkB up\n")
                proxy.requests.clear()
                other = f"{proxy.host}/other-{user}"
                again = self.make(context, self.machine(user), "--push", "-t", app, "-t", other, "--cache-from", f"{cache}:main", user=user)
                self.assertEqual(self.check_cached(again, 5, 5, cache), digest)
                self.assertNotIn("warning", again.stderr)
                self.assertEqual(proxy.uploads(f"app-{user}"), [], "no layer is sent")
                self.assertEqual(proxy.uploads(f"other-{user}"), [], "into a repository that is new they are mounted")
                self.assertEqual(fetched(proxy, f"app-{user}") + fetched(proxy, f"cache-{user}"), [], "and none comes")

    def test_who_reads_and_fills_one_cache_looks_once(self):
        proxy = self.proxy()
        context, ref = self.context(Dockerfile=STEPS, a="1\n"), f"{proxy.host}/cache:main"
        caches = ("--cache-from", ref, "--cache-to", f"type=registry,ref={ref}")
        self.make(context, self.machine(), *caches)
        proxy.requests.clear()
        again = self.make(context, self.machine(), *caches)
        self.check_cached(again, 5, 5, f"{proxy.host}/cache")
        self.assertNotIn("\n  cached ", again.stderr, "there was nothing to add")
        self.assertEqual([(r.method, r.path) for r in proxy.requests], [("GET", "/v2/cache/manifests/main")])

    def test_a_warm_store_fills_an_empty_cache(self):
        context, warm = self.context(Dockerfile=STEPS, a="1\n"), self.machine()
        self.make(context, warm)
        cache = f"{self.registry.host}/cache"
        self.check_cached(self.make(context, warm, "--cache-to", cache), 5, 5)
        self.check_cached(self.make(context, self.machine(), "--cache-from", cache), 5, 5, cache)

    def test_one_late_source_changed(self):
        """That step and its followers run, and only the layers come down that they read."""
        proxy = self.proxy()
        context, cache = self.context(Dockerfile=STEPS, a="1\n"), f"{proxy.host}/cache"
        out = self.build(context, "--cache-to", cache, root=self.machine())
        layers = [layer["digest"] for layer in support.Layout(out).manifest["layers"]]
        (context / "a").write_text("2\n")
        proxy.requests.clear()
        again = self.build(context, "--cache-from", cache, root=self.machine(), name="again")
        self.check_cached(self.last, 5, 3, cache)
        self.assertEqual(support.Layout(again).read("b"), b"2\n")
        down = fetched(proxy, "cache")
        self.assertTrue({layers[1], layers[2]} <= set(down), (layers, down))
        self.assertFalse({layers[3], layers[4]} & set(down), "what is not part of the image any more")

    def test_several_caches_are_asked_and_the_bare_form_takes_several(self):
        context = self.context(Dockerfile=STEPS, a="1\n")
        one, two = f"{self.registry.host}/one", f"{self.registry.host}/two:main"
        self.make(context, self.machine(), "--cache-to", two)
        for flags in [("--cache-from", f"{one},{two}"), ("--cache-from", one, "--cache-from", f"type=registry,ref={two}")]:
            self.check_cached(self.make(context, self.machine(), *flags), 5, 5, f"{self.registry.host}/two")

    def test_explain_and_history_say_where_from(self):
        context, cache, store = self.context(Dockerfile=STEPS, a="1\n"), f"{self.registry.host}/cache", self.machine()
        self.make(context, self.machine(), "--cache-to", cache)
        told = self.make(context, store, "--cache-from", cache, "--explain")
        self.assertEqual(told.stderr.count(f", from {cache}\n"), 5, told.stderr)
        shown = self.run_layerwright("history", "show", "--root", store)
        self.assertEqual(shown.stdout.count(f", from {cache}\n"), 5, shown.stdout)
        lines = self.run_layerwright("build", "--progress", "json", "--cache-from", cache, context, root=self.machine())
        events = [json.loads(line) for line in lines.stderr.splitlines()]
        self.assertEqual([e["from"] for e in events if e["event"] == "cached"], [cache] * 5)
        quiet = self.run_layerwright("build", "-q", "-o", "type=cacheonly", "--cache-from", cache, "--cache-to", cache, context, root=self.machine())
        self.assertEqual(quiet.stderr, "")

    # Unfinished

    def test_a_failed_build_has_published_its_finished_steps(self):
        cache = f"{self.registry.host}/cache"
        context = self.context(Dockerfile="FROM busybox\nRUN echo 1 > /1\nRUN echo 2 > /2\nRUN test -e /fixed\n")
        failed = self.make(context, self.machine(), "--cache-to", cache, code=1)
        self.assertIn(f"cached 2 steps in {cache}, ", failed.stderr)
        (context / "Dockerfile").write_text("FROM busybox\nRUN echo 1 > /1\nRUN echo 2 > /2\nRUN true\n")
        self.check_cached(self.make(context, self.machine(), "--cache-from", cache), 3, 2, cache)

    def test_a_killed_build_has_published_its_finished_steps(self):
        proxy = self.proxy()
        cache, wait = f"{proxy.host}/cache", ASK.format(host=proxy.host, path="wait/killed")
        context = self.context(Dockerfile=f"FROM busybox\nRUN echo 1 > /1\nRUN echo 2 > /2\nRUN {wait}\nRUN true\n")
        command = self.command("build", *LOOPBACK, "--progress", "plain", "--cache-to", cache, context, root=self.machine())
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self.scratch) as killed:
            records = lambda: [r for r in proxy.requests if r.method == "PUT" and "/manifests/lw1-d-" in r.path and r.status == 201]
            support.wait_for(lambda: len(records()) == 2, "two steps to be published")
            killed.send_signal(signal.SIGKILL)
            killed.wait(support.WATCHDOG)
        proxy.say("killed")
        again = self.make(context, self.machine(), *LOOPBACK, "--cache-from", cache)
        self.check_cached(again, 4, 2, cache)

    # Trust

    def test_with_a_trust_key_what_nobody_trusted_has_signed_does_not_exist(self):
        (ours, our_public), (theirs, _) = self.key("ours"), self.key("theirs")
        context = self.context(Dockerfile="FROM busybox\nRUN echo 1 > /1\nCOPY a /a\n", a="1\n")
        digest = None
        for name, sign, cached in [("unsigned", (), 0), ("wrong", ("--cache-sign-key", theirs), 0), ("right", ("--cache-sign-key", ours), 2)]:
            cache = f"{self.registry.host}/{name}"
            self.make(context, self.machine(), "--cache-to", cache, *sign)
            trusting = self.make(context, self.machine(), "--cache-from", cache, "--cache-trust-key", our_public)
            built = self.check_cached(trusting, 2, cached)
            self.assertEqual(digest or built, built, "the same image, cached or not")
            digest = built
            ignored = f"ignored 2 records of {cache}: no --cache-trust-key has signed them"
            self.assertEqual(ignored in trusting.stderr, cached == 0, trusting.stderr)
            # Who trusts everybody takes it.
            self.check_cached(self.make(context, self.machine(), "--cache-from", cache), 2, 2, cache)
        # And whoever signs what he makes of it is told.
        careless = self.make(context, self.machine(), "--cache-from", cache, "--cache-to", cache, "--cache-sign-key", ours)
        self.assertIn("--cache-trust-key says whose count", careless.stderr)

    def test_keys_that_are_none_are_usage_errors(self):
        private, public = self.key("ours")
        context = self.context(Dockerfile="FROM busybox\n")
        cache = f"{self.registry.host}/cache"
        for flags, want in [
            (("--cache-to", cache, "--cache-sign-key", public), "is no Ed25519 private key in PEM"),
            (("--cache-from", cache, "--cache-trust-key", private), "is no Ed25519 public key in PEM"),
            (("--cache-from", cache, "--cache-trust-key", self.scratch / "none"), "cannot read the key"),
            (("--cache-sign-key", private), "there is no --cache-to"),
            (("--cache-to", "type=inline", "--cache-sign-key", private), "an inline cache has no signatures"),
        ]:
            done = self.make(context, self.machine(), *flags, code=2)
            self.assertIn(want, done.stderr)

    # Places

    def test_a_directory(self):
        context, directory = self.context(Dockerfile=STEPS, a="1\n"), self.scratch / "cache"
        first = self.make(context, self.machine(), "--cache-to", "type=local,dest=cache")
        self.assertIn(f"cached 5 steps in {directory}, ", first.stderr)
        self.check_cached(self.make(context, self.machine(), "--cache-from", "type=local,src=cache"), 5, 5, directory)
        # A directory that is not there yet is an empty cache, as on the first run of a pipeline.
        none = self.make(context, self.machine(), "--cache-from", "type=local,src=none")
        self.check_cached(none, 5, 0)
        self.assertNotIn("warning: the cache", none.stderr)

    def test_min_holds_the_steps_of_the_image(self):
        context = self.context(Dockerfile=STEPS, a="1\n")
        for mode, count in [("min", 4), ("max", 5)]:
            self.make(context, self.machine(), "--cache-to", f"type=local,dest={mode},mode={mode}")
            names = list((self.scratch / mode / "names").glob("lw1-d-*"))
            self.assertEqual(len(names), count, names)
            # What the target needs is there either way.
            cached = self.make(context, self.machine(), "--cache-from", f"type=local,src={mode}")
            self.assertEqual(cached.stderr.count("CACHED"), 5, cached.stderr)

    def test_an_image_is_its_own_cache(self):
        context, app = self.context(Dockerfile=STEPS, a="1\n"), f"{self.registry.host}/app"
        for number, flags in enumerate([("--cache-to", "type=inline"), ("--build-arg", "BUILDKIT_INLINE_CACHE=1")]):
            # The argument is no part of any step's key.
            name = f"{app}:{number}"
            digest = self.check_cached(self.make(context, self.machine(), "--push", "-t", name, *flags), 5, 0)
            again = self.make(context, self.machine(), "--push", "-t", name, "--cache-from", name, *flags)
            self.assertEqual(self.check_cached(again, 5, 5), digest)
            # The other stage is no part of the image, and not needed either.
            self.assertEqual(again.stderr.count(f"CACHED from {app}"), 4, again.stderr)
        # Without a tag that is the latest image, unless there is a bundle.
        self.make(context, self.machine(), "--push", "-t", app, "--cache-to", "type=inline")
        again = self.make(context, self.machine(), "--push", "-t", app, "--cache-from", app, "--cache-to", "type=inline")
        self.check_cached(again, 5, 5)

    def test_encoders_do_not_reach_the_image(self):
        """The manifest digest is the same, whatever encoder filled the cache."""
        context = self.context(Dockerfile=STEPS.replace("/dev/urandom", "/bin/busybox"), a="1\n")
        digests = {support.Layout(self.build(context, root=self.machine())).digest}
        for kind in ["gzip", "zstd,force-compression=true", "uncompressed"]:
            to = f"type=local,dest=cache-{len(digests)}-{kind[:4]},compression={kind}"
            self.make(context, self.machine(), "--cache-to", to)
            source = to.split(",")[1].replace("dest", "src")
            out = self.build(context, "--cache-from", f"type=local,{source}", root=self.machine(), name=kind[:4])
            self.check_cached(self.last, 5, 5)
            digests.add(support.Layout(out).digest)
        self.assertEqual(len(digests), 1)

    # Trouble

    def refusing(self):
        """A proxy that lets nobody write the cache."""
        def rule(request):
            writes = request.method not in ("GET", "HEAD") and request.path.startswith("/v2/cache/")
            return (403, {"Content-Type": "application/json"}, b'{"errors":[{"code":"DENIED","message":"no"}]}') if writes else None
        return self.proxy(rule)

    def test_a_cache_that_may_not_be_written_fails_no_build(self):
        proxy, context = self.refusing(), self.context(Dockerfile=STEPS, a="1\n")
        app, cache = f"{proxy.host}/app", f"{proxy.host}/cache"
        done = self.make(context, self.machine(), "--push", "-t", app, "--cache-to", cache)
        warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ") and cache in line]
        self.assertEqual(len(warnings), 1, done.stderr)
        self.check_cached(done, 5, 0)
        strict = f"type=registry,ref={cache},ignore-error=false"
        failed = self.make(context, self.machine(), "--push", "-t", f"{app}:2", "--cache-to", strict, code=3)
        self.assertIn(f"cannot write the cache {cache}: DENIED no; no credentials were sent: log in with `layerwright login ", failed.stderr)
        self.assertRegex(failed.stderr, rf"Built (sha256:\S+) in .*\n  pushed {app}:2\n", "what is delivered is told")
        files = {name: self.scratch / name for name in ("iidfile", "metadata-file")}
        strictly = ("--push", "-t", f"{app}:2", "--cache-to", strict, context)
        quiet = self.run_layerwright("build", "-q", *[f"--{name}={path}" for name, path in files.items()], *strictly,
                                     root=self.machine(), code=3)
        self.assertRegex(quiet.stdout, "^sha256:[0-9a-f]{64}\n$")
        self.assertIn(f"cannot write the cache {cache}", quiet.stderr)
        self.assertRegex(files["iidfile"].read_text(), "^sha256:")
        self.assertIn(quiet.stdout.strip(), files["metadata-file"].read_text())
        told = self.run_layerwright("build", "--progress", "json", *strictly, root=self.machine(), code=3)
        last = json.loads(told.stderr.splitlines()[-1])
        self.assertEqual((last["event"], last["delivered"]["destinations"]), ("error", [f"pushed {app}:2"]))
        self.assertRegex(last["delivered"]["digest"], "^sha256:")

    def test_a_cache_that_is_down_is_a_warning(self):
        context = self.context(Dockerfile=STEPS, a="1\n")
        done = self.make(context, self.machine(), "--cache-from", "127.0.0.1:1/cache", "--cache-to", "127.0.0.1:1/other")
        self.check_cached(done, 5, 0)
        warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ") and "127.0.0.1:1/" in line]
        self.assertEqual(len(warnings), 2, done.stderr)

    def test_what_the_registry_has_lost_is_made_again(self):
        context, cache = self.context(Dockerfile=STEPS, a="1\n"), f"{self.registry.host}/cache"
        first = self.build(context, "--cache-to", cache, root=self.machine())
        shutil.rmtree(self.scratch / "registry/data/docker/registry/v2/blobs")
        out = self.build(context, "--cache-from", cache, root=self.machine(), name="again")
        self.assertEqual(len(support.Layout(out).manifest["layers"]), len(support.Layout(first).manifest["layers"]))


if __name__ == "__main__":
    unittest.main()
