"""Commits of a repository on this machine: what `--git` builds is what a clean checkout holds, whatever lies about."""

import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import unittest

from servers import GitDaemon
from support import USERS, WATCHDOG, Case, Layout, Registry

# A checkout has a directory .git, which no commit holds.
IGNORE = "**/.git\n*.log\n"
REVISION, CREATED = "org.opencontainers.image.revision", "org.opencontainers.image.created"


def git(directory, *arguments):
    """What git says, without anybody's configuration and at one time."""
    environment = {"PATH": os.environ["PATH"], "GIT_CONFIG_NOSYSTEM": "1"}
    for who in ("AUTHOR", "COMMITTER"):
        environment |= {f"GIT_{who}_NAME": "A", f"GIT_{who}_EMAIL": "a@example.com", f"GIT_{who}_DATE": "1700000000 +0000"}
    command = ["git", "-c", "protocol.file.allow=always", "-C", directory, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment, umask=0o022)
    return done.stdout.strip()


def image(path):
    """What an image is but for what it says of its commit: layers, and its config without times and the labels of a commit."""
    layout = Layout(path)
    config = {key: value for key, value in layout.config.items() if key != "created"}
    config["history"] = [{key: value for key, value in line.items() if key != "created"} for line in config["history"]]
    labels = config["config"].get("Labels", {})
    labels = {key: value for key, value in labels.items() if key not in (REVISION, CREATED)}
    config["config"] = {key: value for key, value in config["config"].items() if key != "Labels"} | ({"Labels": labels} if labels else {})
    return [layer["digest"] for layer in layout.manifest["layers"]], config


