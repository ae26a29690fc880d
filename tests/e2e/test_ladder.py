"""The ladder: every rung that can be had here gives the same image, says its name, and strict refuses the weaker ones."""

import json
import pathlib
import shutil
import subprocess
import unittest

from support import Case, Layout, WATCHDOG

# What a step can do on every rung, the one with a single id included; nothing of it says where it ran.
DOCKERFILE = """FROM busybox
COPY file /etc/file
RUN mkdir -p /a/b && echo one > /a/b/c && ln /a/b/c /a/d && ln -s b/c /a/e && chmod 4755 /a/b/c && mkfifo /a/f
RUN rm /a/d && mv /a/b /a/g && echo more >> /etc/file && rm -r /a/e && mkdir /a/e
RUN --network=none --mount=type=cache,target=/cache sleep 1000 & test -d /proc/self/fd && cat /proc/self/comm > /comm
"""
SUBORDINATE, ONE = "user namespace with subordinate ids", "user namespace with one id"
OUTER_PROC, SHARED = ", with this machine's /proc", ", with this machine's /proc and processes"
MASK = "mount -t tmpfs none /proc/fs && exec \"$@\""
NO_PIDS = "echo 0 > /proc/sys/user/max_pid_namespaces && exec \"$@\""


def masked(user):
    """A machine whose /proc is masked, as that of a container."""
    return ["unshare", "--mount", "--", "sh", "-c", MASK, "sh", "runuser", "-u", user, "--"]


def without_pid_namespaces(user):
    inside = ["unshare", "--user", "--map-root-user", "--map-auto", "--", "sh", "-c", NO_PIDS, "sh"]
    return ["runuser", "-u", user, "--", *inside]


class Ladder(Case):
    def machine_of_root(self):
        """A machine on which root has subordinate ids; nothing of it stays."""
        files = {}
        for name in ("subuid", "subgid"):
            files[name] = self.scratch / name
            files[name].write_text("root:400000:65536\n")
            files[name].chmod(0o644)
        script = "mount --bind {subuid} /etc/subuid && mount --bind {subgid} /etc/subgid && exec \"$@\"".format(**files)
        return ["unshare", "--mount", "--", "sh", "-c", script, "sh"]

    def on(self, machine, *arguments, user="root", name="x", code=0):
        """A build on a machine, with a store of its own; gives the completed process and the layout."""
        store, out = self.scratch / f"store-{name}", self.scratch / f"out-{name}"
        for path in (store, out):
            path.mkdir(mode=0o700)
            shutil.chown(path, user, user)
        command = [str(self.binary), "build", "--progress", "json", "--root", str(store), "--build-context",
                   f"busybox=oci-layout://{self.base}", "-o", f"type=oci,dest={out}/image,tar=false", *map(str, arguments)]
        done = subprocess.run([*machine, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              stdin=subprocess.DEVNULL, cwd="/", timeout=WATCHDOG)
        self.assertEqual(done.returncode, code, done.stderr)
        return done, out / "image"

    def rungs(self):
        return {
            "root": ([], "root", (), "root"),
            "userns": (self.machine_of_root(), "root", ("--sandbox=userns",), SUBORDINATE),
            "sub": (["runuser", "-u", "lw-sub", "--"], "lw-sub", ("--sandbox=strict",), SUBORDINATE),
            "one": (["runuser", "-u", "lw-one", "--"], "lw-one", (), ONE),
            "sub-masked": (masked("lw-sub"), "lw-sub", (), SUBORDINATE + OUTER_PROC),
            "one-masked": (masked("lw-one"), "lw-one", (), ONE + OUTER_PROC),
            "sub-shared": (without_pid_namespaces("lw-sub"), "lw-sub", (), SUBORDINATE + SHARED),
        }

    def test_every_rung_gives_the_same_image_and_says_its_name(self):
        context = self.context(Dockerfile=DOCKERFILE, file="x\n")
        digests = {}
        for name, (machine, user, arguments, rung) in self.rungs().items():
            done, image = self.on(machine, context, *arguments, user=user, name=name)
            events = [json.loads(line) for line in done.stderr.splitlines()]
            self.assertEqual([event["rung"] for event in events if event["event"] == "sandbox"], [rung], name)
            layout = Layout(image)
            layout.validate()
            self.assertEqual(layout.read("comm"), b"cat\n")
            digests[name] = layout.digest
        self.assertEqual(len(set(digests.values())), 1, digests)

    def test_the_rung_is_told_once_and_kept(self):
        context = self.context(Dockerfile="FROM busybox\nRUN true\nRUN false || true\n")
        done = self.run_layerwright("build", "--progress", "plain", context)
        self.assertEqual(done.stderr.count("\n  sandbox: root\n"), 1, done.stderr)
        shown = self.run_layerwright("history", "show", "--root", self.store())
        self.assertRegex(shown.stdout, r"(?m)^Sandbox: +root$")
        again = self.run_layerwright("build", "--progress", "plain", context)
        self.assertNotIn("sandbox:", again.stderr, "nothing has run")

    def test_strict_refuses_what_is_weaker_by_name(self):
        context = self.context(Dockerfile="FROM busybox\nRUN true\n")
        cases = {
            "one": (["runuser", "-u", "lw-one", "--"], "lw-one", "/etc/subuid: no range", "usermod --add-subuids"),
            "masked": (masked("lw-sub"), "lw-sub", "mount /proc: ", "systempaths=unconfined"),
            "shared": (without_pid_namespaces("lw-sub"), "lw-sub", "unshare pid namespace: ", "user.max_pid_namespaces"),
        }
        for name, (machine, user, refusal, remedy) in cases.items():
            done, image = self.on(machine, context, "--sandbox=strict", user=user, name=name, code=4)
            self.assertIn(refusal, done.stderr, name)
            self.assertIn(remedy, done.stderr, name)
            self.assertFalse(image.exists(), name)

    def test_a_store_of_a_user_namespace_is_looked_after_from_outside(self):
        context = self.context(Dockerfile="FROM busybox\nRUN touch /a && chown 33:34 /a\n")
        machine = self.machine_of_root()
        self.on(machine, context, "--sandbox=userns", name="kept")
        store = self.scratch / "store-kept"
        for arguments in (["fsck"], ["du"], ["gc", "--all"]):
            done = subprocess.run([*machine, str(self.binary), *arguments, "--root", str(store)], text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=WATCHDOG)
            self.assertEqual(done.returncode, 0, (arguments, done.stdout, done.stderr))

    def test_nothing_that_a_step_starts_outlives_it_without_a_pid_namespace(self):
        marker = "1000123"
        context = self.context(Dockerfile="FROM busybox\nRUN for i in 1 2 3 4 5; do "
                               f"(setsid sh -c 'setsid sleep {marker} & setsid sleep {marker} & sleep {marker}' &) ; done\n")
        self.on(without_pid_namespaces("lw-sub"), context, user="lw-sub")
        left = [path.parent.name for path in pathlib.Path("/proc").glob("[0-9]*/cmdline")
                if marker.encode() in path.read_bytes().split(b"\0")]
        self.assertEqual(left, [])


if __name__ == "__main__":
    unittest.main()
