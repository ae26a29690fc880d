"""Hostile contexts: nothing outside of a context is looked at, whatever lies in it and whatever a Dockerfile asks of it."""

import os
import re
import shutil
import subprocess
import threading
import unittest
from concurrent.futures import ThreadPoolExecutor

from hostile import NIGHTLY, Hostile, kinds
from hostile_contexts import STDIN, contexts
from support import Layout

# Seconds in which each is done, so that none waits for a fifo (a build takes a fifth of one).
PATIENCE = 60
# By day root has one of every family and of every error, and an ordinary user every so-manieth of these.
ALL = NIGHTLY or bool(os.environ.get("UPDATE_EXPECT"))
SAMPLES = {"root": 1, "lw-sub": 1 if NIGHTLY else 8}
ROUNDS = 100 if NIGHTLY else 2


class Contexts(Hostile):
    def attempt(self, number, case, user):
        """What is in the image, or the failure."""
        prepare, dockerfile, arguments = self.table[case]
        context = self.context(f"context-{number}-{user}")
        if dockerfile is not None:
            (context / "Dockerfile").write_text(dockerfile)
        stdin = prepare(context)
        out = self.directory(f"out-{number}-{user}", user)
        place = "-" if STDIN in arguments else context
        arguments = [word for word in arguments if word is not STDIN]
        command = self.command("build", "--progress", "plain", "-o", f"type=oci,tar=false,dest={out}/layout", *arguments, place, user=user)
        done = subprocess.run(command, input=stdin or b"", stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=context, timeout=PATIENCE)
        done.stderr = done.stderr.decode()
        failure = self.failure(done)
        if failure:
            return failure.replace(f"context-{number}-{user}", "CONTEXT")
        lines = []
        for layer in Layout(out / "layout").layers():
            for name, member in layer.items():
                kind = "link" if member.issym() else "same" if member.islnk() else "dir" if member.isdir() else "file" if member.isreg() else "node"
                lines.append(f"{kind} {name!r} {member.linkname or member.size}")
        # What busybox brings is of no matter, nor are directories, of which some are those above the scratch directory.
        return self.plain("\n".join(line for line in lines if not re.match("dir |[a-z]+ '(bin|etc|usr)/", line)) or "(nothing)")

    def test_all(self):
        self.table = contexts(str(self.canary))
        self.assertGreaterEqual(len(self.table), 40)
        written = self.golden("contexts")
        sampled = set(kinds(self.table, written))
        for user, step in SAMPLES.items():
            self.store(user)
            cases = list(enumerate(self.table)) if ALL else [(at, case) for at, case in enumerate(self.table) if case in sampled]
            cases = cases[::step]
            with ThreadPoolExecutor(2) as pool:
                found = dict(zip([case for _, case in cases], pool.map(lambda pair: self.attempt(*pair, user), cases)))
            if user == "root":
                self.check("contexts", found)
                written = self.golden("contexts")
            for case, text in found.items():
                if "device" not in case:
                    self.assertEqual(text, written[case], f"{case}, by {user}")
            self.assert_unharmed(self.store(user), *self.scratch.glob(f"out-*-{user}"))
            self.assert_sound(self.store(user), user)

    def test_what_an_ordinary_user_cannot_read(self):
        context = self.context(Dockerfile="FROM scratch\nCOPY d /d\nCOPY d/f /f\n", d__f="x", d__e__g="y")
        shutil.chown(context, "lw-sub", "lw-sub")
        for path, mode in ((context / "d" / "f", 0o200), (context / "d" / "e", 0o311), (context / "d", 0o600), (context / "Dockerfile", 0o200)):
            before = path.stat().st_mode & 0o7777
            path.chmod(mode)
            done = self.run_layerwright("build", context, user="lw-sub", code=None)
            self.assertIn("ermission denied", self.failure(done) or "", path)
            self.assertIn(path.name, done.stderr)
            path.chmod(before)
        self.run_layerwright("build", context, user="lw-sub")

    def test_a_mount_in_a_context(self):
        context = self.context(Dockerfile="FROM scratch\nCOPY . /all/\n", m__below="below")
        subprocess.run(["mount", "-t", "tmpfs", "none", context / "m"], check=True)
        self.addCleanup(lambda: subprocess.run(["umount", context / "m"], check=True))
        (context / "m" / "above").write_text("above")
        self.assertEqual(Layout(self.build(context)).read("all/m/above"), b"above", "what is mounted is what is seen")

    def test_a_directory_that_becomes_a_link(self):
        """While it is copied, a directory is swapped for a link to the canaries and back."""
        context = self.context(Dockerfile="FROM busybox\nCOPY . /all/\nRUN --mount=type=bind,source=d,target=/m cat /m/file\n")
        for name in [f"d/e{at}/file" for at in range(50)] + ["d/file", "d/d/file"]:
            (context / name).parent.mkdir(parents=True, exist_ok=True)
            (context / name).write_text("own")
        (context / "link").symlink_to(self.canary)
        stop = threading.Event()

        def swap():
            while not stop.is_set():
                for here, there in (("d", "away"), ("link", "d"), ("d", "link"), ("away", "d")):
                    os.rename(context / here, context / there)

        swapper = threading.Thread(target=swap)
        swapper.start()
        try:
            for number in range(ROUNDS):
                user = ("root", "lw-sub")[number % 2]
                self.failure(self.run_layerwright("build", "--no-cache", context, user=user, code=None))
        finally:
            stop.set()
            swapper.join()
        for user in ("root", "lw-sub"):
            self.assert_unharmed(self.store(user))
            self.assert_sound(self.store(user), user)


if __name__ == "__main__":
    unittest.main()
