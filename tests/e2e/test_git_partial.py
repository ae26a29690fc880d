"""Repositories elsewhere, of which only what a build picks is fetched."""

import os
import shutil
import subprocess
import unittest

from servers import Files, GitDaemon
from support import USERS, WATCHDOG, Case, Layout

PICKED, LARGE = 20, 50
MIB = 1 << 20


def git(directory, *arguments):
    """What git says, without anybody's configuration and at one time."""
    environment = {"PATH": os.environ["PATH"], "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null"}
    for who in ("AUTHOR", "COMMITTER"):
        environment |= {f"GIT_{who}_NAME": "A", f"GIT_{who}_EMAIL": "a@example.com", f"GIT_{who}_DATE": "1700000000 +0000"}
    command = ["git", "-c", "safe.directory=*", "-C", directory, *arguments]
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True, timeout=WATCHDOG).stdout.strip()


class Partial(Case):
    def setUp(self):
        super().setUp()
        self.top = self.scratch / "site" / "app"
        self.put("Dockerfile", "FROM busybox\nCOPY picked link /picked/\nRUN ls /picked > /list\n")
        self.put(".dockerignore", "picked/ignored\n")
        self.put("picked/ignored", os.urandom(MIB))
        for number in range(PICKED):
            self.put(f"picked/{number}", os.urandom(100))
        (self.top / "link").symlink_to("picked/7")
        git(self.top, "init", "-q", "-b", "main")
        git(self.top, "config", "uploadpack.allowFilter", "true")

    def put(self, path, content):
        path = self.top / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    def commit(self):
        git(self.top, "add", "-A")
        git(self.top, "commit", "-q", "--allow-empty", "-m", "x")
        return git(self.top, "rev-parse", "HEAD")

    def repositories(self, user):
        return [path for path in (self.store(user) / "git" / "remotes").iterdir() if path.is_dir()]

    def stored(self, user):
        """Bytes of what was fetched."""
        files = [path for repository in self.repositories(user) for path in repository.rglob("*") if path.is_file()]
        return sum(path.stat().st_size for path in files)

    def objects(self, user):
        """The objects that are here, and which of them there are that are not."""
        (repository,) = self.repositories(user)
        said = git(repository, "rev-list", "--objects", "--all", "--missing=print").splitlines()
        missing = {line[1:] for line in said if line.startswith("?")}
        return len(said) - len(missing), missing

    def test_only_what_is_picked_is_fetched_over_git_and_http(self):
        for number in range(LARGE):
            self.put(f"other/{number}", os.urandom(MIB))
        first = self.commit()
        here = Layout(self.build(self.top, "--git", "HEAD", name="here", root=self.machine()))
        with GitDaemon(self.top.parent) as daemon, Files(self.top.parent) as web:
            for user, url in zip(USERS, (daemon.url, web.url)):
                address = f"{url}/app/.git"
                layout = Layout(self.build(f"{address}#main", user=user, name=f"{user}-first"))
                self.assertEqual(layout.digest, here.digest)
                # The commit, two directories and the top; the Dockerfile, the ignore file, the link, and what is picked.
                self.assertLess(self.stored(user), 200_000)
                before = self.objects(user)
                self.assertEqual((before[0], len(before[1])), (4 + 3 + PICKED, LARGE + 1))
                # The same commit: nothing more. By its hash nobody is asked at all.
                for name in ("main", first):
                    self.build(f"{address}#{name}", user=user, name=f"{user}-{name[:4]}")
                    self.assertEqual(self.objects(user), before)
        self.build(f"{daemon.url}/app/.git#{first}", env={"PATH": "/nowhere"}, name="without-git")
        self.put("picked/3", b"changed")
        second = self.commit()
        with GitDaemon(self.top.parent) as daemon, Files(self.top.parent) as web:
            for user, url in zip(USERS, (daemon.url, web.url)):
                # Servers are elsewhere by now; git keeps repositories apart by where they are.
                shutil.rmtree(self.store(user) / "git")
                layout = Layout(self.build(f"{url}/app/.git#{first}", user=user, name=f"{user}-again"))
                self.assertEqual(layout.digest, here.digest)
                self.assertEqual(self.last.stderr.count("CACHED"), 2)
                found, missing = self.objects(user)
                self.assertEqual((found, len(missing)), (4 + 3, LARGE + 1 + PICKED), "all is cached: no file but what says what is built")
                layout = Layout(self.build(f"{url}/app/.git#{second}", user=user, name=f"{user}-second"))
                self.assertEqual(layout.read("picked/3"), b"changed")
                self.assertLess(self.stored(user), 200_000)

    def test_a_new_commit_costs_what_it_changes(self):
        self.commit()
        with GitDaemon(self.top.parent) as daemon:
            address = f"{daemon.url}/app/.git#main"
            self.build(address, name="first")
            found, missing = self.objects("root")
            self.put("picked/3", b"changed")
            self.put("elsewhere/other", os.urandom(MIB))
            self.commit()
            layout = Layout(self.build(address, name="second"))
            self.assertEqual(layout.read("picked/3"), b"changed")
            # The commit, its top, one directory that changed and one that is new; the file.
            now, lacking = self.objects("root")
            self.assertEqual((now - found, len(lacking - missing)), (5, 1))

    def test_submodules_are_fetched_where_a_step_looks_into_them(self):
        inner = self.top.parent / "inner"
        inner.mkdir()
        git(inner, "init", "-q", "-b", "main")
        git(inner, "config", "uploadpack.allowFilter", "true")
        (inner / "small").write_text("s")
        (inner / "large").write_bytes(os.urandom(MIB))
        git(inner, "add", "-A")
        git(inner, "commit", "-q", "-m", "x")
        self.put("Dockerfile", "FROM busybox AS a\nCOPY picked/1 /\nFROM a\nCOPY sub/small /s\n")
        with GitDaemon(self.top.parent) as daemon:
            self.put(".gitmodules", f'[submodule "s"]\n path = sub\n url = {daemon.url}/inner/.git\n')
            git(self.top, "add", "-A")
            git(self.top, "update-index", "--add", "--cacheinfo", f"160000,{git(inner, 'rev-parse', 'HEAD')},sub")
            git(self.top, "commit", "-q", "-m", "sub")
            address = f"{daemon.url}/app/.git"
            self.build(f"{address}#main", "--target", "a", name="a")
            self.assertEqual(len(self.repositories("root")), 1)
            self.assertEqual(Layout(self.build(f"{address}#main", name="b")).read("s"), b"s")
            self.assertEqual(len(self.repositories("root")), 2)
            self.assertLess(self.stored("root"), 200_000)
            # Left out, there is nothing to pick.
            done = self.run_layerwright("build", f"{address}?submodules=0#main", code=1)
            self.assertIn('"/sub/small": not found', done.stderr)

    def test_a_server_that_is_gone_is_named_and_nothing_is_half(self):
        self.put("Dockerfile", "FROM busybox AS a\nCOPY picked/1 /\nFROM a\nCOPY picked /all\n")
        first = self.commit()
        with GitDaemon(self.top.parent) as daemon:
            address = f"{daemon.url}/app/.git#{first}"
            self.build(address, "--target", "a", name="a")
        done = self.run_layerwright("build", address, code=3)
        self.assertIn("git fetch of git://127.0.0.1", done.stderr)
        self.assertEqual(len(self.objects("root")[1]), PICKED)
        # What is here is built all the same.
        self.build(address, "--target", "a", name="again")
        done = self.run_layerwright("fsck", "--root", self.store())
        self.assertIn("no damage", done.stdout + done.stderr)

    def test_a_full_disk_is_told_as_that_of_the_store(self):
        """Whether it fills while the commit is fetched, or later with a file that a step picks; and there is room again after it."""
        self.put("Dockerfile", "FROM scratch\nCOPY picked /\n")
        self.put("picked/large", os.urandom(8 * MIB))
        self.commit()
        store = self.scratch / "small"
        store.mkdir()
        enter = f"mount -t tmpfs -o size=6m none {store} && \"$@\" || code=$?; find {store} -name 'tmp_*'; exit $code"
        with GitDaemon(self.top.parent) as daemon:
            for filters in ("true", "false"):
                git(self.top, "config", "uploadpack.allowFilter", filters)
                done = subprocess.run(
                    ["unshare", "--mount", "sh", "-c", enter, "sh", *self.command("build", f"{daemon.url}/app/.git", root=store)],
                    capture_output=True, text=True, timeout=WATCHDOG)
                self.assertEqual((done.returncode, done.stdout), (4, ""), done.stderr)
                self.assertIn("cannot write what it gets: No space left on device", done.stderr)
                self.assertIn(f"hint: the disk of the store {store} is full (", done.stderr)

    def test_files_of_lfs_are_named(self):
        self.put(".gitattributes", "*.bin filter=lfs\n")
        self.put("picked/a.bin", f"version https://git-lfs.github.com/spec/v1\noid sha256:{'ab' * 32}\nsize 5000\n")
        git(self.top, "config", "filter.lfs.clean", "cat")
        self.commit()
        with GitDaemon(self.top.parent) as daemon:
            done = self.run_layerwright("build", f"{daemon.url}/app/.git", code=1)
        self.assertIn("a file of Git LFS is not on this machine: picked/a.bin", done.stderr)
        self.assertIn(".dockerignore", done.stderr)

    def test_a_context_elsewhere_is_listed(self):
        self.commit()
        with GitDaemon(self.top.parent) as daemon:
            said = self.run_layerwright("context", "ls", "--root", self.store(), f"{daemon.url}/app/.git#main:picked").stdout
            self.assertEqual(len(said.splitlines()), PICKED + 1)
            said = self.run_layerwright("context", "ls", "--root", self.store(), f"{daemon.url}/app/.git", "--why", "picked/ignored").stdout
            self.assertIn(".dockerignore:1", said)


if __name__ == "__main__":
    unittest.main()
