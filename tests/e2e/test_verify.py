"""verify --twice builds from nothing, elsewhere, and names what is not the same."""

import json
import os
import pwd
import signal
import stat
import subprocess
import threading
import time
import unittest
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from support import Case, WATCHDOG, wait_for

# What makes a build another one, each by itself: the instruction, the path that must be named, and what of it.
CAUSES = {
    "a clock": ("RUN date > /x", "/x", "content, line 1"),
    "chance": ("RUN head -c 16 /dev/urandom > /x", "/x", "content, byte "),
    "a name by chance": ("RUN touch /tmp/$(cat /proc/sys/kernel/random/uuid)", "/tmp/", "only in the "),
    "inodes": ("RUN ls -i /bin/busybox > /x", "/x", "content, line 1"),
    "a kept time": ("RUN touch -d @$(($(date +%s) % 100000)) /x", "/x", "mtime 1970-01-0"),
    "a mode": ("RUN touch /x && chmod $(printf %o $(($(date +%s) % 512))) /x", "/x", "mode 0"),
    "an owner": ("RUN touch /x && chown $(($(date +%s) % 1000)) /x", "/x", "owner "),
    "a link": ("RUN ln -s $(date +%s) /x", "/x", 'target "'),
    "the time of a source": ("COPY file /file\nRUN stat -c %Y /file > /x", "/x", "content, line 1"),
    "how long the machine is up": ("RUN cat /proc/uptime > /x", "/x", "content, line 1"),
}

REPRODUCIBLE = """\
FROM busybox
COPY --chmod=640 . /src/
RUN find /src -exec stat -c "%n %F %a %u %s %h" {} + | sort > /listing; date > /dev/null; find /src -type f | sort | xargs cat > /all
RUN --mount=type=bind,target=/m cp /m/sub/file /copied
"""


