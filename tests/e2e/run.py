#!/usr/bin/python3 -B
"""Runs the end-to-end and fault tests, several files at a time: run.py [--jobs N] [-k PATTERN] [FILE]...

Every file is a process of its own, with mounts of its own (tests look at those they see) and a TMPDIR of its own, which
must be empty again when it ends. What it prints is kept and shown in one piece when it has come to its end. Files that
take long begin first, so that the last ones are short. Root only, as the tests are; `python3 -m unittest` still runs
a file alone.
"""

import argparse
import collections
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import unittest

HERE = pathlib.Path(__file__).resolve().parent
FOLDERS = (HERE, HERE.parent / "faults")
# These take the longest, in this order; what is not named is begun after them.
LONG = ("test_cache_shared", "test_times", "test_cache_forged", "test_cache_mounts", "test_cache", "test_lazy",
        "test_cache_vanish", "test_explain", "test_push", "test_outputs", "test_probes", "test_many", "test_kill", "test_mounts")
# Seconds for one file: ten times what the longest takes, and in the nightly form, which has hundreds of rounds, hours.
PATIENCE = 4 * 3600 if os.environ.get("LAYERWRIGHT_NIGHTLY") else 1800
SLOWEST = 30
# What a test says that leaves something out, and what unittest says of one that is left out.
SKIPPED = re.compile(r"(?:SKIPPED: |skipped ['\"])(?:SKIPPED: )?(.*?)['\"]?$", re.MULTILINE)


class Timed(unittest.TextTestResult):
    """Says how long each test took."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.seconds = {}

    def startTest(self, test):  # noqa: N802
        self.begun = time.monotonic()
        super().startTest(test)

    def stopTest(self, test):  # noqa: N802
        self.seconds[test.id()] = time.monotonic() - self.begun
        self.stream.writeln(f"    {self.seconds[test.id()]:.1f} s")
        super().stopTest(test)


def run_one(path, patterns, told):
    """The process of a file: runs its tests and writes {"tests": N, "seconds": {ID: SECONDS}}."""
    sys.path[0] = str(path.parent)
    loader = unittest.TestLoader()
    loader.testNamePatterns = [f"*{pattern}*" for pattern in patterns] or None
    suite = loader.loadTestsFromName(path.stem)
    result = unittest.TextTestRunner(stream=sys.stdout, verbosity=2, resultclass=Timed).run(suite)
    told.write_text(json.dumps({"tests": result.testsRun, "seconds": result.seconds}))
    return 0 if result.wasSuccessful() else 1


class Run:
    """All files of a run, dealt to threads that wait for one process each."""

    def __init__(self, files, patterns, directory):
        self.waiting = sorted(files, key=lambda path: (LONG.index(path.stem) if path.stem in LONG else len(LONG), path))
        self.patterns, self.directory = patterns, directory
        self.lock, self.stopped = threading.Lock(), False
        self.running, self.failed, self.tests, self.seconds = set(), [], 0, {}
        self.skipped = collections.Counter()

    def work(self):
        while True:
            with self.lock:
                if self.stopped or not self.waiting:
                    return
                path = self.waiting.pop(0)
            begun = time.monotonic()
            try:
                told = self.run(path)
            # Whatever it was: a file that nobody tells of would pass for one that is right, and those behind it would not run.
            except Exception:  # noqa: BLE001
                told = "the run of this file broke off", traceback.format_exc(), time.monotonic() - begun
            self.show(path, *told)

    def run(self, path):
        """Runs a file to its end; gives what was wrong, if something was, what it printed, and its seconds."""
        begun = time.monotonic()
        own = self.directory / path.stem
        scratch, output, told = own / "tmp", own / "output", own / "told"
        own.mkdir(mode=0o755)
        scratch.mkdir()
        scratch.chmod(0o1777)
        command = ["unshare", "--mount", sys.executable, "-B", __file__, "--one", path, "--told", told]
        command += [word for pattern in self.patterns for word in ("-k", pattern)]
        # Not a pipe: a process that outlives its test would keep it open.
        with output.open("wb") as file:
            with self.lock:
                if self.stopped:
                    return "it was not begun", "", 0.0
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
                    env={**os.environ, "TMPDIR": str(scratch), "PYTHONUNBUFFERED": "1"})
                self.running.add(process)
            wrong = self.end_of(process)
            end_users(scratch)
        if told.exists():
            found = json.loads(told.read_text())
            with self.lock:
                self.tests += found["tests"]
                self.seconds |= found["seconds"]
        elif not wrong:
            wrong = "it came to no result"
        left = sorted(entry.name for entry in scratch.iterdir())
        if left and not wrong and not os.environ.get("LAYERWRIGHT_KEEP"):
            wrong = f"it left in its TMPDIR: {' '.join(left)}"
        text = output.read_text(errors="replace")
        remove(own)
        return wrong, text, time.monotonic() - begun

    def end_of(self, process):
        try:
            code = process.wait(PATIENCE)
            wrong = f"exit code {code}" if code else None
        except subprocess.TimeoutExpired:
            wrong = f"not done after {PATIENCE} s"
        with self.lock:
            self.running.discard(process)
        end(process)
        return wrong

    def show(self, path, wrong, text, seconds):
        with self.lock:
            if wrong:
                self.failed.append(f"{path.parent.name}/{path.name}: {wrong}")
            self.skipped.update((f"{path.parent.name}/{path.name}", reason) for reason in SKIPPED.findall(text))
            print(f"-- {path.parent.name}/{path.name}: {wrong or 'ok'}, {seconds:.1f} s\n{text}", flush=True)

    def stop(self):
        with self.lock:
            self.stopped = True
            for process in self.running:
                end(process)


def end(process):
    """Ends what is left of a process's session."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def end_users(scratch):
    """Ends what is left of a file's processes, those with a session of their own as well: all that have its TMPDIR."""
    mark = b"\0TMPDIR=%s\0" % os.fsencode(scratch)
    for environment in pathlib.Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in b"\0" + environment.read_bytes():
                os.kill(int(environment.parent.name), signal.SIGKILL)
        # It has ended meanwhile, or is nobody's of ours.
        except OSError:
            pass


