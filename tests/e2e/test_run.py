"""`layerwright run`, and the shell of `build --on-failure=shell`: at a terminal, in a pipe, for every user."""

import fcntl
import json
import os
import pathlib
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import tarfile
import termios
import time
import unittest

import outside
from support import Case, Layout, Registry, USERS, WATCHDOG, wait_for

DOCKERFILE = """FROM busybox
RUN mkdir -p /data /app && echo kept > /data/seed && echo '#!/bin/sh' > /bin/greet && echo 'echo greet "$@"' >> /bin/greet \
 && chmod +x /bin/greet && touch /noexec
ENV IMAGE=image BOTH=image GONE=image
WORKDIR /app
VOLUME /data /fresh
ENTRYPOINT ["/bin/greet"]
CMD ["the", "image"]
"""
# Says that it is there, and how it was asked to end.
TRAP = "trap 'echo interrupted; exit 7' INT; trap 'echo terminated; exit 8' TERM; trap 'echo hup; exit 9' HUP; " \
       "trap 'echo usr1; exit 10' USR1; echo ready; while :; do sleep 0.1; done"


def read_until(descriptor, text, deadline=WATCHDOG):
    """What comes until a text has come; the end of it all counts as well if no text is given."""
    got, end = b"", time.monotonic() + deadline
    while text is None or text not in got:
        if not select.select([descriptor], [], [], max(0, end - time.monotonic()))[0]:
            raise AssertionError(f"no {text!r} in {got!r}")
        try:
            piece = os.read(descriptor, 65536)
        except OSError:  # EIO: nobody has the other side of the terminal any more
            piece = b""
        if not piece:
            if text is None:
                return got
            raise AssertionError(f"ended without {text!r}: {got!r}")
        got += piece
    return got


def below(pid):
    """A process and all it has started, by their numbers."""
    children = pathlib.Path(f"/proc/{pid}/task").glob("*/children")
    return [pid, *(kin for file in children for child in file.read_text().split() for kin in below(int(child)))]


def readers_of_pipes(pids):
    """What those are called who can read each pipe."""
    readers = {}
    for pid in pids:
        name = pathlib.Path(f"/proc/{pid}/comm").read_text().strip()
        for descriptor in pathlib.Path(f"/proc/{pid}/fd").iterdir():
            target, flags = os.readlink(descriptor), pathlib.Path(f"/proc/{pid}/fdinfo/{descriptor.name}").read_text()
            if target.startswith("pipe:") and int(flags.split()[3], 8) & os.O_ACCMODE == os.O_RDONLY:
                readers.setdefault(target, []).append(name)
    return readers


def mounts():
    return pathlib.Path("/proc/self/mountinfo").read_text().count("\n")


class Containers(Case):
    """What runs in an image that is built once."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        maker = cls("make_image")
        maker.setUp()
        try:
            maker.make_image()
        finally:
            maker.doCleanups()

    def make_image(self):
        layout = self.build(self.context(Dockerfile=DOCKERFILE))
        type(self).image = self.shared / "image"
        shutil.copytree(layout, self.image)
        subprocess.run(["chmod", "-R", "a+rX", self.image], check=True)

    def command(self, *arguments, user="root", root=None):
        if arguments and arguments[0] == "run":
            arguments = ("run", "--root", root or self.store(user), *arguments[1:])
        return super().command(*arguments, user=user, root=root)

    def run_image(self, *arguments, user="root", code=0, entrypoint="", **options):
        """Runs in the image; without its entry point, unless that is asked for."""
        flags = () if entrypoint is None else (f"--entrypoint={entrypoint}",)
        return self.run_layerwright("run", "-q", *flags, *arguments, user=user, code=code, **options)

    def shell(self, script, *flags, **options):
        return self.run_image(*flags, self.image, "sh", "-c", script, **options).stdout

    def start(self, *arguments, user="root", **options):
        """Starts a run that the test talks to; it is ended with the test."""
        command = self.command("run", "-q", *arguments, user=user)
        process = subprocess.Popen(command, cwd=self.scratch, **options)
        self.addCleanup(self.end, process)
        return process

    @staticmethod
    def end(process):
        if process.poll() is None:
            process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                stream.close()

    def at_terminal(self, *command, size=(40, 100)):
        """Starts a command on a terminal; gives the process and the terminal's other side."""
        ours, theirs = pty.openpty()
        self.addCleanup(os.close, ours)
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
        process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=self.scratch,
                                   start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
        os.close(theirs)
        self.addCleanup(self.end, process)
        return process, ours

    def leftovers(self, user="root"):
        return [str(path) for path in (self.store(user) / "tmp").glob("*/*")]

    @staticmethod
    def builder(process, user):
        if user == "root":
            return process.pid
        children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        return int(children[0])


