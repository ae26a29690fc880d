"""The ladder: every rung that can be had here gives the same image, says its name, and strict refuses the weaker ones."""

import errno
import json
import os
import pathlib
import pwd
import re
import shutil
import subprocess
import tempfile
import unittest

from overlaid import AS_IT_IS, Machines, WITH_DEVICE, as_user, on_overlay
from support import Layout, WATCHDOG

# What a step can do on every rung, the one with a single id included; nothing of it says where it ran.
DOCKERFILE = """FROM busybox
COPY file /etc/file
RUN mkdir -p /a/b && echo one > /a/b/c && ln /a/b/c /a/d && ln -s b/c /a/e && chmod 4755 /a/b/c && mkfifo /a/f
RUN rm /a/d && mv /a/b /a/g && echo more >> /etc/file && rm -r /a/e && mkdir /a/e
RUN --network=none --mount=type=cache,target=/cache sleep 1000 & test -d /proc/self/fd && cat /proc/self/comm > /comm
"""
COPIED, FUSED = ", with copies for overlays", ", with fuse-overlayfs; allowed: fuse-overlayfs"
# No version until now is one that a build relies on by itself.
ALLOW_FUSE = "--sandbox-allow=fuse-overlayfs"
SUBORDINATE, ONE = "user namespace with subordinate ids", "user namespace with one id"
OUTER_PROC, SHARED = ", with this machine's /proc", ", with this machine's /proc and processes"
# What strict says of what is no overlay, and what it advises.
FORM = ("what stands in for overlay ", "overlay fsconfig upperdir: ", "let --root name")
MASK = "mount -t tmpfs none /proc/fs && exec \"$@\""
PROFILE = pathlib.Path("/usr/share/containers/seccomp.json")
CAPABILITIES = ("CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT KILL "
                "AUDIT_WRITE")
NO_PIDS = "echo 0 > /proc/sys/user/max_pid_namespaces && exec \"$@\""


def masked(user):
    """A machine whose /proc is masked, as that of a container."""
    return ["unshare", "--mount", "--", "sh", "-c", MASK, "sh", "runuser", "-u", user, "--"]


def without_pid_namespaces(user):
    inside = ["unshare", "--user", "--map-root-user", "--map-auto", "--", "sh", "-c", NO_PIDS, "sh"]
    return ["runuser", "-u", user, "--", *inside]


def container(directory, *arguments, uid, **options):
    """Runs a command in a container to its end; gives the completed process."""
    return subprocess.run(container_words(directory, *arguments, uid=uid, **options), stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, timeout=WATCHDOG)


def container_words(directory, *arguments, uid, path="", denied=(), granted=(), lacking=(), shown=(), env=None, flags=""):
    """What runs a command in a container as CI has them: Docker's capabilities, less `lacking`, masked /proc, and a filter that is
    Docker's but for what user namespaces need (podman's, of which what wants capabilities is left out), with `granted` and
    less `denied`. It sees the directory and those `shown`, and has the environment `env` where there is one."""
    profile = json.loads(PROFILE.read_text())
    allowed = [entry for entry in profile["syscalls"] if entry["action"] == "SCMP_ACT_ALLOW"
               and not (entry.get("includes") or {}).get("caps") and not entry.get("args")]
    # It allows sockets by their family, which is no matter here.
    names = sorted({"socket", *granted, *(name for entry in allowed for name in entry["names"])} - set(denied))
    # What is newer than a program's C library knows must look so, and not as forbidden.
    newer = [{"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS}] if "clone3" in denied else []
    # As Docker's, which leaves these to its rules instead of ending who calls by them.
    foreign = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"] if os.uname().machine == "x86_64" else []
    own = [{"destination": place, "type": "none", "source": place, "options": ["bind", "ro"]}
           for place in ("/usr", "/etc", "/bin", "/sbin", "/lib", "/lib64") if pathlib.Path(place).exists()]
    fresh = {"/proc": "proc", "/dev": "tmpfs", "/dev/pts": "devpts", "/dev/shm": "tmpfs"}
    mounts = [{"destination": place, "type": kind, "source": kind} for place, kind in fresh.items()] + own
    mounts += [{"destination": str(place), "type": "none", "source": str(place), "options": ["bind", "rw"]}
               for place in (directory, *shown)]
    variables = env or {"HOME": directory}
    bounding = ["CAP_" + name for name in CAPABILITIES.split() if name not in lacking]
    held = bounding if uid == 0 else []
    config = {
        "ociVersion": "1.0.2", "hostname": "pod", "mounts": mounts, "root": {"path": "rootfs"},
        "process": {"args": list(map(str, arguments)), "user": {"uid": uid, "gid": uid}, "cwd": "/",
                    "env": [*(f"{key}={value}" for key, value in variables.items() if key != "PATH"),
                            f"PATH={path}/usr/sbin:/usr/bin:/sbin:/bin"],
                    "capabilities": {"bounding": bounding, "effective": held, "permitted": held}},
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")],
                  "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi"],
                  "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
                  "seccomp": {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "architectures": foreign,
                              "syscalls": [{"names": names, "action": "SCMP_ACT_ALLOW"}, *newer]}}}
    bundle = pathlib.Path(tempfile.mkdtemp(prefix="bundle.", dir=directory))
    (bundle / "rootfs").mkdir()
    (bundle / "config.json").write_text(json.dumps(config))
    # crun refuses to start on a host that has both versions of control groups, unless it does not see one.
    script = ("umount -l /sys/fs/cgroup/unified 2>/dev/null; "
              f"exec crun --cgroup-manager=disabled --root {bundle}/state run {flags} --bundle {bundle} {bundle.name}")
    return ["unshare", "--mount", "--", "sh", "-c", script]


