"""`layerwright explain`: planted changes are named, each of them, and nothing else is.

The table plants one change a row into a project that was built, as a person would, and builds again. The reasons that
`explain` gives must be those of the row; every other step that ran must say that it did because of a step of the row.
"""

import json
import os
import re
import shutil
import subprocess
import unittest

from support import USERS, Case

NIGHTLY = "LAYERWRIGHT_NIGHTLY" in os.environ

DOCKERFILE = """\
FROM busybox AS tool
RUN echo tool > /tool
FROM busybox
ARG VERSION=1
ARG NAME=one.txt
ARG UNUSED=x
ENV MODE=fast
RUN echo $VERSION $MODE > /version
COPY src /src
COPY $NAME /named/
COPY --from=tool /tool /tool
COPY <<TEXT /text
hello
TEXT
COPY --link linked /linked
WORKDIR /work
RUN --mount=type=bind,source=mounted,target=/mounted cat /mounted/* > /mounted-all
RUN cat /src/main.c > /all
"""
FILES = {"src/main.c": "main", "src/lib/a.c": "a", "src/lib/b.c": "b", "one.txt": "1", "two.txt": "2",
         "linked/file": "linked", "mounted/m": "m", "outside": "no step reads it", ".dockerignore": "**/*.log\n"}


class Project:
    """The files of a project, a change at a time."""

    def __init__(self, directory):
        self.directory = directory
        for path, text in FILES.items():
            self.write(path, text)
        (directory / "src" / "link").symlink_to("main.c")
        (directory / "Dockerfile").write_text(DOCKERFILE)
        self.arguments = []

    def write(self, path, text):
        path = self.directory / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def remove(self, path):
        (self.directory / path).unlink()

    def mode(self, path, mode):
        (self.directory / path).chmod(mode)

    def link(self, path, target):
        self.remove(path)
        (self.directory / path).symlink_to(target)

    def edit(self, old, new):
        path = self.directory / "Dockerfile"
        text = path.read_text()
        assert old in text, old
        path.write_text(text.replace(old, new, 1))

    def flag(self, *arguments):
        self.arguments += arguments


def files(*changes):
    return {"reason": "files", "changes": [dict(zip(("path", "change"), change[:2])) | (change[2] if len(change) > 2 else {})
                                           for change in changes]}


def value(kind, name, old, new):
    return {"reason": kind, "name": name, "from": old, "to": new}


def instruction(old, new):
    return {"reason": "instruction", "from": old, "to": new}


