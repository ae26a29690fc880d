"""The history: what builds leave behind, whether they end well, fail or are stopped, and what they must not leave."""

import json
import os
import re
import shlex
import signal
import subprocess
import unittest

from support import WATCHDOG, Case

ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}")


class History(Case):
    def history(self, *arguments, user="root", **options):
        return self.run_layerwright("history", *arguments, "--root", self.store(user), user=user, **options).stdout

    def listed(self, user="root"):
        return json.loads(self.history("ls", "--format", "json", user=user))

    def test_every_build_is_listed_newest_first(self):
        for user in ("root", "lw-sub"):
            with self.subTest(user=user):
                context = self.context(f"context-{user}", Dockerfile="FROM busybox\nRUN echo made > /made\nRUN echo one\n")
                self.assertEqual(self.history(user=user).count("\n"), 1, "a heading, and no builds yet")
                self.build(context, user=user, name=f"first-{user}")
                (context / "Dockerfile").write_text("FROM busybox\nRUN echo made > /made\nRUN echo said; exit 7\n")
                self.build(context, user=user, name=f"second-{user}", code=1)
                (context / "Dockerfile").write_text("FROM busybox\nNOPE\n")
                self.build(context, user=user, name=f"third-{user}", code=2)

                third, second, first = self.listed(user)
                self.assertEqual([build["status"] for build in (first, second, third)], ["completed", "error", "error"])
                self.assertEqual((first["total_steps"], first["cached_steps"]), (2, 0))
                self.assertEqual((second["total_steps"], second["cached_steps"], second["exit_code"]), (2, 1, 1))
                self.assertEqual((third["total_steps"], third["exit_code"]), (0, 2))
                lines = self.history(user=user).splitlines()
                self.assertTrue(lines[1].startswith(third["id"]) and lines[3].startswith(first["id"]))
                self.assertIn(f"context-{user}/Dockerfile", lines[1])

                shown = self.history("show", second["id"][:-2], "--log", user=user)
                made = next(line for line in shown.splitlines() if "RUN echo made" in line)
                self.assertRegex(made, rf"cached .*{first['id']} on ", "a hit names who made it")
                self.assertRegex(shown, r"RUN echo said; exit 7 +failed +\d")
                self.assertRegex(shown, r"(?m)^#\d+ [0-9.]+ said$", "the log is kept")
                self.assertEqual(self.history("show", "^2", user=user).split()[1], first["id"])

                self.history("rm", "last", user=user)
                self.assertEqual([build["id"] for build in self.listed(user)], [second["id"], first["id"]])
                self.history("rm", "--all", user=user)
                self.assertEqual(self.listed(user), [])

    def test_a_dockerfile_is_told_by_where_it_lies(self):
        context = self.context(Dockerfile="FROM scratch\n", one__Dockerfile="FROM scratch\n", two__Dockerfile="FROM scratch\n")
        other = self.context("other", Dockerfile="FROM scratch\n")
        for directory, file in ((context, "one/Dockerfile"), (context / "two", "Dockerfile"), (self.scratch, "other/Dockerfile")):
            command = self.command("build", "-q", "-o", f"type=oci,dest={self.scratch}/image", "-f", file, context)
            subprocess.run(command, check=True, cwd=directory, stdout=subprocess.DEVNULL, timeout=WATCHDOG)
        self.assertEqual([build["dockerfile"] for build in self.listed()],
                         [f"{other.resolve()}/Dockerfile", "two/Dockerfile", "one/Dockerfile"])
        lines = self.history().splitlines()
        for line, name in zip(lines[1:], ("other/Dockerfile", f"{context.name}/two/Dockerfile", f"{context.name}/one/Dockerfile"), strict=True):
            self.assertIn(f"  {name}  ", line)

    def test_the_dockerfile_of_a_commit_is_told_by_where_it_lies_in_the_work_tree(self):
        top = self.context(build__Dockerfile="FROM scratch\n", service__file="1")
        git = lambda *arguments: subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@example.org", *arguments], cwd=top,
                                                check=True, stdout=subprocess.DEVNULL, timeout=WATCHDOG)
        git("init", "-q")
        git("add", "-A")
        git("commit", "-q", "-m", "x")
        for directory, file, context in ((top, "build/Dockerfile", "service"), (top / "build", "Dockerfile", "../service"),
                                         (self.scratch, "build/Dockerfile", top), (top / "service", "../build/Dockerfile", top)):
            command = self.command("build", "-q", "--git", "HEAD", "-o", f"type=oci,dest={self.scratch}/image", "-f", file, context)
            subprocess.run(command, check=True, cwd=directory, stdout=subprocess.DEVNULL, timeout=WATCHDOG)
        there = f"{top.resolve()}/build/Dockerfile"
        self.assertEqual([build["dockerfile"] for build in self.listed()], ["build/Dockerfile", "build/Dockerfile", there, there])

    def test_no_entry_goes_for_one_that_there_is_no_room_for(self):
        """On a disk that is full but for what a step needs, a build with much to say leaves no entry, and all others stay."""
        store = self.scratch / "small"
        store.mkdir()
        quiet = self.command("build", self.context(Dockerfile="FROM busybox\nRUN true\n"), root=store)
        loud = self.command("build", self.context("loud", Dockerfile="FROM busybox\nRUN seq 300000; false\n"), root=store)
        script = f"""mount -t tmpfs -o size=24m none {store} && {shlex.join(map(str, quiet))} && {shlex.join(map(str, quiet))} || exit 9
            head -c $(($(stat -f -c '%a * %S' {store}) - 524288)) /dev/zero > {store}/filling
            {shlex.join(map(str, loud))}; ls {store}/history"""
        done = subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, timeout=WATCHDOG)
        self.assertIn("No space left on device", done.stderr)
        self.assertEqual(len(done.stdout.split()), 4, done.stdout + done.stderr)

    def test_records_are_signed_with_the_id_of_the_build(self):
        self.build(self.context(Dockerfile="FROM busybox\nRUN true\n"))
        build = self.listed()[0]
        records = list((self.store() / "records" / "content").iterdir())
        self.assertEqual(len(records), 1)
        self.assertIn(f'"build":"{build["id"]}"', records[0].read_text())

    def test_a_build_that_is_stopped_is_remembered(self):
        context = self.context(Dockerfile="FROM busybox\nRUN echo waiting; sleep 86398\nRUN echo never\n")
        process = subprocess.Popen(self.command("build", "--progress", "plain", context), stdout=subprocess.DEVNULL,
                                   stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
        with process.stderr:
            for line in process.stderr:
                if re.fullmatch(r"#\d+ [0-9.]+ waiting", line.rstrip()):
                    break
            os.kill(process.pid, signal.SIGTERM)
            process.stderr.read()
        self.assertEqual(process.wait(WATCHDOG), 143)
        build, = self.listed()
        self.assertEqual((build["status"], build["exit_code"]), ("canceled", 143))
        shown = json.loads(self.history("show", "--format", "json"))
        outcomes = {step["label"].split("] ")[1]: step["outcome"]["kind"] for step in shown["steps"]}
        self.assertEqual((outcomes["RUN echo waiting; sleep 86398"], outcomes["RUN echo never"]), ("canceled", "waiting"))

    def test_no_secret_is_kept(self):
        dockerfile = ("FROM busybox\nARG PROXY\nRUN --mount=type=secret,id=token cat /run/secrets/token;"
                      " echo proxy $PROXY; echo https://me:clear@host/x\n")
        context = self.context(Dockerfile=dockerfile)
        self.build(context, "--secret", "id=token,env=TOKEN", "--build-arg", "PROXY=http://user:hidden@proxy:1",
                   env={"TOKEN": "hunter22-hunter22"})
        log = self.history("logs")
        self.assertIn(" ***", log)
        for file in (self.store() / "history").iterdir():
            text = file.read_text()
            for secret in ("hunter22", "hidden", "me:clear"):
                self.assertNotIn(secret, text, file.name)

    def test_builds_at_the_same_time_have_different_ids(self):
        context = self.context(Dockerfile="FROM busybox\nRUN true\n")
        builds = [subprocess.Popen(self.command("build", "--quiet", context), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
                  for _ in range(6)]
        for build in builds:
            output, _ = build.communicate(timeout=WATCHDOG)
            self.assertEqual(build.returncode, 0, output)
        ids = [build["id"] for build in self.listed()]
        self.assertEqual((len(ids), len(set(ids))), (6, 6))
        self.assertTrue(all(ID.fullmatch(build) for build in ids))

    def test_what_cannot_be_found_is_said(self):
        missing = self.run_layerwright("history", "show", "nosuch", "--root", self.store(), code=2)
        self.assertIn('has no builds', missing.stderr)
        self.run_layerwright("history", "rm", code=2)

    def test_an_entry_that_is_damaged_costs_no_other(self):
        context = self.context(Dockerfile="FROM busybox\nRUN true\n")
        self.build(context, name="one")
        self.build(context, name="two")
        missing = self.run_layerwright("history", "show", "nosuch", "--root", self.store(), code=2)
        self.assertIn('has no build "nosuch"', missing.stderr)
        newest = self.listed()[0]["id"]
        entry = self.store() / "history" / f"{newest}.json"
        text = entry.read_text()
        entry.unlink()
        entry.write_text(text.replace('"took_ms":', '"took_ms":1'))
        lines = self.history().splitlines()
        self.assertIn("damaged", lines[1])
        self.assertIn("Completed", lines[2])
        self.run_layerwright("history", "show", newest, "--root", self.store(), code=4)
        self.history("rm", newest)
        self.assertEqual(len(self.listed()), 1)


if __name__ == "__main__":
    unittest.main()
