"""Builds that make has started share its jobs with everything else that it has started."""

import re
import subprocess
import threading
import unittest
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from support import Case, WATCHDOG

STEPS = 6

DOCKERFILE = "FROM busybox AS base\n" + "".join(
    f"FROM base AS s{step}\nRUN wget -qO- $TALLY/begin && touch /f{step} && wget -qO- $TALLY/end\n" for step in range(STEPS)
).replace("AS base\n", "AS base\nARG TALLY\n", 1).replace("\nRUN", "\nARG TALLY\nRUN") + "FROM scratch\n" + "".join(
    f"COPY --from=s{step} /f{step} /\n" for step in range(STEPS))


class Tally:
    """Counts who runs at the same time: whoever begins is answered when as many as expected have begun."""

    def __init__(self, expected):
        self.expected, self.now, self.most, self.all = expected, 0, 0, 0
        self.changed = threading.Condition()

    def begin(self):
        with self.changed:
            self.now, self.all = self.now + 1, self.all + 1
            self.most = max(self.most, self.now)
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.most >= self.expected, timeout=WATCHDOG)
            # For one that may not.
            self.changed.wait_for(lambda: self.most > self.expected, timeout=0.2)

    def end(self):
        with self.changed:
            self.now -= 1

    def __enter__(self):
        tally = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                tally.begin() if self.path == "/begin" else tally.end()
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


class Make(Case):
    def check(self, expected, *arguments, mark="+", user="root"):
        """Runs a build with six steps that could all run at once below make; so many must."""
        with Tally(expected) as tally:
            context = self.scratch / f"context-{user}"
            if not context.exists():
                self.context(context.name, Dockerfile=DOCKERFILE)
            command = self.command("build", "--no-cache", "--progress", "plain", "--jobs", "6", "--build-arg",
                                   f"TALLY={tally.address}", "-o", "type=cacheonly", context, user=user)
            # make itself is the user's.
            prefix, command = ([], command) if user == "root" else (command[:4], command[4:])
            after = "".join(f"after{number}:\n\t@sleep 0.1\n" for number in range(3))
            (self.scratch / "Makefile").write_text(
                f"all: image\n\t+$(MAKE) after0 after1 after2\nimage:\n\t{mark}{' '.join(command)}\n{after}")
            output = subprocess.run([*prefix, "make", *arguments, "all"], cwd=self.scratch, check=True, text=True, timeout=WATCHDOG,
                                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout
        self.assertEqual((tally.all, tally.now, tally.most), (STEPS, 0, expected), output)

    def test_steps_take_no_more_jobs_than_make_has(self):
        for user in ("root", "lw-sub", "lw-one"):
            for jobs in (2, 3):
                # One job is the build's own.
                self.check(jobs, f"-j{jobs}", user=user)
        # It has no jobs to hand out, and --jobs decides.
        self.check(STEPS, "-j1")

    def test_without_a_job_server_jobs_decide(self):
        # make keeps its pipe from recipes without a plus, and says so in vain.
        self.check(STEPS, "-j2", mark="")

    def test_jobs_come_back_when_steps_fail_or_are_stopped(self):
        context = self.context("failing", Dockerfile="FROM busybox AS a\nRUN exit 1\nFROM busybox AS b\nRUN sleep 1000\n"
                               "FROM scratch\nCOPY --from=a / /\nCOPY --from=b / /\n")
        command = " ".join(self.command("build", "-q", "-o", "type=cacheonly", context))
        probe = "python3 -c 'import os, re; r, w = re.findall(r\"auth=(\\d+),(\\d+)\", os.environ[\"MAKEFLAGS\"])[0]; " \
                "os.set_blocking(int(r), False); print(\"free\", len(os.read(int(r), 9)))'"
        (self.scratch / "Makefile").write_text(f"all:\n\t+-{command}\n\t+{probe}\n".replace("$", "$$"))
        done = subprocess.run(["make", "-j4"], cwd=self.scratch, text=True, timeout=WATCHDOG, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT)
        self.assertRegex(done.stdout, r"(?m)^free 3$")
        self.assertTrue(re.search(r"exit code: 1", done.stdout), done.stdout)


if __name__ == "__main__":
    unittest.main()
