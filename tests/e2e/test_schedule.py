"""Several builders on one store, and how steps are run: at the same time, once, again, or not from the cache."""

import pathlib
import shutil
import signal
import subprocess
import time

from support import USERS, WATCHDOG, Case, Layout, wait_for


class Schedule(Case):
    def start(self, context, *arguments, user="root", root=None, progress="plain"):
        """A build that runs beside the test."""
        command = self.command("build", "--progress", progress, *arguments, context, user=user, root=root)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                                   stdin=subprocess.DEVNULL, cwd=self.scratch)
        self.addCleanup(end, process)
        return process


    def counted(self, *lines):
        """A Dockerfile whose RUN notes in a cache mount that it runs, and waits there for the test."""
        run = "RUN --mount=type=cache,id=gate,target=/gate echo ran >> /gate/ran; until [ -e /gate/open ]; do sleep 0.05; done; "
        return self.context(Dockerfile="\n".join(["FROM busybox", run + "head -c 8 /dev/urandom > /random", *lines]) + "\n")

    def gate_file(self, name, store):
        """A file of the one cache mount in the store."""
        found = list(pathlib.Path(store).glob("mounts/*/*/0/fs"))
        return found[0] / name if found else pathlib.Path("/nowhere")

    def open_gate(self, store):
        self.gate_file("open", store).write_text("")

    def ran(self, store):
        path = self.gate_file("ran", store)
        return path.read_text().count("ran") if path.exists() else 0

    def test_equal_steps_run_once_whoever_builds(self):
        for user in USERS:
            with self.subTest(user=user):
                store = self.store(user)
                context = self.scratch / "context"
                context = context if context.exists() else self.counted("RUN cp /random /copy")
                first = self.start(context, user=user)
                wait_for(lambda: self.ran(store) == 1, "the step to run")
                second = self.start(context, user=user)
                waiting = read_until(second, "waiting for another build")
                self.assertRegex(waiting, r"waiting for another build \(\S+, process \d+\) that runs this step")
                self.open_gate(store)
                self.assertEqual(finish(first)[0], 0)
                code, output = finish(second)
                self.assertEqual(code, 0, output)
                self.assertIn("CACHED", output)
                self.assertEqual(self.ran(store), 1)
                self.assertEqual([path.name for path in (store / "locks").glob("step-*")], [])

    def test_the_next_one_runs_what_a_killed_builder_ran(self):
        store, context = self.store(), self.counted()
        first = self.start(context)
        wait_for(lambda: self.ran(store) == 1, "the step to run")
        second = self.start(context)
        read_until(second, "waiting for another build")
        first.kill()
        first.wait(WATCHDOG)
        wait_for(lambda: self.ran(store) == 2, "the other to run the step")
        self.open_gate(store)
        self.assertEqual(finish(second)[0], 0)

    def test_whoever_waits_can_be_stopped(self):
        store, context = self.store(), self.counted()
        first = self.start(context)
        wait_for(lambda: self.ran(store) == 1, "the step to run")
        second = self.start(context)
        read_until(second, "waiting for another build")
        began = time.monotonic()
        second.send_signal(signal.SIGINT)
        self.assertEqual(finish(second)[0], 130)
        self.assertLess(time.monotonic() - began, 10, "it stops at once; the bound is a watchdog's")
        self.open_gate(store)
        self.assertEqual(finish(first)[0], 0)
        self.assertEqual(self.ran(store), 1)

    def test_a_forced_step_waits_for_nobody(self):
        store, context = self.store(), self.counted()
        first = self.start(context)
        wait_for(lambda: self.ran(store) == 1, "the step to run")
        # --no-cache gives it a cache mount of its own, with a gate that is open.
        forced = self.context("forced", Dockerfile=(context / "Dockerfile").read_text().replace("FROM busybox\n", "FROM busybox AS a\n"))
        command = (forced / "Dockerfile").read_text().replace("until [ -e /gate/open ]; do sleep 0.05; done; ", "")
        (forced / "Dockerfile").write_text(command)
        done = self.run_layerwright("build", "--no-cache", "--progress", "plain", forced)
        self.assertNotIn("waiting", done.stderr)
        self.open_gate(store)
        self.assertEqual(finish(first)[0], 0)

    def test_four_stages_run_at_the_same_time(self):
        # Each waits for all the others, so one after the other they would wait in vain; how long that takes is W5's to say.
        wait = "until [ $(ls /meeting | wc -l) = 4 ]; do sleep 0.05; i=$((i + 1)); [ $i -lt 2000 ] || exit 1; done"
        stages = "".join(
            f"FROM busybox AS s{n}\n"
            f"RUN --mount=type=cache,id=meeting,target=/meeting touch /meeting/{n}; i=0; {wait}; echo {n} > /out\n"
            for n in range(4))
        copies = "".join(f"COPY --from=s{n} /out /{n}\n" for n in range(4))
        context = self.context(Dockerfile=f"{stages}FROM scratch\n{copies}")
        self.run_layerwright("build", context)

    def test_equal_steps_of_different_stages_run_once(self):
        context = self.context(Dockerfile="""\
FROM busybox AS a
RUN head -c 8 /dev/urandom > /random
FROM busybox AS b
RUN head -c 8 /dev/urandom > /random
FROM busybox AS c
RUN echo noise > /noise
RUN echo same > /out
FROM busybox AS d
RUN echo other noise > /noise; echo same > /out
FROM scratch AS e
COPY --from=c /out /
FROM scratch AS f
COPY --from=d /out /
FROM scratch
COPY --from=a /random /a
COPY --from=b /random /b
COPY --from=e / /e/
COPY --from=f / /f/
""", name="stages")
        self.build(context, name="stages")
        layout = Layout(self.scratch / "out-stages" / "layout")
        self.assertEqual(layout.read("a"), layout.read("b"))
        self.assertRegex(self.last.stderr, r"RUN head[^\n]*\n(#\d+ (?!CACHED)[^\n]*\n)*#\d+ CACHED", "the second is told")

    def test_a_failing_command_is_tried_again_from_the_start(self):
        dockerfile = """\
FROM busybox
RUN --mount=type=cache,id=n,target=/n [ ! -e /left ] && touch /left && echo x >> /n/n && [ $(wc -l < /n/n) -ge 3 ]
"""
        context = self.context(Dockerfile=dockerfile)
        for user in USERS:
            with self.subTest(user=user):
                failed = self.run_layerwright("build", "--progress", "plain", "--retry", "1", context, user=user, code=1)
                self.assertIn("attempt 1 of 2 failed: process", failed.stderr)
                self.assertNotIn("attempt 3", failed.stderr)
                self.build(context, "--retry", "2", user=user, name=f"retry-{user}")
                self.assertNotIn("attempt 1 of 3 failed", self.last.stderr, "the third run in all goes well")
        fresh = self.context("fresh", Dockerfile=dockerfile.replace("id=n", "id=m"))
        out = self.build(fresh, "--retry", "2", name="fresh")
        self.assertIn("attempt 3 of 3", self.last.stderr)
        self.assertEqual(sorted(list(Layout(out).layers())[-1]), ["left"])

    def test_results_grow_old(self):
        context = self.context(Dockerfile="""\
FROM busybox AS other
RUN head -c 8 /dev/urandom > /random
FROM busybox
RUN echo same > /out
COPY --from=other /random /
""")
        self.build(context, name="one")
        random = Layout(self.scratch / "out-one" / "layout").read("random")
        self.build(context, "--cache-ttl", "1h", name="two")
        self.assertEqual(Layout(self.scratch / "out-two" / "layout").read("random"), random)
        # Nothing is younger than this very second: `at` of a record is when its build began.
        time.sleep(1.1)
        self.build(context, "--cache-ttl", "0s", name="three")
        self.assertNotIn("CACHED", self.last.stderr)
        third = Layout(self.scratch / "out-three" / "layout")
        self.assertNotEqual(third.read("random"), random)
        self.build(context, name="four")
        self.assertEqual(Layout(self.scratch / "out-four" / "layout").digest, third.digest, "the new results count")
        wrong = self.run_layerwright("build", "--cache-ttl", "soon", context, code=2)
        self.assertIn("expected a time like", wrong.stderr)

    def test_no_image_is_mixed_of_two_stores(self):
        """Left and right stand on one step that never gives the same. One store has left of the first run, another right
        of the second; with the records of both in one store, an image is made of one of them only."""
        text = """\
FROM busybox AS shared
RUN head -c 8 /dev/urandom > /shared
FROM shared AS left
RUN cat /shared > /left
FROM shared AS right
RUN cat /shared > /right
FROM scratch
COPY --from=left /left /
COPY --from=right /right /
"""
        context = self.context(Dockerfile=text)
        stores = [self.scratch / "store-a", self.scratch / "store-b"]
        for number, store in enumerate(stores):
            for target in ("left", "right"):
                self.build(context, "--target", target, root=store, name=f"{number}-{target}")
        images = {key: Layout(self.scratch / f"out-{key}" / "layout") for key in ("0-left", "1-right")}
        self.assertNotEqual(images["0-left"].read("shared"), images["1-right"].read("shared"), "it is random")
        mixed = mix(stores, ["cat /shared > /left"], ["cat /shared > /right"], self.scratch / "store-mixed")
        # Each record is a hit where it stands alone: whoever believed both in one build would mix the two runs.
        for target, run in (("left", "0-left"), ("right", "1-right")):
            alone = Layout(self.build(context, "--target", target, root=mixed, name=f"alone-{target}"))
            self.assertEqual(alone.digest, images[run].digest, "random bytes do not come twice")
        out = Layout(self.build(context, root=mixed, name="mixed"))
        self.assertEqual(out.read("left"), out.read("right"), "one image, one shared step")
        self.assertEqual(out.read("left"), images["0-left"].read("shared"), "the first in graph order stands")
        # Both were hits, or this shows nothing.
        lines = self.last.stderr
        self.assertRegex(lines, r"\[left [^\n]*\n(#\d+ [^\n]*\n)*?#\d+ CACHED")
        self.assertRegex(lines, r"\[right [^\n]*\n(#\d+ [^\n]*\n)*?#\d+ DONE", "refused by definition, it runs")


