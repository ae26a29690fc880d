"""Several platforms in one build: one index, foreign commands where they can run, and native ones everywhere."""

import json
import os
import pathlib
import shutil
import subprocess
import unittest

from support import REPO, Case, Layout, Registry

TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or REPO / "target")
BUSYBOX = {"amd64": pathlib.Path("/bin/busybox"), "arm64": TARGET / "foreign" / "busybox-arm64"}
TWO = "linux/amd64,linux/arm64"
ORDINARY = ("lw-sub", "lw-one")

BASE = """\
FROM scratch
ARG TARGETARCH
COPY $TARGETARCH/ /
CMD ["/bin/sh"]
"""

EVERYWHERE = """\
FROM base
ARG TARGETPLATFORM
RUN uname -m > /machine && echo $TARGETPLATFORM > /platform && chmod 600 /platform
"""

CROSS = """\
FROM --platform=$BUILDPLATFORM base AS compile
ARG TARGETARCH
RUN uname -m > /native && echo "compiled for $TARGETARCH" > /program
FROM base
COPY --from=compile /program /native /
"""


def emulation(doctor):
    """The lines of `doctor` about foreign programs."""
    return [line for line in doctor.splitlines() if "foreign programs" in line]


@unittest.skipUnless(os.uname().machine == "x86_64", "SKIPPED: the foreign platform of these tests is arm64")
@unittest.skipUnless(BUSYBOX["arm64"].exists(), f"SKIPPED: {BUSYBOX['arm64']} is not there: scripts/setup test")
class Platforms(Case):
    emulating = {}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        context = cls.shared / "base-context"
        for architecture, busybox in BUSYBOX.items():
            programs = context / architecture / "bin"
            programs.mkdir(parents=True)
            shutil.copy2(busybox, programs / "busybox")
            for applet in ("sh", "uname", "chmod"):
                (programs / applet).symlink_to("busybox")
        (context / "Dockerfile").write_text(BASE)
        cls.bases = cls.shared / "bases"
        subprocess.run([cls.binary, "build", "-q", "--root", cls.shared / "base-store", "--platform", TWO,
                        "-o", f"type=oci,tar=false,dest={cls.bases}", context], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["chmod", "-R", "a+rX", cls.bases], check=True)

    def build_both(self, dockerfile, *arguments, platforms=TWO, **options):
        context = self.scratch / "context"
        if not context.exists():
            self.context(Dockerfile=dockerfile)
        return self.build(context, "--platform", platforms, "--build-context", f"base=oci-layout://{self.bases}",
                          *arguments, **options)

    def images(self, layout):
        """The image of each architecture, from the index of a layout."""
        layout = pathlib.Path(layout)
        blob = lambda descriptor: layout / "blobs" / descriptor["digest"].replace(":", "/")
        index = json.loads(blob(json.loads((layout / "index.json").read_text())["manifests"][-1]).read_text())
        images = {}
        for descriptor in index["manifests"]:
            image = Layout.__new__(Layout)
            image.path, image.digest = layout, descriptor["digest"]
            image.manifest = image.json(descriptor)
            image.config = image.json(image.manifest["config"])
            self.assertEqual(image.config["architecture"], descriptor["platform"]["architecture"])
            images[image.config["architecture"]] = image
        return images

    def can_emulate(self, user):
        if user not in self.emulating:
            self.emulating[user] = self.find_emulation(user)
        return self.emulating[user]

    def find_emulation(self, user):
        store = self.store(user)
        lines = emulation(self.run_layerwright("doctor", "--root", store, user=user, code=None).stdout)
        self.assertTrue(lines, "doctor tells of foreign programs")
        if not any(line.startswith("ok") and "arm64" in line for line in lines):
            print(f"SKIPPED: {user} cannot run arm64 programs here: {lines}")
            return False
        return True

    def test_commands_run_on_both_and_every_user_makes_the_same_index(self):
        digests = set()
        for user in ORDINARY:
            if not self.can_emulate(user):
                continue
            layout = self.build_both(EVERYWHERE, user=user, name=user)
            images = self.images(layout)
            self.assertEqual(list(images), ["amd64", "arm64"])
            self.assertEqual(images["amd64"].read("machine"), b"x86_64\n")
            self.assertEqual(images["arm64"].read("machine"), b"aarch64\n")
            self.assertEqual(images["arm64"].read("platform"), b"linux/arm64\n")
            digests.add(json.loads((layout / "index.json").read_text())["manifests"][-1]["digest"])
        self.assertLessEqual(len(digests), 1, "the same index as every user")

    def test_an_index_is_pulled_per_platform(self):
        user = next((user for user in ORDINARY if self.can_emulate(user)), None)
        if user is None:
            return
        with Registry(self.scratch / "registry") as registry:
            name = f"{registry.host}/team/app:1"
            context = self.context(Dockerfile=EVERYWHERE)
            digests = set()
            for _ in range(2):
                self.run_layerwright("build", "--platform", TWO, "--build-context", f"base=oci-layout://{self.bases}",
                                     "-t", name, "--push", context, user=user)
                inspected = subprocess.check_output(["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{name}"])
                digests.add(inspected)
            self.assertEqual(len(digests), 1)
            for architecture, machine in (("amd64", b"x86_64\n"), ("arm64", b"aarch64\n")):
                copied = self.scratch / f"copied-{architecture}"
                subprocess.run(["skopeo", "--override-arch", architecture, "copy", "--src-tls-verify=false",
                                f"docker://{name}", f"oci:{copied}:1"], check=True, stdout=subprocess.DEVNULL)
                layout = Layout(copied)
                layout.validate()
                self.assertEqual(layout.config["architecture"], architecture)
                self.assertEqual(layout.read("machine"), machine)

    def test_a_foreign_image_runs_for_everybody(self):
        for user in ORDINARY:
            if not self.can_emulate(user):
                continue
            image = ["--platform", "linux/arm64", f"oci-layout://{self.bases}"]
            for _ in range(2):
                ran = self.run_layerwright("run", "--root", self.store(user), *image, "uname", "-m", user=user)
                self.assertEqual(ran.stdout, "aarch64\n")

    def test_a_cross_build_needs_no_emulator(self):
        images = self.images(self.build_both(CROSS, name="cross"))
        for architecture, image in images.items():
            self.assertEqual(image.read("native"), b"x86_64\n")
            self.assertEqual(image.read("program"), f"compiled for {architecture}\n".encode())

    def test_what_cannot_run_is_told_before_anything_runs(self):
        context = self.context(Dockerfile="FROM --platform=$BUILDPLATFORM busybox AS slow\nRUN touch /ran\n"
                                          "FROM scratch AS foreign\nRUN [\"/program\"]\n"
                                          "FROM scratch\nCOPY --from=slow /ran /\nCOPY --from=foreign / /\n")
        # Nothing runs Windows programs; and what the host runs of the others is not known to a test.
        for platform, reason in (("linux/s390x", "qemu"), ("windows/amd64", "only Linux's")):
            failed = self.run_layerwright("build", "--progress", "plain", "--platform", platform, context, code=None)
            if platform == "linux/s390x" and "not found" in failed.stderr:
                print("SKIPPED: this host runs s390x programs for root")
                continue
            self.assertEqual(failed.returncode, 4, failed.stderr)
            for part in (f"cannot run programs for {platform}", 'RUN ["/program"]', reason, "hint: "):
                self.assertIn(part, failed.stderr)
            self.assertNotRegex(failed.stderr, "RUN touch /ran\n#. DONE", "the other step has not run")