def remove(directory):
    """Removes a directory that whoever was killed may still have been writing to."""
    if not os.environ.get("LAYERWRIGHT_KEEP"):
        subprocess.run(["rm", "-rf", "--one-file-system", directory], check=True)


def run_all(files, jobs, patterns):
    from support import prepare

    directory = pathlib.Path(tempfile.mkdtemp(prefix="layerwright-tests."))
    directory.chmod(0o755)
    run, begun, threads = Run(files, patterns, directory), time.monotonic(), []
    try:
        (directory / "prepared").mkdir()
        prepare(directory / "prepared")
        threads = [threading.Thread(target=run.work) for _ in range(jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        run.stop()
        for thread in threads:
            if thread.ident:
                thread.join()
        remove(directory)
    slowest = sorted(run.seconds.items(), key=lambda item: -item[1])[:SLOWEST]
    print("The slowest:\n" + "".join(f"{seconds:8.1f} s  {name}\n" for name, seconds in slowest))
    for line in run.failed:
        print(f"FAILED {line}")
    for (name, reason), times in sorted(run.skipped.items()):
        print(f"SKIPPED {name}: {reason}{f' ({times} times)' if times > 1 else ''}")
    total = sum(run.seconds.values())
    print(f"Ran {run.tests} tests in {time.monotonic() - begun:.1f} s, {total:.1f} s one after the other, "
          f"{run.skipped.total()} skips: {f'{len(run.failed)} files failed' if run.failed else 'ok'}")
    return 1 if run.failed or not run.tests else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=pathlib.Path, metavar="FILE", help="all of tests/e2e and tests/faults, if none")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="files at a time; as many as cores")
    parser.add_argument("-k", dest="patterns", action="append", default=[], metavar="PATTERN", help="only tests whose name has it")
    parser.add_argument("--one", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--told", type=pathlib.Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return run_one(options.one, options.patterns, options.told)
    # Ended as by Ctrl-C: what was begun ends too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    files = [path.resolve() for path in options.files] or [path for folder in FOLDERS for path in folder.glob("test_*.py")]
    return run_all(files, options.jobs, options.patterns)


if __name__ == "__main__":
    sys.exit(main())
