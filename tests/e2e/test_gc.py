"""`layerwright gc` and `du`: what they remove and count, beside builds that run, for all three kinds of users."""

import json
import os
import pathlib
import signal
import subprocess
import time
import unittest

import support

DOCKERFILE = """\
FROM busybox
WORKDIR /w
COPY a a
RUN mkdir -m 700 d && echo x > d/x{chown}
RUN --mount=type=cache,id=mine,target=/c mkdir -p /c/d && echo y > /c/d/f && chmod 0 /c/d && echo big > big
RUN cat a big > c
"""


class Gc(support.Case):
    def dockerfile(self, user):
        # With one id no step can change owners.
        return DOCKERFILE.format(chown="" if user == "lw-one" else " && chown -R 5:6 d")

    def gc(self, *arguments, user="root", **options):
        done = self.run_layerwright("gc", "--root", self.store(user), *arguments, user=user, **options)
        return done.stdout

    def usage(self, user="root"):
        done = self.run_layerwright("du", "--format", "json", "--verbose", "--root", self.store(user), user=user)
        return json.loads(done.stdout)

    def test_gc_all_empties_a_store_that_rm_cannot(self):
        for user in support.USERS:
            with self.subTest(user=user):
                context = self.context(f"context-{user}", Dockerfile=self.dockerfile(user), a="a")
                digest = support.Layout(self.build(context, user=user, name=f"{user}-1")).digest
                store = self.store(user)
                kinds = {kind["kind"] for kind in self.usage(user)["kinds"]}
                self.assertLessEqual({"base-layers", "built-layers", "blobs", "cache-mounts", "records"}, kinds)
                if user == "lw-sub":
                    removed = subprocess.run(
                        ["runuser", "-u", user, "--", "rm", "-rf", store / "snapshots"], capture_output=True)
                    self.assertNotEqual(removed.returncode, 0, "the test shows nothing if rm can")
                    # What rm has taken is missed, made again, and the same.
                    again = self.build(context, user=user, name=f"{user}-2")
                    self.assertEqual(support.Layout(again).digest, digest)
                report = self.gc("--all", user=user)
                self.assertRegex(report, r"Total:\t\d")
                left = self.usage(user)
                self.assertEqual([kind["kind"] for kind in left["kinds"]], ["store"], left)
                third = self.build(context, user=user, name=f"{user}-3")
                self.assertEqual(support.Layout(third).digest, digest)
                self.gc("--all", user=user)
                subprocess.run(["runuser", "-u", user, "--", "sh", "-c", f"rm -r {store}/*"], check=True)

    def test_a_build_that_runs_loses_nothing(self):
        for user in support.USERS:
            with self.subTest(user=user):
                wait = "RUN --mount=type=cache,id=gate,target=/gate echo > /gate/ready; while [ ! -e /gate/go ]; do sleep 0.05; done"
                text = self.dockerfile(user).replace("RUN cat", f"{wait}\nRUN cat")
                context = self.context(f"held-{user}", Dockerfile=text, a="a")
                # Another build of the same first steps has come before, so that those are hits.
                self.build(self.context(f"first-{user}", Dockerfile=self.dockerfile(user), a="a"),
                           user=user, name=f"{user}-0")
                out = self.scratch / f"held-{user}.tar"
                command = self.command("build", "--progress", "plain", "-o", f"type=oci,dest={out}", context, user=user)
                self.scratch.chmod(0o1777)
                process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
                try:
                    gate = self.wait_for(lambda: next(self.store(user).glob("mounts/*/*/0/fs/ready"), None), process)
                    self.assertIn("Total:", self.gc("--all", user=user))
                    self.gc("--keep-duration", "0s", user=user)
                    (gate.parent / "go").touch()
                    output, _ = process.communicate(timeout=support.WATCHDOG)
                    self.assertEqual(process.returncode, 0, output)
                finally:
                    if process.poll() is None:
                        process.kill()
                        process.wait()
                held = self.digest_in(output)
                (gate.parent / "go").touch()
                again = self.build(context, user=user, name=f"{user}-1")
                self.assertIn(support.Layout(again).digest, held)
                self.assertIn("6 cached", self.last.stderr)

    def digest_in(self, output):
        lines = [line for line in output.splitlines() if "sha256:" in line]
        self.assertTrue(lines, output)
        return lines[-1] + lines[0]

    def wait_for(self, look, process):
        deadline = time.monotonic() + support.WATCHDOG
        while not (found := look()):
            if process.poll() is not None or time.monotonic() > deadline:
                self.fail(f"the build has ended: {process.stdout.read()}")
            time.sleep(0.02)
        return found

    def test_what_is_killed_while_it_removes_leaves_a_whole_store(self):
        text = "FROM busybox\n" + "".join(f"RUN echo {n} > /f{n}\n" for n in range(12))
        context = self.context(Dockerfile=text)
        digest = support.Layout(self.build(context, name="0")).digest
        for round in range(8):
            command = self.command("gc", "--root", self.store(), "--keep-storage", "1MB" if round % 2 else "0")
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(0.004 * (round + 1))
            process.send_signal(signal.SIGKILL)
            process.wait()
            # Nothing that is left is useless, but for what the killed one was at.
            self.gc("--keep-storage", "off")
            report = self.gc("--keep-storage", "off", "--dry-run")
            self.assertIn("Would be removed:\t0B\n", report)
            self.assertEqual(support.Layout(self.build(context, name=f"{round + 1}")).digest, digest)

    def test_the_cap_is_kept_at_the_end_of_a_build(self):
        text = "FROM busybox\nARG N\nRUN dd if=/dev/urandom of=/big bs=64k count=16 2>&1; echo $N\n"
        context = self.context(Dockerfile=text)
        env = {"LAYERWRIGHT_KEEP_STORAGE": "8MB"}
        for n in range(6):
            self.build(context, "--build-arg", f"N={n}", env=env, name=f"{n}")
            total = sum(k["bytes"] for k in self.usage()["kinds"] if k["kind"] not in ("temporary", "store"))
            self.assertLessEqual(total, 8_800_000, f"build {n}")
        self.assertIn("the store was over its cap", self.last.stderr)
        # The last one was used last, and nothing happens when nothing is built.
        self.build(context, "--build-arg", "N=5", env=env | {"LAYERWRIGHT_KEEP_STORAGE": "0"}, name="again")
        self.assertIn("1 cached", self.last.stderr)
        self.assertNotIn("over its cap", self.last.stderr)
        wrong = self.run_layerwright("build", context, env={"LAYERWRIGHT_KEEP_STORAGE": "much"}, code=2)
        self.assertIn('LAYERWRIGHT_KEEP_STORAGE="much": expected a size', wrong.stderr)

    def test_du_counts_what_du_counts(self):
        context = self.context(Dockerfile=self.dockerfile("root"), a="a" * 100_000)
        self.build(context)
        for _ in range(2):
            counted = self.usage()["total"]
            walked = int(subprocess.run(["du", "-s", "-B1", self.store()], capture_output=True, check=True,
                                        text=True).stdout.split()[0])
            self.assertLess(abs(counted - walked), walked / 100 + 8192)
        words = {thing.get("what") for thing in self.usage()["things"]}
        self.assertLessEqual({"RUN cat a big > c", "mine", f"oci-layout://{self.base}"}, words)
        table = self.run_layerwright("du", "--root", self.store()).stdout
        self.assertRegex(table, r"cache mounts +1 ")

    def test_a_store_that_is_not_there_stays_away(self):
        nowhere = self.scratch / "nowhere"
        for command in ("gc", "du"):
            self.assertIn("Total:", self.run_layerwright(command, "--root", nowhere).stdout)
        self.assertFalse(nowhere.exists())
        self.run_layerwright("gc", "--all", "--keep-storage", "1GB", code=2)


if __name__ == "__main__":
    unittest.main()
