"""Many builders on one cache in a registry: of one machine or of several, at once or one after the other. All are right, no
entry is lost, and what they share is run about once. `LAYERWRIGHT_NIGHTLY=1` runs more of them.

Builders that wait for nothing are awaited by what the registry holds, never by the clock."""

import base64
import http.server
import json
import math
import os
import re
import signal
import subprocess
import threading
import time
import unittest
import urllib.error
import urllib.request

import support

NIGHTLY = "LAYERWRIGHT_NIGHTLY" in os.environ
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
STEP = "RUN {held}sleep 0.2; echo {name} > /{name}\n"
LOOPBACK = ("--network", "host", "--allow", "network.host")
SHARED = 3
# RUN and COPY steps of `overlapping`.
STEPS = SHARED + 3


def step(name, text=STEP):
    return text.format(name=name, held=support.held(name))


def chain(count, text=STEP):
    return "".join(step(f"shared-{number}", text) for number in range(count))


def runs(text):
    """The names of the RUN steps of a Dockerfile."""
    return re.findall(r"^RUN .* > /(\S+)$", text, re.MULTILINE)


def overlapping(number, text=STEP):
    """Steps in a row that all share, one beside them that every other shares, and one of its own."""
    half = f"half-{number % 2}"
    return (f"FROM busybox AS beside\n{step(half, text)}FROM busybox\n{chain(SHARED, text)}"
            f"COPY --from=beside /{half} /{half}\n{step(f'own-{number}')}")


def added(number):
    """The steps of all before it, one that the next ones share, and one of its own."""
    return f"FROM busybox\n{chain(number + 1)}{step(f'own-{number}')}"


def ran(log):
    """Names of the RUN steps that came to their end in a build, and were not cached."""
    labels = dict(re.findall(r"^#(\d+) \[[^]]+\] RUN .* > /(\S+)$", log, re.MULTILINE))
    ended = dict(re.findall(r"^#(\d+) (DONE|CACHED)", log, re.MULTILINE))
    # Those that are called back, too: they are cached.
    without = labels.keys() - ended.keys()
    assert not without, f"steps {sorted(without)} have no end:\n{log}"
    return [name for step, name in labels.items() if ended[step] == "DONE"]


class Tally:
    """Hears from steps when they begin and when they have come to their end, which a run that was stopped never does."""

    # It leaves the same whoever runs it.
    STEP = ("RUN {{held}}wget -q -O - http://{host}/began/{{name}}; sleep {seconds}; wget -q -O - http://{host}/ran/{{name}}; "
            "echo {{name}} > /{{name}}\n")

    def __init__(self, seconds):
        self.seconds, self.counts, self.lock = seconds, {"began": {}, "ran": {}}, threading.Lock()
        self.began, self.ran = self.counts["began"], self.counts["ran"]

    def __enter__(self):
        tally = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                _, what, name = self.path.split("/")
                with tally.lock:
                    tally.counts[what][name] = tally.counts[what].get(name, 0) + 1
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_):
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads, request_queue_size = True, 64

            def handle_error(self, *_):
                pass  # The step was stopped.

        self.server = Server(("127.0.0.1", 0), Handler)
        self.step = self.STEP.format(host=f"127.0.0.1:{self.server.server_port}", seconds=self.seconds)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


