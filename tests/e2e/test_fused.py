"""fuse-overlayfs in the place of the kernel's overlay: what it leaves of a step is what the kernel does, and it dies with us."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import unittest

from overlaid import WITH_DEVICE, on_overlay
from support import Case, Layout, WATCHDOG, wait_for
from test_ladder import ALLOW_FUSE, FUSED, ONE, SUBORDINATE, as_user

# What a step does to files of an earlier one, all of which are older than any time that is normalised.
GROUND = r"""
mkdir -p /n/old/deep/er /n/quiet/deep /n/gone/sub /n/again/x /n/same/x /n/to-file /n/touched /n/moved/in /n/mode /n/named /n/times
echo 1 > /n/old/deep/er/f; echo 2 > /n/old/keep; echo 3 > /n/gone/sub/a; echo 4 > /n/again/x/y; echo 5 > /n/to-directory
echo 6 > /n/same/x/y; echo 7 > /n/moved/in/a; echo 8 > /n/back; echo 9 > /n/mode/f; echo 10 > /n/over; echo 11 > /n/quiet/deep/f
echo h > /n/named/1; ln /n/named/1 /n/named/2; ln /n/named/1 /n/named/3; ln -s nowhere /n/link; mkfifo /n/pipe; echo 12 > /n/times/f
echo x > "/n/old/two words"; touch /n/to-file/x /n/touched/x
find /n -exec touch -h -d '2001-02-03 04:05:06' {} +
"""
STEP = r"""
echo more >> /n/old/deep/er/f; echo more >> /n/quiet/deep/f; sed -i s/more/less/ /n/quiet/deep/f
rm -r /n/gone; rm -r /n/again; mkdir /n/again; echo z > /n/again/z; rm -r /n/same; mkdir -p /n/same/x; echo 6 > /n/same/x/y
rm /n/to-directory; mkdir /n/to-directory; touch /n/to-directory/i; rm -r /n/to-file; echo file > /n/to-file
touch /n/touched/t; rm /n/touched/t; mv /n/moved /n/moved-away; cp -p /n/back /n/b; mv /n/b /n/back; chmod 700 /n/mode
rm /n/named/2; ln -sf elsewhere /n/link; mkfifo /n/another; chmod 4755 /n/old/keep; echo new > /n/o; mv /n/o /n/over
truncate -s 9437184 /n/sparse; echo end >> /n/sparse; echo a > /n/a; ln /n/a /n/a2; ln /n/a /n/a3; rm /n/a; mkdir /n/fresh /n/fresh/er
touch -d '2003-03-03 03:03:03' /n/kept /n/fresh/kept; echo m >> /n/times/f; touch -d '2002-02-02 02:02:02' /n/times /n/times/f
rm "/n/old/two words"; /nasty /n; mkdir /n/opened && cd /n/opened && rmdir /n/opened; true
"""
# What overlays in the kernel and copies do differently is left out: writing through one of several names of a lower file.
AGAIN = r"""
test ! -e /n/gone && test ! -e /n/again/x && test "$(cat /n/again/z)" = z && test -d /n/to-directory && test ! -e /n/named/2
test ! -e /n/moved && test "$(ls -A /n/to-directory)" = i && test "$(readlink /n/link)" = elsewhere && test ! -e "/n/old/two words"
mkdir /n/gone; echo back > /n/gone/b; rm -r /n/again /n/same; mkdir /n/same; echo > /n/to-directory/j; rm /n/to-directory/i
rm -r /n/fresh; ls -lR /n > /dev/null; echo x > /n/moved; rm /n/a2; mkdir /n/a2
"""
DOCKERFILE = f"""FROM busybox
COPY nasty /nasty
RUN <<E{GROUND}E
RUN --mount=type=cache,target=/cache --mount=type=tmpfs,target=/n/volatile --mount=type=secret,id=s \\
 --mount=type=bind,from=busybox,target=/lent,rw <<E{STEP}echo x > /lent/bin/new; rm /lent/bin/sh; cp /run/secrets/s /dev/null; touch /cache/a