class Verify(Case):
    def command(self, *arguments, user="root", root=None):
        """As build, with its own store and base."""
        if arguments[0] != "verify":
            return super().command(*arguments, user=user, root=root)
        store = root or self.store(user)
        command = [str(self.binary), *map(str, arguments), "--root", str(store),
                   "--build-context", f"busybox=oci-layout://{self.base}"]
        return command if user == "root" else ["runuser", "-u", user, "--", *command]

    def twice(self, context, *arguments, code, **options):
        done = self.run_layerwright("verify", "--twice", "-q", context, *arguments, code=code, **options)
        left = [name for name in os.listdir(self.scratch) if ".verify-" in name]
        self.assertEqual(left, [], "what a verification leaves")
        return done

    def test_ten_causes_are_named_with_instruction_and_path(self):
        for name, (lines, path, field) in CAUSES.items():
            with self.subTest(name):
                context = self.context(name.replace(" ", "-"), Dockerfile=f"FROM busybox\nRUN echo same > /same\n{lines}\n",
                                       file="content\n")
                # Modes and owners count seconds, and builds begin in different ones.
                told = self.twice(context, code=1).stdout
                verdict = told.splitlines()[-1]
                instruction = lines.splitlines()[-1].removeprefix("RUN ")
                self.assertIn("not reproducible: the first difference is made by [", verdict)
                self.assertIn(f"/bin/sh -c {instruction[:30]}", verdict)
                self.assertIn(f": {path}", verdict)
                self.assertIn(field, verdict)
                self.assertNotIn("  /same", told)

    def test_what_is_reproducible_is_the_same_for_every_user(self):
        digests = set()
        for user in ("root", "lw-sub", "lw-one"):
            context = self.context(user, Dockerfile=REPRODUCIBLE, a="a", sub__file="b", sub__z__other="c", _DOT_dockerignore="z*\n")
            os.link(context / "a", context / "same-as-a")
            os.symlink("sub/file", context / "link")
            told = self.twice(context, code=0, user=user).stdout
            self.assertRegex(told, r"^reproducible: sha256:[0-9a-f]{64}\n$")
            digests.add(told)
        self.assertEqual(len(digests), 1, digests)

    def test_bytes_from_elsewhere_that_change(self):
        class Counter(BaseHTTPRequestHandler):
            count = 0

            def do_GET(self):
                type(self).count += 1
                body = f"answer {self.count}\n".encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Counter)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        address = f"http://127.0.0.1:{server.server_port}/file"
        context = self.context(Dockerfile=f"FROM scratch\nADD {address} /x\n")
        told = self.twice(context, "--format", "json", code=1).stdout
        [image] = json.loads(told)["images"]
        [step] = image["steps"]
        self.assertEqual((step["instruction"].split()[0], step["files"][0]["path"]), ("ADD", "/x"))
        self.assertIn("content", [field["field"] for field in step["files"][0]["fields"]])

    def test_an_image_is_verified_against_what_it_is_built_from(self):
        context = self.context(Dockerfile=REPRODUCIBLE, a="a", sub__file="b")
        image = self.build(context)
        against = ("verify", "--against", image, "-q", context)
        self.assertIn("reproducible: sha256:", self.run_layerwright(*against).stdout)
        (context / "a").write_text("other")
        verdict = self.run_layerwright(*against, code=1).stdout.splitlines()[-1]
        self.assertIn("made by [", verdict)
        self.assertIn("COPY", verdict)
        self.assertIn("/src/a, content", verdict)

    def test_the_dockerfiles_own_ignore_file_says_what_is_copied(self):
        context = self.context(_DOT_dockerignore="a\n", a="a", closed__x="x", docker__app="FROM busybox\nCOPY . /src/\n",
                               **{"docker__app_DOT_dockerignore": "closed\n"})
        (context / "closed").chmod(0o700)
        file = ("-f", context / "docker" / "app")
        self.assertIn("reproducible: ", self.twice(context, *file, code=0, user="lw-sub").stdout)
        image = self.build(context, *file)
        (context / "a").unlink()
        verdict = self.run_layerwright("verify", "--against", image, "-q", *file, context, code=1, user="lw-sub").stdout
        self.assertIn("/src/a  only in the first (file)", verdict)
        # A Dockerfile that is a link to what is ignored.
        (context / "Dockerfile").symlink_to("docker/app")
        (context / ".dockerignore").write_text("docker\nclosed\nDockerfile\n")
        self.twice(context, code=0, user="lw-sub")

    def test_what_cannot_be_copied_is_named(self):
        context = self.context(Dockerfile="FROM busybox\nCOPY a /\n", a="a", sub__secret="s")
        image = self.build(context)
        (context / "sub" / "secret").chmod(0)
        against = ("verify", "--against", image, "-q", context)
        told = self.run_layerwright(*against, code=4, user="lw-sub").stderr
        self.assertIn(f"cannot copy {context}/sub/secret to build it elsewhere: Permission denied", told)
        # Where a step copies it, the first build has said so already.
        (context / "a").chmod(0)
        told = self.twice(context, code=5, user="lw-sub").stderr
        self.assertIn('error: cannot read "a" in the build context: Permission denied', told)
        (context / "a").chmod(0o644)
        (context / "sub" / "secret").unlink()
        os.mknod(context / "sub" / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        told = self.run_layerwright(*against, code=4).stderr
        self.assertIn(f"cannot copy {context}/sub/null to build it elsewhere: it is a device", told)
        (context / ".dockerignore").write_text("sub\n")
        self.run_layerwright(*against)

    def test_read_only_directories_are_copied_and_removed(self):
        context = self.context(Dockerfile="FROM busybox\nCOPY . /src\n", sub__file="s")
        (context / "sub").chmod(0o555)
        for user in ("root", "lw-sub", "lw-one"):
            self.twice(context, code=0, user=user)

    def test_a_build_that_fails_says_so_with_its_code(self):
        context = self.context(Dockerfile="FROM busybox\nRUN exit 3\n")
        done = self.twice(context, code=5)
        self.assertIn("did not complete successfully: exit code: 3", done.stderr)
        self.assertEqual(done.stdout, "")
        broken = self.context("broken", Dockerfile="FROM busybox\nNOPE\n")
        self.twice(broken, code=2)
        for flag in (["-t", "x"], ["--push"], ["--no-cache"], ["--cache-from", "x.example.org/y"], ["--check"]):
            done = self.twice(context, *flag, code=2)
            self.assertIn("error: verify takes no --", done.stderr)
        tar = self.scratch / "image.tar"
        self.run_layerwright("build", "-o", f"type=oci,dest={tar}", self.context("fine", Dockerfile="FROM busybox\n"))
        for image in (tar, "registry.example.com/x:1"):
            done = self.run_layerwright("verify", "--twice", image, code=2)
            self.assertIn(f"error: {image} is no directory, and verify builds one\nhint: an image to compare with is given by "
                          "--against: ", done.stderr)
        for arguments, what in ((["-"], "context"), (["-f", "-", context], "Dockerfile")):
            done = self.run_layerwright("verify", "--twice", *arguments, code=2)
            self.assertIn(f"error: verify takes no {what} on standard input: it can be read only once\n", done.stderr)

    def test_a_room_that_somebody_has_planted_is_not_entered(self):
        victim = self.store("lw-one")
        (victim / "kept").write_text("")
        room, target = self.scratch / "store-root.verify-0", self.scratch / "target"
        for place in ("here", "somewhere/else"):
            (room / place).mkdir(parents=True)
            (room / place / "store").symlink_to(victim)
        (room / "lock").symlink_to(target)
        for path in (room, *room.rglob("*")):
            os.lchown(path, *(getattr(pwd.getpwnam("lw-one"), field) for field in ("pw_uid", "pw_gid")))
        context = self.context(Dockerfile="FROM busybox\nRUN echo same > /same\n")
        self.run_layerwright("verify", "--twice", "-q", context)
        self.assertEqual(sorted(path.name for path in room.iterdir()), ["here", "lock", "somewhere"])
        self.assertTrue((room / "here" / "store").is_symlink() and (victim / "kept").exists())
        self.assertFalse(target.exists())
        self.assertEqual([path.name for path in self.scratch.glob("*.verify-*")], [room.name])

    def test_what_stops_it_leaves_nothing_and_what_kills_it_is_cleared_away_by_the_next(self):
        context = self.context(Dockerfile="FROM busybox\nRUN touch /begun; sleep 1000\n")
        for number, left in ((signal.SIGTERM, False), (signal.SIGHUP, False), (signal.SIGKILL, True)):
            for user in ("root", "lw-sub"):
                store = self.store(user)
                room = store.with_name(f"{store.name}.verify-0")
                process = subprocess.Popen(self.command("verify", "--twice", "--progress", "plain", context, user=user),
                                           stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=self.scratch)
                runs = next(line for line in process.stderr if "RUN touch" in line)
                self.assertIn("RUN", runs)
                self.assertEqual(stat.S_IMODE(room.stat().st_mode), 0o700, "nobody else may reach what is made in it")
                child = int(subprocess.check_output(["pgrep", "-P", str(process.pid)]).split()[0]) \
                    if user != "root" else process.pid
                os.kill(child, number)
                process.stderr.read()
                process.wait(WATCHDOG)
                if number != signal.SIGKILL:
                    self.assertIn(process.returncode, (128 + number, -number))
                self.assertEqual(room.exists(), left, (number, user))
                if left:
                    fine = self.context(f"fine-{user}", Dockerfile="FROM busybox\nRUN echo same > /same\n")
                    # The build that was left behind hears of it, and ends.
                    wait_for(lambda: self.run_layerwright("verify", "--twice", "-q", fine, user=user).returncode == 0
                             and not room.exists(), "the room to be free")


if __name__ == "__main__":
    unittest.main()
