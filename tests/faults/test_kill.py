"""kill -9 at any moment: the store is good, the next build is right, what had finished is not done again, and no process
or mount is left. Half of the moments are times, the others system calls, which strace counts."""

import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import time
import unittest

from ground import NIGHTLY, SEED, WATCHDOG, Faults
from support import wait_for

KILLS = {"root": 140, "lw-sub": 60, "lw-one": 40} if NIGHTLY else {"root": 10, "lw-sub": 4, "lw-one": 2}
# What changes a store, and how often one thread of a build calls it at most.
CALLS = {"rename,renameat,renameat2": 16, "openat": 150, "write,pwrite64": 60, "mkdir,mkdirat": 20,
         "unlink,unlinkat": 20, "flock": 20, "fchown,fchownat,fchmod,utimensat": 60}


def of_test(directory):
    """Pids of processes whose command line names a directory of the test; runuser and strace are not ours to judge."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                command = (entry / "cmdline").read_bytes()
                state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
                if str(directory).encode() in command and state != "Z":
                    found.append(int(entry.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def finished_steps(output):
    """Labels of the RUN steps that a build has told as done."""
    labels = dict(re.findall(r"^#(\d+) (\[.*?\] RUN .*)$", output, re.MULTILINE))
    done = re.findall(r"^#(\d+) DONE ", output, re.MULTILINE)
    return {labels[number] for number in done if number in labels}


class Kill(Faults):
    def start(self, context, store, user, log, calls=None):
        command = self.command("build", "--progress", "plain", context, user=user, root=store)
        if calls:
            # As root, and without a filter for ordinary users: newuidmap would be no setuid program any more.
            name, count = calls
            command = self.command("build", "--progress", "plain", context, root=store)
            how = ["--seccomp-bpf"] if user == "root" else ["-u", user]
            trace = ["strace", "-f", *how, "-o", "/dev/null", "-e", f"trace={name}",
                     "-e", f"inject={name}:signal=KILL:when={count}"]
            command = trace + command
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                start_new_session=True)

    def kill(self, process, directory):
        """Ends what is left of a build by the pids that we started: none of them can run anything to clean up."""
        for pid in [process.pid, *of_test(directory)]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        process.wait(WATCHDOG)

    def sweep(self, user):
        context = self.everything()
        generator = random.Random(SEED)
        begun = time.monotonic()
        digest = self.image(context, self.store(user), user=user)
        duration = time.monotonic() - begun
        # Half of the stores are empty, the others know an older build.
        older = self.store(user)
        (context / "tree" / "new").write_text("changes what comes after")
        digest = self.image(context, self.copy_of(older, "other"), user=user)
        mounts = pathlib.Path("/proc/self/mountinfo").read_text()
        for number in range(KILLS[user]):
            store = self.scratch / "killed"
            if number % 4 < 2:
                self.copy_of(older, "killed")
            else:
                store.mkdir(mode=0o700)
                shutil.chown(store, user, user)
            calls = moment = None
            if number % 2:
                name = generator.choice(list(CALLS))
                calls = (name, generator.randint(1, CALLS[name]))
            else:
                moment = generator.uniform(0, duration)
            with self.subTest(user=user, seed=SEED, number=number, calls=calls, moment=moment):
                with (self.scratch / "log").open("w+") as log:
                    process = self.start(context, store, user, log, calls)
                    try:
                        process.wait(moment if calls is None else WATCHDOG)
                    except subprocess.TimeoutExpired:
                        pass
                    self.kill(process, store)
                    log.seek(0)
                    output = log.read()
                wait_for(lambda: not of_test(self.scratch), "all processes to end")
                self.assertEqual(pathlib.Path("/proc/self/mountinfo").read_text(), mounts)
                if (store / "format").exists():
                    self.clean(store, user=user)
                self.assertEqual(self.image(context, store, user=user), digest)
                cached = re.findall(r"^#(\d+) CACHED", self.last.stderr, re.MULTILINE)
                labels = dict(re.findall(r"^#(\d+) (\[.*)$", self.last.stderr, re.MULTILINE))
                lost = finished_steps(output) - {labels[number] for number in cached}
                self.assertFalse(lost, "finished steps are cached")
                self.assertEqual(list((store / "tmp").iterdir()), [], "the temporaries are swept")
                self.clean(store, user=user)
            shutil.rmtree(store)

    def test_root(self):
        self.sweep("root")

    def test_an_ordinary_user(self):
        self.sweep("lw-sub")

    def test_a_user_with_one_id(self):
        self.sweep("lw-one")


if __name__ == "__main__":
    unittest.main()
