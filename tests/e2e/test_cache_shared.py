"""Many builders on one cache in a registry: of one machine or of several, at once or one after the other. All are right, no
entry is lost, and what they share is run no oftener than docs/cache.md says. `LAYERWRIGHT_NIGHTLY=1` runs more of them.

Builders that wait for nothing are awaited by what the registry holds, never by the clock."""

import base64
import json
import os
import re
import subprocess
import unittest
import urllib.error
import urllib.request

import support

NIGHTLY = "LAYERWRIGHT_NIGHTLY" in os.environ
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
STEP = "RUN {held}sleep 0.2; echo {name} > /{name}\n"
SHARED = 3
# RUN and COPY steps of `overlapping`.
STEPS = SHARED + 3


def step(name):
    return STEP.format(name=name, held=support.held(name))


def chain(count):
    return "".join(step(f"shared-{number}") for number in range(count))


def runs(text):
    """The names of the RUN steps of a Dockerfile."""
    return re.findall(r"^RUN .* > /(\S+)$", text, re.MULTILINE)


def overlapping(number):
    """Steps in a row that all share, one beside them that every other shares, and one of its own."""
    half = f"half-{number % 2}"
    return (f"FROM busybox AS beside\n{step(half)}FROM busybox\n{chain(SHARED)}"
            f"COPY --from=beside /{half} /{half}\n{step(f'own-{number}')}")


def added(number):
    """The steps of all before it, one that the next ones share, and one of its own."""
    return f"FROM busybox\n{chain(number + 1)}{step(f'own-{number}')}"


def ran(log):
    """Names of the RUN steps that came to their end in a build, and were not cached."""
    labels = dict(re.findall(r"^#(\d+) \[[^]]+\] RUN .* > /(\S+)$", log, re.MULTILINE))
    # Those that are called back are cached; a build that is made once more has told how its first plan ended.
    ended = dict(re.findall(r"^#(\d+) (DONE|CACHED|ERROR|CANCELED)", log, re.MULTILINE))
    without = labels.keys() - ended.keys()
    assert not without, f"steps {sorted(without)} have no end:\n{log}"
    return [name for step, name in labels.items() if ended[step] == "DONE"]


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
            "build", "--progress", "plain", "--cache-from", self.cache, "--cache-to", self.cache,
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
            alone = self.build(context, root=self.named("alone"), name=f"alone-{self.repository}-{number}")
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
            done = self.run_layerwright("build", "--progress", "plain", "--cache-from", self.cache, *every, contexts[number],
                                        root=self.named(f"{what}-{number}"))
            self.assertRegex(done.stderr, f"{STEPS} steps, ({STEPS}|{STEPS - 1}) cached", "all but a COPY before it heard of it")

    def test_jobs_of_one_machine_run_what_they_share_once(self):
        texts = [overlapping(number) for number in range(16)]
        counts = self.wait([self.start(number, text, "store") for number, text in enumerate(texts)])
        self.assertEqual(len(counts), SHARED + 2, counts)
        self.assertLessEqual(self.average(counts), 1.1, counts)
        self.check_digests(16)
        self.check_nothing_lost(16, "after")

    def test_machines_at_once_lose_no_entry(self):
        builders = 16 if NIGHTLY else 6
        texts = [overlapping(number) for number in range(builders)]
        counts = self.wait([self.start(number, text, f"store-{number}") for number, text in enumerate(texts)])
        self.assertEqual(len(counts), SHARED + 2, counts)
        self.average(counts)
        self.check_digests(builders)
        self.check_nothing_lost(builders, "bundle")
        self.delete_bundle()
        self.check_nothing_lost(builders, "records")

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
