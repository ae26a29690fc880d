"""RUN --mount, --network, --security and --add-host through the binary, as every user."""

import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import tempfile
import unittest

from support import Case, Layout, USERS, wait_for

SECRET = "s3cr3t-value-of-the-tests"


class Mounts(Case):
    def built(self, dockerfile, *arguments, user="root", name="image", **files):
        context = self.context(f"context-{name}", Dockerfile=dockerfile, **files)
        return Layout(self.build(context, "--no-cache", *arguments, user=user, name=name))

    def refused(self, dockerfile, *arguments, user="root", name="image"):
        context = self.context(f"context-{name}", Dockerfile=dockerfile)
        done = self.run_layerwright("build", "--progress", "plain", *arguments, context, user=user, code=None)
        self.assertNotEqual(done.returncode, 0, done.stderr)
        return done.stderr

    def names(self, layout):
        """What the layers on top of the base hold."""
        return sorted(name for layer in list(layout.layers())[1:] for name in layer)

    def test_files_of_stages_images_and_the_context(self):
        dockerfile = """
FROM busybox AS made
RUN mkdir -p /d/deep && echo stage > /d/deep/f && ln -s /d/deep /link
FROM busybox
RUN --mount=from=made,source=/link,target=/mnt/a/b \\
    --mount=from=busybox,source=/bin/busybox,target=/opt/busybox \\
    --mount=target=/context,source=sub \\
    --mount=target=/context-file,source=top \\
    cat /mnt/a/b/f /context/f /context-file > /out && /opt/busybox true && ! touch /context/x /mnt/a/b/x
RUN --mount=target=/scratch,rw echo written > /scratch/top && cat /scratch/top >> /out && mkdir /scratch/new
RUN --mount=target=/scratch cat /scratch/top >> /out && test ! -e /scratch/new
"""
        digests = set()
        for user in USERS:
            layout = self.built(dockerfile, user=user, name=user, sub__f="context\n", top="file\n")
            self.assertEqual(layout.read("out").decode().split(), ["stage", "context", "file", "written", "file"])
            self.assertEqual(set(self.names(layout)), {"out"})
            digests.add(layout.digest)
        self.assertEqual(len(digests), 1)
        self.assertIn('"/none": not found', self.refused("FROM busybox\nRUN --mount=from=busybox,source=/none,target=/m true\n"))

    def test_tmpfs_has_a_size_and_leaves_nothing(self):
        dockerfile = """
FROM busybox
RUN --mount=type=tmpfs,target=/t/m,size=1m ! dd if=/dev/zero of=/t/m/f bs=1024 count=2048 && test -s /t/m/f
"""
        for user in USERS:
            self.assertEqual(self.names(self.built(dockerfile, user=user, name=user)), [])

    def test_secrets_are_where_they_are_asked_for_and_nowhere_else(self):
        dockerfile = """
FROM busybox
RUN --mount=type=secret,id=token --mount=type=secret,id=token,env=TOKEN \\
    --mount=type=secret,id=token,target=/open,mode=0444 \\
    --mount=type=secret,id=absent,target=/absent \\
    stat -c %a:%u:%g /run/secrets/token /open > /out && sha256sum < /run/secrets/token >> /out \\
    && printf %s "$TOKEN" | sha256sum >> /out && test ! -e /absent
RUN test ! -e /run/secrets && test -z "$TOKEN" && ! grep -qr "$(echo s3cr3t)-value" /proc/*/environ
"""
        for user in USERS:
            file = self.scratch / f"secret-{user}"
            file.write_text(SECRET)
            for number, source in enumerate((f"id=token,src={file}", "id=token,env=LAYERWRIGHT_TEST_SECRET")):
                environment = {"LAYERWRIGHT_TEST_SECRET": SECRET}
                context = self.context(f"context-{user}-{number}", Dockerfile=dockerfile)
                layout = Layout(self.build(
                    context, "--no-cache", "--secret", source, user=user, name=f"{user}-{number}", env=environment))
                lines = layout.read("out").decode().split()
                self.assertEqual(lines[:2], ["400:0:0", "444:0:0"])
                self.assertEqual(lines[2], lines[4])
                self.assertEqual(self.names(layout), ["out"])
                self.assert_nowhere(self.store(user))
                self.assert_nowhere(self.scratch / f"out-{user}-{number}")
                self.assertNotIn(SECRET, self.last.stdout + self.last.stderr)

    def assert_nowhere(self, directory):
        found = subprocess.run(["grep", "-rlaF", SECRET, directory], stdout=subprocess.PIPE, text=True)
        self.assertEqual(found.stdout, "")

    def test_secrets_that_are_needed_or_not_to_be_had(self):
        error = self.refused("FROM busybox\nRUN --mount=type=secret,id=token,required true\n")
        self.assertIn("secret token: not found", error)
        self.assertIn("--secret id=token", error)
        file = self.scratch / "secret"
        file.write_text(SECRET)
        dockerfile = "FROM busybox\nRUN --mount=type=secret,id=token,uid=33,gid=34 stat -c %u:%g /run/secrets/token > /out\n"
        for user in ("root", "lw-sub"):
            layout = self.built(dockerfile, "--secret", f"id=token,src={file}", user=user, name=user)
            self.assertEqual(layout.read("out"), b"33:34\n")
        error = self.refused(dockerfile, "--secret", f"id=token,src={file}", user="lw-one", name="one")
        self.assertIn("33:34", error)

    def tools(self):
        """ssh-add and what it needs, in a context of its own."""
        directory = self.context("tools")
        program = shutil.which("ssh-add")
        libraries = re.findall(r"(/\S+)", subprocess.run(["ldd", program], stdout=subprocess.PIPE, text=True).stdout)
        for path in [program, *libraries]:
            shutil.copy(path, directory / pathlib.Path(path).name)
        (directory / "ssh-add").chmod(0o755)
        loader = next(pathlib.Path(path).name for path in libraries if "ld-linux" in path)
        (directory / "add").write_text(f'#!/bin/sh\nexec /tools/{loader} --library-path /tools /tools/ssh-add "$@"\n')
        for path in directory.iterdir():
            path.chmod(0o755)
        return directory

    @unittest.skipUnless(shutil.which("ssh-agent"), "SKIPPED: no ssh-agent (Debian: openssh-client)")
    def test_agents(self):
        key = self.scratch / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "of the tests", "-f", key], check=True)
        dockerfile = """
FROM busybox
RUN --mount=from=tools,target=/tools --mount=type=ssh,required \\
    /tools/add -l > /out && test -S "$SSH_AUTH_SOCK" && ! /tools/add -D && ! /tools/add -x </dev/null \\
    && /tools/add -l >> /out && stat -c %a:%u:%g "$SSH_AUTH_SOCK" >> /out
"""
        tools = self.tools()
        for user in USERS:
            own = self.scratch / f"key-{user}"
            shutil.copy(key, own)
            own.chmod(0o600)
            shutil.chown(own, user, user)
            agent_path = self.scratch / f"agent-{user}"
            runuser = [] if user == "root" else ["runuser", "-u", user, "--"]
            agent = subprocess.Popen([*runuser, "ssh-agent", "-D", "-a", agent_path], stdout=subprocess.DEVNULL)
            try:
                environment = {**os.environ, "SSH_AUTH_SOCK": str(agent_path)}
                # Its socket is there a moment before it listens.
                reached = [*runuser, "ssh-add", "-l"]
                wait_for(lambda: subprocess.run(reached, env=environment, capture_output=True).returncode != 2, "an ssh-agent")
                subprocess.run([*runuser, "ssh-add", "-q", own], check=True, env=environment)
                outputs = []
                for number, flag in enumerate(("default", f"default={agent_path}", f"default={own}")):
                    context = self.context(f"context-{user}-{number}", Dockerfile=dockerfile)
                    layout = Layout(self.build(
                        context, "--no-cache", "--build-context", f"tools={tools}", "--ssh", flag, user=user,
                        name=f"{user}-{number}", env={"SSH_AUTH_SOCK": str(agent_path)}))
                    self.assertEqual(self.names(layout), ["out"])
                    lines = layout.read("out").decode().splitlines()
                    self.assertIn("ED25519", lines[0])
                    self.assertEqual(lines[0], lines[1], "the step could take the key away")
                    self.assertEqual(lines[2], "600:0:0")
                    outputs.append(lines[0].split()[1])
                self.assertEqual(len(set(outputs)), 1)
            finally:
                agent.terminate()
                agent.wait()
        self.assertEqual(list(pathlib.Path(tempfile.gettempdir()).glob("layerwright-ssh-*")), [])

    @unittest.skipUnless(shutil.which("ssh-agent"), "SKIPPED: no ssh-agent (Debian: openssh-client)")
    def test_an_agent_of_another_user_in_the_step(self):
        key = self.scratch / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        key.chmod(0o644)
        dockerfile = """
FROM busybox
USER www-data
RUN --mount=from=tools,target=/tools --mount=type=ssh,id=work,uid=33,mode=0600 /tools/add -l
"""
        tools = self.tools()
        for user in ("root", "lw-sub"):
            self.built(dockerfile, "--build-context", f"tools={tools}", "--ssh", f"work={key}", user=user, name=user)
        error = self.refused(dockerfile, "--build-context", f"tools={tools}", "--ssh", f"work={key}", user="lw-one", name="one")
        self.assertRegex(error, "33:0|user 33")

    @unittest.skipUnless(shutil.which("ssh-agent"), "SKIPPED: no ssh-agent (Debian: openssh-client)")
    def test_agents_and_keys_that_cannot_be_had(self):
        wanted = "FROM busybox\nRUN --mount=type=ssh,required true\n"
        self.assertIn("--ssh default", self.refused(wanted, name="none"))
        locked = self.scratch / "locked"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "words", "-f", locked], check=True)
        error = self.refused(wanted, "--ssh", f"default={locked}", name="locked")
        self.assertIn("is encrypted", error)
        nonsense = self.scratch / "nonsense"
        nonsense.write_text("no key\n")
        self.assertIn("is not accepted", self.refused(wanted, "--ssh", f"default={nonsense}", name="nonsense"))
        self.built("FROM busybox\nRUN --mount=type=ssh test ! -e \"$SSH_AUTH_SOCK\"\n", name="optional")

    def test_cache_mounts_have_the_owner_that_is_asked_for(self):
        dockerfile = """
FROM busybox
RUN --mount=type=cache,target=/c,uid=33,gid=34,mode=0750 stat -c %a:%u:%g /c > /out
"""
        for user in ("root", "lw-sub"):
            layout = self.built(dockerfile, user=user, name=user)
            self.assertEqual(layout.read("out"), b"750:33:34\n")
            self.assertEqual(self.names(layout), ["out"])
        self.assertIn("33:34", self.refused(dockerfile, user="lw-one", name="one"))

    def test_networks_hosts_and_names(self):
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        dockerfile = f"""
FROM busybox
RUN nc gate {port} -e true && nc 127.0.0.1 {port} -e true && grep -w six /etc/hosts > /out && cat /proc/sys/kernel/hostname >> /out
RUN --network=none ! nc -w 1 127.0.0.1 {port} -e true && ip -o link | wc -l >> /out && test ! -s /etc/resolv.conf
"""
        with listener:
            for user in USERS:
                layout = self.built(
                    dockerfile, "--add-host", "gate:host-gateway", "--add-host", "six=2001:db8::1",
                    "--build-arg", "BUILDKIT_SANDBOX_HOSTNAME=named", user=user, name=user)
                self.assertEqual(layout.read("out").decode().split(), ["2001:db8::1", "six", "named", "1"])
        error = self.refused("FROM busybox\nRUN --network=host true\n")
        self.assertIn("--allow network.host", error)

    def test_insecure_steps_need_two_words(self):
        dockerfile = "FROM busybox\nRUN --security=insecure mkdir /m && mount -t tmpfs none /m && echo mounted > /out\n"
        self.assertIn("--allow security.insecure", self.refused(dockerfile))
        for user in USERS:
            layout = self.built(dockerfile, "--allow", "security.insecure", user=user, name=user)
            self.assertEqual(layout.read("out"), b"mounted\n")
        loop = "echo written > /file && truncate -s 4k /file && d=$(busybox losetup -f) && busybox losetup $d /file"
        disk = f"FROM busybox\nRUN --security=insecure {loop} && head -n 1 $d > /out; busybox losetup -d $d\n"
        if os.path.exists("/dev/loop-control"):
            layout = self.built(disk, "--allow", "security.insecure", name="disk")
            self.assertEqual(layout.read("out"), b"written\n")
        else:
            print("SKIPPED: loop devices of insecure steps: this kernel has none")
        plain = "FROM busybox\nRUN mkdir /m && test ! -e /dev/loop-control && ! mount -t tmpfs none /m\n"
        self.built(plain, "--allow", "security.insecure", name="plain")

    def test_devices_of_the_machine(self):
        spec = {"cdiVersion": "0.6.0", "kind": "vendor1.com/device", "devices": [
            {"name": "one", "containerEdits": {
                "env": ["DEVICE=one"], "deviceNodes": [{"path": "/dev/one", "hostPath": "/dev/zero"}],
                "mounts": [{"hostPath": "/etc/passwd", "containerPath": "/lib/one", "options": ["ro", "bind"]}]}},
            {"name": "hooked", "containerEdits": {"hooks": [{"hookName": "createRuntime", "path": "/bin/true"}]}}]}
        (self.scratch / "cdi.json").write_text(json.dumps(spec))
        # Where such files lie is the machine's own: the builds see another /run.
        enter = f"mount -t tmpfs none /run && mkdir /run/cdi && cp {self.scratch}/cdi.json /run/cdi && exec \"$@\""

        def build(name, device, code=0):
            dockerfile = (f"FROM busybox\nRUN --device={device} ls /dev/one /lib/one; "
                          "dd if=/dev/one of=/out bs=4 count=1; echo -n $DEVICE >> /out\n")
            context = self.context(f"context-{name}", Dockerfile=dockerfile)
            out = self.scratch / name
            command = self.command("build", "--progress", "plain", "--allow", "device", "-o", f"type=oci,tar=false,dest={out}", context)
            done = subprocess.run(
                ["unshare", "--mount", "sh", "-ec", enter, "sh", *command], capture_output=True, text=True, timeout=300)
            self.assertEqual(done.returncode != 0, code != 0, done.stderr)
            return Layout(out) if code == 0 else done.stderr

        layout = build("one", "vendor1.com/device=one,required")
        self.assertEqual(layout.read("out"), bytes(4) + b"one")
        self.assertEqual(self.names(layout), ["out"])
        self.assertEqual(self.names(build("absent", "vendor2.com/device=one")), ["out"])
        self.assertIn("needs hooks", build("hooked", "vendor1.com/device=hooked", code=1))
        missing = build("required", "vendor2.com/device=one,required", code=1)
        self.assertIn('required device "vendor2.com/device=one" is not registered', missing)

    def test_nothing_of_the_builder_can_be_mounted_over(self):
        for target, error in (("/", "invalid mount target"), ("/proc/self", "inside /proc")):
            name = target.replace("/", "-")
            dockerfile = f"FROM busybox\nRUN --mount=type=tmpfs,target={target} true\n"
            self.assertIn(error, self.refused(dockerfile, name=name))


if __name__ == "__main__":
    unittest.main()
