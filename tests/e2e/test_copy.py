"""COPY without detours: what no step reads is not written to disk, and is the same when it is."""

import os
import shutil
import subprocess
import unittest

from support import USERS, Case, Layout

# The last COPYs look at what the first ones brought: an account, a directory, a link.
COPIES = """\
FROM scratch
WORKDIR /app
COPY etc /etc/
COPY --chown=app:staff src /app/
COPY --chmod=750 src/one /app/link/again
COPY --link src/two /linked/
USER app
WORKDIR /app/home
CMD ["x"]
"""
# The same, and somebody reads it.
READ = COPIES.replace("FROM scratch", "FROM busybox").replace(
    "USER app\n", "RUN cd / && find app linked | sort | xargs stat -c '%A %u:%g %n' > /list && cat app/one app/link/again linked/two > /all\nUSER app\n")


class CopyWithoutDetours(Case):
    def files(self, name, dockerfile):
        context = self.context(
            name, Dockerfile=dockerfile, src__one="1\n", src__two="2\n", src__deep__three="3\n" * 100_000,
            etc__passwd="root:x:0:0::/:\napp:x:7:8::/:\n", etc__group="staff:x:50:\n")
        os.symlink("deep", context / "src" / "link")
        os.link(context / "src" / "one", context / "src" / "same")
        return context

    def fresh(self, user, name):
        store = self.scratch / f"fresh-{user}-{name}"
        store.mkdir(mode=0o700)
        shutil.chown(store, user, user)
        return store

    def digest(self, context, user, name, **options):
        layout = Layout(self.build(context, user=user, name=f"{user}-{name}", **options))
        layout.validate()
        return layout.digest

    def local(self, context, user, name, root):
        out = self.scratch / f"files-{user}-{name}"
        out.mkdir(mode=0o755)
        shutil.chown(out, user, user)
        self.last = self.run_layerwright(
            "build", "--progress", "plain", "-o", f"type=local,dest={out}", context, user=user, root=root)
        return out

    def snapshots(self, store):
        return sorted(path.name for path in (store / "snapshots").iterdir())

    def test_what_nobody_reads_is_not_written(self):
        context = self.files("context", COPIES)
        digests = set()
        for user in USERS:
            with self.subTest(user=user):
                store = self.fresh(user, "store")
                first = self.digest(context, user, "first", root=store)
                digests.add(first)
                self.assertEqual(self.snapshots(store), [], "nothing was written")
                self.assertEqual(self.digest(context, user, "cached", root=store), first)
                self.assertRegex(self.last.stderr, "7 steps?, 7 cached|CACHED")
                self.assertNotRegex(self.last.stderr, "(?m)^#[0-9]+ DONE.*COPY")
                # Out of the blobs, without the context.
                written = self.local(context, user, "sealed", store)
                self.assertIn("cached", self.last.stderr)
                self.assertNotEqual(self.snapshots(store), [])
                subprocess.run(["diff", "-r", context / "src", written / "app", "--exclude=again", "--exclude=home"],
                               check=True)
                self.assertEqual((written / "app/deep/again").read_text(), "1\n")
                self.assertEqual((written / "app/one").stat().st_ino, (written / "app/same").stat().st_ino)
                # All written first, and sealed from there.
                other = self.fresh(user, "other")
                self.local(context, user, "written", other)
                self.assertEqual(self.digest(context, user, "other", root=other), first)
        self.assertEqual(len(digests), 1, "every user makes the same image")

    def test_what_is_read_is_written_from_wherever_it_is(self):
        copies, read = self.files("copies", READ.replace("RUN", "#RUN")), self.files("read", READ)
        for user in ("root", "lw-sub"):
            with self.subTest(user=user):
                expected = self.digest(read, user, "expected", root=self.fresh(user, "expected"))
                store = self.fresh(user, "store")
                self.digest(copies, user, "copies", root=store)
                before = len(self.snapshots(store))
                self.assertEqual(self.digest(read, user, "read", root=store), expected, "out of the blobs")
                self.assertGreater(len(self.snapshots(store)), before)
                # The directories are gone, and so is what the step made of them.
                for area in ("snapshots", "records"):
                    for path in (store / area).iterdir():
                        subprocess.run(["rm", "-rf", path], check=True)
                (store / "records" / "content").mkdir()
                (store / "records" / "definition").mkdir()
                subprocess.run(["chown", "-R", "--reference", store, store / "records"], check=True)
                self.assertEqual(self.digest(read, user, "again", root=store), expected)
                # Another content in between.
                (read / "src" / "one").write_text("other\n")
                changed = self.digest(read, user, "changed", root=store)
                self.assertEqual(changed, self.digest(read, user, "fresh", root=self.fresh(user, "changed")))
                self.assertNotEqual(changed, expected)
                (read / "src" / "one").write_text("1\n")
                self.assertEqual(self.digest(read, user, "back", root=store), expected)

    def test_a_step_that_fails_leaves_its_copies_or_nothing(self):
        context = self.files("fails", READ.replace("RUN cd", "RUN false && cd"))
        good = self.files("good", READ)
        expected = self.digest(good, "root", "expected", root=self.fresh("root", "expected"))
        store = self.fresh("root", "store")
        self.build(context, root=store, name="fails", code=1)
        self.assertEqual(self.digest(good, "root", "good", root=store), expected)


if __name__ == "__main__":
    unittest.main()
