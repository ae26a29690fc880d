"""Ctrl-C and kill -9 in the middle of a RUN: nothing is left behind, and the next build works."""

import os
import pathlib
import signal
import subprocess
import unittest

from support import WATCHDOG, Case, Layout, wait_for

# The step waits for a file that never comes, and says so first; its marker shows in /proc/PID/cmdline.
DOCKERFILE = """\
FROM busybox
RUN echo finished > /finished
RUN touch /started; sleep 86399 & echo waiting; wait
"""
MARKER = b"86399"


def sleepers():
    """Pids of live processes of the step."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
            state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if command.startswith(b"sleep\0") and MARKER in command and state != "Z":
            found.append(int(entry.name))
    return found


class Interrupted(Case):
    def start(self, user, wrap=()):
        context = self.scratch / "context"
        if not context.exists():
            self.context(Dockerfile=DOCKERFILE)
        command = self.command("build", "--progress", "plain", context, user=user)
        process = subprocess.Popen([*wrap, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                   stdin=subprocess.DEVNULL, start_new_session=True)
        self.output = []
        for line in process.stdout:
            self.output.append(line)
            if line.rstrip().endswith("waiting") and "echo" not in line:
                break
        wait_for(sleepers, "the step to start")
        return process

    def finish(self, process):
        """Takes the rest of the output and the exit code."""
        with process.stdout:
            process.stdout.read()
        return process.wait(WATCHDOG)

    def builder(self, process, user):
        """The pid of layerwright itself: runuser stands in front of it for ordinary users."""
        if user == "root":
            return process.pid
        children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        return int(children[0])

    def check_nothing_is_left(self, mounts):
        wait_for(lambda: not sleepers(), "the step's processes to end")
        self.assertEqual(pathlib.Path("/proc/self/mountinfo").read_text(), mounts)

    def next_build_works(self, user):
        done = self.context(f"next-{user}-{os.urandom(3).hex()}",
                            Dockerfile="FROM busybox\nRUN echo finished > /finished\n")
        layout = Layout(self.build(done, user=user, name=f"next-{user}"))
        layout.validate()
        self.assertRegex(self.last.stderr, "CACHED", "the finished step is kept")
        temporaries = list((self.store(user) / "tmp").iterdir())
        self.assertEqual(temporaries, [], "the next run has swept the temporaries")

    def test_signals_that_stop(self):
        mounts = pathlib.Path("/proc/self/mountinfo").read_text()
        for user in ("root", "lw-sub"):
            for number, code in ((signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGTERM, 143)):
                with self.subTest(user=user, signal=number):
                    process = self.start(user)
                    os.kill(self.builder(process, user), number)
                    self.assertEqual(self.finish(process), code)
                    self.check_nothing_is_left(mounts)
            self.next_build_works(user)

    def test_below_nohup_a_build_goes_on(self):
        process = self.start("root", ["sh", "-c", "trap '' HUP; exec \"$@\"", "sh"])
        os.kill(process.pid, signal.SIGHUP)
        os.kill(process.pid, signal.SIGTERM)
        with process.stdout:
            self.assertIn("stopped by SIGTERM", process.stdout.read(), "a second signal would say no more")
        self.assertEqual(process.wait(WATCHDOG), 143)

    def test_a_terminal_that_is_gone(self):
        """What is told cannot be told any more; the step ends as it does otherwise."""
        mounts = pathlib.Path("/proc/self/mountinfo").read_text()
        self.context(Dockerfile=DOCKERFILE)
        for progress in ("plain", "tty"):
            with self.subTest(progress):
                ours, theirs = os.openpty()
                command = ["setsid", "--ctty", *self.command("build", "--progress", progress, self.scratch / "context")]
                process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
                os.close(theirs)
                wait_for(sleepers, "the step to start")
                os.close(ours)
                self.assertEqual(process.wait(WATCHDOG), 129)
                self.check_nothing_is_left(mounts)

    def test_kill_9(self):
        mounts = pathlib.Path("/proc/self/mountinfo").read_text()
        for user in ("root", "lw-sub"):
            with self.subTest(user=user):
                process = self.start(user)
                os.kill(self.builder(process, user), signal.SIGKILL)
                self.finish(process)
                self.check_nothing_is_left(mounts)
                self.next_build_works(user)


if __name__ == "__main__":
    unittest.main()