class Run(Containers):
    def test_the_image_says_what_runs_where(self):
        for user in USERS:
            with self.subTest(user=user):
                self.assertEqual(self.run_image(self.image, user=user, entrypoint=None).stdout, "greet the image\n")
                said = self.run_image(self.image, "--", "-v", "x", user=user, entrypoint=None).stdout
                self.assertEqual(said, "greet -v x\n")
                self.assertEqual(self.shell("pwd; id -u; cat /data/seed; ls -A /fresh", user=user), "/app\n0\nkept\n")

    def test_places_of_images(self):
        archive = self.scratch / "image.tar"
        with tarfile.open(archive, "w") as tar:
            tar.add(self.image, arcname=".")
        archive.chmod(0o644)
        relative = os.path.relpath(self.image, self.scratch)
        for place in (archive, f"oci-layout://{self.image}", f"./{relative}", f"oci-layout://{archive}"):
            for user in ("root", "lw-one"):
                said = self.run_image(place, user=user, entrypoint=None)
                self.assertEqual(said.stdout, "greet the image\n", place)
        done = self.run_image(self.scratch / "nowhere", code=125)
        self.assertIn("nowhere", done.stderr)
        for missing in ("nosuch.tar", "./nosuch.tar", "out/nosuch.tgz"):
            done = self.run_image(missing, code=125)
            self.assertIn(f"cannot read {missing}: No such file or directory", done.stderr)
        self.assertIn("not for linux/s390x", self.run_image("--platform", "linux/s390x", archive, code=125).stderr)

    def test_an_image_of_a_registry(self):
        host = self.enterContext(Registry(self.scratch / "registry")).host
        self.run_layerwright("push", "-q", self.image, f"{host}/image:1")
        for _ in range(2):
            self.assertEqual(self.run_image(f"{host}/image:1", entrypoint=None).stdout, "greet the image\n")
        missing = self.run_image(f"{host}/other:1", code=125).stderr
        self.assertIn("not found", missing)
        self.assertNotIn("with -t", missing)
        named = ("build", "--progress", "plain", "-t", f"{host}/other:1", self.context("named", Dockerfile="FROM busybox\n"))
        self.run_layerwright(*named)
        missing = self.run_image(f"{host}/other:1", code=125).stderr
        self.assertIn("gave the name with -t, which alone puts an image nowhere", missing)
        done = self.run_layerwright("push", f"{host}/other:1", f"{host}/copy:1", code=2)
        self.assertIn("as -t alone puts an image nowhere", done.stderr)

    def test_codes_are_the_commands_own(self):
        for script, code in (("exit 7", 7), ("exit 0", 0), ("kill -9 $$", 137), ("kill $$", 143), ("exit 255", 255)):
            self.run_image(self.image, "sh", "-c", script, code=code)
        self.assertIn("not found in PATH", self.run_image(self.image, "nosuch", code=127).stderr)
        self.assertIn("ermission denied", self.run_image(self.image, "/noexec", code=126).stderr)
        self.assertIn("no user", self.run_image("-u", "nobody-knows", self.image, "true", code=125).stderr)
        for wrong in (["--nosuch", self.image], [], ["-v", "named:/x", self.image], ["-w", "relative", self.image, "true"]):
            done = self.run_layerwright("run", *wrong, code=125)
            self.assertNotEqual(done.stderr, "")
        for flag, named in (("-d", "--detach: "), ("-p=80:80", "--publish: "), ("--privileged", "--privileged: ")):
            self.assertIn(named, self.run_layerwright("run", flag, self.image, "true", code=125).stderr)

    def test_streams_pass_unchanged(self):
        for user in USERS:
            noise = os.urandom(300_000).replace(b"\n", b"\0") + b"no end"
            command = self.command("run", "-q", "-i", "--entrypoint=", self.image, "sh", "-c", "tee /dev/stderr", user=user)
            done = subprocess.run(command, input=noise, capture_output=True, timeout=WATCHDOG, cwd=self.scratch)
            self.assertEqual((done.returncode, done.stdout, done.stderr), (0, noise, noise), user)
        # Without -i there is nothing to read.
        command = self.command("run", "-q", "--entrypoint=", self.image, "cat")
        done = subprocess.run(command, input=b"secret", capture_output=True, timeout=WATCHDOG, cwd=self.scratch)
        self.assertEqual((done.returncode, done.stdout), (0, b""))

    def test_slow_and_absent_readers(self):
        count = 200_000
        process = self.start("--entrypoint=", self.image, "seq", str(count), stdout=subprocess.PIPE)
        read_until(process.stdout.fileno(), b"1\n")
        # Far longer ended than output is waited for where nobody reads: what is on its way waits for its reader.
        time.sleep(3)
        rest = process.stdout.read()
        self.assertTrue(rest.endswith(f"\n{count}\n".encode()), rest[-40:])
        self.assertEqual(process.wait(WATCHDOG), 0)
        process = self.start("--entrypoint=", self.image, "yes", stdout=subprocess.PIPE)
        read_until(process.stdout.fileno(), b"y\n")
        process.stdout.close()
        self.assertEqual(process.wait(WATCHDOG), 128 + signal.SIGPIPE)

    def test_full_disks_are_told(self):
        with open("/dev/full", "wb") as full:
            command = self.command("run", "-q", "--entrypoint=", self.image, "echo", "lost")
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=WATCHDOG)
        self.assertEqual(done.returncode, 125)
        self.assertIn("No space left", done.stderr)

    def test_variables(self):
        (self.scratch / "file").write_text("# comment\nFILE=file\nBOTH=file\nOURS\n")
        flags = ["--env-file", self.scratch / "file", "-e", "BOTH=flag", "-e", "GONE", "-e", "OURS"]
        script = 'echo "$IMAGE $FILE $BOTH ${GONE-gone} $OURS $HOME $HOSTNAME"'
        said = self.shell(script, *flags, env={"OURS": "ours"})
        self.assertEqual(said, "image file flag gone ours /root layerwright\n")

    def test_users_and_directories(self):
        for user in ("root", "lw-sub"):
            said = self.shell("id -u; id -g; pwd; touch x 2>&1 || echo denied", "-u", "33:34", "-w", "/made/here", user=user)
            self.assertIn("33\n34\n/made/here\n", said)
            self.assertIn("denied", said)
            self.assertEqual(self.shell("echo out > /dev/stdout; readlink /proc/self/fd/0 | cut -c1-9", "-u", "33", user=user),
                             "out\n/dev/null\n")
        done = self.run_image("-u", "33", self.image, "true", user="lw-one", code=125)
        self.assertRegex(done.stderr, "33:0 cannot be had|subuid")

    def test_what_is_written_is_gone(self):
        for user in USERS:
            script = "echo x > /file && echo x > /data/file && echo x > /fresh/file && cat /file /data/file /fresh/file"
            self.assertEqual(self.shell(script, user=user), "x\nx\nx\n")
            self.assertEqual(self.shell("ls /file /data/file /fresh/file 2>/dev/null | wc -l", user=user), "0\n")
            self.assertEqual(self.leftovers(user), [])

    def test_the_first_run_of_a_store_leaves_nothing_temporary(self):
        for user in ("root", "lw-one"):
            ends = {"well": (0, "true"), "with a code": (3, "sh", "-c", "exit 3"), "without a command": (127, "nothing"),
                    "with an error": (125, "true")}
            for end, (code, *command) in ends.items():
                with self.subTest(user=user, end=end):
                    store = self.directory(f"fresh-{user}-{code}", user)
                    flags = ("-u", "nobody-of-that-name") if code == 125 else ()
                    self.run_image(*flags, f"oci-layout://{self.image}", *command, user=user, root=store, code=code)
                    self.assertEqual(os.listdir(store / "tmp"), [])

    def test_nothing_is_left_of_one_that_is_killed(self):
        for user in ("root", "lw-one"):
            before = mounts()
            process = self.start("--entrypoint=", self.image, "sh", "-c", f"echo big > /file; {TRAP}",
                                 stdout=subprocess.PIPE, user=user)
            read_until(process.stdout.fileno(), b"ready\n")
            self.assertNotEqual(self.leftovers(user), [])
            # runuser waits for the builder: that one is meant.
            os.kill(self.builder(process, user), signal.SIGKILL)
            read_until(process.stdout.fileno(), None)
            process.wait(WATCHDOG)
            self.assertEqual(self.shell("ls /file 2>/dev/null | wc -l", user=user), "0\n")
            self.assertEqual(self.leftovers(user), [])
            self.assertEqual(mounts(), before)

    def test_volumes(self):
        for user in USERS:
            mine = self.directory(f"mine-{user}", user)
            (mine / "in").write_text("host\n")
            (mine / "in").chmod(0o644)
            flags = ["-v", f"{mine}:/mnt/deep", "-v", f"{mine}/in:/etc/one:ro"]
            said = self.shell("cat /mnt/deep/in /etc/one; echo out > /mnt/deep/out; echo x > /etc/one || echo refused",
                              *flags, user=user)
            self.assertEqual(said, "host\nhost\nrefused\n")
            self.assertEqual((mine / "out").read_text(), "out\n")
            self.assertEqual((mine / "out").owner(), user)
        done = self.run_image("-v", f"{self.scratch}/missing:/x", self.image, "true", code=125)
        self.assertIn("missing", done.stderr)
        self.assertFalse((self.scratch / "missing").exists())

    def test_what_cannot_be_mounted_says_why(self):
        directory, file = self.directory("given"), self.scratch / "given-file"
        file.write_text("x")
        for flags, words in [
                (["-v", f"{directory}:/dev"], "mount /dev: it cannot be mounted because it covers the devices of /dev"),
                (["--tmpfs", "/dev"], "it covers the devices of /dev"),
                (["--tmpfs", "/proc/x"], "it is inside /proc"),
                (["-v", f"{directory}:/sys/x"], "mount /sys/x: it cannot be mounted because it is inside /sys"),
                (["-v", f"{directory}:/bin/busybox"], f"{directory} is a directory, and /bin/busybox in the image is none"),
                (["-v", f"{file}:/bin"], f"{file} is no directory, and /bin in the image is one"),
                (["-v", f"{directory}:/x:ro,rw"], "invalid mode: ro,rw")]:
            self.assertIn(words, self.run_image(*flags, self.image, "true", code=125).stderr)
        said = self.shell("ls /dev/given; df -m /dev/shm | tail -n 1", "-v", f"{file}:/dev/given", "--tmpfs", "/dev/shm:size=7m")
        self.assertRegex(said, r"/dev/given\n\S+ +7 ")
        context = self.context("covered", Dockerfile="FROM busybox\nRUN --mount=type=tmpfs,target=/dev true\n")
        done = self.run_layerwright("build", context, code=None)
        self.assertIn("it covers the devices of /dev", done.stderr)
        self.assertIn("Dockerfile:2", done.stderr)
        link = self.context("link", Dockerfile="FROM scratch\nCOPY . /\n")
        (link / "proc").symlink_to("/tmp")
        layout = self.build(link, name="link")
        self.assertIn("has something else there", self.run_image(layout, "/x", code=125).stderr)

    def test_limits_of_time_say_which(self):
        done = self.run_image("--step-timeout", "1s", self.image, "sleep", "300", code=124)
        self.assertIn('process "sleep 300" did not complete successfully: it took longer than 1s', done.stderr)
        self.assertIn("hint: give it more time with --step-timeout", done.stderr)

    def test_targets_stay_inside(self):
        canary = self.directory("canary")
        links = "FROM busybox\nRUN ln -s /proc/1/root/etc /link && ln -s ../../../../../../.. /up\n"
        layout = self.build(self.context("links", Dockerfile=links), name="links")
        for target in ("/link/x", f"/up{canary}/x", "/../../x", "/proc/x", "/proc/self/x"):
            self.run_image("-v", f"{self.image}:{target}", layout, "true", code=None)
        self.assertEqual(list(canary.iterdir()), [])
        self.assertFalse(pathlib.Path("/etc/x").exists() or pathlib.Path("/x").exists())

    def test_a_root_that_cannot_be_written(self):
        for user in USERS:
            script = "touch /x 2>/dev/null || echo refused; touch /data/y /fresh/y /m/y && echo written; df -P /m | tail -n1"
            said = self.shell(script, "--read-only", "--tmpfs", "/m:size=1m", "-w", "/made", user=user)
            self.assertRegex(said, r"^refused\nwritten\ntmpfs +1024 ")

    def test_network_and_names(self):
        said = self.shell("cat /proc/net/dev | grep -c :; grep db /etc/hosts; hostname", "--network", "none",
                          "--add-host", "db:10.1.2.3", "--hostname", "box")
        self.assertEqual(said, "1\n10.1.2.3\tdb\nbox\n")
        for name in ("a/b", "a\n1.2.3.4 db", "x" * 65):
            refused = self.run_image("--hostname", name, self.image, code=125).stderr
            self.assertIn("for '--hostname <NAME>': a host name has at most 64 letters, digits, dots, dashes and underscores", refused)
        ours = len(pathlib.Path("/proc/net/dev").read_text().splitlines()) - 2
        self.assertEqual(self.shell("cat /proc/net/dev | grep -c :"), f"{ours}\n")

    def test_signals_reach_the_command(self):
        for user in ("root", "lw-sub"):
            for number, said, code in ((signal.SIGINT, b"interrupted", 7), (signal.SIGTERM, b"terminated", 8),
                                       (signal.SIGHUP, b"hup", 9), (signal.SIGUSR1, b"usr1", 10)):
                process = self.start("--entrypoint=", self.image, "sh", "-c", TRAP, stdout=subprocess.PIPE, user=user)
                read_until(process.stdout.fileno(), b"ready\n")
                os.kill(self.builder(process, user), number)
                self.assertIn(said, read_until(process.stdout.fileno(), None))
                self.assertEqual(process.wait(WATCHDOG), code)

    def test_the_third_signal_ends_what_does_not_listen(self):
        script = "trap '' INT TERM; echo ready; while :; do sleep 0.1; done"
        process = self.start("--entrypoint=", self.image, "sh", "-c", script, stdout=subprocess.PIPE)
        read_until(process.stdout.fileno(), b"ready\n")
        while process.poll() is None:
            process.send_signal(signal.SIGINT)
            time.sleep(0.1)
        self.assertEqual(process.returncode, 130)

    def test_the_third_signal_ends_an_init_that_does_not_obey(self):
        for user in ("root", "lw-sub"):
            process = self.start("--entrypoint=", self.image, "sh", "-c", TRAP, stdout=subprocess.PIPE, user=user)
            read_until(process.stdout.fileno(), b"ready\n")
            builder = self.builder(process, user)
            init = int(pathlib.Path(f"/proc/{builder}/task/{builder}/children").read_text().split()[0])
            os.kill(init, signal.SIGSTOP)
            for _ in range(3):
                os.kill(builder, signal.SIGINT)
                time.sleep(0.2)
            self.assertEqual(process.wait(WATCHDOG), 130)

    def test_the_rung_and_what_it_lacks_are_told_once(self):
        for user, rung in (("root", "root"), ("lw-sub", "user namespace with subordinate ids"),
                           ("lw-one", "user namespace with one id")):
            command = ("run", "--progress", "plain", "--entrypoint=", self.image, "true")
            said = self.run_layerwright(*command, user=user).stderr
            self.assertEqual(said.count(f"sandbox: {rung}\n"), 1, said)
            self.assertEqual("warning: " in said, user == "lw-one", said)
            self.assertEqual(self.run_image(self.image, "true", user=user).stderr, "")

    def test_a_terminal(self):
        script = "tty; stty size; echo $TERM; read line; echo got=$line; " \
                 "until [ \"$(stty size)\" = '50 120' ]; do sleep 0.05; done; echo resized; sleep 100"
        for user in USERS:
            command = self.command("run", "-q", "-it", "--entrypoint=", self.image, "sh", "-c", script, user=user)
            # runuser would take the terminal away from a session that is not its own.
            process, ours = self.at_terminal(*command)
            self.assertIn(b"/dev/pts/0\r\n40 100\r\nxterm\r\n", read_until(ours, b"xterm\r\n"))
            os.write(ours, b"typed\r")
            read_until(ours, b"got=typed\r\n")
            fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 120, 0, 0))
            read_until(ours, b"resized\r\n")
            # Ctrl-C is a key like any other for us, and a signal for what runs there.
            os.write(ours, b"\x03")
            self.assertEqual(process.wait(WATCHDOG), 130)
            self.assertTrue(termios.tcgetattr(ours)[3] & termios.ECHO, "the terminal is as it was")

    def test_a_terminal_for_another_user(self):
        command = self.command("run", "-q", "-it", "-u", "33", "--entrypoint=", self.image, "sh", "-c",
                               "echo hello > $(tty); stat -c %u $(tty)")
        process, ours = self.at_terminal(*command)
        self.assertEqual(read_until(ours, None), b"hello\r\n33\r\n")
        self.assertEqual(process.wait(WATCHDOG), 0)

    def test_a_terminal_that_is_none(self):
        done = self.run_image("-it", self.image, "true", code=125)
        self.assertIn("not a TTY", done.stderr)
        # Without -i a terminal is given all the same.
        self.assertEqual(self.run_image("-t", self.image, "tty").stdout, "/dev/pts/0\n")


