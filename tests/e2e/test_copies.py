"""Copies in the place of overlays: the same image, or a refusal where a file with several names would make another one."""

import itertools
import os
import random
import unittest

from overlaid import Machines
from support import Layout

NIGHTLY = bool(os.environ.get("LAYERWRIGHT_NIGHTLY"))
STEPS = 400 if NIGHTLY else 12
SEED = os.environ.get("LAYERWRIGHT_SEED", "4")
REFUSED = "a file of an earlier layer with several names was changed, linked or moved"
# Two files with several names, and two with one.
LINKED = """RUN mkdir -p /m/d/e /m/x && cd /m && echo a > a && ln a b && ln a d/c && ln a d/e/f && echo a > d/t && ln d/t x/m && \\
 echo a > s && echo z > x/a
"""
NAMES = ("a", "b", "d/c", "d/e/f", "s", "d/t", "n", "d/n", "x/m", "x/a")
KIN = ({"a", "b", "d/c", "d/e/f"}, {"d/t", "x/m"})
DIRECTORIES = ("d", "d/e", "x", "y")


def random_step(rng):
    """One to five commands in /m, some of which fail. What docs/sandbox.md says is not seen is not done: no name is moved or linked
    to where another of the same file is or was, no directory back, and nothing is set to what it is."""
    fresh = (f"v{number}" for number in itertools.count())

    def command():
        one, (place, to) = rng.choice(NAMES), rng.choices(DIRECTORIES, k=2)
        other = rng.choice([name for name in NAMES if not any({one, name} <= kin for kin in KIN)])
        away = f"mv {place} {rng.choice(('', to + '/'))}{next(fresh)}"
        digit, inside = rng.randrange(8), f"{place}/{one.rpartition('/')[2]}"
        return rng.choice((
            f"echo {digit} >> {one}", f"echo {digit} > {one}", f"cat {one} > {other}", f"truncate -s {digit} {one}",
            f"sed -i s/a/{digit}/ {one}", f"rm -f {one}", f"rm -rf {place}", f"mkdir -p {place}", away, f"test {one} -ef {other} || mv {one} {other}",
            f"test {one} -ef {inside} || mv {one} {inside}", f"ln {one} {other}", f"ln -f {one} {other}",
            f"cp {one} {other}", f"cp -p {one} k && mv k {other}", f"cp -a {place} {to}", f"chmod 6{digit}0 {one}",
            f"chown {digit + 1} {one}", f"touch -d @98100000{digit} {one}"))
    return "; ".join(command() for _ in range(rng.randint(1, 5)))


