"""The examples do what they say: the Makefile whole, and of the files for CI systems the commands, with the variables that the
system would set."""

import functools
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import unittest

import yaml

from locked import PROFILE, locked
from support import Case, Failed, Registry, WATCHDOG
from test_chroot import SCOPES
from test_ladder import container

EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "examples"
# Containers by the filter that a pod asks for.
FILTERS = {"Unconfined": functools.partial(container, uid=0), "RuntimeDefault": locked}
# What is fetched, one commit deep, and checked out, as each system does it; {} is the commit.
CHECKOUTS = {
    "github": ("{}:refs/remotes/origin/feature/x", "-B feature/x refs/remotes/origin/feature/x"),
    "gitlab": ("{}:refs/pipelines/7", "--detach {}"),
    "jenkins": ("refs/heads/main:refs/remotes/origin/main", "--detach {}"),
    "tekton": ("refs/heads/main", "--detach FETCH_HEAD"),
}
CALLS = 'printf "%s\\n" "$*" >> "$CALLS"; exec "$BINARY" "$@"\n'


class Examples(Case):
    def setUp(self):
        super().setUp()
        self.bin = self.scratch / "bin"
        self.bin.mkdir(mode=0o755)
        # The binary by its name, and what was made of it.
        (self.bin / "layerwright").write_text("#!/bin/sh\n" + CALLS)
        (self.bin / "layerwright").chmod(0o755)

    def calls(self, user):
        """The builds, runs and pushes since this was asked last."""
        path = self.scratch / f"calls-{user}"
        found = path.read_text().splitlines() if path.exists() else []
        path.write_text("")
        shutil.chown(path, user, user)
        return [line.split()[0] for line in found]

    def origin(self):
        """A bare repository that the example was copied into."""
        origin = self.scratch / "origin.git"
        if not origin.exists():
            work = self.scratch / "origin"
            shutil.copytree(EXAMPLES / "make", work)
            for command in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "one"]):
                self.git(work, *command)
            self.git(self.scratch, "clone", "-q", "--bare", work, origin)
        return origin

    def repository(self, name, user, umask=0o022):
        """A clone."""
        clone = self.directory(name, user)
        self.sh(user, f"umask {umask:o}; git clone -q {self.origin()} {clone}")
        return clone

    def checkout(self, name, user, fetched, checked_out):
        """What a CI system has of it: one commit without its history, without what else is called so, and seldom on a branch."""
        origin = self.origin()
        self.head = self.git(origin, "rev-parse", "main")
        clone = self.directory(name, user)
        self.sh(user, f"git init -q -b none; git fetch -q --no-tags --depth=1 file://{origin} +{fetched.format(self.head)}; "
                f"git checkout -q {checked_out.format(self.head)}", clone)
        return clone

    def git(self, directory, *arguments):
        identity = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "safe.directory=*"]
        return subprocess.check_output(["git", *identity, *map(str, arguments)], cwd=directory, text=True, timeout=WATCHDOG).strip()

    def sh(self, user, script, directory=None, code=0, **variables):
        """Runs a script of a user's as a CI system does."""
        home = self.scratch / f"home-{user}"
        if not home.exists():
            self.directory(home.name, user)
        self.calls_before = self.scratch / f"calls-{user}"
        environment = {"PATH": f"{self.bin}:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(home), "BINARY": str(self.binary),
                       "CALLS": str(self.calls_before), "LAYERWRIGHT_ROOT": str(home / "store"), **variables}
        command = ["bash", "-euo", "pipefail", "-c", f"git config --global safe.directory '*'; {script}"]
        command = command if user == "root" else ["runuser", "-u", user, "--", *command]
        done = subprocess.run(command, cwd=directory or self.scratch, env=environment, text=True, timeout=WATCHDOG,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode != code:
            raise Failed(f"exit code {done.returncode}, expected {code}\n{done.stdout}")
        return done.stdout

    def flags(self):
        """What gives builds their base image, which is on no registry here."""
        return f"--build-context busybox=oci-layout://{self.base}"

    def digest(self, name):
        found = subprocess.check_output(["skopeo", "inspect", "--tls-verify=false", f"docker://{name}"], timeout=WATCHDOG)
        return json.loads(found)["Digest"]

    def make(self, clone, user, registry, *arguments):
        """Runs the Makefile and gives what layerwright was called for."""
        self.calls(user)
        flags = f"FLAGS='--progress plain {self.flags()}' REGISTRY={registry.host}/team"
        self.output = self.sh(user, f"make --no-print-directory {flags} {' '.join(arguments)}", clone)
        return self.calls(user)

    def test_the_makefile_builds_tests_and_pushes_the_commit(self):
        with Registry(self.scratch / "registry") as registry:
            name = f"{registry.host}/team/app"
            clone = self.repository("clone-root", "root")
            head = self.git(clone, "rev-parse", "HEAD")
            tags = "TAGS='{git.sha} {git.branch}'"
            self.assertEqual(self.make(clone, "root", registry, tags), ["build", "build", "run", "run", "build"], self.output)
            self.assertIn("unit tests passed", self.output)
            self.assertIn("integration tests passed", self.output)
            digest = self.digest(f"{name}:{head}")
            self.assertEqual(self.digest(f"{name}:main"), digest)
            [pushed] = (clone / "out").glob(f"{head}-*/pushed.json")
            pushed = json.loads(pushed.read_text())
            self.assertEqual(pushed["containerimage.digest"], digest)
            # Nothing is started for what is there, and for another name only what names it.
            self.assertEqual(self.make(clone, "root", registry, tags), [], self.output)
            self.assertEqual(self.make(clone, "root", registry), ["build"], self.output)
            self.assertEqual(self.make(clone, "root", registry), [], self.output)

            # Somebody else, on another machine, at another time, under another umask: nothing runs, and it is the same image.
            other = self.repository("clone-sub", "lw-sub", umask=0o002)
            self.make(other, "lw-sub", registry, "-j4")
            built = re.findall(r"^Built (\S+) in .*: (\d+) steps?, (\d+) cached$", self.output, re.M)
            self.assertEqual(len(built), 3, self.output)
            for _, steps, cached in built:
                self.assertEqual(steps, cached, self.output)
            self.assertEqual({found for found, *_ in built if found == digest}, {digest}, self.output)

            # A new commit begins at its sources; the layer of the requirements stays, whatever the times.
            (clone / "src" / "greet").write_text("#!/bin/sh\necho \"Hello, ${1:-world}!\" # louder\n")
            self.sh("root", "find . -path ./.git -prune -o -path ./out -prune -o -exec touch {} +", clone)
            self.git(clone, "commit", "-q", "-a", "-m", "two")
            self.make(clone, "root", registry, "image")
            self.assertRegex(self.output, r"CACHED +.*RUN mkdir bin|#\d+ CACHED", self.output)
            ran = re.findall(r"^#\d+ \[\S+ \d+/\d+\] (\S+ \S+ \S+)", self.output, re.M)
            cached = re.search(r": (\d+) steps, (\d+) cached", self.output)
            self.assertEqual((cached[1], cached[2]), ("4", "3"), (ran, self.output))
            # An old commit by its name, while the new one is checked out.
            self.assertEqual(self.make(clone, "root", registry, "GITHASH=HEAD~1"), [], self.output)
            # And one that was never built here, by a tag, of which no branch knows.
            self.git(clone, "tag", "v0", "HEAD~1")
            self.sh("root", "rm -r out", clone)
            (clone / "src" / "greet").write_text("not committed")
            self.assertEqual(self.make(clone, "root", registry, "GITHASH=v0"), ["build", "build", "run", "run", "build"], self.output)
            self.assertIn("the work tree differs from its commit", self.output)
            self.assertEqual(self.digest(f"{name}:{head}"), digest)
            self.git(clone, "checkout", "-q", ".")
            self.sh("root", "make GITHASH=nope image", clone, code=2)
            self.assertEqual(self.make(clone, "root", registry, "verify"), ["verify"])
            self.assertIn("reproducible: sha256:", self.output)

    def test_an_image_has_the_names_that_its_commit_was_named_by(self):
        with Registry(self.scratch / "registry") as registry:
            clone = self.repository("clone", "root")
            asked = lambda: re.findall(r"/team/app/manifests/([\w-]+)\b(?!:)", " ".join(path for _, path, _ in registry.requests()))
            flags = f"FLAGS={shlex.quote(self.flags())} REGISTRY={registry.host}/team"

            def make(*arguments, code=0):
                return self.sh("root", f"rm -f out/*/pushed*; make {flags} {' '.join(arguments)}", clone, code)

            def pushed(*arguments):
                before = len(asked())
                make(*arguments)
                return sorted(set(asked()[before:]))

            for name in ("brx", "bry"):
                self.git(clone, "branch", name)
            for name in ("n1", "n2"):
                self.git(clone, "tag", name)
            self.git(clone, "checkout", "-q", "brx")
            self.assertEqual(pushed("TAGS={git.branch}"), ["brx"])
            self.assertEqual(pushed("GITHASH=bry", "TAGS={git.branch}"), ["bry"])
            self.assertEqual(pushed("GITHASH=n1", "TAGS={git.tag}"), ["n1"])
            self.git(clone, "checkout", "-q", "--detach")
            self.assertEqual(pushed("GITHASH=bry", "TAGS={git.branch}"), ["bry"])
            # HEAD is none of them.
            self.assertIn("several of them: brx, bry, main", make("TAGS={git.branch}", code=2))

            # And of a checkout of a CI system's the branch that it has from elsewhere, or none.
            clone, usual = self.checkout("checkout", "root", "{}:refs/remotes/origin/feature/x", "--detach {}"), clone
            self.assertEqual(pushed("TAGS='{git.sha} {git.branch}'"), sorted([self.head, "feature-x"]))
            self.git(clone, "update-ref", "-d", "refs/remotes/origin/feature/x")
            self.assertEqual(pushed(), [self.head])

            # A name that comes to be another commit's while the image is tested: that one was not.
            clone = usual
            self.git(clone, "checkout", "-q", "main")
            self.git(clone, "commit", "-q", "--allow-empty", "-m", "two")
            self.sh("root", "rm -r out", clone)
            before = asked()
            move = shlex.quote("RUN_FLAGS=--network=none $(shell git branch -f bry main)")
            self.assertIn("GITHASH=bry is no longer", make("GITHASH=bry", "TAGS={git.branch}", move, code=2))
            self.assertEqual(asked(), before)

    def test_what_was_not_pushed_there_by_that_name_is_pushed(self):
        with Registry(self.scratch / "registry") as registry, Registry(self.scratch / "other") as other:
            clone = self.repository("clone", "root")
            head = self.git(clone, "rev-parse", "HEAD")

            def check(expected, *arguments, to=registry):
                for calls in (expected, []):
                    self.assertEqual(self.make(clone, "root", to, *arguments), calls, (arguments, self.output))

            check(["build", "build", "run", "run", "build"])
            check(["build"], "TAGS='{git.sha} 1'")
            self.git(clone, "tag", "v9")
            check(["build"], "GITHASH=v9", "TAGS='{git.sha} {git.tag}'")
            self.assertEqual(self.digest(f"{registry.host}/team/app:v9"), self.digest(f"{registry.host}/team/app:{head}"))
            check(["build"], f"CACHE={registry.host}/team/app-cache", to=other)
            self.digest(f"{other.host}/team/app:{head}")
            # HEAD is another branch, though nothing that make was told is another.
            check(["build"], "TAGS={git.branch}")
            self.git(clone, "checkout", "-q", "-b", "next")
            check(["build"], "TAGS={git.branch}")
            self.digest(f"{registry.host}/team/app:next")
            self.git(clone, "tag", "-d", "v9")
            self.git(clone, "tag", "-a", "-m", "x", "v10")
            check(["build"], "TAGS={git.tag}")
            self.digest(f"{registry.host}/team/app:v10")
            # By its hash it is what it was.
            check([])
            # What else the builds are told makes another image of it.
            other_flags = f"FLAGS='{self.flags()} --label it=s'"
            before = self.digest(f"{registry.host}/team/app:{head}")
            check(["build", "build", "run", "run", "build"], other_flags)
            self.assertNotEqual(self.digest(f"{registry.host}/team/app:{head}"), before)

    def test_names_are_text_to_make_and_one_word_to_shells(self):
        with Registry(self.scratch / "registry") as registry:
            clone = self.repository("clone", "root")
            flags = f"FLAGS={shlex.quote(self.flags())} REGISTRY={registry.host}/team"
            for name in ("'; touch F; '", "$(touch F)", "`touch F`", "\\'; touch F; '", "x\ntouch F\n", "$(shell touch F)"):
                # As an argument, and as a CI system sets a variable.
                self.assertIn("is no commit", self.sh("root", f"make {flags} {shlex.quote('GITHASH=' + name)}", clone, code=2))
                self.assertIn("is no commit", self.sh("root", f"make {flags}", clone, code=2, GITHASH=name))
                self.assertFalse((clone / "F").exists(), name)
            # Legal, however odd.
            for name, tag in (("it's", "it-s"), ("v$(1)`x`", "v--1--x-"), ('"a;b"&', "_a-b--")):
                self.git(clone, "tag", name)
                self.sh("root", f"make {flags} TAGS={{git.tag}} {shlex.quote('GITHASH=' + name)}", clone)
                self.digest(f"{registry.host}/team/app:{tag}")
                self.git(clone, "tag", "-d", name)
                self.sh("root", "rm out/*/pushed*", clone)

    def test_a_test_that_fails_keeps_the_image_from_being_pushed(self):
        with Registry(self.scratch / "registry") as registry:
            clone = self.repository("clone", "root")
            (clone / "src" / "greet").write_text("#!/bin/sh\necho wrong\n")
            self.git(clone, "commit", "-q", "-a", "-m", "broken")
            flags = f"FLAGS='{self.flags()}' REGISTRY={registry.host}/team"
            self.sh("root", f"make {flags}", clone, code=2)
            self.assertFalse([path for _, path, _ in registry.requests() if path.startswith("/v2/team/app/manifests/main")])

    def scripts(self):
        """The commands of each example for a CI system, with the variables that it sets."""
        github = yaml.safe_load((EXAMPLES / "github-actions/image.yml").read_text())["jobs"]["image"]
        steps = [step["run"] for step in github["steps"] if step.get("name", "").startswith("Build")]
        yield "github", "\n".join(steps), lambda name: {
            "GITHUB_REPOSITORY": f"{name.split('/', 1)[1]}".replace("app", "App"), "REGISTRY": name.split("/", 1)[0],
            "GITHUB_EVENT_NAME": "push", "GITHUB_REF": "refs/heads/feature/x", "GITHUB_REF_TYPE": "branch"}
        gitlab = yaml.safe_load((EXAMPLES / "gitlab/.gitlab-ci.yml").read_text())["image"]
        yield "gitlab", "\n".join([gitlab["before_script"][0], *gitlab["script"]]), lambda name: {
            "CI_REGISTRY_IMAGE": name, "CI_COMMIT_SHA": self.head, "CI_COMMIT_REF_SLUG": "main", "CACHE": f"{name}/cache",
            **{key: gitlab["variables"][key] for key in ("SANDBOX", "RUN_SANDBOX")}}
        jenkins = (EXAMPLES / "jenkins/Jenkinsfile").read_text()
        commands = [line for line in re.findall(r"^ +sh '(.*)'$", jenkins, re.M) if " login " not in line]
        yield "jenkins", "\n".join(commands), lambda name: {"IMAGE": name}
        script, _ = self.task({"results.digest.path": "$HOME/digest"})
        yield "tekton", script.replace("/tmp/digest", "$HOME/answer"), lambda name: self.task({"params.image": name})[1]

    def task(self, values):
        """The script of Tekton's task as its controller makes it, and its variables."""
        task = yaml.safe_load((EXAMPLES / "tekton/task.yaml").read_text())["spec"]
        values = {f"params.{one['name']}": one.get("default") for one in task["params"]} | values
        [step] = task["steps"]
        pasted = lambda text: re.sub(r"\$\(([a-z.]+)\)", lambda found: values.get(found[1], found[0]), text)
        variables = {one["name"]: pasted(one["value"]) for one in step["env"] if "$(params." in one["value"]}
        return pasted(step["script"]), variables

    def give_base(self):
        """No system's own base images are here: the Dockerfile's is given to every build."""
        (self.bin / "layerwright").write_text(
            f"#!/bin/sh\n[ \"$1\" != build ] || {{ shift; set -- build {self.flags()} \"$@\"; }}\n" + CALLS)

    def test_what_ci_systems_are_told_to_run(self):
        self.give_base()
        with Registry(self.scratch / "registry") as registry:
            digests = set()
            for system, script, variables in self.scripts():
                with self.subTest(system):
                    clone = self.checkout(f"clone-{system}", "lw-sub", *CHECKOUTS[system])
                    name = f"{registry.host}/{system}/app"
                    self.sh("lw-sub", script, clone, **variables(name))
                    digests.add(self.digest(f"{name}:{self.head}"))
                    if system == "github":
                        digests.add(self.digest(f"{name}:feature-x"))
            self.assertEqual(len(digests), 1, digests)

    def test_a_workflow_of_github_pushes_tags_by_their_names_and_pull_requests_not_at_all(self):
        self.give_base()
        with Registry(self.scratch / "registry") as registry:
            (_, script, variables), *_ = self.scripts()
            name = f"{registry.host}/github/app"
            # One commit, two tags: the one that was pushed is meant.
            for tag in ("v1.0", "other"):
                self.git(self.origin(), "tag", tag, "main")
            clone = self.checkout("clone-tag", "lw-sub", "{}:refs/tags/v1.0", "refs/tags/v1.0")
            told = variables(name) | {"GITHUB_REF": "refs/tags/v1.0", "GITHUB_REF_TYPE": "tag"}
            self.sh("lw-sub", script, clone, **told)
            self.assertEqual(self.digest(f"{name}:v1.0"), self.digest(f"{name}:{self.head}"))
            # Also where all of them were fetched.
            self.git(clone, "tag", "other")
            self.sh("lw-sub", script, clone, **told)

            clone = self.checkout("clone-merge", "lw-sub", "{}:refs/remotes/pull/1/merge", "refs/remotes/pull/1/merge")
            before = len(registry.requests())
            told = {"GITHUB_EVENT_NAME": "pull_request", "GITHUB_REF": "refs/pull/1/merge", "GITHUB_REF_TYPE": "branch"}
            self.sh("lw-sub", script, clone, **variables(name) | told)
            self.assertEqual([one for one in registry.requests()[before:] if one[0] not in ("GET", "HEAD")], [])

    def test_parameters_are_text_to_the_scripts(self):
        """What somebody gives a task, or calls a branch, is executed by nobody."""
        clone = self.checkout("clone", "root", *CHECKOUTS["tekton"])
        for hostile in ('"; touch F; "', "$(touch F)", "`touch F`", "'; touch F; '", "--help"):
            for name in ("image", "commit", "dockerfile", "target", "sandbox"):
                script, variables = self.task({"params.image": "h.example/app", f"params.{name}": hostile,
                                               "results.digest.path": f"{self.scratch}/digest"})
                self.assertIn("error:", self.sh("root", f"bash -c {shlex.quote(script)}", clone, code=2, **variables))
                self.assertFalse((clone / "F").exists(), (name, hostile))
        # The rest of them have no part that one could run alone.
        workflow = yaml.safe_load((EXAMPLES / "github-actions/image.yml").read_text())["jobs"]["image"]
        self.assertEqual([step for step in workflow["steps"] if "${{" in step.get("run", "")], [])
        # Groovy pastes into double quotes.
        self.assertEqual(re.findall(r'\bsh +"', (EXAMPLES / "jenkins/Jenkinsfile").read_text()), [])

    def pod(self, name):
        """What a pod runs, and the filter of the container that a cluster makes for it."""
        pod = yaml.safe_load((EXAMPLES / "kubernetes" / name).read_text())["spec"]
        [one] = pod["containers"]
        asked = one["securityContext"]
        self.assertEqual(set(asked) - {"runAsUser", "allowPrivilegeEscalation", "seccompProfile"}, set(), "nothing more is asked for")
        self.assertEqual(asked.get("runAsUser", 0), 0)
        prefix = ["setpriv", "--no-new-privs"] if asked.get("allowPrivilegeEscalation") is False else []
        return [*prefix, *one["command"], *self.flags().split(), *one["args"]], asked["seccompProfile"]["type"]

    def run_pod(self, place, words, confined, **variables):
        environment = {"HOME": str(place), "LAYERWRIGHT_ROOT": str(place / "store"), **variables}
        done = FILTERS[confined](place, *words, path=f"{place}:", env=environment)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    @unittest.skipUnless(PROFILE.exists(), "SKIPPED: a pod's container: podman's system call filter is not here")
    def test_pods_build_in_containers_like_theirs(self):
        digests = set()
        with Registry(self.scratch / "registry") as registry:
            for name in ("pod.yaml", "pod-restricted.yaml"):
                if name == "pod-restricted.yaml" and not SCOPES:
                    print("SKIPPED: a restricted pod: this kernel has no Landlock scopes")
                    continue
                with self.subTest(name):
                    place = self.container_place(name)
                    words, confined = self.pod(name)
                    words = [word.replace("registry.example.org", f"{registry.host}/{name}").replace(
                        "https://git.example.org/team/app.git#main", str(place / "clone")).replace(
                        "--file=", f"--file={place}/clone/").replace(str(self.base), str(place / "base")) for word in words]
                    self.run_pod(place, words, confined)
                    digests.add(self.digest(f"{registry.host}/{name}/team/app:latest"))
        self.assertEqual(len(digests), 1, digests)

    @unittest.skipUnless(PROFILE.exists() and SCOPES, "SKIPPED: a task's container: no filter of podman's, or no Landlock scopes")
    def test_the_task_of_tekton_builds_in_containers_like_its_own(self):
        """As it is, and as its first lines say for clusters that insist on a filter."""
        task = yaml.safe_load((EXAMPLES / "tekton/task.yaml").read_text())["spec"]
        [step] = task["steps"]
        self.assertEqual(step["securityContext"], {"runAsUser": 0, "seccompProfile": {"type": "Unconfined"}})
        digests = set()
        with Registry(self.scratch / "registry") as registry:
            for sandbox, confined in (("auto", "Unconfined"), ("chroot", "RuntimeDefault")):
                with self.subTest(sandbox):
                    place = self.container_place(sandbox)
                    image = f"{registry.host}/{sandbox}/app"
                    script, variables = self.task({"params.image": image, "params.sandbox": sandbox,
                                                   "results.digest.path": str(place / "digest")})
                    script = script.replace("layerwright build", f"layerwright build --build-context busybox=oci-layout://{place}/base")
                    script = f"cd {place}/clone\n" + script.replace("/tmp/digest", f"{place}/answer")
                    self.run_pod(place, ["sh", "-c", script], confined, **variables)
                    head = self.git(place / "clone", "rev-parse", "HEAD")
                    digests.add((place / "digest").read_text())
                    digests.add(self.digest(f"{image}:{head}"))
        self.assertEqual(len(digests), 1, digests)

    @unittest.skipUnless(PROFILE.exists() and SCOPES, "SKIPPED: a runner's container: no filter of podman's, or no Landlock scopes")
    def test_the_job_of_gitlab_builds_and_tests_in_containers_like_its_own(self):
        """As it is, and with the two other lines."""
        text = (EXAMPLES / "gitlab/.gitlab-ci.yml").read_text()
        other = re.sub(r"(?m)^    (SANDBOX|RUN_SANDBOX): .*\n", "", text).replace("    # SANDBOX", "    SANDBOX").replace(
            "    # RUN_SANDBOX", "    RUN_SANDBOX")
        digests = set()
        with Registry(self.scratch / "registry") as registry:
            for confined, text in (("Unconfined", text), ("RuntimeDefault", other)):
                with self.subTest(confined):
                    place = self.container_place(confined)
                    head = self.git(place / "clone", "rev-parse", "HEAD")
                    name = f"{registry.host}/{confined.lower()}/app"
                    job = yaml.safe_load(text)["image"]
                    script = "\n".join(["set -eu", f"cd {place}/clone", job["before_script"][0], *job["script"]]).replace(
                        "layerwright build", f"layerwright build --build-context busybox=oci-layout://{place}/base")
                    variables = {"CI_REGISTRY_IMAGE": name, "CI_COMMIT_SHA": head, "CI_COMMIT_REF_SLUG": "main", "CACHE": f"{name}/cache",
                                 "SANDBOX": job["variables"]["SANDBOX"], "RUN_SANDBOX": job["variables"]["RUN_SANDBOX"]}
                    self.assertEqual("chroot" in variables["SANDBOX"], confined == "RuntimeDefault")
                    self.run_pod(place, ["sh", "-c", script], confined, **variables)
                    digests.add(self.digest(f"{name}:{head}"))
        self.assertEqual(len(digests), 1, digests)

    def container_place(self, name):
        """What a container sees: the binary, a clone, a base image, and room for a store."""
        place = self.directory(f"place-{name}")
        shutil.copy2(self.binary, place / "layerwright")
        shutil.copytree(self.base, place / "base")
        shutil.copytree(self.repository(f"clone-{name}", "root"), place / "clone")
        return place


if __name__ == "__main__":
    unittest.main()