class Shared(support.Case):
    def setUp(self):
        super().setUp()
        self.registry = self.enterContext(support.Registry(self.scratch / "registry"))
        self.use("cache")

    def use(self, repository):
        """What is built from now on is cached there; all write one bundle."""
        self.repository, self.logs, self.instructions = repository, {}, {}
        self.cache = f"{self.registry.host}/{repository}:main"

    def ask(self, path, method="GET", missing=(404,)):
        """The answer's body and digest; none if it is not there."""
        url = f"http://{self.registry.host}/v2/{self.repository}/{path}"
        try:
            asked = urllib.request.Request(url, method=method, headers={"Accept": MANIFEST})
            with urllib.request.urlopen(asked, timeout=support.WATCHDOG) as answer:
                return answer.read(), answer.headers.get("Docker-Content-Digest")
        except urllib.error.HTTPError as error:
            if error.code not in missing:
                raise
            return None, None

    def records(self):
        """The instructions of all records that the registry lists."""
        listed, _ = self.ask("tags/list")
        for tag in json.loads(listed)["tags"] or [] if listed else []:
            if tag.startswith("lw1-d-") and tag not in self.instructions:
                # The registry lists a name a moment before it can be read, and fails on one that is half written.
                manifest, _ = self.ask(f"manifests/{tag}", missing=(404, 500))
                if not manifest:
                    continue
                record = json.loads(base64.b64decode(json.loads(manifest)["config"]["data"]))
                self.instructions[tag] = record["content"]["preImage"]["~instruction"]
        return set(self.instructions.values())

    def delete_bundle(self):
        _, digest = self.ask("manifests/main")
        self.ask(f"manifests/{digest}", "DELETE")
        self.assertEqual(self.ask("manifests/main"), (None, None))

    def named(self, what):
        return self.scratch / f"{what}-{self.repository}"

    def start(self, number, text, store, held=()):
        """A builder to which steps of the names `held` must be known."""
        context = self.context(f"context-{self.repository}-{number}", Dockerfile=text)
        command = self.command(
            "build", *LOOPBACK, "--progress", "plain", "--cache-from", self.cache, "--cache-to", self.cache,
            "-o", f"type=oci,tar=false,dest={self.named(f'image-{number}')}", *support.holding(held), context, root=self.named(store))
        self.logs[number] = self.named(f"log-{number}")
        with open(self.logs[number], "w") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log, cwd=self.scratch)
        self.addCleanup(process.wait, support.WATCHDOG)
        return process

    def wait(self, running):
        """Until all have ended; how often each step ran that more than one has."""
        ended = [process.wait(support.WATCHDOG) for process in running]
        counts = {}
        for number, code in enumerate(ended):
            log = self.logs[number].read_text()
            self.assertEqual(code, 0, log)
            for name in ran(log):
                counts[name] = counts.get(name, 0) + 1
        for number in range(len(running)):
            self.assertEqual(counts.pop(f"own-{number}"), 1, "a step that no other has runs once")
        return counts

    def average(self, counts):
        average = sum(counts.values()) / len(counts)
        print(f"{self.id()}: {len(self.logs)} builders: each shared step ran {average:.2f} times: {dict(sorted(counts.items()))}")
        return average

    def check_digests(self, builders):
        """Images are those of one builder that has no cache and is alone: all of them nightly, else two, with
        which the others have their first layers in common."""
        images = [support.Layout(self.named(f"image-{number}")) for number in range(builders)]
        shared = {json.dumps(image.manifest["layers"][:2]) for image in images}
        self.assertEqual(len(shared), 1, "the base and the first step")
        for number in range(builders) if NIGHTLY else [0, builders - 1]:
            context = self.scratch / f"context-{self.repository}-{number}"
            alone = self.build(context, *LOOPBACK, root=self.named("alone"), name=f"alone-{self.repository}-{number}")
            self.assertEqual(images[number].digest, support.Layout(alone).digest, context)

    def check_nothing_lost(self, builders, what):
        """Every RUN step has its record, and machines that have seen nothing find all steps."""
        contexts = [self.scratch / f"context-{self.repository}-{number}" for number in range(builders)]
        for context in contexts:
            text = (context / "Dockerfile").read_text()
            self.assertEqual(set(re.findall("^RUN .*$", text, re.MULTILINE)) - self.records(), set())
        for number in range(builders) if NIGHTLY else [builders - 1]:
            # However late it hears of them.
            every = support.holding(runs((contexts[number] / "Dockerfile").read_text()))
            done = self.run_layerwright("build", *LOOPBACK, "--progress", "plain", "--cache-from", self.cache, *every, contexts[number],
                                        root=self.named(f"{what}-{number}"))
            self.assertRegex(done.stderr, f"{STEPS} steps, ({STEPS}|{STEPS - 1}) cached", "all but a COPY before it heard of it")

    def test_jobs_of_one_machine_run_what_they_share_once(self):
        texts = [overlapping(number) for number in range(16)]
        counts = self.wait([self.start(number, text, "store") for number, text in enumerate(texts)])
        self.assertEqual(len(counts), SHARED + 2, counts)
        self.assertLessEqual(self.average(counts), 1.1, counts)
        self.check_digests(16)
        self.check_nothing_lost(16, "after")

    def test_machines_at_once_run_what_they_share_about_once_and_lose_no_entry(self):
        builders = 16 if NIGHTLY else 6
        tally = self.enterContext(Tally(8 if NIGHTLY else 4 + self.latency(builders)))
        texts = [overlapping(number, tally.step) for number in range(builders)]
        self.wait([self.start(number, text, f"store-{number}") for number, text in enumerate(texts)])
        shared = dict(tally.ran)
        print(f"begun, most of which were stopped: {dict(sorted(tally.began.items()))}")
        self.assertEqual(len(shared), SHARED + 2, shared)
        self.assertLessEqual(self.average(shared), 1.5, shared)
        self.check_digests(builders)
        self.check_nothing_lost(builders, "bundle")
        self.delete_bundle()
        self.check_nothing_lost(builders, "records")

    def latency(self, builders):
        """How many seconds as many processes take, all at once, to be started and to hear from the registry."""
        began = time.monotonic()
        command = self.command("cache", "ls", "--remote", self.cache, root=self.named("latency"))
        asking = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self.scratch)
                  for _ in range(builders)]
        for process in asking:
            process.wait(support.WATCHDOG)
        return math.ceil(time.monotonic() - began)

    @unittest.skipUnless(NIGHTLY, "LAYERWRIGHT_NIGHTLY=1 waits until the dead are given up")
    def test_who_dies_in_a_step_is_taken_over_from(self):
        tally = self.enterContext(Tally(8))
        text = f"FROM busybox\n{step('step', tally.step)}{step('own-0')}"
        running = {number: self.start(number, text, f"store-{number}") for number in range(4)}
        said = lambda number: self.logs[number].read_text()
        waits = lambda number: "waiting for another builder that runs this step" in said(number)
        support.wait_for(lambda: sum(map(waits, running)) == 3, "three builders to wait")
        interrupted, owner = next(filter(waits, running)), next(number for number in running if not waits(number))
        for number, number_of_signal in ((interrupted, signal.SIGINT), (owner, signal.SIGKILL)):
            killed, began = running.pop(number), time.monotonic()
            killed.send_signal(number_of_signal)
            killed.wait(support.WATCHDOG)
            self.assertLess(time.monotonic() - began, 5, "nobody who follows holds on")
        for number, process in running.items():
            self.assertEqual(process.wait(support.WATCHDOG), 0, said(number))
        self.assertEqual(tally.ran, {"step": 1}, tally.began)
        self.assertEqual(len({support.Layout(self.named(f"image-{number}")).digest for number in running}), 1)

    def test_machines_one_after_the_other_run_what_they_share_once(self):
        """Each starts while the one before it runs, as soon as the registry has the step that that one has added."""
        texts = [added(number) for number in range(12 if NIGHTLY else 5)]
        running = []
        for number, text in enumerate(texts):
            # What the others have run is in the cache, and known here however late it tells.
            running.append(self.start(number, text, f"store-{number}", [f"shared-{before}" for before in range(number)]))
            published = step(f"shared-{number}").strip()
            support.wait_for(lambda: published in self.records() or running[-1].poll() is not None, f"a record of {published}")
        counts = self.wait(running)
        self.assertEqual(len(counts), len(texts), counts)
        self.check_digests(len(texts))
        self.assertEqual(self.average(counts), 1, counts)


if __name__ == "__main__":
    unittest.main()