def mix(stores, of_first, of_second, target):
    """A store with all layers of both, and of the records only those whose command is named."""
    shutil.copytree(stores[0], target, symlinks=True)
    shutil.rmtree(target / "tmp")
    (target / "tmp").mkdir(mode=0o700)
    subprocess.run(["cp", "-an", f"{stores[1]}/snapshots/.", target / "snapshots"], check=True)
    subprocess.run(["cp", "-an", f"{stores[1]}/trees/.", target / "trees"], check=True)
    for kind in ("definition", "content"):
        shutil.rmtree(target / "records" / kind)
        (target / "records" / kind).mkdir(mode=0o700)
        for store, commands in zip(stores, (of_first, of_second)):
            for record in (store / "records" / kind).iterdir():
                if any(command in record.read_text() for command in commands):
                    shutil.copy2(record, target / "records" / kind)
    assert len(list((target / "records" / "definition").iterdir())) == 2
    return target


def read_until(process, text):
    """The line of a build's output that has the text."""
    for line in process.stderr:
        if text in line:
            return line
    raise AssertionError(f"it ended without saying {text!r}")


def finish(process):
    with process.stderr:
        output = process.stderr.read()
    return process.wait(WATCHDOG), output


def end(process):
    if process.poll() is None:
        process.kill()
        process.wait(WATCHDOG)
    if not process.stderr.closed:
        process.stderr.close()
