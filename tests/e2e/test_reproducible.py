"""The same input gives the same manifest digest, whatever else differs."""

import os
import shutil
import subprocess
import unittest

from support import Case, Layout

DOCKERFILE = """\
FROM busybox AS one
WORKDIR /w
COPY src/ src/
RUN cat src/* | sort > all && mkdir -p made/deep && ln -s deep made/link && ln all made/hard && date > /dev/null
FROM busybox AS two
RUN echo two > /two && chmod 4755 /two && adduser -D someone 2>/dev/null || true
FROM busybox
COPY --from=one /w /w
COPY --from=two --chown=33:33 /two /bin/two
ENV A=b
CMD ["cat", "/w/all"]
"""


class Reproducible(Case):
    def files(self, name="context", order=range(20)):
        context = self.context(name, Dockerfile=DOCKERFILE)
        (context / "src").mkdir()
        for number in order:
            (context / "src" / f"f{number:02}").write_text(f"{number}\n")
        return context

    def digest(self, context, *arguments, **options):
        layout = Layout(self.build(context, *arguments, **options))
        layout.validate()
        return layout.digest

    def test_every_variation_gives_one_digest(self):
        context = self.files()
        first = self.digest(context)
        self.assertEqual(first, self.digest(context, name="warm"), "from a warm cache")
        self.assertRegex(self.last.stderr, "CACHED")

        def empty(name):
            store = self.scratch / f"store-{name}"
            store.mkdir()
            return store

        self.assertEqual(first, self.digest(context, name="cold", root=empty("cold")), "from an empty store")
        self.assertEqual(first, self.digest(context, name="jobs", root=empty("jobs"), *["--jobs", "1"]), "one job")
        self.assertEqual(first, self.digest(context, name="umask", root=empty("umask"), umask=0o077), "umask 077")
        zone = {"TZ": "Asia/Kolkata", "LC_ALL": "C", "HOME": "/nonexistent"}
        self.assertEqual(first, self.digest(context, name="env", root=empty("env"), env=zone), "another environment")

        copy = self.files("copy", reversed(range(20)))
        for path in copy.rglob("*"):
            os.utime(path, (1_900_000_000, 1_900_000_000))
        self.assertEqual(first, self.digest(copy, name="copy", root=empty("copy")), "copied, all times changed")
        self.assertEqual(first, self.digest(copy, name="copywarm"), "copied, warm cache")
        self.assertNotIn("DONE", [line for line in self.last.stderr.splitlines() if "RUN" in line])

        group = self.files("group")
        subprocess.run(["chmod", "-R", "g+w", group], check=True)
        self.assertEqual(first, self.digest(group, name="group", root=empty("group")), "made under umask 002")

        self.assertEqual(first, self.digest(context, name="sub", user="lw-sub"), "an ordinary user")

    def test_another_clock_gives_the_same_digest(self):
        context = self.files()
        first = self.digest(context)
        faketime = shutil.which("faketime")
        if not faketime:
            self.skipTest("faketime is not installed")
        out = self.scratch / "out-clock"
        store = self.scratch / "store-clock"
        store.mkdir()
        command = [faketime, "-f", "+400d", *self.command(
            "build", "--progress", "plain", "-o", f"type=oci,tar=false,dest={out}", context, root=store)]
        subprocess.run(command, check=True)
        self.assertEqual(first, Layout(out).digest)

    def test_content_and_epoch_change_the_digest(self):
        context = self.files()
        first = self.digest(context)
        (context / "src" / "f00").write_text("changed\n")
        self.assertNotEqual(first, self.digest(context, name="changed"))
        (context / "src" / "f00").write_text("0\n")
        dated = Layout(self.build(context, name="epoch", env={"SOURCE_DATE_EPOCH": "1500000000"}))
        self.assertEqual(dated.config["created"], "2017-07-14T02:40:00Z")
        times = {member.mtime for layer in list(dated.layers())[1:] for member in layer.values()}
        self.assertEqual(times, {1500000000})


class Times(Case):
    def test_a_changed_file_has_another_time_and_an_unchanged_one_the_same(self):
        times = []
        for text in ("one\n", "two\n", "one\n"):
            context = self.context(f"c{len(times)}", Dockerfile="FROM busybox\nCOPY page /page\nRUN chmod 600 /page\n",
                                   page=text)
            layout = Layout(self.build(context, name=f"c{len(times)}"))
            copied, changed = [layer["page"].mtime for layer in list(layout.layers())[-2:]]
            self.assertEqual(copied, changed, "chmod in a RUN keeps the content's time")
            times.append(copied)
        self.assertNotEqual(times[0], times[1])
        self.assertEqual(times[0], times[2])

    def test_old_times_are_kept_and_new_ones_are_not(self):
        dockerfile = "FROM busybox\nRUN touch -d @1000000000 /old && touch /new\n"
        layout = Layout(self.build(self.context(Dockerfile=dockerfile)))
        *_, layer = layout.layers()
        self.assertEqual((layer["old"].mtime, layer["new"].mtime), (1000000000, 946684800))


if __name__ == "__main__":
    unittest.main()
