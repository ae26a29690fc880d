"""Builds that make has started share its jobs with everything else that it has started."""

import fcntl
import os
import re
import shutil
import subprocess
import sys
import termios
import threading
import unittest
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from support import Case, WATCHDOG, wait_for

STEPS = 6

DOCKERFILE = "FROM busybox AS base\n" + "".join(
    f"FROM base AS s{step}\nRUN wget -qO- $TALLY/begin && touch /f{step} && wget -qO- $TALLY/end\n" for step in range(STEPS)
).replace("AS base\n", "AS base\nARG TALLY\n", 1).replace("\nRUN", "\nARG TALLY\nRUN") + "FROM scratch\n" + "".join(
    f"COPY --from=s{step} /f{step} /\n" for step in range(STEPS))


# How many jobs are free: what make says of its pipe, by two numbers up to 4.3 and by a name from 4.4 on.
PROBE = """\
import os, re
auth = re.findall(r"--jobserver-auth=(?:fifo:(\\S+)|(\\d+),)", os.environ["MAKEFLAGS"])[-1]
end = os.open(auth[0], os.O_RDWR) if auth[0] else int(auth[1])
os.set_blocking(end, False)
print("free", len(os.read(end, 9)))
"""


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
        # Alone it has no jobs to hand out, and --jobs decides.
        self.check(STEPS, "-j1")

    def test_without_a_job_server_jobs_decide(self):
        # make keeps its pipe from recipes without a plus, and says so in vain; a pipe with a name is there for all.
        features = subprocess.check_output(["make", "-f", "-", "all"], input="all:;@echo $(.FEATURES)\n", text=True, timeout=WATCHDOG)
        self.check(2 if "jobserver-fifo" in features else STEPS, "-j2", mark="")

    def test_jobs_come_back_when_steps_fail_or_are_stopped(self):
        context = self.context("failing", Dockerfile="FROM busybox AS a\nRUN exit 1\nFROM busybox AS b\nRUN sleep 1000\n"
                               "FROM scratch\nCOPY --from=a / /\nCOPY --from=b / /\n")
        command = " ".join(self.command("build", "-q", "-o", "type=cacheonly", context))
        (self.scratch / "probe").write_text(PROBE)
        probe = f"python3 {self.scratch}/probe"
        (self.scratch / "Makefile").write_text(f"all:\n\t+-{command}\n\t+{probe}\n".replace("$", "$$"))
        done = subprocess.run(["make", "-j4"], cwd=self.scratch, text=True, timeout=WATCHDOG, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT)
        self.assertRegex(done.stdout, r"(?m)^free 3$")
        self.assertTrue(re.search(r"exit code: 1", done.stdout), done.stdout)

    def pipe(self, jobs, user="root"):
        """The pipe with a name in which make 4.4 keeps its jobs: how a builder hears of it, and the test's own end."""
        path = self.scratch / f"jobs-{user}"
        os.mkfifo(path, 0o600)
        shutil.chown(path, user, user)
        end = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self.addCleanup(os.close, end)
        os.write(end, jobs)
        return {"MAKEFLAGS": f" -j{len(jobs) + 1} --jobserver-auth=fifo:{path}"}, end

    def test_a_pipe_with_a_name_is_shared_as_well(self):
        for user in ("root", "lw-sub", "lw-one"):
            variables, end = self.pipe(b"ab", user)
            with Tally(3) as tally:
                context = self.context(f"context-{user}", Dockerfile=DOCKERFILE)
                self.run_layerwright("build", "--jobs", "6", "--build-arg", f"TALLY={tally.address}", "-o", "type=cacheonly", context,
                                     user=user, env=variables)
            self.assertEqual((tally.all, tally.now, tally.most), (STEPS, 0, 3))
            # make tells jobs apart by their bytes.
            self.assertEqual(sorted(os.read(end, 9)), sorted(b"ab"))

    def test_jobs_come_back_when_the_build_is_told_to_end(self):
        variables, end = self.pipe(b"ab")
        steps = "".join(f"FROM busybox AS s{step}\nRUN sleep 1000 && touch /{step}\n" for step in range(3))
        context = self.context("long", Dockerfile=steps + "FROM scratch\n" + "".join(f"COPY --from=s{step} /{step} /\n" for step in range(3)))
        command = self.command("build", "--jobs", "6", "-o", "type=cacheonly", context)
        build = subprocess.Popen(command, env=os.environ | variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        left = lambda: int.from_bytes(fcntl.ioctl(end, termios.FIONREAD, bytes(4)), sys.byteorder)
        wait_for(lambda: left() == 0, "all jobs to be taken")
        build.terminate()
        self.assertEqual(build.wait(WATCHDOG), 143)
        self.assertEqual(sorted(os.read(end, 9)), sorted(b"ab"))


if __name__ == "__main__":
    unittest.main()
