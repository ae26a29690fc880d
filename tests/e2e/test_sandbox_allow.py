#!/usr/bin/python3 -B
"""`--sandbox-allow`: a line of the sandbox is let go by name only, is told and kept, and nothing else goes with it."""

import json
import pwd
import shutil
import subprocess
import unittest

from support import Case, Layout, WATCHDOG
from test_cache_mounts import libraries
from test_ladder import COPIED, OUTER_PROC, PROFILE, SUBORDINATE, container

NESTED = "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"touch\", \"/made\"]\n"
NO_GROUPS = "echo 0 > /proc/sys/user/max_cgroup_namespaces && exec \"$@\""
READ_ONLY = "mount --bind /proc /proc && mount -o remount,bind,ro /proc && exec \"$@\""


class SandboxAllow(Case):
    def test_a_command_may_make_user_namespaces_where_it_is_allowed(self):
        context = self.context(Dockerfile="FROM busybox\nRUN unshare -U -r -m sh -c 'mount -t tmpfs x /tmp && id -u' > /uid\n")
        for user in ("root", "lw-sub"):
            refused = self.run_layerwright("build", "--progress", "plain", context, user=user, code=1)
            self.assertIn("Operation not permitted", refused.stderr)
            self.assertNotIn("allowed:", refused.stderr)
            layout = self.build(context, "--sandbox-allow", "userns", user=user, name=user)
            self.assertEqual(Layout(layout).read("uid"), b"0\n")
            self.assertRegex(self.last.stderr, r"(?m)^  sandbox: .*; allowed: userns$")
            shown = self.run_layerwright("history", "show", "--root", self.store(user), user=user)
            self.assertRegex(shown.stdout, r"(?m)^Sandbox: .*; allowed: userns$")
            # What it could do with that is not what it could do without.
            self.run_layerwright("build", "--progress", "plain", context, user=user, code=1)

    def test_the_kernel_still_asks_for_capabilities(self):
        attempts = ("mount -t tmpfs x /tmp", "umount /proc", "hostname x", "unshare -m true", "chroot /proc/1/root true")
        tried = "".join(f"{attempt} 2>/dev/null && echo '{attempt}' >> /done; " for attempt in attempts)
        context = self.context(Dockerfile=f"FROM busybox\nRUN touch /done; {tried} true\n")
        for user in ("root", "lw-sub"):
            layout = self.build(context, "--sandbox-allow=userns", user=user, name=user)
            self.assertEqual(Layout(layout).read("done"), b"", user)

    def test_a_builder_builds_inside_of_a_step(self):
        context = self.context(Dockerfile=(
            "FROM busybox\nCOPY . /\n"
            "RUN env -u SOURCE_DATE_EPOCH /layerwright build --progress json --root /store -o type=oci,tar=false,dest=/out /inner 2>/log && rm -r /store\n"),
            inner__Dockerfile=NESTED)
        shutil.copy("/bin/busybox", context / "inner" / "busybox")
        shutil.copy(self.binary, context / "layerwright")
        for path, file in libraries(self.binary).items():
            place = context / path.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place)
        alone = Layout(self.build(context / "inner", name="alone")).digest
        for user in ("root", "lw-sub"):
            layout = Layout(self.build(context, "--sandbox-allow=userns", user=user, name=user))
            events = [json.loads(line) for line in layout.read("log").splitlines()]
            self.assertEqual([event["rung"] for event in events if event["event"] == "sandbox"],
                             [SUBORDINATE + OUTER_PROC + COPIED])
            index = json.loads(layout.read("out/index.json"))
            self.assertEqual(index["manifests"][0]["digest"], alone)

    def test_run_takes_it_too(self):
        layout = self.build(self.context(Dockerfile="FROM busybox\n"))
        words = ("run", "--root", self.store(), "--progress", "plain")
        nested = (f"{layout}", "unshare", "-U", "-r", "true")
        self.assertNotEqual(self.run_layerwright(*words, *nested, code=None).returncode, 0)
        done = self.run_layerwright(*words, "--sandbox-allow=userns", *nested)
        self.assertIn("; allowed: userns", done.stderr)
        refused = self.run_layerwright(*words, "--sandbox-allow=all", *nested, code=125)
        self.assertIn("expected one of userns, no-seccomp", refused.stderr)
        refused = self.run_layerwright(*words, "--sandbox=strict", "--sandbox-allow=userns", *nested, code=125)
        self.assertIn("contradict each other", refused.stderr)

    def on(self, machine, *flags, name, user, code=0):
        """A build on a machine that lacks something."""
        context = self.scratch / "context"
        if not context.exists():
            self.context(Dockerfile="FROM busybox\nRUN id -u > /uid\n")
        command = self.command("build", "--progress", "plain", "--no-cache", *flags, context, root=self.directory(f"store-{name}-{code}", user))
        done = subprocess.run([*machine, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
                              text=True, timeout=WATCHDOG, cwd="/")
        self.assertEqual(done.returncode, code, done.stderr)
        return done.stderr

    def test_what_a_machine_lacks_is_named_and_can_be_gone_without(self):
        no_groups = ["runuser", "-u", "lw-sub", "--", "unshare", "--user", "--map-root-user", "--map-auto", "--", "sh", "-c", NO_GROUPS, "sh"]
        read_only = ["unshare", "--mount", "--", "sh", "-c", READ_ONLY, "sh"]
        for name, machine, user, told in (("no-cgroupns", no_groups, "lw-sub", "unshare cgroup namespace: "),
                                          ("no-oom-score", read_only, "root", "adjust oom score: ")):
            refused = self.on(machine, name=name, user=user, code=4)
            self.assertIn(told, refused)
            self.assertIn(f"--sandbox-allow={name} builds without it", refused)
            self.assertIn(f"; allowed: {name}\n", self.on(machine, f"--sandbox-allow={name}", name=name, user=user))

    @unittest.skipUnless(PROFILE.exists(), "SKIPPED: what a container lacks: podman's system call filter is not here")
    def test_what_a_container_forbids_is_named_and_can_be_gone_without(self):
        place = self.scratch / "pod"
        place.mkdir(mode=0o1777)
        place.chmod(0o1777)
        shutil.copy2(self.binary, place / "layerwright")
        shutil.copytree(self.base, place / "base")
        shutil.copytree(self.context(Dockerfile="FROM busybox\nRUN grep ^Seccomp_filters /proc/self/status > /filters\n"),
                        place / "context")
        uid = pwd.getpwnam("lw-sub").pw_uid
        for name, denied, told in (("no-keyring", ("keyctl",), "new session keyring: "),
                                   ("no-seccomp", ("seccomp",), "load seccomp filter: ")):
            words = [place / "layerwright", "build", "--progress", "plain", "--build-context",
                     f"busybox=oci-layout://{place}/base", place / "context"]
            refused = container(place, *words, "--root", place / f"refused-{name}", uid=uid, denied=denied)
            self.assertEqual(refused.returncode, 4, refused.stderr)
            self.assertIn(told, refused.stderr)
            self.assertIn(f"--sandbox-allow={name} builds without it", refused.stderr)
            done = container(place, *words, "--root", place / f"store-{name}", f"--sandbox-allow={name}", uid=uid, denied=denied)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn(f"; allowed: {name}\n", done.stderr)


if __name__ == "__main__":
    unittest.main()