RUN = "RUN echo $VERSION $MODE > /version"
NEW = {"reason": "new"}
# (name, what is done, the reasons for the steps whose labels hold these words; all others follow from them)
PLANTED = [
    ("content", lambda p: p.write("src/main.c", "other"), {"COPY src": files(("src/main.c", "content"))}),
    ("file added", lambda p: p.write("src/lib/new.c", ""), {"COPY src": files(("src/lib/new.c", "added"))}),
    ("directory added", lambda p: p.write("src/new/file", ""), {"COPY src": files(("src/new/file", "added"))}),
    ("file removed", lambda p: p.remove("src/lib/b.c"), {"COPY src": files(("src/lib/b.c", "removed"))}),
    ("mode", lambda p: p.mode("src/main.c", 0o755),
     {"COPY src": files(("src/main.c", "mode", {"from": 0o644, "to": 0o755}))}),
    ("mode of a directory", lambda p: p.mode("src/lib", 0o700),
     {"COPY src": files(("src/lib", "mode", {"from": 0o755, "to": 0o700}))}),
    ("link", lambda p: p.link("src/link", "lib/a.c"),
     {"COPY src": files(("src/link", "link", {"from": "main.c", "to": "lib/a.c"}))}),
    ("link for a file", lambda p: p.link("src/lib/a.c", "b.c"),
     {"COPY src": files(("src/lib/a.c", "kind", {"from": "file", "to": "link"}))}),
    ("file renamed", lambda p: (p.remove("src/lib/a.c"), p.write("src/lib/z.c", "a")),
     {"COPY src": files(("src/lib/a.c", "removed"), ("src/lib/z.c", "added"))}),
    ("two files", lambda p: (p.write("src/main.c", "m"), p.write("src/lib/a.c", "x")),
     {"COPY src": files(("src/lib/a.c", "content"), ("src/main.c", "content"))}),
    ("ignored", lambda p: p.write(".dockerignore", "src/lib/b.c\n"),
     {"COPY src": files(("src/lib/b.c", "removed"))}),
    ("linked copy", lambda p: p.write("linked/file", "x"), {"] COPY --link": files(("linked/file", "content"))}),
    ("mounted file", lambda p: p.write("mounted/m", "x"), {"mount /mounted": files(("mounted/m", "content"))}),
    ("ARG of a command", lambda p: p.flag("--build-arg", "VERSION=2"), {"RUN echo": value("arg", "VERSION", "1", "2")}),
    ("default of an ARG", lambda p: p.edit("VERSION=1", "VERSION=3"), {"RUN echo": value("arg", "VERSION", "1", "3")}),
    ("new ARG", lambda p: p.edit("ENV MODE", "ARG ADDED=yes\nENV MODE"), {"RUN echo": value("arg", "ADDED", None, "yes")}),
    ("ARG of a copy", lambda p: p.flag("--build-arg", "NAME=two.txt"),
     {"/named/": value("arg", "NAME", "one.txt", "two.txt")}),
    ("ENV", lambda p: p.edit("MODE=fast", "MODE=slow"), {"RUN echo": value("env", "MODE", "fast", "slow")}),
    ("ENV removed", lambda p: p.edit("ENV MODE=fast\n", ""), {"RUN echo": value("env", "MODE", "fast", None)}),
    ("text of RUN", lambda p: p.edit(RUN, RUN + ".txt"), {"RUN echo": instruction(RUN, RUN + ".txt")}),
    ("text of COPY", lambda p: (p.edit("COPY src /src", "COPY src /sources"), p.edit("cat /src/", "cat /sources/")),
     {"COPY src": instruction("COPY src /src", "COPY src /sources"), "RUN cat": None}),
    ("owner of COPY", lambda p: p.edit("COPY src", "COPY --chown=0:7 src"),
     {"COPY --chown": instruction("COPY src /src", "COPY --chown=0:7 src /src")}),
    ("heredoc", lambda p: p.edit("hello", "hullo"), {"<<TEXT": {"reason": "heredoc", "name": "TEXT"}}),
    ("step of another stage", lambda p: p.edit("echo tool", "echo other"),
     {"RUN echo other": instruction("RUN echo tool > /tool", "RUN echo other > /tool")}),
    ("instruction added", lambda p: p.edit("COPY src", "RUN echo new > /new\nCOPY src"), {"RUN echo new": NEW}),
    ("instruction removed", lambda p: p.edit("COPY src /src\n", "") or p.edit("cat /src/main.c", "cat /version"),
     {"/named/": {"reason": "place", "from": "COPY src /src"}, "RUN cat /version": None}),
    ("SHELL", lambda p: p.edit("RUN echo $V", 'SHELL ["/bin/ash", "-c"]\nRUN echo $V'),
     {"RUN echo 1": value("setting", "shell", "/bin/sh -c", "/bin/ash -c"), "RUN cat": None, "RUN --mount": None}),
    ("working directory", lambda p: p.edit("WORKDIR /work", "WORKDIR /place"),
     {"WORKDIR": instruction("WORKDIR /work", "WORKDIR /place"),
      "RUN --mount": value("setting", "working directory", "/work", "/place"),
      "RUN cat": value("setting", "working directory", "/work", "/place")}),
    ("user", lambda p: p.edit("RUN cat /src", "USER 0:0\nRUN cat /src"),
     {"RUN cat": value("setting", "user", "", "0:0")}),
    ("network", lambda p: p.flag("--network", "none"),
     {words: value("setting", "network", "default", "none") for words in ("RUN echo 1", "RUN echo tool", "RUN cat", "RUN --mount")}),
    ("name of a host", lambda p: p.flag("--add-host", "db:10.0.0.1"),
     {words: value("setting", "address of db", None, "10.0.0.1") for words in ("RUN echo 1", "RUN echo tool", "RUN cat", "RUN --mount")}),
    ("forced", lambda p: p.flag("--no-cache-filter", "tool"), {"RUN echo tool": {"reason": "forced"}}),
]
# Nothing runs again for these.
NOT_PLANTED = [
    ("nothing", lambda p: None),
    ("times", lambda p: os.utime(p.directory / "src/main.c", (1, 1))),
    ("a file that no step reads", lambda p: p.write("outside", "x")),
    ("an ignored file", lambda p: p.write("src/x.log", "x")),
    ("umask 002", lambda p: (p.mode("src/main.c", 0o664), p.mode("src/lib", 0o775))),
    ("a label", lambda p: p.flag("--label", "a=b")),
    ("a comment", lambda p: p.edit("RUN echo $V", "# why\nRUN echo $V")),
    ("CMD", lambda p: p.edit("WORKDIR", 'CMD ["x"]\nWORKDIR')),
    ("jobs", lambda p: p.flag("--jobs", "1")),
    ("a proxy", lambda p: p.flag("--build-arg", "http_proxy=http://127.0.0.1:1")),
]


