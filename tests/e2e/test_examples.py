"""The examples do what they say: the Makefile whole, and of the files for CI systems the commands, with the variables that the
system would set."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import unittest

import yaml

from support import Case, Failed, Registry, WATCHDOG

EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "examples"
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

    def repository(self, name, user, umask=0o022):
        """A clone of a repository that the example was copied into."""
        origin = self.scratch / "origin.git"
        if not origin.exists():
            work = self.scratch / "origin"
            shutil.copytree(EXAMPLES / "make", work)
            for command in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "one"]):
                self.git(work, *command)
            self.git(self.scratch, "clone", "-q", "--bare", work, origin)
        clone = self.directory(name, user)
        self.sh(user, f"umask {umask:o}; git clone -q {origin} {clone}")
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
            pushed = json.loads((clone / "out" / head / "pushed.json").read_text())
            self.assertEqual(pushed["containerimage.digest"], digest)
            # Nothing is started for what is there.
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
            self.sh("root", "find . -path ./.git -prune -o -exec touch {} +", clone)
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
            "GITHUB_EVENT_NAME": "push"}
        gitlab = yaml.safe_load((EXAMPLES / "gitlab/.gitlab-ci.yml").read_text())["image"]
        yield "gitlab", "\n".join([gitlab["before_script"][0], *gitlab["script"]]), lambda name: {
            "CI_REGISTRY_IMAGE": name, "CI_COMMIT_SHA": self.head, "CI_COMMIT_REF_SLUG": "main", "CACHE": f"{name}/cache"}
        jenkins = (EXAMPLES / "jenkins/Jenkinsfile").read_text()
        commands = [line for line in re.findall(r"^ +sh '(.*)'$", jenkins, re.M) if " login " not in line]
        yield "jenkins", "\n".join(commands), lambda name: {"IMAGE": name}
        task = yaml.safe_load((EXAMPLES / "tekton/task.yaml").read_text())["spec"]
        values = {f"params.{one['name']}": one.get("default", "$IMAGE") for one in task["params"]}
        values |= {"results.digest.path": "$HOME/digest"}
        script = re.sub(r"\$\(([a-z.]+)\)", lambda found: values[found[1]], task["steps"][0]["script"])
        yield "tekton", script.replace("/tmp/digest", "$HOME/answer"), lambda name: {"IMAGE": name}

    def test_what_ci_systems_are_told_to_run(self):
        # No system's own base images are here: the Dockerfile's is given to every build.
        (self.bin / "layerwright").write_text(
            f"#!/bin/sh\n[ \"$1\" != build ] || {{ shift; set -- build {self.flags()} \"$@\"; }}\n" + CALLS)
        with Registry(self.scratch / "registry") as registry:
            digests = set()
            for system, script, variables in self.scripts():
                with self.subTest(system):
                    clone = self.repository(f"clone-{system}", "lw-sub")
                    self.head = self.git(clone, "rev-parse", "HEAD")
                    # As CI systems check out: a branch of that name, with a slash, or none.
                    self.sh("lw-sub", "git checkout -q " + ("-b feature/x" if system == "github" else "--detach"), clone)
                    name = f"{registry.host}/{system}/app"
                    self.sh("lw-sub", script, clone, **variables(name))
                    digests.add(self.digest(f"{name}:{self.head}"))
                    if system == "github":
                        digests.add(self.digest(f"{name}:feature-x"))
            self.assertEqual(len(digests), 1, digests)

    def test_the_pod_is_told_what_layerwright_takes(self):
        pod = yaml.safe_load((EXAMPLES / "kubernetes/pod.yaml").read_text())["spec"]
        [container] = pod["containers"]
        self.assertFalse(pod["hostUsers"])
        self.assertNotIn("securityContext", container)
        clone = self.repository("clone", "lw-sub")
        with Registry(self.scratch / "registry") as registry:
            arguments = [argument.replace("registry.example.org", registry.host).replace(
                "https://git.example.org/team/app.git#main", str(clone)) for argument in container["args"]]
            arguments = [argument.replace("--file=", f"--file={clone}/") for argument in arguments]
            command = " ".join([*container["command"], self.flags(), *arguments])
            self.sh("lw-sub", command)
            self.digest(f"{registry.host}/team/app:latest")


if __name__ == "__main__":
    unittest.main()