class FromCommits(Case):
    def repository(self, name="repository", **files):
        """A repository with a commit of these files; keys are those of `context`."""
        top = self.context(name, **files)
        git(top, "init", "-q", "-b", "main")
        self.commit(top)
        return top

    def commit(self, top):
        git(top, "add", "-A")
        git(top, "commit", "-q", "-m", "x")
        return git(top, "rev-parse", "HEAD")

    def motley(self):
        """A repository with links, a program, a sub-directory with a Dockerfile and a submodule."""
        module = self.repository("module", inside="of the module")
        top = self.repository(
            Dockerfile="FROM busybox\nCOPY . /all/\nCOPY a/* /some/\nCOPY run /bin/\nRUN /bin/run > /ran\n",
            _DOT_dockerignore=IGNORE, a__one="1", a__two="2", run="#!/bin/sh\ncat /all/sub/m/inside /all/to/one\n",
            service__Dockerfile="FROM busybox\nCOPY . /service/\n", service__own="s", **{"made.log": "ignored"})
        (top / "run").chmod(0o755)
        (top / "to").symlink_to("a")
        git(top, "submodule", "--quiet", "add", module, "sub/m")
        self.commit(top)
        return top

    def checkout(self, top, name="checkout"):
        place = self.scratch / name
        git(self.scratch, "clone", "-q", "--recurse-submodules", top, place)
        return place

    def test_a_commit_is_built_like_its_clean_checkout(self):
        top = self.motley()
        clean = self.checkout(top)
        (top / "untracked").write_text("x")
        subprocess.run(["chmod", "-R", "a+rX", top, clean], check=True)
        for user in USERS:
            with self.subTest(user=user):
                plain = Layout(self.build(clean, user=user, name=f"plain-{user}"))
                commit = Layout(self.build(top, "--git", "HEAD", user=user, name=f"commit-{user}"))
                self.assertEqual(image(plain.path), image(commit.path))
                # Its steps are those of the checkout: nothing ran.
                self.assertRegex(self.last.stderr, r": (\d+) steps, \1 cached")
                self.assertEqual(commit.read("ran").decode(), "of the module1")
                fresh = self.build(top, "--git", "HEAD", user=user, root=self.machine(user), name=f"fresh-{user}")
                self.assertEqual(commit.digest, Layout(fresh).digest)
                there = self.build(clean, "--git", "HEAD", user=user, root=self.machine(user), name=f"there-{user}")
                self.assertEqual(commit.digest, Layout(there).digest)

    def test_directories_bare_repositories_and_work_trees(self):
        top = self.motley()
        clean = self.checkout(top)
        bare, linked = self.scratch / "bare.git", self.scratch / "linked"
        git(self.scratch, "clone", "-q", "--bare", top, bare)
        git(top, "worktree", "add", "-q", linked)
        expected = image(self.build(clean / "service", name="service"))
        for number, (place, revision) in enumerate([
            (top / "service", "HEAD"), (top, "HEAD:service"), (bare, "main:service"), (linked / "service", "main"),
            (top / ".git", "HEAD:/service/"), (bare / "service", "main"), (top / "service" / ".." / "service", "main"),
        ]):
            with self.subTest(place=str(place), revision=revision):
                self.assertEqual(image(self.build(place, "--git", revision, name=f"n{number}")), expected)
        for number, (place, file) in enumerate([(top, top / "service" / "Dockerfile"), (bare, "service/Dockerfile")]):
            built = self.build(place, "--git", "main", "-f", file, name=f"file-{number}", code=None)
            self.assertIn("COPY . /service/", self.last.stderr)
            if place == top:
                self.assertIn("service/service/own", {name for layer in Layout(built).layers() for name in layer})

    def test_the_dockerfile_and_what_is_ignored_come_from_the_commit(self):
        top = self.repository(Dockerfile="FROM busybox\nCOPY . /x/\n", kept="1", left="2",
                              _DOT_dockerignore="left\n", docker__Other="FROM busybox\nCOPY kept /other/\n")
        (top / "docker" / "Other.dockerignore").write_text("left\nDockerfile\n")
        self.commit(top)
        git(top, "branch", "built")
        (top / "Dockerfile").write_text("FROM nothing-like-it\n")
        (top / ".dockerignore").write_text("kept\n")
        shutil.rmtree(top / "docker")
        self.commit(top)
        names = {name for layer in Layout(self.build(top, "--git", "built", name="a")).layers() for name in layer}
        self.assertIn("x/kept", names)
        self.assertNotIn("x/left", names)
        # Where the working directory is in the work tree, -f is relative to that, whatever the context is.
        self.build(top / "docker", "--git", "built:", "-f", top / "docker" / "Other", name="b")
        gone = self.build(top, "--git", "built", "-f", "docker/None", name="c", code=2)
        self.assertFalse(gone.exists())
        self.assertIn("cannot read Dockerfile built:docker/None", self.last.stderr)

    def test_what_is_no_commit_is_refused(self):
        top = self.repository(Dockerfile="FROM busybox\nCOPY none .git /x/\n")
        git(top, "tag", "v1.0")
        empty = self.context("empty", Dockerfile="FROM scratch\n")
        git(empty, "init", "-q")
        for context, revision, told in [
            (top, "v1.1", 'hint: did you mean "v1.0"?'),
            (top, "HEAD:none", 'has no directory "none"'),
            (top, "--upload-pack=x", "there is no commit"),
            (top, "HEAD~3", f'there is no commit "HEAD~3" in {top}/.git: HEAD is a commit, and "~3" leads to none from there\n'),
            (empty, "HEAD", f'there is no commit "HEAD" in {empty}/.git: it has no commit yet\n'),
            (self.scratch, "HEAD", "lies in no git repository"),
            ("-", "HEAD", "is no directory in a git repository of this machine"),
            ("https://example.invalid/x.git", "v1", "https://HOST/x.git#REF"),
        ]:
            with self.subTest(context=str(context), revision=revision):
                done = self.run_layerwright("build", f"--git={revision}", context, code=2)
                self.assertIn(told, done.stderr)
        self.assertIn("a commit holds no .git", self.failing(top))

    def test_a_repository_that_may_not_be_read_is_told_with_its_path(self):
        top = self.repository(Dockerfile="FROM scratch\nCOPY Dockerfile /\n")
        (top / ".git").chmod(0o700)
        told = self.run_layerwright("build", "--git", "HEAD", top, code=4, user="lw-one").stderr
        self.assertIn(f"cannot read {top}/.git of the git repository: Permission denied", told)
        (top / ".git").chmod(0o755)
        (top / ".git" / "HEAD").chmod(0o600)
        told = self.run_layerwright("build", "--git", "HEAD", top, code=4, user="lw-one").stderr
        self.assertIn(f"cannot read {top}/.git/HEAD of the git repository: Permission denied", told)

    def test_a_dockerfile_that_is_a_link_out_of_the_commit_is_told_with_where_it_leads(self):
        top = self.context("repository", Containerfile="FROM scratch\n")
        (self.scratch / "outside").write_text("FROM scratch\nCOPY . /\n")
        (top / "Dockerfile").symlink_to("../outside")
        git(top, "init", "-q")
        self.commit(top)
        done = self.run_layerwright("build", "--git", "HEAD", top, code=2)
        self.assertIn('cannot read Dockerfile HEAD:Dockerfile: it is a link to "../outside", which is no file of the commit, and no '
                      "link leads out of that\n", done.stderr)
        done = self.run_layerwright("build", top, code=2)
        self.assertIn(f"it is a link that leads out of the context, to {self.scratch}/outside\n", done.stderr)
        tar = subprocess.run(["tar", "-C", top, "-c", "Dockerfile"], stdout=subprocess.PIPE, check=True).stdout
        done = subprocess.run(self.command("build", "-"), input=tar, stderr=subprocess.PIPE, timeout=WATCHDOG)
        self.assertEqual(done.returncode, 2)
        self.assertIn('it is a link to "../outside", which is no file of the context', done.stderr.decode())

    def test_an_ignore_file_that_is_a_link_is_what_it_is_in_a_clean_checkout(self):
        (self.scratch / "outside").write_text("left\n")
        nowhere = 'it is a link to "{}", which is no file of the {}, and no link leads out of that'
        for name, target, told in (
                ("inside", "ignored", None),
                ("out", "../outside", {"directory": f"it is a link that leads out of the context, to {self.scratch}/outside",
                                       "commit": nowhere.format("../outside", "commit"), "tar": nowhere.format("../outside", "context")}),
                ("nowhere", "none", {"directory": nowhere.format("none", "context"), "commit": nowhere.format("none", "commit"),
                                     "tar": nowhere.format("none", "context")}),
                ("loop", ".dockerignore", {"directory": "Too many levels of symbolic links (os error 40)",
                                           "commit": "too many levels of symbolic links in .dockerignore",
                                           "tar": "Too many levels of symbolic links (os error 40)"}),
                ("directory", None, {"directory": "Is a directory (os error 21)", "commit": "Is a directory (os error 21)",
                                     "tar": "it is not a file"})):
            top = self.context(name, Dockerfile="FROM scratch\nCOPY . /\n", ignored="left\n**/.git\n", left="1")
            git(top, "init", "-q")
            if target is None:
                (top / ".dockerignore").mkdir()
                (top / ".dockerignore" / "file").write_text("left\n")
            else:
                (top / ".dockerignore").symlink_to(target)
            self.commit(top)
            tar = subprocess.run(["tar", "-C", top, "-c", "."], stdout=subprocess.PIPE, check=True).stdout
            for way, arguments, input_ in (("directory", [top], None), ("commit", ["--git", "HEAD", top], None), ("tar", ["-"], tar)):
                with self.subTest(name=name, way=way):
                    out = self.scratch / f"{name}-{way}"
                    done = subprocess.run(self.command("build", "-o", f"type=oci,tar=false,dest={out}", *arguments),
                                          input=input_, stderr=subprocess.PIPE, timeout=WATCHDOG, cwd=self.scratch)
                    if told is None:
                        self.assertEqual(done.returncode, 0, done.stderr)
                        names = {name for layer in Layout(out).layers() for name in layer}
                        self.assertIn("ignored", names)
                        self.assertNotIn("left", names)
                        continue
                    self.assertEqual(done.returncode, 2, done.stderr)
                    self.assertRegex(done.stderr.decode(), f"(?m)^error: cannot read ignore file .*: {re.escape(told[way])}$")

    def failing(self, top):
        dockerfile = top / "Dockerfile"
        dockerfile.write_text("FROM busybox\nCOPY .git /x/\n")
        self.commit(top)
        return self.run_layerwright("build", "--git", "HEAD", top, code=1).stderr

    def test_a_submodule_that_is_not_here_is_named(self):
        top = self.motley()
        alone = self.scratch / "alone"
        git(self.scratch, "clone", "-q", top, alone)
        done = self.run_layerwright("build", "--git", "HEAD", alone, code=1)
        self.assertIn('the submodule "sub/m"', done.stderr)
        self.assertIn("git submodule update --init", done.stderr)
        self.run_layerwright("build", "--git", "HEAD:service", alone)
        bare = self.scratch / "bare.git"
        git(self.scratch, "clone", "-q", "--bare", top, bare)
        done = self.run_layerwright("build", "--git", "HEAD", bare, code=1)
        self.assertIn("hint: a bare repository has no submodules: build a clone with a work tree", done.stderr)

    def test_nothing_but_the_dockerfile_is_read_where_nothing_has_changed(self):
        top = self.repository(Dockerfile="FROM busybox\nCOPY b /b/\nCOPY a /a/\n", a="1", b__c="2", b__d="3")
        before = Layout(self.build(top, "--git", "HEAD", name="before")).digest
        for path in ("a", "b/c", "b/d", "b"):
            self.forget(top, path)
        self.assertEqual(Layout(self.build(top, "--git", "HEAD", name="after")).digest, before)

    def test_of_another_commit_what_has_changed_is_read(self):
        top = self.repository(Dockerfile="FROM busybox\nCOPY b /b/\nCOPY a /a/\n", a="1", b__c="2", b__d="3")
        self.build(top, "--git", "HEAD", name="before")
        (top / "a").write_text("another")
        self.commit(top)
        for path in ("b/c", "b/d"):
            self.forget(top, path)
        after = Layout(self.build(top, "--git", "HEAD", name="after"))
        self.assertEqual(after.read("a/a"), b"another")
        self.assertIn("1 cached", self.last.stderr)
        # Whoever has learned nothing of them needs them.
        done = self.run_layerwright("build", "--git", "HEAD", top, root=self.machine(), code=4)
        self.assertIn("the blob", done.stderr)

    def traced(self, top, *arguments):
        """The objects that a build opens, all of them loose, and the files of the work tree that it opens."""
        log = self.scratch / "trace"
        command = ["strace", "-f", "-qq", "-y", "-o", log, "-e", "trace=open,openat,openat2,mmap,read,pread64",
                   *self.command("build", "--progress", "plain", *arguments, top)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=WATCHDOG,
                              stdin=subprocess.DEVNULL)
        self.assertEqual(done.returncode, 0, done.stdout)
        text = log.read_text()
        objects = {first + rest for first, rest in re.findall(r"/\.git/objects/([0-9a-f]{2})/([0-9a-f]{38})>", text)}
        files = set(re.findall(rf"<{re.escape(str(top))}/((?!\.git[/>])[^>]*)>", text))
        return objects, {name for name in files if (top / name).is_file()}

    def test_where_nothing_has_changed_no_blob_is_read_and_of_a_change_its_path(self):
        if not shutil.which("strace"):
            print("SKIPPED: there is no strace")
            return
        top = self.repository(Dockerfile="FROM busybox\nCOPY b /b/\nCOPY a/* /a/\nRUN cat /b/c/d/one\n", a__one="1", b__c__d__one="2",
                              b__e__one="3", f__g__one="4", **{f"b__c__f{number}": str(number) for number in range(50)})
        # The index is older than now, so git need not look into anything either.
        for path in top.rglob("*"):
            if ".git" not in path.parts:
                os.utime(path, (10**9, 10**9))
        git(top, "status")
        object_of = lambda path: git(top, "rev-parse", f"HEAD:{path}")
        always = lambda: {git(top, "rev-parse", "HEAD"), git(top, "rev-parse", "HEAD^{tree}"), object_of("Dockerfile")}
        first, _ = self.traced(top, "--git", "HEAD")
        self.assertLessEqual({object_of("b/c/d/one"), object_of("b/c/f7"), object_of("a/one")}, first)
        for revision in ("HEAD", git(top, "rev-parse", "HEAD")):
            objects, files = self.traced(top, "--git", revision)
            # That of a pattern is the tree whose names it is compared with.
            self.assertEqual((objects, files), (always() | {object_of("a")}, set()))
        (top / "f" / "g" / "one").write_text("another")
        self.commit(top)
        objects, _ = self.traced(top, "--git", "HEAD")
        self.assertEqual(objects - {object_of("f"), object_of("f/g"), object_of("f/g/one")}, always() | {object_of("a")})
        (top / "a" / "one").write_text("another")
        self.commit(top)
        objects, _ = self.traced(top, "--git", "HEAD")
        self.assertEqual(objects, always() | {object_of("a"), object_of("a/one")})

    def test_what_a_commit_holds_is_listed(self):
        top = self.repository(Dockerfile="FROM busybox\n", _DOT_dockerignore="*.log\n", d__one="12345", **{"made.log": "x"})
        (top / "to").symlink_to("d")
        (top / ".gitattributes").write_text("*.bin filter=lfs\n")
        (top / "big.bin").write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345678\n")
        self.commit(top)
        shutil.rmtree(top / "d")
        ls = lambda *arguments: self.run_layerwright("context", "ls", "--root", self.store(), "--git", "HEAD", *arguments).stdout
        self.assertEqual(ls(top).split("\n")[:-1], [".dockerignore", ".gitattributes", "Dockerfile", "big.bin", "d/", "d/one", "to -> d"])
        entries = {entry["path"]: entry for entry in json.loads(ls("--format", "json", top))["entries"]}
        self.assertEqual([entries[path].get("size") for path in ("d/one", "big.bin", "d")], [5, 12345678, None])
        self.assertEqual(ls(top / "d"), "one\n")
        self.assertEqual(ls("--why", "made.log", top), "made.log: excluded by .dockerignore:1: *.log\n")
        self.assertEqual(ls("--why", "none", top), "none: included: no pattern matches it (there is no such path)\n")

    def test_a_blob_that_is_gone_is_named_with_its_path_and_what_to_do(self):
        top = self.repository(Dockerfile="FROM busybox\nCOPY a /a/\n", a__one="1", a__two="2")
        name = git(top, "rev-parse", "HEAD:a/two")
        self.build(top, "--git", "HEAD", name="before")
        # What it holds is known, so that nobody misses it before the layer is packed, or written.
        self.forget(top, "a/two")
        for dockerfile in ("FROM busybox\nCOPY a /b/\n", "FROM busybox\nCOPY a /b/\nRUN cat /b/two\n"):
            (top / "Dockerfile").write_text(dockerfile)
            git(top, "commit", "-q", "-m", "x", "Dockerfile")
            done = self.run_layerwright("build", "--git", "HEAD", "-o", f"type=oci,dest={self.scratch}/x.tar", top, code=4)
            self.assertRegex(done.stderr, f'the blob {name}, "a/two" of the commit, is not in the repository .*/\\.git')
            self.assertRegex(done.stderr, r"hint: .* fetch --refetch --no-filter; .* fsck ")
            self.assertNotIn("changed", done.stderr)

    def test_a_work_tree_that_differs_is_told_first_and_nothing_is_run_or_sent(self):
        with Registry(self.scratch / "registry") as registry:
            top = self.repository(Dockerfile="FROM busybox\nCOPY a /a\nRUN echo it ran\n", a="1", b="1")
            push = ("build", "--progress", "plain", "--git", "HEAD", "--push", "-t", f"{registry.host}/app:1", top)
            changes = lambda since: [path for method, path, _ in registry.requests()[since:] if method in ("POST", "PUT", "PATCH")]
            cached = False
            for _ in range(2):
                since = len(registry.requests())
                (top / "b").write_text("2")
                done = self.run_layerwright(*push, "--no-cache" if cached else "--pull=false", code=2)
                self.assertIn("error: the work tree differs from HEAD: b\n", done.stderr)
                self.assertEqual(("it ran" in done.stderr, changes(since)), (False, []))
                git(top, "checkout", "-q", "b")
                self.run_layerwright(*push)
                cached = True
            # Whatever else is wrong with it.
            (top / "Dockerfile").write_text("FROM busybox\nNOTHING\n")
            self.commit(top)
            (top / "b").write_text("2")
            for arguments in (push, ("build", "--git", "HEAD", "--check", top), ("build", "--git", "HEAD", "-f", "none", top)):
                done = self.run_layerwright(*arguments, code=2)
                self.assertIn("the work tree differs from HEAD: b", done.stderr)

    def test_files_of_lfs_are_named_where_they_are_not_here(self):
        top = self.repository(Dockerfile="FROM busybox\nCOPY . /x/\n", _DOT_gitattributes="*.bin filter=lfs\n", other="1")
        large = b"large" * 1000
        name = hashlib.sha256(large).hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{name}\nsize 5000\n"
        git(top, "config", "filter.lfs.clean", "cat")
        (top / "a.bin").write_text(pointer)
        self.commit(top)
        done = self.run_layerwright("build", "--git", "HEAD", top, code=1)
        self.assertIn("a file of Git LFS is not on this machine: a.bin", done.stderr)
        self.assertIn("git lfs fetch", done.stderr)
        objects = top / ".git" / "lfs" / "objects" / name[:2] / name[2:4]
        objects.mkdir(parents=True)
        (objects / name).write_bytes(large)
        self.assertEqual(Layout(self.build(top, "--git", "HEAD")).read("x/a.bin"), large)
        # Only what goes through the filter is one of its files, whatever it looks like.
        (top / ".gitattributes").write_text("[attr]large filter=lfs\n*.bin large\n/small/*.bin -filter\n")
        (top / "small").mkdir()
        for path in ("small/b.bin", "c.txt"):
            (top / path).write_text(pointer)
        self.commit(top)
        layout = Layout(self.build(top, "--git", "HEAD", name="by-path"))
        self.assertEqual([layout.read(f"x/{path}") for path in ("a.bin", "small/b.bin", "c.txt")], [large, pointer.encode(), pointer.encode()])
        gone = pointer.replace(name, "0" * 64)
        for path in ("e.bin", "f.bin", "g.txt"):
            (top / path).write_text(gone)
        self.commit(top)
        done = self.run_layerwright("build", "--git", "HEAD", top, code=1)
        self.assertIn("2 files of Git LFS are not on this machine: e.bin, f.bin\n", done.stderr)

    def test_a_work_tree_that_differs_is_refused_or_laid_over(self):
        top = self.repository(Dockerfile="FROM busybox\nCOPY . /x/\n", _DOT_dockerignore=IGNORE, a="1", b="2", c__d="3",
                              other__file="1")
        clean = Layout(self.build(top, "--git", "HEAD", "--dirty", name="clean")).digest
        (top / "untracked").write_text("u")
        (top / "a").touch()
        self.assertEqual(Layout(self.build(top, "--git", "HEAD", name="touched")).digest, clean)
        (top / "a").write_text("changed")
        (top / "b").unlink()
        (top / "new").write_text("n")
        git(top, "add", "new")
        done = self.run_layerwright("build", "--git", "HEAD", top, code=2)
        self.assertIn("the work tree differs from HEAD: a, b, new", done.stderr)
        self.assertIn("--dirty", done.stderr)
        self.assertEqual(Layout(self.build(top, "--git", git(top, "rev-parse", "HEAD~0"), "-f", "Dockerfile", "--dirty=true",
                                           name="dirty")).read("x/a"), b"changed")
        laid = Layout(self.build(top, "--git", "HEAD", "--dirty", name="laid"))
        names = {name for layer in laid.layers() for name in layer if name.startswith("x/")}
        self.assertEqual(names, {"x/" + name for name in
                                 ("", ".dockerignore", "Dockerfile", "a", "c", "c/d", "new", "other", "other/file")} - {"x/"})
        # Another directory, and another commit, are not what differs.
        self.build(top, "--git", "HEAD:other", "-f", top / "Dockerfile", name="other")
        (top / "Dockerfile").write_text("FROM busybox\nCOPY a /other\n")
        self.run_layerwright("build", "--git", "HEAD:other", "-f", top / "Dockerfile", code=2)
        self.assertEqual(Layout(self.build(top, "--git", "HEAD", "--dirty", name="file")).read("other"), b"changed")
        self.run_layerwright("build", "--dirty", top, code=2)
        # The Dockerfile as well; what neither has is told as before.
        (top / "Dockerfile").unlink()
        told = self.run_layerwright("build", "--git", "HEAD", "--dirty", top, code=2).stderr
        self.assertIn("hint: the commit has it, and the work tree, which --dirty lays over that, no longer", told)
        told = self.run_layerwright("build", "--git", "HEAD", "--dirty", "-f", "none", top, code=2).stderr
        self.assertIn("hint: this path is looked for in the commit", told)

    def test_what_git_is_told_not_to_look_at_is_looked_at(self):
        top = self.repository(Dockerfile="FROM scratch\nCOPY . /\n", a="1", b="1", c="1")
        git(top, "update-index", "--assume-unchanged", "a")
        git(top, "update-index", "--skip-worktree", "b", "c")
        (top / "c").unlink()
        self.build(top, "--git", "HEAD", name="clean")
        for name in ("a", "b"):
            (top / name).write_text("2")
        self.assertEqual(git(top, "status", "--porcelain"), "")
        done = self.run_layerwright("build", "--git", "HEAD", top, code=2)
        self.assertIn("the work tree differs from HEAD: a, b\n", done.stderr)
        laid = Layout(self.build(top, "--git", "HEAD", "--dirty", name="laid"))
        self.assertEqual([laid.read(name) for name in "abc"], [b"2", b"2", b"1"])

    def test_a_pipe_in_the_place_of_a_file_is_refused_by_its_name(self):
        top = self.repository(Dockerfile="FROM scratch\nCOPY . /\n", a="1")
        (top / "a").unlink()
        os.mkfifo(top / "a")
        told = self.run_layerwright("build", "--git", "HEAD", "--dirty", top, code=2).stderr
        self.assertIn(f"{top}/a is a pipe in the work tree, where a file is tracked\n", told)
        self.assertIn("the work tree differs from HEAD: a\n", self.run_layerwright("build", "--git", "HEAD", top, code=2).stderr)

    def forget(self, top, path):
        """Takes an object of HEAD away."""
        name = git(top, "rev-parse", f"HEAD:{path}")
        pathlib.Path(top, ".git", "objects", name[:2], name[2:]).unlink()

    def test_a_build_that_is_refused_fills_no_cache(self):
        """Nor where all of it is in the store already, so that nothing has to run for that."""
        top = self.repository(Dockerfile="FROM busybox\nCOPY f /\nRUN cat /f > /g\n", f="1")
        self.build(top, "--git", "HEAD")
        (top / "f").write_text("2")
        place = self.scratch / "cache"
        done = self.run_layerwright("build", "--git", "HEAD", "--cache-to", f"type=local,dest={place}", "-o", "type=cacheonly",
                                    top, code=2)
        self.assertIn("the work tree differs from HEAD: f", done.stderr)
        self.assertNotIn("cached", done.stderr)
        self.assertEqual(list(place.rglob("*")) if place.exists() else [], [])

    def test_the_image_says_what_it_was_built_from(self):
        top = self.repository(Dockerfile="FROM busybox\nRUN echo $SOURCE_DATE_EPOCH > /epoch\nCOPY a /\n", a="1")
        head = git(top, "rev-parse", "HEAD")
        layout = Layout(self.build(top, "--git", "HEAD", name="told"))
        told = {REVISION: head, CREATED: "2023-11-14T22:13:20Z"}
        self.assertEqual(layout.config["config"]["Labels"], told)
        self.assertEqual(layout.manifest["annotations"], told)
        self.assertEqual(layout.config["created"], told[CREATED])
        self.assertEqual(layout.config["history"][-1]["created"], told[CREATED])
        # Never the times of layers, nor what a step sees.
        self.assertEqual(layout.read("epoch"), b"946684800\n")
        for layer in layout.layers():
            self.assertLessEqual(max([member.mtime for member in layer.values()], default=0), 946684800)

        silent = Layout(self.build(top, "--git", "HEAD", "--git-labels=false", name="silent"))
        self.assertNotIn("Labels", silent.config["config"])
        self.assertNotIn("annotations", silent.manifest)
        self.assertEqual(silent.config["created"], told[CREATED])
        own = Layout(self.build(top, "--git", "HEAD", "--label", f"{REVISION}=mine", "--annotation", f"{CREATED}=then", name="own"))
        self.assertEqual(own.config["config"]["Labels"], told | {REVISION: "mine"})
        self.assertEqual(own.manifest["annotations"], told | {CREATED: "then"})
        epoch = Layout(self.build(top, "--git", "HEAD", name="epoch", env={"SOURCE_DATE_EPOCH": "1000000000"}))
        self.assertEqual(epoch.config["created"], "2001-09-09T01:46:40Z")

        (top / "a").write_text("2")
        dirty = Layout(self.build(top, "--git", "HEAD", "--dirty", "-t", "h.example.org/a:{git.short}", name="dirty"))
        self.assertEqual(dirty.config["config"]["Labels"][REVISION], f"{head}-dirty")
        self.assertEqual(dirty.descriptor["annotations"]["org.opencontainers.image.ref.name"], f"{head[:7]}-dirty")

    def test_an_unrelated_commit_finds_everything_and_sends_no_layer(self):
        with Registry(self.scratch / "registry") as registry:
            top = self.repository(Dockerfile="FROM busybox\nCOPY app /app\nRUN echo made > /made\n", app__a="1", docs__a="1")
            push = ("-q", "--push", "-t", f"{registry.host}/app:{{git.sha}}", "-t", f"{registry.host}/app:{{git.branch}}")
            first = self.run_layerwright("build", "--git", "HEAD", *push, top).stdout
            (top / "docs" / "a").write_text("2")
            head = self.commit(top)
            before = len(registry.requests())
            second = self.run_layerwright("build", "--git", "HEAD", *push, top).stdout
            requests = registry.requests()[before:]
            uploads = [path for method, path, _ in requests if method == "PUT" and "/blobs/" in path]
            self.assertEqual(len(uploads), 1, "the config, for it names the commit")
            self.assertNotEqual(first, second)
            # The same commit, from another clone and by an empty store of somebody else's: the same image.
            bare = self.scratch / "bare.git"
            git(self.scratch, "clone", "-q", "--bare", top, bare)
            subprocess.run(["chmod", "-R", "a+rX", bare], check=True)
            third = self.run_layerwright("build", "--git", head, *push, bare, user="lw-sub").stdout
            self.assertEqual(third, second)
            # And again with everything there: a look at each tag, which stand for it.
            before = len(registry.requests())
            again = self.run_layerwright("build", "--git", "HEAD", *push, top).stdout
            asked = [(method, path.rsplit("/", 1)[1][:7]) for method, path, _ in registry.requests()[before:]]
            self.assertEqual((again, sorted(asked)), (second, sorted([("HEAD", head[:7]), ("HEAD", "main")])))
            # Another name is a look at the image and the name put, and nothing else.
            before = len(registry.requests())
            named = self.run_layerwright("build", "--git", "HEAD", "-q", "--push", "-t", f"{registry.host}/app:new", top).stdout
            asked = [(method, path.rsplit("/", 1)[1][:7]) for method, path, _ in registry.requests()[before:]]
            self.assertEqual((named, asked), (second, [("HEAD", "sha256:"), ("PUT", "new")]))

    def test_placeholders_without_what_they_stand_for(self):
        top = self.repository(Dockerfile="FROM scratch\nCOPY Dockerfile /\n")
        for arguments, words in [
            (("-t", "h.example.org/a:{git.sha}"), "{git.sha} needs a commit: give --git REV"),
            (("--git", "HEAD", "-t", "h.example.org/a:{git.tag}"), "has no tag"),
            (("--git", "HEAD", "-t", "h.example.org/a:{git.nope}"), "unknown placeholder {git.nope}"),
        ]:
            self.assertIn(words, self.run_layerwright("build", *arguments, top, code=2).stderr)
        git(top, "tag", "v1.4+x")
        layout = Layout(self.build(top, "--git", "HEAD", "-t", "h.example.org/a:{git.tag}-{git.tree}"))
        tree = git(top, "rev-parse", "HEAD^{tree}")
        self.assertEqual(layout.descriptor["annotations"]["org.opencontainers.image.ref.name"], f"v1.4-x-{tree}")

    def test_an_address_of_the_repository_gives_the_same_image(self):
        top = self.motley()
        git(top, "rm", "-q", "--cached", "sub/m", ".gitmodules")
        shutil.rmtree(top / "sub")
        (top / "run").write_text("#!/bin/sh\ncat /all/to/one\n")
        self.commit(top)
        here = Layout(self.build(top, "--git", "HEAD", name="here"))
        with GitDaemon(self.scratch) as daemon:
            for user in USERS:
                address = f"{daemon.url}/{top.name}/.git#main"
                there = Layout(self.build(address, user=user, root=self.machine(user), name=f"there-{user}"))
                self.assertEqual(there.digest, here.digest)
        self.assertEqual(here.config["config"]["Labels"][REVISION], git(top, "rev-parse", "HEAD"))

    def test_dirty_is_for_what_is_checked_out(self):
        top = self.repository(Dockerfile="FROM scratch\nCOPY a /\n", a="1")
        git(top, "tag", "v1")
        (top / "a").write_text("2")
        self.commit(top)
        (top / "a").write_text("3")
        told = self.run_layerwright("build", "--git", "v1", "--dirty", top, code=2).stderr
        self.assertIn(f"--dirty lays a work tree over the commit that is checked out, and v1 is another one than {git(top, 'rev-parse', 'HEAD')}", told)
        bare = self.scratch / "bare.git"
        git(self.scratch, "clone", "-q", "--bare", top, bare)
        self.assertIn("of a repository without one", self.run_layerwright("build", "--git", "main", "--dirty", bare, code=2).stderr)
        self.assertIn("has no directory", self.run_layerwright("build", "--git", "main", bare / "nowhere", code=2).stderr)


if __name__ == "__main__":
    unittest.main()