class Explain(Case):
    def project(self, change=lambda project: None):
        """The project as it was first, with one change, always at the same place."""
        directory = self.scratch / "project"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(mode=0o755)
        project = Project(directory)
        change(project)
        return project

    def first(self, user="root"):
        """Builds the project; gives its store."""
        ran, cached = self.explained(self.project(), self.store(user), user)
        # That a COPY --link is laid over the stage follows from its copy.
        self.assertEqual([label for label, reasons in ran.items() if reasons != [NEW] and "LINK" not in label], [])
        self.assertEqual(cached, {})
        return self.store(user)

    def copy_of(self, store):
        """A store that knows what this one knows, whatever becomes of it."""
        copy = store.with_name("store-copy")
        shutil.rmtree(copy, ignore_errors=True)
        subprocess.run(["cp", "-a", store, copy], check=True)
        return copy

    def explained(self, project, store, user="root", code=0):
        """Builds, and gives what is said of it."""
        self.run_layerwright("build", "--progress", "quiet", *project.arguments, project.directory,
                             user=user, root=store, code=code)
        return self.told(store, user)

    def told(self, store, user="root", *build):
        """The reasons of each step that ran, and who made the others, by label."""
        done = self.run_layerwright("explain", "--format", "json", "--root", store, *build, user=user)
        steps = json.loads(done.stdout)["steps"]
        ran = {step["label"]: step["reasons"] for step in steps if "reasons" in step}
        cached = {step["label"]: step.get("made") for step in steps if step["outcome"]["kind"] == "cached"}
        return ran, cached

    def check(self, ran, planted):
        """Every reason is a planted one, or that a step with one comes before; and all that are planted are there."""
        missing = {words for words, reason in planted.items() if reason}
        for label, reasons in ran.items():
            for reason in reasons:
                if reason["reason"] == "step":
                    self.assertIn(reason["label"], ran)
                elif not any(words in label and want is None for words, want in planted.items()):
                    meant = {words for words, want in planted.items() if want and reason == reason | want}
                    self.assertTrue(meant, f"{label}: {reason}")
                    missing -= {words for words in meant if words in label}
        self.assertEqual(missing, set(), ran)

    def table(self, user, not_planted, planted):
        store = self.first(user)
        for name, change in not_planted:
            with self.subTest(user=user, not_planted=name):
                ran, cached = self.explained(self.project(change), self.copy_of(store), user)
                self.assertEqual(ran, {})
                self.assertTrue(all(made and made["by"]["build"] for made in cached.values()), cached)
        for name, change, reasons in planted:
            with self.subTest(user=user, planted=name):
                ran, _ = self.explained(self.project(change), self.copy_of(store), user)
                self.check(ran, reasons)

    def test_planted_changes_are_named_and_nothing_else_is(self):
        self.table("root", NOT_PLANTED, PLANTED)

    def test_ordinary_users_are_told_the_same(self):
        kinds = [row for row in PLANTED if row[0] in ("content", "mode", "ARG of a command", "heredoc")]
        for user in USERS[1:]:
            self.table(user, NOT_PLANTED[:2], kinds)

    def test_a_base_image_is_named_with_its_digest(self):
        other = self.context("other", Dockerfile="FROM busybox\nRUN echo > /other\n")
        other = self.build(other, name="base")

        def on(base):
            def change(project):
                project.edit("FROM busybox\nARG", "FROM base\nARG")
                project.flag("--build-context", f"base=oci-layout://{base}")
            return self.project(change)
        store = self.store()
        self.explained(on(self.base), store)
        ran, _ = self.explained(on(other), store)
        self.check(ran, {"RUN echo 1": {"reason": "base"}})
        reason = next(reasons[0] for label, reasons in ran.items() if "RUN echo 1" in label)
        self.assertNotEqual(reason["from"], reason["to"])
        for name in (reason["from"], reason["to"]):
            self.assertRegex(name, r"@sha256:[0-9a-f]{64}$")

    def test_a_machine_that_has_only_a_remote_cache_is_told_the_same(self):
        cache = self.scratch / "cache"
        place = f"type=local,{{}}={cache},tag=main"
        store = self.store()
        fill = self.project(lambda p: p.flag("--cache-to", place.format("dest")))
        self.explained(fill, store)

        def elsewhere(change):
            """Builds with a store that has nothing; says it at once, and once more when the cache is gone. What waits for
            nothing may come to its end before a cache on a busy machine answers, and says just that."""
            shutil.rmtree(store)
            project = self.project(change)
            project.flag("--cache-from", place.format("src"), "--explain")
            ran, cached = self.explained(project, store)
            cache.rename(cache.with_name("gone"))
            self.assertEqual(self.told(store), (ran, cached))
            cache.with_name("gone").rename(cache)
            late = [label for label, reasons in ran.items() if [reason["reason"] for reason in reasons] == ["late"]]
            return {label: reasons for label, reasons in ran.items() if label not in late}, cached
        kinds = ("content", "mode", "two files", "linked copy", "mounted file", "ARG of a command", "text of RUN")
        few = [row for row in PLANTED if row[0] in kinds]
        for name, change, reasons in PLANTED if NIGHTLY else few:
            with self.subTest(planted=name):
                ran, _ = elsewhere(change)
                # What another machine's variables held is its own business.
                hidden = [r for told in ran.values() for r in told if r["reason"] in ("arg", "env") and r["from"]]
                for reason in hidden:
                    self.assertRegex(reason["from"], "^hidden:[0-9a-f]{16}$")
                    meant = [want for want in reasons.values() if want and want.get("name") == reason["name"]]
                    reason["from"] = meant[0]["from"] if meant else None
                self.check(ran, reasons)
        for name, change in NOT_PLANTED if NIGHTLY else NOT_PLANTED[:1]:
            with self.subTest(not_planted=name):
                ran, cached = elsewhere(change)
                self.assertEqual(ran, {})
                self.assertTrue(cached)
                self.assertTrue(all(made and made["by"]["host"] for made in cached.values()), cached)

    def test_what_is_not_trusted_or_not_known_is_no_news(self):
        key, trusted = self.scratch / "cache.key", self.scratch / "cache.pub"
        subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True)
        subprocess.run(["openssl", "pkey", "-in", key, "-pubout", "-out", trusted], check=True)
        cache, store = f"type=local,{{}}={self.scratch / 'cache'}", self.store()
        self.explained(self.project(lambda p: p.flag("--cache-to", cache.format("dest"))), store)

        def reasons(*arguments, code=0):
            ran, _ = self.explained(self.project(lambda p: p.flag(*arguments)), store, code=code)
            return {json.dumps(reason, sort_keys=True) for told in ran.values() for reason in told}
        shutil.rmtree(store)
        unsigned = ("--cache-from", cache.format("src"), "--cache-trust-key", trusted)
        names = {json.loads(reason)["reason"] for reason in reasons(*unsigned)}
        self.assertEqual(names, {"distrusted"}, "it is in the cache")
        told = self.run_layerwright("explain", "--root", store).stdout
        self.assertRegex(told, "(?m)^          not used: what is remembered of it no --cache-trust-key has signed$")
        shutil.rmtree(store)
        self.explained(self.project(lambda p: p.flag(*unsigned[:2])), store)
        names = {json.loads(reason)["reason"] for reason in reasons(*unsigned[2:])} - {"step"}
        self.assertLessEqual(names, {"distrusted", "borrowed"}, "the store has it, or has seen it")

        shutil.rmtree(store)
        down = "127.0.0.1:1/cache"
        self.assertEqual({reason for reason in reasons("--cache-from", down) if '"step"' not in reason},
                         {json.dumps({"caches": [down], "reason": "unknown"}, sort_keys=True)})
        told = self.run_layerwright("explain", "--root", store).stdout
        self.assertIn(f"          not known: the cache {down} has not answered, and nothing like it has run here\n", told)

    def test_lists_of_files_are_fetched_only_to_be_told(self):
        cache = self.scratch / "cache"
        store = self.store()
        self.explained(self.project(lambda p: p.flag("--cache-to", f"type=local,dest={cache}")), store)
        shutil.rmtree(store)
        edited = self.project(lambda p: p.write("src/main.c", "other"))
        edited.flag("--cache-from", f"type=local,src={cache}")
        ran, _ = self.explained(edited, store)
        self.check(ran, {"COPY src": {"reason": "some-files", "unknown": "no-list"}})

    def test_what_no_comparison_says(self):
        store = self.first()
        for area in ("definition", "content"):
            for record in (store / "records" / area).iterdir():
                record.unlink()
        ran, _ = self.explained(self.project(), store)
        self.assertEqual({reason["reason"] for reasons in ran.values() for reason in reasons}, {"removed"})

        fails = self.project(lambda p: p.edit("cat /src/main.c > /all", "false"))
        ran, _ = self.explained(fails, store, code=1)
        self.check(ran, {"RUN false": instruction("RUN cat /src/main.c > /all", "RUN false")})
        ran, _ = self.explained(fails, store, code=1)
        self.check(ran, {"RUN false": {"reason": "failed-before"}})
        ran, _ = self.explained(self.project(lambda p: p.flag("--no-cache")), store)
        self.assertEqual({reason["reason"] for reasons in ran.values() for reason in reasons}, {"forced"})
        self.assertEqual(self.told(store, "root", "^2")[0].keys(), {"[stage-1 10/10] RUN false"}, "an earlier build")

    def test_it_is_told_to_people_and_to_programs(self):
        store = self.first()

        def many(project):
            for number in range(30):
                project.write(f"src/many{number:02}", "")
        done = self.run_layerwright("build", "--explain", self.project(many).directory, root=store)
        self.assertEqual(done.stdout, "")
        self.assertRegex(done.stderr, r"(?m)^RAN     \[stage-1 .* COPY src /src +[0-9.]+s, unlike in build \S+ \(.* ago\)$")
        self.assertRegex(done.stderr, r"(?m)^          src/many09  added\n          and 20 more$")
        self.assertRegex(done.stderr, r"(?m)^          because of \[stage-1 .* COPY src /src$")
        self.assertRegex(done.stderr, r"(?m)^CACHED  \[tool 2/2\] RUN echo tool > /tool +built .* ago by \S+ on \S+, took ")
        told = self.run_layerwright("explain", "--root", store).stdout
        # A second may have passed in between.
        age = r"(less than a second|about a minute|\d+ (second|minute)s?) ago"
        told, explained = (re.sub(age, "AGO", text) for text in (told, done.stderr))
        self.assertIn(told.split("\n", 1)[1], explained, "the same as after the build")

        done = self.run_layerwright("build", "--explain", "--progress", "json",
                                    self.project(lambda p: p.write("src/main.c", "x")).directory, root=store)
        events = [json.loads(line) for line in done.stderr.splitlines()]
        self.assertEqual(events[-1]["event"], "result")
        told = {event["label"]: event for event in events if event["event"] == "explained"}
        copied = next(event for label, event in told.items() if "COPY src" in label)
        self.assertIn({"path": "src/main.c", "change": "content"}, copied["reasons"][0]["changes"])

        self.assertIn("no build", self.run_layerwright("explain", "--root", self.scratch / "none", code=2).stderr)


if __name__ == "__main__":
    unittest.main()
