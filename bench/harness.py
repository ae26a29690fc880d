"""Runs commands and measures them: wall seconds and the largest memory of the process, in turn, several times."""

import os
import pathlib
import pwd
import shutil
import statistics
import subprocess
import sys
import tempfile

# What runs as the user who is measured, who need not be able to read this directory.
TIMED = (pathlib.Path(__file__).resolve().parent / "timed.py").read_text()
# A command takes this long only if it hangs.
WATCHDOG = 1800


class Row:
    """One line of a table: a command, and what must be done before each run of it."""

    def __init__(self, name, command, prepare=None, user="root", runs=None):
        self.name, self.command, self.prepare, self.user, self.runs = name, command, prepare, user, runs
        self.seconds, self.memory, self.cpu = [], [], []

    def measure(self):
        if self.prepare:
            self.prepare()
        seconds, memory, cpu, _ = measured(self.command, self.user)
        self.seconds.append(seconds)
        self.memory.append(memory)
        self.cpu.append(cpu)

    @property
    def median(self):
        return statistics.median(self.seconds)

    @property
    def cpu_median(self):
        return statistics.median(self.cpu)


class TimesRow(Row):
    """One whose command does the same thing `count` times and writes the microseconds of each; these are its seconds."""

    def __init__(self, name, command, prepare, user, count):
        super().__init__(name, [*command, count], prepare, user)
        self.count = count

    def measure(self):
        self.prepare()
        _, memory, cpu, said = measured(self.command, self.user)
        times = [int(line) / 1e6 for line in said.splitlines()]
        assert len(times) == self.count, said
        self.seconds += times
        self.memory.append(memory)
        self.cpu.append(cpu / self.count)


class MemoryGate:
    """What a row may take at most, in MiB."""

    def __init__(self, row, limit):
        self.row, self.limit = row, limit

    def __str__(self):
        verdict = "reached" if max(self.row.memory) <= self.limit else "**missed**"
        return f"- {self.row.name}: {max(self.row.memory):.0f} MiB, at most {self.limit} MiB: {verdict}"


class Gate:
    """What a row must reach, in seconds: a number, and where it comes from."""

    def __init__(self, row, limit, words):
        self.row, self.limit, self.words = row, limit, words

    def __str__(self):
        verdict = "reached" if self.row.median <= self.limit else "**missed**"
        return f"- {self.row.name}: {shown(self.row.median)}, at most {shown(self.limit)} ({self.words}): {verdict}"


class CountGate:
    """What may be counted at most: requests, or bytes with a function that writes them."""

    def __init__(self, what, count, limit, words=str):
        self.what, self.count, self.limit, self.words = what, count, limit, words

    def __str__(self):
        verdict = "reached" if self.count <= self.limit else "**missed**"
        return f"- {self.what}: {self.words(self.count)}, at most {self.words(self.limit)}: {verdict}"


def shown(seconds):
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def quiet(*command, **options):
    """Runs to the end; trouble shows the command's output and ends the benchmark."""
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout.decode(errors='replace')}")


def measured(command, user):
    """Wall seconds, peak memory in MiB, CPU seconds and output of a command, which must succeed."""
    entry = pwd.getpwnam(user)
    options = {} if user == "root" else {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    environment = {"HOME": entry.pw_dir, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    with tempfile.NamedTemporaryFile() as output:
        os.chown(output.name, entry.pw_uid, entry.pw_gid)
        done = subprocess.run([sys.executable, "-IBS", "-c", TIMED, output.name, *map(str, command)], stdout=subprocess.PIPE,
                              env=environment, cwd="/", text=True, timeout=WATCHDOG, check=True, **options)
        seconds, code, memory, cpu = done.stdout.split()
        said = pathlib.Path(output.name).read_text(errors="replace")
        if int(code):
            sys.exit(f"{user}: {' '.join(map(str, command))}: exit code {code}\n{said[-4000:]}")
    return float(seconds), int(memory) / 1024, float(cpu), said


def table(title, rows, gates=(), runs=5):
    """Measures the rows in turn and prints them as a table."""
    for turn in range(runs):
        for row in rows:
            if turn < (row.runs or runs):
                row.measure()
    load = os.getloadavg()[0]
    print(f"\n### {title}\n\n| what | median | min | CPU | memory | runs |\n|---|---|---|---|---|---|")
    for row in rows:
        memory = f"{max(row.memory):.0f} MiB" if "layerwright" in row.name else ""
        print(f"| {row.name} | {shown(row.median)} | {shown(min(row.seconds))} | {shown(row.cpu_median)} | {memory} | {len(row.seconds)} |")
    print(f"\nLoad {load:.1f}.")
    for gate in gates(*rows) if callable(gates) else gates:
        print(gate)
    sys.stdout.flush()


def wiper(directory, user="root"):
    """Empties a store, by whom it belongs to where a user cannot be root's to remove."""
    def wiped():
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        entry = pwd.getpwnam(user)
        os.chown(directory, entry.pw_uid, entry.pw_gid)
    return wiped


def installed(name):
    return shutil.which(name) is not None