class Ladder(Machines):
    def machine_of_root(self):
        """A machine on which root has subordinate ids; nothing of it stays."""
        files = {}
        for name in ("subuid", "subgid"):
            files[name] = self.scratch / name
            files[name].write_text("root:400000:65536\n")
            files[name].chmod(0o644)
        script = "mount --bind {subuid} /etc/subuid && mount --bind {subgid} /etc/subgid && exec \"$@\"".format(**files)
        return ["unshare", "--mount", "--", "sh", "-c", script, "sh"]

    def rungs(self):
        return {
            "root": ([], "root", (), "root"),
            "userns": (self.machine_of_root(), "root", ("--sandbox=userns",), SUBORDINATE),
            "sub": (["runuser", "-u", "lw-sub", "--"], "lw-sub", ("--sandbox=strict",), SUBORDINATE),
            "one": (["runuser", "-u", "lw-one", "--"], "lw-one", (), ONE),
            "sub-masked": (masked("lw-sub"), "lw-sub", (), SUBORDINATE + OUTER_PROC),
            "one-masked": (masked("lw-one"), "lw-one", (), ONE + OUTER_PROC),
            "sub-shared": (without_pid_namespaces("lw-sub"), "lw-sub", (), SUBORDINATE + SHARED),
            "root-copied": (self.copying("root"), "root", (), "root" + COPIED),
            "sub-copied": (self.copying("sub", "lw-sub"), "lw-sub", (), SUBORDINATE + COPIED),
            "one-copied": (self.copying("one", "lw-one"), "lw-one", (), ONE + COPIED),
            "root-fused": (self.merging("root"), "root", (ALLOW_FUSE,), "root" + FUSED),
            "sub-fused": (self.merging("sub", "lw-sub"), "lw-sub", (ALLOW_FUSE,), SUBORDINATE + FUSED),
            "one-fused": (self.merging("one", "lw-one"), "lw-one", (ALLOW_FUSE,), ONE + FUSED),
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
            "one": (["runuser", "-u", "lw-one", "--"], "lw-one", "a single user id: ", "/etc/subuid: no range", "usermod --add-subuids"),
            "masked": (masked("lw-sub"), "lw-sub", "this machine's /proc: ", "mount /proc: ", "systempaths=unconfined"),
            "shared": (without_pid_namespaces("lw-sub"), "lw-sub", "shared processes: ", "unshare pid namespace: ", "user.max_pid_namespaces"),
            "root-copied": (self.copying("root"), "root", *FORM),
            "root-fused": (self.merging("root"), "root", *FORM),
        }
        for name, (machine, user, what, refusal, remedy) in cases.items():
            done, image = self.on(machine, context, "--sandbox=strict", user=user, name=name, code=4)
            first = next(line for line in done.stderr.splitlines() if "error: " in line)
            self.assertIn("--sandbox=strict refuses " + what, first, name)
            self.assertIn(refusal, first, name)
            self.assertNotIn(str(self.scratch), first, name)
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

    def test_a_store_on_an_overlay_is_told_looked_after_and_stays_one_of_copies(self):
        context = self.context(Dockerfile="FROM busybox\nRUN rm -r /bin/vi /bin/ln && mkdir /bin/ln && echo x > /bin/ln/y\n"
                               "RUN --mount=type=bind,from=busybox,target=/b,rw --mount=type=cache,target=/c rm /b/bin/sh && "
                               "cp /bin/ln/y /c/y && rm -r /bin/ln\n")
        _, alone = self.on([], context, name="root")
        machine = self.copying("kept")
        done, copied = self.on(machine, context, name="kept-copied")
        self.assertEqual(Layout(copied).digest, Layout(alone).digest)
        warnings = [line for line in done.stderr.splitlines() if "copies the whole file system" in line]
        self.assertEqual(len(warnings), 1, done.stderr)
        self.assertIn("let --root name a volume", warnings[0])
        # What was begun on an overlay goes on with copies where there is none.
        place = self.scratch / "store-kept-copied-parts" / "upper"
        kept = self.context("kept", Dockerfile="FROM busybox\nRUN true > /again\n")
        for arguments in (["build", "--progress", "plain", "--build-context", f"busybox=oci-layout://{self.base}", str(kept)],
                          ["fsck"], ["du"], ["gc", "--all"]):
            done = subprocess.run([str(self.binary), *arguments, "--root", str(place)], stdin=subprocess.DEVNULL, text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=WATCHDOG)
            self.assertEqual(done.returncode, 0, (arguments, done.stdout, done.stderr))
            if arguments[0] == "build":
                self.assertIn("sandbox: root" + COPIED, done.stderr)
                self.assertRegex(done.stderr, r"warning: .* begun with copies.*\(a new --root here gets overlay\)")
        told = self.doctor([], place)
        self.assertIn("\nok: RUN steps work (root" + COPIED + ")\n", told.stdout)
        self.assertIn("(a new --root here gets overlay)", told.stdout)
        # So it does where fuse-overlayfs could serve by now.
        done = subprocess.run([*self.merging("kept-later"), str(self.binary), "build", "--progress", "plain", "--root",
                               str(self.moved(place, "kept-later-fused")), "--build-context",
                               f"busybox=oci-layout://{self.base}", "--no-cache", ALLOW_FUSE, str(kept)], stdin=subprocess.DEVNULL, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=WATCHDOG)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stderr, r"warning: .* begun with copies.*\(a new --root here gets fuse-overlayfs\)")

    def moved(self, store, name):
        """Has a store lie on the overlay that will be there by this name; gives where."""
        parts = self.scratch / f"store-{name}-parts"
        parts.mkdir(exist_ok=True)
        shutil.rmtree(parts / "upper", ignore_errors=True)
        store.rename(parts / "upper")
        return self.scratch / f"store-{name}"

    def doctor(self, machine, store, code=0):
        done = subprocess.run([*machine, str(self.binary), "doctor", "--root", str(store)], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True, cwd="/", timeout=WATCHDOG)
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        return done

    def test_doctor_says_what_a_build_does_with_that_store(self):
        context = self.context(Dockerfile="FROM busybox\nRUN true\n")
        self.on(self.merging("kept"), context, ALLOW_FUSE, name="kept-fused")
        store = self.scratch / "store-kept-fused"
        # As a build without it does.
        self.assertIn(ALLOW_FUSE + " takes it all the same", self.doctor(self.merging("kept"), store, code=4).stdout)
        # The same store where fuse-overlayfs does not work any more.
        without = on_overlay([], store, "root")
        told = self.doctor(without, store, code=4).stdout
        self.assertRegex(told, r"(?m)^no +root .*this store was begun with fuse-overlayfs, which does not work now")
        self.assertIn("let --root name another directory", told)
        command = [str(self.binary), "build", "--root", str(store), "--build-context", f"busybox=oci-layout://{self.base}"]
        done = subprocess.run([*without, *command, str(context)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              stdin=subprocess.DEVNULL, timeout=WATCHDOG)
        self.assertEqual(done.returncode, 4, done.stderr)
        # One of overlay's own layers.
        self.on([], context, name="alone")
        self.assertIn("\nok: RUN steps work (root)\n", self.doctor([], self.scratch / "store-alone").stdout)

    @unittest.skipUnless(PROFILE.exists(), "SKIPPED: the ladder in a container: podman's system call filter is not here")
    def test_in_an_unprivileged_container_under_a_filter(self):
        context = self.context(Dockerfile=DOCKERFILE, file="x\n")
        _, alone = self.on([], context, name="root")
        place = self.scratch / "pod"
        place.mkdir(mode=0o1777)
        place.chmod(0o1777)
        shutil.copy2(self.binary, place / "layerwright")
        shutil.copytree(self.base, place / "base")
        shutil.copytree(context, place / "context")
        (place / "bin").mkdir()
        for helper, capability in (("newuidmap", "cap_setuid"), ("newgidmap", "cap_setgid")):
            shutil.copyfile(shutil.which(helper), place / "bin" / helper)
            (place / "bin" / helper).chmod(0o755)
            subprocess.run(["setcap", f"{capability}+ep", place / "bin" / helper], check=True, timeout=WATCHDOG)
        own_helpers = f"{place}/bin:"
        # Its root may have the container's own ids where it has Docker's capabilities.
        for name, uid, path, lacking, rung in (
                ("root", 0, "", (), SUBORDINATE), ("weak", 0, "", ("SETUID",), ONE),
                ("sub", pwd.getpwnam("lw-sub").pw_uid, own_helpers, (), SUBORDINATE),
                ("setuid", pwd.getpwnam("lw-sub").pw_uid, "", (), ONE)):
            command = [place / "layerwright", "build", "--progress", "json", "--root", place / f"store-{name}",
                       "--build-context", f"busybox=oci-layout://{place}/base", "-o",
                       f"type=oci,dest={place}/out-{name},tar=false", place / "context"]
            done = container(place, *command, uid=uid, path=path, lacking=lacking)
            self.assertEqual(done.returncode, 0, done.stderr)
            events = [json.loads(line) for line in done.stderr.splitlines()]
            told = [event["rung"] for event in events if event["event"] == "sandbox"]
            self.assertEqual(told, [rung + OUTER_PROC], name)
            self.assertEqual(Layout(place / f"out-{name}").digest, Layout(alone).digest, name)
        # The usual name of a step's machine can be done without; one that somebody has asked for cannot.
        command += ["--build-arg", "BUILDKIT_SANDBOX_HOSTNAME=box"]
        done = container(place, *command, uid=uid, path=path)
        self.assertNotEqual(done.returncode, 0)
        self.assertRegex(done.stderr, "set hostname.*leave --hostname or BUILDKIT_SANDBOX_HOSTNAME out")

    @unittest.skipUnless(PROFILE.exists(), "SKIPPED: a container's own ids: podman's system call filter is not here")
    def test_root_of_a_container_has_its_ids_without_a_grant(self):
        context = self.context(Dockerfile="FROM busybox\nRUN mkdir /own && chown 33:34 /own\nUSER 1000:1001\nWORKDIR /home/u\n"
                               "RUN id -u > /tmp/id; test $(id -u):$(id -g) = 1000:1001\nUSER 65534\nRUN id -u > /tmp/nobody\n")
        _, alone = self.on([], context, name="root")
        place = self.scratch / "pod"
        place.mkdir(mode=0o755)
        for source, name in ((self.base, "base"), (context, "context")):
            shutil.copytree(source, place / name)
        shutil.copy2(self.binary, place / "layerwright")
        command = [place / "layerwright", "build", "--progress", "plain", "--root", place / "store", "--build-context",
                   f"busybox=oci-layout://{place}/base", "-o", f"type=oci,dest={place}/out,tar=false", place / "context"]
        done = container(place, *command, uid=0, lacking=("SETFCAP",))
        self.assertEqual(done.returncode, 4, done.stderr)
        self.assertIn("capabilities.add: [SETFCAP]", done.stderr)
        # Not even newuidmap is there.
        (place / "bin").mkdir()
        done = container(place, "sh", "-c", f'PATH={place}/bin exec "$@"', "sh", *command, uid=0)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertNotIn("one user id only", done.stderr)
        self.assertEqual(Layout(place / "out").digest, Layout(alone).digest)
        for arguments in (["fsck"], ["du"], ["gc", "--all"]):
            done = container(place, place / "layerwright", *arguments, "--root", place / "store", uid=0)
            self.assertEqual(done.returncode, 0, (arguments, done.stdout, done.stderr))

    @unittest.skipUnless(PROFILE.exists(), "SKIPPED: doctor in a container: podman's system call filter is not here")
    def test_doctor_names_what_a_container_forbids(self):
        place = self.scratch / "pod"
        place.mkdir(mode=0o1777)
        place.chmod(0o1777)
        shutil.copy2(self.binary, place / "layerwright")
        uid = pwd.getpwnam("lw-sub").pw_uid
        for denied, code, told in (
                ((), 0, ("user namespace with one id, with this machine's /proc", "systempaths=unconfined", "setcap cap_setuid+ep")),
                (("unshare",), 4, ("seccomp=unconfined", "no: RUN steps cannot work here"))):
            done = container(place, place / "layerwright", "doctor", "--root", place, uid=uid, denied=denied)
            self.assertEqual(done.returncode, code, done.stdout + done.stderr)
            for words in told:
                self.assertIn(words, done.stdout)

    def test_doctor_names_what_a_machine_forbids(self):
        doctor = [str(self.binary), "doctor", "--root", str(self.directory("place", "lw-sub"))]
        no_namespaces = ["unshare", "--user", "--map-root-user", "--map-auto", "--", "sh", "-c",
                         "echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --bounding-set=-sys_admin \"$@\"", "sh"]
        as_user = ["runuser", "-u", "lw-sub", "--"]
        no_program = ["env", "PATH=/nothing"]
        for name, machine, told in (
                ("no helpers", [*as_user, "env", "PATH=/nothing"], "install the package `uidmap`"),
                ("no namespaces", [*as_user, *no_namespaces], "raise the sysctl user.max_user_namespaces (now 0)"),
                ("masked", masked("lw-sub"), "procMount: Unmasked"),
                ("no pid namespaces", without_pid_namespaces("lw-sub"), "raise the sysctl user.max_pid_namespaces"),
                ("on an overlay", on_overlay([], self.scratch / "place", "root"), "let --root name a volume"),
                ("no device", on_overlay(as_user, self.scratch / "place", "lw-sub", AS_IT_IS), "chmod 0666 /dev/fuse"),
                ("no program", on_overlay(no_program, self.scratch / "place", "root"), "install the package `fuse-overlayfs`"),
                ("a device", on_overlay(as_user, self.scratch / "place", "lw-sub", WITH_DEVICE), "--sandbox-allow=fuse-overlayfs takes it all the same"),
                ("one id", ["runuser", "-u", "lw-one", "--"], "usermod --add-subuids")):
            done = subprocess.run([*machine, *doctor], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/",
                                  timeout=WATCHDOG)
            self.assertIn(told, done.stdout, name)

    def test_a_limit_of_namespaces_is_named_by_its_kind(self):
        """By doctor, a build and a run; each kind has a limit of its own."""
        context = self.context(Dockerfile="FROM busybox\nRUN --network=none true\n")
        base, store = f"oci-layout://{self.base}", str(self.directory("limited"))
        for kind in ("mnt", "ipc", "uts", "net"):
            setting = f"raise the sysctl user.max_{kind}_namespaces (now 0)"
            machine = ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--", "sh", "-c", "mount -t proc proc /proc && "
                       f"echo 0 > /proc/sys/user/max_{kind}_namespaces && exec \"$@\"", "sh"]
            for command in (["doctor"], ["build", "--build-context", f"busybox={base}", str(context)],
                            ["run", "--network=none", base, "true"]):
                done = subprocess.run([*machine, str(self.binary), command[0], "--root", store, *command[1:]], text=True,
                                      stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=WATCHDOG)
                told = done.stdout + done.stderr
                self.assertIn(setting, told, (kind, command[0]))
                self.assertNotIn("max_user_namespaces", told, (kind, command[0]))
                if command[0] != "doctor":
                    self.assertNotEqual(done.returncode, 0, (kind, command[0]))
        # The last machine's, without a program for isolated networks, which --network=none does not need.
        done = subprocess.run([*machine, "/usr/bin/env", "PATH=/nothing", str(self.binary), "doctor", "--root", store], text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=WATCHDOG)
        self.assertRegex(done.stdout, r"--network=none are refused: .*raise the sysctl user\.max_net_namespaces \(now 0\)")
        self.assertEqual(done.returncode, 0, "no build needs it that does not ask for it")

    def test_doctor_names_the_rung_that_a_build_takes(self):
        place = self.directory("place")
        doctor = [str(self.binary), "doctor", "--root", str(place)]
        empty = self.scratch / "empty"
        empty.write_text("")
        for_others = self.scratch / "others"
        for_others.write_text("ann:100000:65536\nbob:165536:65536\n")
        no_range, taken = (["unshare", "--mount", "--", "sh", "-c", f"mount --bind {subuid} /etc/subuid && mount --bind {subgid} "
                            "/etc/subgid && exec \"$@\"", "sh"] for subuid, subgid in ((empty, empty), (empty, for_others)))
        for machine, told in (
                (["unshare", "-Urm"], (rf"(?m)^ok +{ONE} ", "limited: RUN steps work, with one user id",
                                       "in a user namespace of one id already.*start layerwright outside of it")),
                (no_range, (r"(?m)^ok +root ", rf"(?m)^- +{SUBORDINATE} .*--sandbox=userns is refused: .*/etc/subuid: no range",
                            "usermod --add-subuids 100000-165535 --add-subgids 100000-165535 root")),
                (taken, ("usermod --add-subuids 231072-296607 --add-subgids 231072-296607 root",))):
            done = subprocess.run([*machine, *doctor], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/",
                                  timeout=WATCHDOG)
            self.assertEqual(done.returncode, 0, done.stderr)
            for words in told:
                self.assertRegex(done.stdout, words)

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