E
COPY --chmod=640 file /n/again/copied
ADD parts.tar /n/unpacked
RUN <<E{AGAIN}E
RUN test ! -e /n/again && test "$(ls -A /n/same)" = "" && test "$(cat /n/gone/b)" = back && test -d /n/a2 && test ! -e /n/fresh
"""
NASTY = r"""
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/xattr.h>
#include <unistd.h>
int main(int argc, char **argv) {
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    if (chdir(argv[1])) return 1;
    strcpy(at.sun_path, "socket");
    if (bind(socket(AF_UNIX, SOCK_STREAM, 0), (void *)&at, sizeof at)) return 2;
    if (setxattr("old/keep", "user.kept", "a", 1, 0) || setxattr("fresh", "user.of-directory", "b", 1, 0)) return 3;
    return 0;
}
"""
OF_ROOT = r"""
RUN mkdir /n/own && touch /n/own/f && chown 33:34 /n/old && chmod 2755 /n/old && chown 33:34 /n/old/keep /n/own/f && chown -h 5:6 /n/link
RUN chown 35 /n/own/f && chmod 4755 /n/own/f && test "$(stat -c %u:%g:%a /n/own/f)" = 35:34:4755
"""


class Ground(Case):
    def setUp(self):
        super().setUp()
        if not shutil.which("fuse-overlayfs"):
            self.skipTest("SKIPPED: fuse-overlayfs is not installed")

    def place(self, user):
        """Where the store of a user is on a machine of `fused`."""
        return self.scratch / f"place-{user}"

    def fused(self, user="root"):
        return on_overlay(as_user(user), self.place(user), user, WITH_DEVICE)

    def build_on(self, machine, context, user="root", store=None, code=0, allow=(ALLOW_FUSE,), more=()):
        """A build on a machine; gives its events, and its layout."""
        out = self.directory(f"out-{len(list(self.scratch.glob('out-*')))}", user)
        command = [str(self.binary), "build", *allow, *more, "--progress", "json", "--root", str(store or self.store(user)), "--build-context",
                   f"busybox=oci-layout://{self.base}", "--secret", f"id=s,src={context}/file",
                   "-o", f"type=oci,dest={out}/image,tar=false", str(context)]
        done = subprocess.run([*machine, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              stdin=subprocess.DEVNULL, cwd="/", timeout=WATCHDOG)
        self.assertTrue(done.returncode == code or code is None and done.returncode, done.stderr)
        return [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")], out / "image"

    def nasty(self, dockerfile):
        context = self.context(Dockerfile=dockerfile, file="x\n", parts__a="a\n")
        shutil.copy2(self.program("nasty", NASTY), context / "nasty")
        subprocess.run(["tar", "--mtime=2004-04-04", "-cf", context / "parts.tar", "-C", context / "parts", "."], check=True,
                       timeout=WATCHDOG)
        return context

    def same(self, kernel, other, name):
        """The layers of two layouts are the same; else what differs is told."""
        ours, theirs = Layout(kernel), Layout(other)
        for number, pair in enumerate(zip(ours.layers(), theirs.layers())):
            told = [{path: (entry.type, oct(entry.mode), entry.uid, entry.gid, entry.mtime, entry.size, entry.linkname,
                            entry.pax_headers) for path, entry in layer.items()} for layer in pair]
            apart = {path: [layer.get(path) for layer in told] for path in told[0].keys() | told[1].keys()}
            apart = {path: pair for path, pair in apart.items() if pair[0] != pair[1]}
            self.assertEqual(apart, {}, f"{name}: layer {number}: {' '.join(sorted(apart))}")
        self.assertEqual(ours.digest, theirs.digest, name)


class Fused(Ground):
    """What is left of steps."""

    def test_what_a_step_leaves_is_what_the_kernel_and_copies_leave(self):
        context = self.nasty(DOCKERFILE)
        _, kernel = self.build_on([], context)
        for user, told in (("root", "root"), ("lw-sub", SUBORDINATE), ("lw-one", ONE)):
            events, image = self.build_on(self.fused(user), context, user, self.place(user))
            self.assertEqual({event["rung"] for event in events if event["event"] == "sandbox"}, {told + FUSED})
            self.same(kernel, image, user)
        _, image = self.build_on(on_overlay([], self.scratch / "copied", "root"), context, store=self.scratch / "copied")
        self.same(kernel, image, "copies")

    def test_one_that_fails_its_trial_is_taken_by_nobody_who_has_not_allowed_it(self):
        """It does not merge as the kernel does (a directory that was replaced and renamed is there again), and what it leaves is
        for nobody else."""
        context = self.context(Dockerfile="FROM busybox\nRUN mkdir -p /app && echo secret > /app/key\n"
                               "RUN rm -rf /app && mkdir /app && mv /app /app2\nRUN ls / > /seen\n", file="")
        _, kernel = self.build_on([], context)
        events, image = self.build_on(self.fused(), context, store=self.place("root"), allow=())
        self.assertEqual({event["rung"] for event in events if event["event"] == "sandbox"}, {"root, with copies for overlays"})
        self.assertTrue(any("fuse-overlayfs merges otherwise than the kernel: a directory that was removed, made again and renamed is there again" in str(event) for event in events), events)
        self.same(kernel, image, "copies")
        cache, allowed = self.directory("cache"), self.scratch / "allowed"
        machine = on_overlay([], allowed, "root", WITH_DEVICE)
        self.build_on(machine, context, store=allowed, more=("--cache-to", f"type=local,dest={cache}"))
        events, image = self.build_on([], context, allow=(), store=self.scratch / "other", more=("--cache-from", f"type=local,src={cache}"))
        self.same(kernel, image, "from the cache")
        self.assertEqual([event for event in events if event["event"] == "cached"], [])
        # A store of its own kind is of no use without it.
        events, _ = self.build_on(machine, context, store=allowed, allow=(), code=4)
        self.assertIn("this store was begun with fuse-overlayfs", str(events))

    def test_owners_are_the_kernels(self):
        context = self.nasty(DOCKERFILE + OF_ROOT)
        _, kernel = self.build_on([], context)
        _, image = self.build_on(self.fused(), context, store=self.place("root"))
        self.same(kernel, image, "root")

    def test_a_name_that_hides_is_refused(self):
        context = self.context(Dockerfile="FROM busybox\nRUN echo x > /etc/x\n"
                               "RUN touch /etc/y && chmod 700 /etc/y && mv /etc/y /etc/.wh.x\n", file="")
        events, _ = self.build_on(self.fused(), context, store=self.place("root"), code=1)
        self.assertIn("/etc/.wh.x cannot be part of a layer", json.dumps(events))

    def test_what_it_cannot_do_is_told(self):
        context = self.context("pipe", Dockerfile="FROM busybox\nRUN mkfifo /p\nRUN chmod 600 /p; true\n", file="")
        events, _ = self.build_on(self.fused(), context, store=self.place("root"), code=4)
        self.assertIn("cannot change /p, a pipe, socket or device of an earlier layer", json.dumps(events))
        context = self.context("device", Dockerfile="FROM busybox\nRUN mknod /d c 1 5\n", file="")
        events, _ = self.build_on(self.fused(), context, store=self.place("root"), code=None)
        self.assertIn("does not show the device /d to later steps", json.dumps(events))

    def test_what_was_begun_is_looked_after_and_not_taken_for_another_form(self):
        machine, store = self.fused(), self.place("root")
        self.build_on(machine, self.nasty(DOCKERFILE), store=store)
        for arguments in (["fsck"], ["du"], ["gc", "--all"]):
            done = subprocess.run([*machine, self.binary, *arguments, "--root", store], text=True, stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE, timeout=WATCHDOG)
            self.assertEqual(done.returncode, 0, (arguments, done.stdout, done.stderr))
        context = self.context("next", Dockerfile="FROM busybox\nRUN true\n", file="")
        events, _ = self.build_on(on_overlay([], store, "root"), context, store=store, code=4)
        self.assertIn("begun with fuse-overlayfs", json.dumps(events))

    def test_many_layers(self):
        steps = "".join(f"RUN rm -f /s/{number - 1} && mkdir -p /s && echo {number} > /s/{number}\n" for number in range(110))
        context = self.context(Dockerfile=f"FROM busybox\n{steps}RUN test \"$(ls /s)\" = 109\n", file="")
        _, kernel = self.build_on([], context)
        _, image = self.build_on(self.fused(), context, store=self.place("root"))
        self.assertEqual(Layout(kernel).digest, Layout(image).digest)


class Life(Ground):
    """The life of the program that merges."""

    def begun(self, user="root"):
        """A build whose step waits; gives it, its log, and what merges for it."""
        context = self.context(f"waiting-{user}", Dockerfile="FROM busybox\nRUN echo it waits; sleep 1000\n", file="")
        log = open(self.scratch / f"log-{user}", "w")
        command = [str(self.binary), "build", ALLOW_FUSE, "--progress", "json", "--root", str(self.place(user)), "--build-context",
                   f"busybox=oci-layout://{self.base}", "-o", "type=cacheonly", str(context)]
        build = subprocess.Popen([*self.fused(user), *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/")
        self.addCleanup(log.close)
        self.addCleanup(build.wait, WATCHDOG)
        self.addCleanup(build.kill)
        path = pathlib.Path(log.name)
        wait_for(lambda: '"text":"it waits"' in path.read_text() or build.poll() is not None, "the step to run")
        mergers = self.mergers(build.pid)
        # One for the step, and one for who looks at what it stands on.
        self.assertEqual(len(mergers), 2, path.read_text())
        return build, path, mergers

    def mergers(self, ancestor):
        """The processes below another one that merge."""
        found = []
        for child in children(ancestor):
            found += [child] if merges(child) else self.mergers(child)
        return found

    def test_its_death_is_told_as_that(self):
        build, log, mergers = self.begun()
        for process in mergers:
            if b"upperdir=" in words(process):
                os.kill(process, signal.SIGKILL)
        self.assertEqual(build.wait(WATCHDOG), 4, log.read_text())
        self.assertIn("fuse-overlayfs, which merges the layers here, was ended by signal 9", log.read_text())
        wait_for(lambda: not any(map(merges, mergers)), "the others to end")

    def test_a_builder_that_is_killed_leaves_none(self):
        for user in ("root", "lw-sub"):
            build, _, mergers = self.begun(user)
            os.kill(self.builder(build.pid), signal.SIGKILL)
            build.wait(WATCHDOG)
            wait_for(lambda: not any(map(merges, mergers)), f"what merges for {user} to end")
            self.assertNotIn("fuse-overlayfs", pathlib.Path("/proc/self/mountinfo").read_text())

    def builder(self, process):
        """The builder itself, which runuser stands before."""
        is_builder = words(process).split(b"\0")[0] == str(self.binary).encode()
        return process if is_builder else self.builder(children(process)[0])

    def test_it_knows_nothing_of_the_builder(self):
        os.environ["BUILDER_TOKEN"] = "of the builder"
        self.addCleanup(os.environ.pop, "BUILDER_TOKEN")
        for process in self.begun()[2]:
            place = pathlib.Path(f"/proc/{process}")
            self.assertEqual((place / "environ").read_bytes(), b"")
            known = ("/dev/fuse", "/dev/null", "/memfd:words", "pipe:")
            # Of the file system that it merges, and nothing besides.
            kept = [path for path in map(os.readlink, (place / "fd").iterdir()) if "snapshots/" not in path and "tmp/" not in path]
            self.assertEqual([path for path in kept if not path.startswith(known)], [])


def words(process):
    """The command line of a process; nothing, when it has ended."""
    try:
        return pathlib.Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def merges(process):
    return words(process).split(b"\0")[0].endswith(b"/fuse-overlayfs")


def children(process):
    found = []
    for thread in pathlib.Path(f"/proc/{process}/task").glob("*/children"):
        try:
            found += map(int, thread.read_text().split())
        except OSError:  # it has ended
            pass
    return found


if __name__ == "__main__":
    unittest.main()
