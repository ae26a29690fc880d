"""`--depfile`: make and ninja start a build when what it read has changed, and not otherwise."""

import shutil
import subprocess
import time
import unittest

from support import WATCHDOG, Case, wait_for

MAKEFILE = """\
image.tar: ; echo built >> $(LOG) && $(BUILD)
-include image.d
"""
NINJA = """\
rule image
  command = echo built >> $log && $layerwright
  depfile = image.d
build image.tar: image
"""
# Names that mean something to make, to ninja or to both.
NAMES = ["plain", "a space", "two  spaces", " lead", "#hash", "a#b", "dollar$", "$(shell false)x", "back\\slash", "back\\ space",
         "colon: x", "c:d", "~", "~tilde", "caf\u00e9", "(auth)x", "at@", "-dash", "include", "[id].tsx", "a,b", "{x}", "!", "+"]
# Those that cannot be said to both, so that every build is started.
UNNAMABLE = ["line\nbreak", "tab\there", "semi;colon", "a=b", "per%cent", "pipe|", "*", "q?", "amp&", "quote'", "end\\",
             "end ", "end:", "paren(a)", "a\\#b", "<", "^"]


class Depfile(Case):
    def setUp(self):
        super().setUp()
        self.work = self.scratch / "work"
        self.work.mkdir()
        self.log = self.scratch / "log"
        self.log.write_text("")

    def flags(self, output="-o type=oci,dest=image.tar", depfile="image.d", context="context"):
        return f"{output} --depfile {depfile} {context}"

    def started(self, tool, flags=None):
        """Runs make or ninja, and says how many builds that started."""
        before = self.log.read_text().count("built")
        command = " ".join(self.command("build", "--progress", "plain")) + " " + (flags or self.flags())
        if tool == "make":
            (self.work / "Makefile").write_text(MAKEFILE)
            arguments = ["make", f"LOG={self.log}", f"BUILD={command}"]
        else:
            header = f"log = {self.log}\nlayerwright = {command}\n"
            (self.work / "build.ninja").write_text(header + NINJA)
            arguments = ["ninja", "-d", "keepdepfile"]
        done = subprocess.run(arguments, cwd=self.work, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              timeout=WATCHDOG, stdin=subprocess.DEVNULL)
        self.assertEqual(done.returncode, 0, done.stdout)
        self.output = done.stdout
        return self.log.read_text().count("built") - before

    def tools(self):
        """Those that are here."""
        for tool in ("make", "ninja"):
            if shutil.which(tool):
                yield tool
            else:
                print(f"SKIPPED: there is no {tool}")

    def check(self, tool, what, change, flags=None):
        with self.subTest(tool=tool, what=what):
            if change:
                tick(self.work)
                change()
            self.assertEqual(self.started(tool, flags), 1 if change else 0, self.output)
            self.assertEqual(self.started(tool, flags), 0, f"again: {self.output}")

    def fresh(self, tool):
        shutil.rmtree(self.work)
        self.work.mkdir()
        context = self.work / "context"
        (context / "src" / "deep").mkdir(parents=True)
        (context / "other").mkdir()
        (context / "Dockerfile").write_text("FROM scratch\nCOPY src /src\nCOPY *.txt link /\n"
                                            "COPY --from=more x /\nCOPY <<EOF /inline\ntext\nEOF\n")
        (context / ".dockerignore").write_text("src/ignored\n")
        (context / "src" / "a").write_text("1")
        (context / "src" / "deep" / "b").write_text("1")
        (context / "src" / "ignored").write_text("1")
        (context / "one.txt").write_text("1")
        (context / "link").symlink_to("src/a")
        (self.work / "more").mkdir()
        (self.work / "more" / "x").write_text("1")
        return context, self.flags() + " --build-context more=more"

    def test_each_change_of_what_is_read_starts_one_build_and_nothing_else_does(self):
        for tool in self.tools():
            context, flags = self.fresh(tool)
            check = lambda what, change: self.check(tool, what, change, flags)
            self.assertEqual(self.started(tool, flags), 1)
            check("nothing", None)
            check("a file is touched", (context / "src" / "a").touch)
            check("a file is changed", lambda: (context / "src" / "deep" / "b").write_text("2"))
            check("a file is added", lambda: (context / "src" / "deep" / "new").write_text("1"))
            check("a file is removed", (context / "src" / "deep" / "new").unlink)
            check("a directory is added", (context / "src" / "folder").mkdir)
            check("a directory is removed", (context / "src" / "folder").rmdir)
            check("a file is added that a pattern matches", lambda: (context / "two.txt").write_text("1"))
            check("a file of a named context is changed", lambda: (self.work / "more" / "x").write_text("2"))
            check("the Dockerfile is touched", (context / "Dockerfile").touch)
            check("the ignore file is touched", (context / ".dockerignore").touch)
            check("a link leads elsewhere", lambda: replace_link(context / "link", "one.txt"))
            (context / "other" / "unread").write_text("1")
            (context / "src" / "ignored").write_text("2")
            (self.work / "more" / "unread").write_text("1")
            check("what is not read is changed", None)

    def test_what_times_do_not_tell_is_built_when_the_file_is_touched_or_the_image_gone(self):
        """make and ninja look at nothing but times: docs/depfile.md says what to do."""
        for tool in self.tools():
            context, flags = self.fresh(tool)
            image, one, old = self.work / "image.tar", context / "src" / "a", self.work / "old"
            old.write_text("older")
            tick(self.work)
            self.assertEqual(self.started(tool, flags), 1)
            overwrite = lambda: shutil.copystat(old, shutil.copyfile(old, one))
            for change, ask in (lambda: one.chmod(0o755), one.touch), (overwrite, image.unlink):
                before = image.read_bytes()
                tick(self.work)
                change()
                self.assertEqual(self.started(tool, flags), 0, self.output)
                ask()
                self.assertEqual(self.started(tool, flags), 1, self.output)
                self.assertNotEqual(image.read_bytes(), before)
            self.check(tool, "an older file is moved there", lambda: old.rename(one), flags)

    def test_results_may_lie_in_what_is_read(self):
        for tool in self.tools():
            shutil.rmtree(self.work)
            self.work.mkdir()
            (self.work / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
            # Ninja keeps its own notes there, too.
            (self.work / ".dockerignore").write_text("image.*\nMakefile\nbuild.ninja\n.ninja*\n")
            (self.work / "a").write_text("1")
            flags = self.flags(context=".")
            self.assertEqual(self.started(tool, flags), 1)
            if tool == "ninja":
                # Its log appears there after the first build.
                self.started(tool, flags)
            with self.subTest(tool=tool):
                self.assertEqual(self.started(tool, flags), 0, self.output)
            self.check(tool, "a file is added", lambda: (self.work / "b").write_text("1"), flags)

    def test_a_commit_is_built_anew_when_its_name_means_another_one(self):
        for tool in self.tools():
            shutil.rmtree(self.work)
            top = self.work / "repository"
            top.mkdir(parents=True)
            git = lambda *arguments: subprocess.run(
                ["git", "-c", "user.name=A", "-c", "user.email=a@example.com", "-C", top, *arguments], check=True, stdout=subprocess.PIPE)

            def commit(text):
                (top / "a").write_text(text)
                git("add", "-A")
                git("commit", "-q", "-m", text)
            git("init", "-q", "-b", "main")
            (top / "Dockerfile").write_text("FROM scratch\nCOPY a /\n")
            commit("1")
            git("branch", "team/other")
            commit("2")
            flags = self.flags(context="--git HEAD repository")
            self.assertEqual(self.started(tool, flags), 1)
            check = lambda what, change: self.check(tool, what, change, flags)
            check("nothing", None)
            check("a commit", lambda: commit("3"))
            (top / "a").write_text("not committed")
            check("the work tree is no part of it", None)
            git("checkout", "-q", "a")
            check("another branch", lambda: git("checkout", "-q", "team/other"))
            check("references are packed", lambda: git("pack-refs", "--all"))
            check("a commit on a packed branch", lambda: commit("4"))

            def other(revision):
                (self.work / "image.tar").unlink()
                flags = self.flags(context=f"--git {revision} repository")
                self.assertEqual(self.started(tool, flags), 1)
                return flags
            flags = other("main~1")
            check("the branch moves", lambda: git("branch", "-f", "main", "team/other"))
            whole = subprocess.run(["git", "-C", top, "rev-parse", "main"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
            flags = other(whole)
            git("branch", "-f", "main", "main~1")
            check("a hash means one commit for ever", None)
            with self.subTest(tool=tool, what="a work tree laid over it"):
                flags = other("HEAD --dirty")
                self.assertEqual([self.started(tool, flags) for _ in range(2)], [1, 1])

    def test_names_are_read_as_they_are_meant(self):
        for tool in self.tools():
            self.only(*NAMES)
            self.assertEqual(self.started(tool), 1)
            self.check(tool, "nothing", None)
            for name in NAMES:
                self.check(tool, name, (self.work / "context" / name).touch)

    def test_names_that_cannot_be_said_start_every_build(self):
        for tool in self.tools():
            for name in UNNAMABLE:
                with self.subTest(tool=tool, name=name):
                    self.only(name)
                    self.assertEqual(self.started(tool), 1)
                    self.assertIn("cannot both read this name", self.output)
                    self.assertEqual(self.started(tool), 1)
            with self.subTest(tool=tool, name="a class that matches another name"):
                self.only("[id].tsx")
                (self.work / "context" / "i.tsx").write_text("1")
                self.assertEqual([self.started(tool), self.started(tool)], [1, 1])

    def only(self, *names):
        """A context with these files."""
        shutil.rmtree(self.work)
        (self.work / "context").mkdir(parents=True)
        (self.work / "context" / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
        for name in names:
            (self.work / "context" / name).write_text("1")

    def test_what_changes_during_the_build_starts_another_one(self):
        context = self.context(name="work/context", a="1", Dockerfile=(
            "FROM busybox\nCOPY a /\nRUN --mount=type=cache,target=/c,id=c touch /c/began; while ! [ -e /c/go ]; do :; done\n"))
        command = [*self.command("build", "--progress", "plain"), *self.flags().split()]
        process = subprocess.Popen(command, cwd=self.work, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        mounts = self.store() / "mounts"
        wait_for(lambda: next(mounts.rglob("began"), None), "the step to begin")
        (context / "a").write_text("2")
        (next(mounts.rglob("began")).parent / "go").write_text("")
        self.assertEqual(process.wait(WATCHDOG), 0)
        self.assertEqual(self.started("make"), 1)
        self.assertEqual(self.started("make"), 0)

    def test_it_is_written_when_all_went_well_and_names_what_was_made(self):
        context = self.context(name="work/context", a="1", Dockerfile="FROM scratch\nCOPY a b /\n")
        depfile = self.work / "d"
        arguments = ["--depfile", depfile, "--iidfile", self.work / "iid", context]
        self.run_layerwright("build", *arguments, code=1)
        self.assertFalse(depfile.exists())
        (context / "b").write_text("secret")
        self.run_layerwright("build", "--secret", f"id=s,src={context}/b", *arguments)
        text = depfile.read_text()
        self.assertTrue(text.startswith(f"{self.work}/iid:"), text)
        refused = self.run_layerwright("build", "--depfile", depfile, context, code=2)
        self.assertIn("--depfile needs a file", refused.stderr)


def replace_link(path, target):
    path.unlink()
    path.symlink_to(target)


def tick(directory):
    """Waits until the file system's clock shows a later time than anything that was written before."""
    probe = directory.parent / "probe"
    probe.write_text("")
    before = probe.stat().st_mtime_ns
    deadline = time.monotonic() + WATCHDOG
    while probe.stat().st_mtime_ns <= before:
        assert time.monotonic() < deadline
        probe.touch()


if __name__ == "__main__":
    unittest.main()
