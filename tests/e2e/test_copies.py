"""Copies in the place of overlays: the same image, or a refusal where a file with several names would make another one."""

import unittest

from overlaid import Machines
from support import Layout


class Copies(Machines):
    def test_what_copies_do_otherwise_is_told(self):
        """A file with several names changes under all of them in a copy; whatever parts them first is as on an overlay."""
        ground = "FROM busybox\nRUN echo a > /a && ln /a /b && ln /a /c\n"
        context = self.context("apart", Dockerfile=f"{ground}RUN rm /c && cp /a /n && echo b >> /n && mv /n /b\nRUN mv /a /z\n")
        _, alone = self.on([], context, name="apart")
        done, copied = self.on(self.copying("apart"), context, name="apart-copied")
        self.assertEqual(Layout(copied).digest, Layout(alone).digest)
        self.assertNotIn("with several names", done.stderr)
        # Whatever leaves each file as an overlay would is taken.
        taken = ("mkdir -p /t/t && echo a > /t/a && ln /t/a /t/t/b && echo d > /d", "mv /t /u && ln /d /e", "rm /b", "rm /u/a",
                 "cp -p /a /n && mv /n /a && chown -R 0:0 /c /u && touch /c", "rm -r /u /c /a", "mkdir /v && echo v > /v/v && ln /v/v /v/w", "rm -r /v")
        context = self.context("moved", Dockerfile=ground + "".join(f"RUN {step}\n" for step in taken))
        _, alone = self.on([], context, name="moved")
        _, copied = self.on(self.copying("moved"), context, name="moved-copied")
        self.assertEqual(Layout(copied).digest, Layout(alone).digest)
        # Nothing else is, also where only one name is left, or none of those there were.
        steps = ("echo b >> /b", "ln /a /0 && echo x >> /b", "ln -f /a /bin/vi && echo x >> /a", "mv /a /z", "chown 1 /c",
                 "chmod 600 /b && sed -i s/a/x/ /a", "chown -R 0:0 /a /b && mkdir /e && cp -a /a /b /e", "echo x > /b && cat /a > /n && rm /a /b /c",
                 "echo x > /b && rm /b /c", "touch -r /a /r && echo b > /a && touch -r /r /a && cp /a /n && rm /r /a /c",
                 "echo x > /b && mv /a /z && rm /b /c", "mkdir /n && mv /a /b /c /n", "echo x > /a && mv /b /b2 && rm /a /c")
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
        for number, step in enumerate(("echo x >/m/b && cat /m/a >/n", "mv /m/a /m/z", "echo x >/m/a && cat /m/b >/n && rm /m/a /m/b /m/c")):
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


if __name__ == "__main__":
    unittest.main()