FAILING = """FROM busybox AS other
RUN mkdir /d && echo other > /d/f
FROM busybox
ENV NAME=value
WORKDIR /work
RUN mkdir /cache && echo before > /before
RUN --mount=type=cache,target=/cache --mount=type=bind,from=other,source=/d,target=/bound,rw \
    --mount=type=secret,id=s --network=none echo half > /half && echo step > /cache/c && echo more > /bound/f && rm /before && false
"""
LOOK = b"pwd; cat /half /cache/c /bound/f /run/secrets/s; ls /before; echo $NAME; cat /proc/net/dev | grep -c :; " \
       b"echo x > /cache/shell; echo looked=$?\r"


class OnFailure(Containers):
    def test_a_shell_where_the_step_failed(self):
        (self.scratch / "secret").write_text("hidden\n")
        (self.scratch / "secret").chmod(0o644)
        context = self.context(Dockerfile=FAILING)
        for user in USERS:
            command = self.command("build", "--progress", "plain", "--on-failure=shell", "--secret",
                                   f"id=s,src={self.scratch}/secret", context, user=user)
            process, ours = self.at_terminal(*command)
            said = read_until(ours, b"what it changes goes nowhere\r\n")
            self.assertIn(b"did not complete successfully", said)
            read_until(ours, b"# ")
            os.write(ours, LOOK)
            said = read_until(ours, b"looked=0")
            for want in (b"/work\r\nhalf\r\nstep\r\nmore\r\nhidden\r\n", b"/before: No such file", b"\nvalue\r\n1\r\n"):
                self.assertIn(want, said)
            self.assertTrue(self.is_in_use(user))
            os.write(ours, b"exit 3\r")
            read_until(ours, None)
            self.assertEqual(process.wait(WATCHDOG), 1)
            self.assertEqual(self.leftovers(user), [])
            self.assertFalse(self.is_in_use(user))
            # Nothing of the shell is in the cache mount.
            check = self.context(f"check-{user}", Dockerfile="FROM busybox\nRUN --mount=type=cache,target=/cache ls /cache > /ls\n")
            self.assertEqual(Layout(self.build(check, user=user, name=f"check-{user}")).read("ls"), b"c\n")

    def is_in_use(self, user):
        """Whether somebody holds the lock of the only cache mount."""
        [use] = (self.store(user) / "mounts").glob("*/*/*/use")
        with open(use, "rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def test_a_terminal_is_wanted_at_the_start(self):
        done = self.run_layerwright("build", "--on-failure=shell", self.context(Dockerfile="FROM busybox\nRUN false\n"), code=2)
        self.assertIn("--on-failure=shell needs a terminal", done.stderr)
        done = self.run_layerwright("build", "--on-failure=nothing", self.scratch, code=2)
        self.assertIn("expected shell", done.stderr)

    def test_without_a_shell_the_failure_stays(self):
        dockerfile = "FROM busybox\nRUN mv /bin/sh /bin/sh2 && mv /bin/busybox /bin/box && exit 5\n"
        command = self.command("build", "--progress", "plain", "--on-failure=shell", self.context(Dockerfile=dockerfile))
        process, ours = self.at_terminal(*command)
        self.assertRegex(read_until(ours, None), rb"exec: \"/bin/sh\": ")
        self.assertEqual(process.wait(WATCHDOG), 1)


@unittest.skipUnless(shutil.which("pasta"), "SKIPPED: isolated networks: pasta is not installed")
class Isolated(Containers):
    """Networks of their own, as those of steps (test_network)."""

    FLAGS = ("--network", "isolated", "--dns", outside.NAMES)
    # One of the outside, and whom nobody must reach.
    TRY = "; ".join(f"nc -w 2 {address} 8080 </dev/null"
                    for address in (outside.OUTSIDE[0], outside.HERE[0], outside.HERE[3]))

    def test_the_first_signal_ends_a_set_up_that_hangs(self):
        begun, length = self.scratch / "begun", f"1000.{os.getpid()}"
        sleepers = ["pgrep", "--full", f"^sleep {re.escape(length)}$"]
        (self.scratch / "bin").mkdir()
        pasta = self.scratch / "bin" / "pasta"
        pasta.write_text(f"#!/bin/sh\ntouch {begun} && exec sleep {length}\n")
        pasta.chmod(0o755)
        for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)):
            environment = {**os.environ, "PATH": f"{pasta.parent}:{os.environ['PATH']}"}
            process = self.start(*self.FLAGS, self.image, "true", stderr=subprocess.PIPE, env=environment)
            wait_for(begun.exists, "the stack")
            process.send_signal(number)
            # Without one it fails for the stack, which is given up after 20 seconds, and with 125.
            self.assertEqual(process.wait(WATCHDOG), code, process.stderr.read())
            wait_for(lambda: subprocess.run(sleepers, stdout=subprocess.DEVNULL, check=False).returncode == 1, "its end")
            begun.unlink()

    def outside(self, user):
        """What starts a command on a machine with an outside, and where it says who was reached."""
        hits = self.scratch / f"hits-{user}"
        return ["unshare", "--mount", "--net", shutil.which("python3"), "-B", outside.__file__, user, hits], hits

    def reached(self, hits):
        self.assertEqual(json.loads(hits.read_text()), [f"tcp {outside.OUTSIDE[0]}"])

    def test_run(self):
        for user in USERS:
            with self.subTest(user=user):
                wrapper, hits = self.outside(user)
                # The image's command is a greeting.
                command = self.command("run", *self.FLAGS, "--entrypoint", "/bin/sh", root=self.store(user))
                words = [*command, f"oci-layout://{self.image}", "--", "-c", f"{self.TRY}; cat /etc/resolv.conf"]
                done = subprocess.run([*wrapper, *words], capture_output=True, text=True, timeout=WATCHDOG, cwd=self.scratch,
                                      stdin=subprocess.DEVNULL, check=False)
                self.assertEqual(done.returncode, 0, done.stderr)
                self.assertEqual(done.stdout, f"nameserver {outside.NAMES}\n")
                self.reached(hits)

    def test_what_it_reads_is_its_own(self):
        """Nobody else has the end of the pipe that the command reads: not who keeps its network, either."""
        wrapper, _ = self.outside("root")
        command = self.command("run", *self.FLAGS, "-i", "--entrypoint", "/bin/cat", f"oci-layout://{self.image}")
        process = subprocess.Popen([*wrapper, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=self.scratch)
        self.addCleanup(self.end, process)
        process.stdin.write(b"ready\n")
        process.stdin.flush()
        read_until(process.stdout.fileno(), b"ready\n")
        self.assertIn(["cat"], readers_of_pipes(below(process.pid)).values())
        process.stdin.close()
        self.assertEqual(process.wait(WATCHDOG), 0)

    def test_a_shell_where_the_step_failed(self):
        context = self.context(Dockerfile="FROM busybox\nRUN false\n")
        for user in USERS:
            with self.subTest(user=user):
                wrapper, hits = self.outside(user)
                command = self.command("build", "--progress", "plain", "--on-failure=shell", *self.FLAGS, context,
                                       root=self.store(user))
                process, ours = self.at_terminal(*wrapper, *command)
                read_until(ours, b"what it changes goes nowhere\r\n")
                read_until(ours, b"# ")
                os.write(ours, self.TRY.encode() + b"; echo tried=$?\r")
                read_until(ours, b"tried=1")
                os.write(ours, b"exit\r")
                read_until(ours, None)
                self.assertEqual(process.wait(WATCHDOG), 1)
                self.reached(hits)


if __name__ == "__main__":
    unittest.main()
