"""`--sandbox=chroot`: builds in a container that allows neither namespaces nor mounts, with root's images, and only where named."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import unittest

from locked import PROFILE, locked
from support import REPO, Case, Layout, wait_for

SCOPES = tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 12)
TOLD = "chroot, without namespaces, mounts and /proc"
# What makes a difference to a layer, and what must make none: /dev, /proc, /sys and what is lent.
DOCKERFILE = """FROM busybox AS base
COPY file /etc/file
RUN mkdir -p /a/b /proc /sys && echo one > /a/b/c && ln /a/b/c /a/d && ln -s b/c /a/e && chmod 4755 /a/b/c && mkfifo /a/f && \\
 touch /a/g && chown 33:34 /a/g && echo mine > /etc/hosts.mine && chmod 1777 /a
RUN rm /a/d && mv /a/b /a/h && echo more >> /etc/file && rm -r /a/e && mkdir /a/e && rm /bin/vi && test ! -e /bin/vi
RUN test -c /dev/null && dd if=/dev/zero of=/dev/null bs=1 count=9 && echo x > /dev/shm/x && grep localhost /etc/hosts && \\
 cat /etc/resolv.conf > /dev/null && test -d /proc && test -d /sys
RUN <<END
#!/bin/sh
echo script > /script
(setsid sleep 1000 &) ; sleep 1000 &
END
USER 33:34
WORKDIR /made/here
RUN id -u > /tmp/id 2> /dev/null || true
FROM base
USER root
RUN --mount=type=secret,id=s,env=SECRET test "$SECRET" = hush && rm -rf /made
"""


@unittest.skipUnless(PROFILE.exists(), "SKIPPED: a chroot in a container: podman's system call filter is not here")
@unittest.skipUnless(SCOPES, "SKIPPED: a chroot: this kernel has no Landlock scopes")
class Chroot(Case):
    def setUp(self):
        super().setUp()
        self.place = self.scratch / "pod"
        self.place.mkdir()
        self.place.chmod(0o755)
        shutil.copy2(self.binary, self.place / "layerwright")
        shutil.copytree(self.base, self.place / "base")

    def words(self, context, *arguments, name="image", sandbox=("--sandbox=chroot",), store="store"):
        """A build in the container; its store and its result lie in `place`."""
        if not (self.place / context.name).exists():
            shutil.copytree(context, self.place / context.name)
        return [self.place / "layerwright", "build", *sandbox, "--progress", "json", "--root", self.place / store,
                "--build-context", f"busybox=oci-layout://{self.place}/base", "-o",
                f"type=oci,dest={self.place}/{name},tar=false", *arguments, self.place / context.name]

    def inside(self, *arguments, code=0, **options):
        done = locked(self.place, *arguments, **options)
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        return done

    def build_inside(self, context, *arguments, code=0, denied=(), lacking=(), **options):
        return self.inside(*self.words(context, *arguments, **options), code=code, denied=denied, lacking=lacking)

    def look_after(self, store="store"):
        for command in (["fsck"], ["du"]):
            self.inside(self.place / "layerwright", *command, "--root", self.place / store)

    def test_the_image_is_that_of_root(self):
        context = self.context(Dockerfile=DOCKERFILE, file="x\n", secret="hush")
        secret = ("--secret", f"id=s,src={context}/secret")
        alone = Layout(self.build(context, *secret))
        (self.place / "hush").write_text("hush")
        done = self.build_inside(context, "--secret", f"id=s,src={self.place}/hush")
        events = [json.loads(line) for line in done.stderr.splitlines()]
        self.assertEqual([event["rung"] for event in events if event["event"] == "sandbox"], [TOLD])
        warnings = [event["message"] if "message" in event else str(event) for event in events if event["event"] == "warning"]
        self.assertTrue(any("shares this machine's processes" in text for text in warnings), warnings)
        made = Layout(self.place / "image")
        made.validate()
        self.assertEqual(made.digest, alone.digest)
        names = {name for layer in made.layers() for name in layer}
        self.assertEqual({name for name in names if re.match(r"(dev|sys|proc)/|etc/(hosts|resolv\.conf)$", name)}, set())
        self.assertIn("bin/.wh.vi", names)
        shown = self.inside(self.place / "layerwright", "history", "show", "--root", self.place / "store")
        self.assertRegex(shown.stdout, rf"(?m)^Sandbox: +{TOLD}$")
        self.look_after()

    def test_a_step_changes_what_it_is_lent_for_itself_alone(self):
        """An image with files of its own there; what a step does to those that stand in their place is in no layer."""
        context = self.context(Dockerfile="FROM busybox AS own\nCOPY etc /etc\nCOPY dev /dev\nFROM own\nRUN echo x >> /etc/hosts && "
                               "rm -f /etc/resolv.conf && echo x > /dev/mine && mkdir /proc/x && ! test -e /dev/own && touch /done\n",
                               etc__hosts="own hosts", etc__resolv_DOT_conf="own names", dev__own="own device")
        self.build_inside(context)
        made = Layout(self.place / "image")
        self.assertEqual((made.read("etc/hosts"), made.read("etc/resolv.conf"), made.read("dev/own")),
                         (b"own hosts", b"own names", b"own device"))
        *_, last = made.layers()
        self.assertEqual({name for name in last if name != "etc"}, {"done"})
        self.look_after()

    def test_nobody_gets_it_who_has_not_named_it(self):
        context = self.context(Dockerfile="FROM busybox\nRUN true\n")
        for sandbox, is_told in (((), True), (("--sandbox=auto",), True), (("--sandbox=strict",), False),
                                 (("--sandbox=userns",), False)):
            done = self.build_inside(context, sandbox=sandbox, code=4)
            self.assertEqual("--sandbox=chroot" in done.stderr, is_told, done.stderr)
            self.assertEqual("has no /proc, no mounts and no sudo" in done.stderr, is_told)
            self.assertFalse((self.place / "image").exists())
        doctor = self.inside(self.place / "layerwright", "doctor", "--root", self.place, code=4)
        self.assertRegex(doctor.stdout, r"(?m)^ok  chroot +where it is named: --sandbox=chroot$")
        self.assertIn("no: RUN steps work with --sandbox=chroot alone", doctor.stdout)
        # Where something better works nobody misses it; and who has not what it takes is told what that is.
        doctor = self.run_layerwright("doctor", "--root", self.store())
        self.assertRegex(doctor.stdout, r"(?m)^-   chroot +not needed: root works$")
        done = self.build_inside(context, code=4, lacking=("MKNOD", "SYS_CHROOT"))
        self.assertRegex(done.stderr, r"(?s)lacks capabilities that Docker gives: MKNOD SYS_CHROOT\n.*capabilities\.add")
        done = self.build_inside(context, code=4, denied=("landlock_create_ruleset",))
        self.assertIn("there are no Landlock scopes", done.stderr)
        as_user = self.run_layerwright("build", "--sandbox=chroot", context, user="lw-sub", code=4)
        self.assertIn("only root can do it", as_user.stderr)

    def test_a_store_on_which_nodes_open_nothing_is_told(self):
        context, disk = self.context(Dockerfile="FROM busybox\nRUN true\n"), self.directory("nodev")
        subprocess.run(["mount", "-t", "tmpfs", "-o", "nodev,mode=0755", "layerwright", disk], check=True)
        try:
            done = self.run_layerwright("build", "--sandbox=chroot", context, root=disk / "store", code=4)
        finally:
            subprocess.run(["umount", disk], check=True)
        self.assertIn("open /dev/null: Permission denied", done.stderr)
        self.assertRegex(done.stderr, "hint: the file system of the store is mounted with `nodev`.*--root")

    def test_what_takes_a_mount_or_a_namespace_is_refused_before_any_step(self):
        asked = {"--mount=type=cache,target=/c": "--mount=type=cache (/c)", "--mount=type=bind,target=/b": "--mount=type=bind (/b)",
                 "--mount=type=tmpfs,target=/t": "--mount=type=tmpfs (/t)", "--mount=type=ssh": "--mount=type=ssh",
                 "--mount=type=secret,id=s": "--mount=type=secret (/run/secrets/s)", "--network=none": "--network=none"}
        steps = "".join(f"RUN {flag} true\n" for flag in asked)
        context = self.context(Dockerfile=f"FROM busybox\nRUN echo this ran\n{steps}")
        done = self.build_inside(context, code=4)
        for named in (*asked.values(), "build where user namespaces are allowed"):
            self.assertIn(named, done.stderr)
        self.assertNotIn('"text":"this ran"', done.stderr)
        plain = self.context("plain", Dockerfile="FROM busybox\nRUN echo this ran\n")
        for flags, named in ((("--shm-size", "1m"), "--shm-size"),
                             (("--build-arg", "BUILDKIT_SANDBOX_HOSTNAME=box"), "a host name"),
                             (("--network", "none"), "--network=none")):
            self.assertIn(named, self.build_inside(plain, *flags, code=4).stderr)

    def test_devices_of_an_image_are_out_of_reach(self):
        """In /dev nobody sees them; elsewhere nothing would keep a step from them."""
        self.build(self.context("disk", Dockerfile="FROM busybox\nRUN mknod /disk b 8 0 && mknod /null c 1 3 && mkdir /dev2 && mv /disk /dev2\n"),
                   name="disk")
        self.build(self.context("null", Dockerfile="FROM busybox\nRUN mknod /null c 1 3\n"), name="null")
        for name in ("disk", "null"):
            shutil.copytree(self.scratch / f"out-{name}" / "layout", self.place / f"with-{name}")
        for name, code in (("disk", 4), ("null", 0)):
            context = self.context(f"on-{name}", Dockerfile=f"FROM devices\nRUN echo x > /null\n")
            done = self.build_inside(context, "--build-context", f"devices=oci-layout://{self.place}/with-{name}",
                                     name=f"image-{name}", code=code)
            self.assertEqual("could open the device at /dev2/disk" in done.stderr, name == "disk", done.stderr)

    def test_a_killed_builder_leaves_no_process_and_no_damage(self):
        marker = f"{300_000 + os.getpid()}"
        context = self.context(Dockerfile=f"FROM busybox\nRUN (setsid sleep {marker} &) ; echo x > /etc/hosts; touch /ready; sleep {marker}\n")
        words = " ".join(map(str, self.words(context)))
        # PID 1 is another one, so that nothing ends with its namespace.
        script = (f"{words} > {self.place}/out 2>&1 & builder=$!; i=0; until find {self.place}/store/tmp -name ready 2> "
                  "/dev/null | grep -q . || test $i -gt 3000; do sleep 0.02; i=$((i+1)); done; test $i -gt 3000 || echo it runs; kill -9 $builder; wait $builder; i=0; "
                  f"while grep -aqs '[{marker[0]}]{marker[1:]}' /proc/[0-9]*/cmdline && test $i -lt 500; do sleep 0.02; i=$((i+1)); done; "
                  f"grep -als '[{marker[0]}]{marker[1:]}' /proc/[0-9]*/cmdline; "
                  f"{self.place}/layerwright fsck --root {self.place}/store")
        script = script.replace(words, f"sh {self.place}/build")
        (self.place / "build").write_text(f"exec {words}\n")
        done = self.inside("sh", "-c", script)
        self.assertIn("it runs\n", done.stdout, (self.place / "out").read_text())
        self.assertNotIn("/proc/", done.stdout, (self.place / "out").read_text())
        again = self.context("again", Dockerfile="FROM busybox\nRUN touch /a\n")
        self.build_inside(again)
        self.look_after()
        self.assertEqual(Layout(self.place / "image").digest, Layout(self.build(again)).digest)

    def test_steps_at_once_and_their_daemons(self):
        """Each has its own file system; what one leaves running is gone when it ends, and the other one's is not."""
        stages = "".join(f"FROM busybox AS s{n}\nRUN (setsid sleep 1000 &) ; i=0; while test $i -lt 20; do echo {n} >> /dev/shm/x; "
                         f"echo {n} >> /etc/hosts; sleep 0.02; i=$((i+1)); done; sort -u /dev/shm/x > /said\n" for n in range(4))
        copies = "".join(f"COPY --from=s{n} /said /{n}\n" for n in range(4))
        context = self.context(Dockerfile=f"{stages}FROM scratch\n{copies}")
        script = " ".join(map(str, self.words(context, "--jobs", "4"))) + " && ! grep -als '[s]leep.1000' /proc/[0-9]*/cmdline"
        self.inside("sh", "-c", script)
        made = Layout(self.place / "image")
        self.assertEqual([made.read(str(n)) for n in range(4)], [f"{n}\n".encode() for n in range(4)])
        self.look_after()

    def test_run_and_a_failed_step(self):
        context = self.context(Dockerfile="FROM busybox\nVOLUME /data /new\nRUN mkdir /data && echo x > /data/y\nCMD cat /data/y && "
                               "test -d /new && touch /new/z && exit 7\n")
        self.build_inside(context)
        command = [self.place / "layerwright", "run", "--sandbox=chroot", "--root", self.place / "run"]
        done = self.inside(*command, self.place / "image", code=7)
        self.assertEqual(done.stdout, "x\n")
        for flags, named in ((("-v", f"{self.place}:/v"), "something mounted at /v"), (("--read-only",), "a root that is read-only"),
                             (("--hostname", "box"), "shares this machine's name")):
            done = self.inside(*command, *flags, self.place / "image", code=125)
            self.assertIn(named, done.stderr)
        fails = self.context("fails", Dockerfile="FROM busybox\nRUN echo x > /etc/hosts; exit 3\n")
        done = self.build_inside(fails, code=1)
        self.assertIn("exit code: 3", done.stderr)
        self.look_after()

    def test_a_store_with_overlays_is_told_from_one_of_copies(self):
        context = self.context(Dockerfile="FROM busybox\nRUN touch /a\n")
        self.build(context)
        shutil.copytree(self.scratch / "store-root", self.place / "merged", symlinks=True)
        done = self.build_inside(context, "--no-cache", store="merged", code=4)
        self.assertIn("this store was begun with overlays", done.stderr)
        self.assertIn("let --root name another directory", done.stderr)
        # One of copies is for everybody.
        self.build_inside(context)
        self.run_layerwright("build", "--progress", "plain", "--no-cache", context, root=self.place / "store")
        self.inside(self.place / "layerwright", "gc", "--all", "--root", self.place / "store")


if __name__ == "__main__":
    unittest.main()