class Copies(Machines):
    def test_what_copies_do_otherwise_is_told(self):
        """A file with several names changes under all of them in a copy; whatever parts them first is as on an overlay."""
        ground = ("FROM busybox\nRUN echo a > /a && ln /a /b && ln /a /c && mkdir -p /w/p /w/q /v/p /v/q && echo l > /w/p/l && "
                  "ln /w/p/l /w/q/l && ln /w/p/l /w/q/m && echo l > /v/p/l && ln /v/p/l /v/q/l\n")
        context = self.context("apart", Dockerfile=f"{ground}RUN rm /c && cp /a /n && echo b >> /n && mv /n /b\nRUN mv /a /z\n")
        _, alone = self.on([], context, name="apart")
        done, copied = self.on(self.copying("apart"), context, name="apart-copied")
        self.assertEqual(Layout(copied).digest, Layout(alone).digest)
        self.assertNotIn("with several names", done.stderr)
        # Whatever leaves each file as an overlay would is taken.
        taken = ("mkdir -p /t/t && echo a > /t/a && ln /t/a /t/t/b && echo d > /d", "mv /t /u && ln /d /e", "rm /b", "rm /u/a",
                 "cp -p /a /n && mv /n /a && chown -R 0:0 /c /u", "rm -r /u /c /a", "mkdir /z && echo z > /z/v && ln /z/v /z/w",
                 "rm -r /z", "mkdir -p /s/t && mv /w /s/t && mv /s /x")
        context = self.context("moved", Dockerfile=ground + "".join(f"RUN {step}\n" for step in taken))
        _, alone = self.on([], context, name="moved")
        _, copied = self.on(self.copying("moved"), context, name="moved-copied")
        self.assertEqual(Layout(copied).digest, Layout(alone).digest)
        # Nothing else is, also where only one name is left, or none of those there were.
        steps = ("echo b >> /b", "ln /a /0 && echo x >> /b", "ln -f /a /bin/vi && echo x >> /a", "mv /a /z", "chown 1 /c",
                 "chmod 600 /b && sed -i s/a/x/ /a", "chown -R 0:0 /a /b && mkdir /e && cp -a /a /b /e", "echo x > /b && cat /a > /n && rm /a /b /c",
                 "echo x > /b && rm /b /c", "touch -r /a /r && echo b > /a && touch -r /r /a && cp /a /n && rm /r /a /c",
                 "echo x > /b && mv /a /z && rm /b /c", "mkdir /n && mv /a /b /c /n", "echo x > /a && mv /b /b2 && rm /a /c",
                 "mv /w/p /o", "mv /w/p /o && mv /w/q /r", "rm /w/q/l && mv /w/p /o", "mkdir /o && mv /w/p /o && mv /w/q /o",
                 "mv /w /o && mv /o/p /o/r", "mv /w/q /w/p/q && mv /w /o",
                 "mv /w/p /t && mv /w /o && mv /t /o/p", "mv /v/p /v/t && mv /v/q /v/p && mv /v/t /v/q",
                 "touch -d @981000002 /a && rm /b && echo a > /c", "cp -p /a /n && mv /n /a && rm /b && touch /c")
        for number, step in enumerate(steps):
            name = f"together{number}"
            context = self.context(name, Dockerfile=f"{ground}RUN {step}\n")
            done, _ = self.on(self.copying(name), context, name=f"{name}-copied", code=4)
            self.assertRegex(done.stderr, r"a file of an earlier layer with several names was changed, linked or moved \((now /\w+|removed since)", step)
        # Nor in a mount, whose files can end in the image.
        stage = ground.replace("busybox", "busybox AS linked")
        lent = "RUN --mount=type=bind,rw,from=linked,target=/m"
        context = self.context("lent", Dockerfile=f"{stage}FROM busybox\n{lent} rm /m/b && cat /m/a >/n\n")
        _, alone = self.on([], context, name="lent")
        _, copied = self.on(self.copying("lent"), context, name="lent-copied")
        self.assertEqual(Layout(copied).digest, Layout(alone).digest)
        for number, step in enumerate(("echo x >/m/b && cat /m/a >/n", "mv /m/a /m/z", "echo x >/m/a && cat /m/b >/n && rm /m/a /m/b /m/c",
                                       "ln /m/a /m/z && rm /m/b && cp -a /m /n", "mv /m/v/p /m/t && cp -a /m /n")):
            name = f"lent{number}"
            context = self.context(name, Dockerfile=f"{stage}FROM busybox\n{lent} {step}\n")
            done, _ = self.on(self.copying(name), context, name=f"{name}-copied", code=4)
            self.assertIn("a file of an earlier layer with several names was changed, linked or moved (in the mount /m)", done.stderr)
        # Who takes it all the same has keys of his own, also where a step may do all else.
        cache = self.directory("hard-links")
        allowed = ("--sandbox-allow=hard-links", "--cache-to", f"type=local,dest={cache}")
        for name, flags in (("allowed", ""), ("insecure", "--security=insecure ")):
            context = self.context(name, Dockerfile=f"{ground}RUN {flags}mv /a /z\n")
            allow = ("--allow", "security.insecure")
            self.on(self.copying(name), context, *allow, *allowed, name=f"{name}-copied")
            done, _ = self.on([], context, *allow, "--cache-from", f"type=local,src={cache}", name=f"{name}-elsewhere")
            self.assertNotIn('"event":"cached"', done.stderr)
            self.on(self.copying(f"{name}2"), context, *allow, "--cache-from", f"type=local,src={cache}", name=f"{name}2-copied", code=4)

    def alike_or_refused(self, dockerfile, name):
        """Whether copies take what an overlay takes; then the image is the same one."""
        context = self.context(name, Dockerfile=dockerfile)
        _, alone = self.on([], context, name=name)
        done, copied = self.on(self.copying(name), context, name=f"{name}-copied", code=None)
        self.assertIn(done.returncode, (0, 4), done.stderr)
        if done.returncode:
            self.assertIn(REFUSED, done.stderr, dockerfile)
            return False
        self.assertEqual(Layout(copied).digest, Layout(alone).digest, dockerfile)
        return True

    def test_a_random_step_makes_the_same_image_or_is_refused(self):
        rng = random.Random(SEED)
        taken = []
        for number in range(STEPS):
            steps = (f"RUN cd /m; {random_step(rng)}; true\n" for _ in range(rng.randint(1, 3)))
            taken.append(self.alike_or_refused(f"FROM busybox\n{LINKED}{''.join(steps)}", f"r{number}"))
        self.assertIn(True, taken)
        self.assertIn(False, taken)

    def test_a_random_step_in_a_mount_makes_the_same_image_or_is_refused(self):
        rng = random.Random(SEED)
        stage = f"FROM busybox AS linked\n{LINKED}FROM busybox\nRUN --mount=type=bind,rw,from=linked,source=/m,target=/m cd /m; "
        taken = [self.alike_or_refused(f"{stage}{random_step(rng)}; cp -a . /out\n", f"m{number}") for number in range(STEPS)]
        self.assertIn(True, taken)
        self.assertIn(False, taken)


if __name__ == "__main__":
    unittest.main()
