"""What RUN steps may use, and output that means harm: limits hold or are refused by name, and memory stays bounded."""

import base64
import gzip
import json
import os
import pathlib
import shutil
import signal
import subprocess
import threading
import time
import unittest

from support import Case, Layout, USERS, WATCHDOG, wait_for
from test_ladder import on_overlay

NIGHTLY = os.environ.get("LAYERWRIGHT_NIGHTLY")
MIB = 1 << 20
# Of the builder alone, whatever it is told; 512 is the promise.
MOST_MEMORY = 256 * MIB


def unified():
    """Where version 2 of control groups is mounted, if it is."""
    for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, kind = line.partition(" - ")
        if kind.split()[0] == "cgroup2":
            return pathlib.Path(mount.split()[4])
    return None


class Flood:
    """A build whose output is counted and thrown away, and whose memory is watched."""

    def __init__(self, command, needle):
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
        self.needle, self.found, self.peak, self.tail = needle, 0, 0, b""
        counter = threading.Thread(target=self.count)
        counter.start()
        while counter.is_alive():
            self.look()
            counter.join(0.05)
        self.code = self.process.wait(WATCHDOG)

    def count(self):
        rest = b""
        with self.process.stderr as pipe:
            while block := pipe.read1(1 << 16):
                self.found += (rest + block).count(self.needle)
                # What may be the beginning of one more.
                rest = (rest + block)[1 - len(self.needle):] if len(self.needle) > 1 else b""
                self.tail = (self.tail + block)[-4096:]

    def look(self):
        try:
            status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        except FileNotFoundError:
            return
        peaks = [int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")]
        self.peak = max([self.peak, *peaks])


class Limits(Case):
    def test_processes_and_shared_memory(self):
        look = "for s in S H; do ulimit -${s}n; ulimit -${s}f; done > /out; grep -o 'size=.*' /proc/mounts | head -1 >> /out"
        context = self.context(Dockerfile=f"FROM busybox\nRUN {look}\nRUN grep shm /proc/mounts > /shm\n")
        flags = ["--ulimit", "nofile=64:65", "--ulimit", "fsize=1048576", "--shm-size", "3m"]
        for user in USERS:
            with self.subTest(user=user):
                layout = Layout(self.build(context, *flags, user=user, name=user))
                self.assertEqual(layout.read("out").split()[:4], [b"64", b"2048", b"65", b"2048"])
                self.assertIn(b"size=3072k", layout.read("shm"))
        self.build(context, *flags)
        self.assertIn("2 cached", self.last.stderr)
        self.build(context)
        self.assertIn("0 cached", self.last.stderr, "other limits are another step")

    def test_above_what_the_builder_has(self):
        context = self.context(Dockerfile="FROM busybox\nRUN true\n")
        for user in ("lw-sub", "lw-one"):
            flags = ["--ulimit", "nofile=4000000000"]
            done = self.run_layerwright("build", *flags, context, user=user, code=4)
            self.assertIn("--ulimit nofile=4000000000:4000000000: it is above the hard limit", done.stderr)
            self.assertIn("LimitNOFILE=", done.stderr)
        done = self.run_layerwright("build", "--ulimit", "files=1", context, code=2)
        self.assertIn("expected one of as, core, cpu", done.stderr)

    def test_what_no_group_can_keep_is_refused_by_its_flag(self):
        if not (unified() and "memory" not in (unified() / "cgroup.controllers").read_text()):
            print("SKIPPED: refused limits: this machine's control groups may keep them")
            return
        context = self.context(Dockerfile="FROM busybox\nRUN true\n")
        for flag, value in [
                ("--memory", "64m"), ("--cpus", "1.5"), ("--cpu-quota", "50000"), ("--cpu-shares", "512"),
                ("--cpuset-cpus", "0"), ("--cpuset-mems", "0"), ("--pids-limit", "100"), ("--resource", "memory=64m")]:
            for user in USERS if flag == "--memory" else USERS[:1]:
                done = self.run_layerwright("build", flag, value, context, user=user, code=4)
                name = {"--resource": "--memory"}.get(flag, flag)
                self.assertRegex(done.stderr, f"error: sandbox: [^:]*{name}[^:]*: ")
                self.assertIn("hint: boot with version 2 alone", done.stderr)
        for flag in ("--pids-limit=-1", "--cpu-quota=-1", "--resource=cpu-quota=-1"):
            self.build(context, flag, user="lw-one")
        done = self.run_layerwright("build", "--memory-swap", "1g", context, code=2)
        self.assertIn("--memory-swap needs --memory", done.stderr)

    def test_a_group_of_its_own(self):
        if not unified():
            print("SKIPPED: control groups of steps: version 2 is not mounted")
            return
        name = f"layerwright-e2e-{os.getpid()}"
        directory = unified() / name
        self.addCleanup(lambda: directory.is_dir() and directory.rmdir())
        flags = ["--no-cache", "--cgroup-parent", name]
        context = self.context(Dockerfile="FROM busybox\nRUN tail -n 1 /proc/self/cgroup > /group\n")
        self.assertEqual(Layout(self.build(context, *flags)).read("group"), b"0::/\n")
        self.assertFalse(directory.exists(), "who has made it takes it away")
        directory.mkdir()
        self.assertEqual(Layout(self.build(context, *flags)).read("group"), b"0::/\n")
        groups = lambda: [path.name for path in directory.iterdir() if path.is_dir()]  # noqa: E731
        self.assertEqual(groups(), [])
        slow = self.context("slow", Dockerfile="FROM busybox\nRUN sleep 1000\n")
        builder = subprocess.Popen(
            self.command("build", *flags, slow), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_for(lambda: any((directory / group / "cgroup.procs").read_text() for group in groups()), "a step")
        finally:
            builder.send_signal(signal.SIGKILL)
            builder.wait(WATCHDOG)
        left = groups()
        wait_for(lambda: "populated 0" in (directory / left[0] / "cgroup.events").read_text(), "its processes to end")
        self.build(context, *flags)
        self.assertEqual(groups(), [], f"{left} is a stray of the killed build")

    def test_time(self):
        context = self.context(Dockerfile="FROM busybox\nRUN sleep 1000\n")
        for user in USERS:
            began = time.monotonic()
            done = self.run_layerwright(
                "build", "--progress", "plain", "--step-timeout", "1s", context, user=user, code=1)
            self.assertLess(time.monotonic() - began, 60)
            self.assertIn('process "/bin/sh -c sleep 1000" did not complete successfully: it took longer than 1s', done.stderr)
            self.assertIn("--step-timeout", done.stderr)
        self.build(self.context("quick", Dockerfile="FROM busybox\nRUN true\n"), "--step-timeout", "5m")

    def test_room(self):
        endless = self.context(Dockerfile="FROM busybox\nRUN dd if=/dev/zero of=/tmp/large bs=1M count=64 && exec sleep 1000000\n")
        ended = self.context("ended", Dockerfile="FROM busybox\nRUN mkdir /a && for i in 1 2 3 4 5 6 7 8; do dd if=/dev/zero of=/a/$i bs=1M count=4; done\n")
        cached = self.context("cached", Dockerfile="FROM busybox\nRUN --mount=type=cache,target=/c --mount=type=tmpfs,target=/t "
                              "dd if=/dev/zero of=/c/large bs=1M count=20 && cp /c/large /t/large && rm /c/large\n")
        flags = ("build", "--progress", "plain", "--step-max-disk", "16m")
        for user in USERS:
            for context, where in ((endless, "/tmp/large"), (ended, "/a")):
                done = self.run_layerwright(*flags, context, user=user, code=1)
                self.assertRegex(done.stderr, rf"it has written \d+ bytes, and may write 16777216; the most is in {where} \(\d+ bytes\)")
                self.assertIn("give the steps more room with --step-max-disk", done.stderr)
            self.run_layerwright(*flags, cached, user=user)
            self.build(ended, "--step-max-disk", "1g", user=user, name=user)
            self.run_layerwright(*flags, ended, user=user)
        layout = self.build(self.context("base", Dockerfile="FROM busybox\n"), name="base")
        words = ("run", "--root", self.store(), "-q", "--step-max-disk", "16m", layout, "dd", "if=/dev/zero", "of=/large", "bs=1M", "count=32")
        self.assertIn("the most is in /large", self.run_layerwright(*words, code=153).stderr)

    def test_room_of_a_copy_is_what_the_step_adds(self):
        place = self.scratch / "copies"
        writes = "".join(f"RUN dd if=/dev/zero of=/{size} bs=1M count={size}\n" for size in (20, 8, 28))
        context = self.context(Dockerfile=f"FROM busybox\n{writes}")
        command = self.command("build", "--progress", "plain", "--step-max-disk", "24m", context, root=place)
        done = subprocess.run([*on_overlay([], place, "root"), *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              stdin=subprocess.DEVNULL, text=True, timeout=WATCHDOG, cwd="/")
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn("with copies for overlays", done.stderr)
        self.assertRegex(done.stderr, r"of=/28 .* it has written \d+ bytes, and may write 25165824\n")

    def test_names(self):
        context = self.context(Dockerfile="FROM busybox\nRUN cat /etc/resolv.conf > /out\n")
        flags = ["--dns", "192.0.2.1", "--dns", "::1", "--dns-search", "example.org", "--dns-option", "ndots:2"]
        layout = Layout(self.build(context, *flags))
        want = b"search example.org\nnameserver 192.0.2.1\nnameserver ::1\noptions ndots:2\n"
        self.assertEqual(layout.read("out"), want)
        self.build(context)
        self.assertIn("1 cached", self.last.stderr, "no part of the key")

    def test_proxies_are_passed_and_not_recorded(self):
        """By a flag, by a flag that takes it of the environment, and by Docker's configuration: one step, one key, no trace."""
        secret = f"very-secret-word-{os.getpid()}"
        spelled = [secret.encode(), base64.b64encode(secret.encode())[:-4], secret.encode().hex().encode()]
        length = "test -z \"$FTP_PROXY$ftp_proxy\" && test $HTTP_PROXY = $http_proxy && echo $http_proxy | wc -c"
        context = self.context(Dockerfile=f"FROM busybox\nRUN {length} > /length\nRUN {length} && env | wc -l\nRUN {length} >> /length; exit 3\n")
        proxy = f"http://user:{secret}@192.0.2.1:3128"
        docker = self.context("docker", config_DOT_json=json.dumps({"proxies": {"default": {"httpProxy": proxy}}}))
        ways = {
            "flag": (["--build-arg", f"HTTP_PROXY={proxy}"], {}), "environment": (["--build-arg", "http_proxy"], {"http_proxy": proxy}),
            "configuration": ([], {"DOCKER_CONFIG": str(docker)}),
        }
        for user in USERS:
            ran, passed = [], self.scratch / f"passed-{user}"
            for name, (flags, env) in ways.items():
                done = self.run_layerwright("build", "--progress", "plain", *flags, context, user=user, env=env, code=1)
                ran.append(done.stderr)
                self.assertIn("exit code: 3", done.stderr)
            self.assertGreaterEqual((ran[1] + ran[2]).count("CACHED"), 4, "what is passed is in no key")
            text = (context / "Dockerfile").read_text()
            (context / "Dockerfile").write_text(text.replace("; exit 3", ""))
            flags, env = ways["configuration"]
            layout = self.build(context, *flags, user=user, env=env, name=user)
            self.assertEqual(Layout(layout).read("length").split(), [str(len(proxy) + 1).encode()] * 2)
            told = self.run_layerwright("history", "show", "--root", self.store(user), user=user).stdout
            passed.write_text("".join([*ran, self.last.stderr, told]))
            self.assertEqual(self.trace(spelled, layout, self.store(user), passed), [])
            (context / "Dockerfile").write_text(text)
        # The builder's own surroundings are for the builder.
        context = self.context("own", Dockerfile="FROM busybox\nRUN test -z \"$HTTPS_PROXY$https_proxy\"\n")
        self.run_layerwright("build", context, env={"HTTPS_PROXY": proxy, "https_proxy": proxy})

    def trace(self, spelled, *places):
        """The files that hold any of these words, also where they are packed."""
        found = []
        for path in (path for place in places for path in [place, *place.rglob("*")] if path.is_file()):
            content = path.read_bytes()
            if content[:2] == b"\x1f\x8b":
                content += gzip.decompress(content)
            found += [str(path) for word in spelled if word in content]
        return found

    def test_no_new_privileges(self):
        who = self.program("who", "#include <stdio.h>\n#include <unistd.h>\nint main(void) { printf(\"%d\\n\", geteuid()); return 0; }\n")
        look = "{ /who; grep NoNewPrivs /proc/self/status | cut -f2; } > /tmp/out"
        context = self.context(Dockerfile=f"FROM busybox\nCOPY --chmod=4755 who /who\nRUN chmod 1777 /tmp\nUSER 1000\nRUN {look}\n")
        shutil.copy(who, context / "who")
        for user in ("root", "lw-sub"):
            for flags, want in (((), b"0\n0\n"), (("--no-new-privs",), b"1000\n1\n")):
                layout = self.build(context, *flags, user=user, name=f"{user}{len(flags)}")
                self.assertEqual(Layout(layout).read("tmp/out"), want, "each has a key of its own")


class Floods(Case):
    def flood(self, command, needle=b"x", *flags, code=0):
        """What became of a RUN that writes more than anybody wants to read."""
        context = self.context(f"context-{len(list(self.scratch.iterdir()))}", Dockerfile=f"FROM busybox\nRUN {command}\n")
        flood = Flood(self.command("build", "--progress", "plain", "--no-cache", *flags, context), needle)
        self.assertEqual(flood.code, code, flood.tail.decode(errors="replace"))
        self.assertLess(flood.peak, MOST_MEMORY)
        self.assertGreater(flood.peak, 0)
        return flood

    def test_one_long_line(self):
        size = 1024 if NIGHTLY else 100
        flood = self.flood(f"dd if=/dev/zero bs=1M count={size} 2>/dev/null | tr '\\0' '@'", b"@")
        # The command itself is told as well.
        self.assertGreaterEqual(flood.found, size * MIB, "nothing is lost")

    def test_a_long_log(self):
        size = 10_240 if NIGHTLY else 20
        line = "=" * 1023
        flood = self.flood(f"yes {line} | head -c {size * MIB}", b"=====")
        self.assertGreaterEqual(flood.found, size * 1024 * (1023 // 5))

    def test_what_failed_is_told_whole(self):
        """Where nothing is shown as it comes, all of it comes with the failure."""
        context = self.context(Dockerfile="FROM busybox\nRUN yes $(printf %0999d 7) | head -n 5000; exit 3\n")
        flood = Flood(self.command("build", "--progress", "quiet", context), b"0007\n")
        self.assertEqual(flood.code, 1)
        self.assertGreaterEqual(flood.found, 5000)
        self.assertLess(flood.peak, MOST_MEMORY)

    def test_junk(self):
        self.flood("head -c 1000000 /dev/urandom")
        self.flood("printf '\\033[2J\\033]0;title\\007\\r\\0\\377#1 DONE 0.0s\\n'")

    def test_who_holds_the_output_open(self):
        began = time.monotonic()
        flood = self.flood("(setsid sleep 1000 &); (trap '' TERM HUP; while :; do sleep 1; done) & echo the last word", b"the last word")
        self.assertGreaterEqual(flood.found, 2)
        self.assertLess(time.monotonic() - began, 60, "a step ends with its main process")

    def test_a_flood_that_does_not_stop_when_asked(self):
        if not NIGHTLY:
            print("SKIPPED: a step that goes on after SIGTERM has ten seconds: LAYERWRIGHT_NIGHTLY=1")
            return
        began = time.monotonic()
        flood = self.flood(f"trap '' TERM; exec yes {'=' * 1023}", b"=", "--step-timeout", "1s", code=1)
        self.assertIn(b"it took longer than 1s", flood.tail)
        self.assertLess(time.monotonic() - began, 60)


if __name__ == "__main__":
    unittest.main()
