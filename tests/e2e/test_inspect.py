"""inspect shows an image wherever it lies; index create joins images that were built apart."""

import json
import os
import shutil
import subprocess
import tarfile
import unittest

from support import Case, Layout, Registry, validate

DOCKERFILE = """\
FROM busybox
ARG TARGETARCH
COPY file /data/
ENV GREETING="hello world"
RUN echo made > /made
USER www-data
LABEL a=b
ENTRYPOINT ["/bin/cat"]
CMD ["/made"]
"""

# No command runs, so that any platform can be built.
COPIED = "FROM scratch\nARG TARGETARCH\nCOPY file /\nLABEL arch=$TARGETARCH\n"


class Inspect(Case):
    def inspect(self, *arguments, **options):
        return self.run_layerwright("inspect", *arguments, **options).stdout

    def test_the_same_is_told_of_a_layout_a_tar_and_a_registry(self):
        context = self.context(Dockerfile=DOCKERFILE, file="content\n")
        tar = self.scratch / "image.tar"
        with Registry(self.scratch / "registry") as registry:
            name = f"{registry.host}/team/app:1"
            path = self.build(context, "-t", name, "--push", "-o", f"type=oci,dest={tar}")
            layout = Layout(path)
            places = [f"{path}:1", str(path), str(tar), f"{tar}:1", f"oci-layout://{path}", name,
                      f"{registry.host}/team/app@{layout.digest}"]
            shown = [json.loads(self.inspect("--json", place)) for place in places]
            raw = [self.inspect("--raw", place) for place in places]
            # skopeo's words for the same things.
            other = json.loads(subprocess.check_output(
                ["skopeo", "inspect", "--tls-verify=false", f"docker://{name}"]))
        self.assertEqual({text for text in raw}, {layout.blob(layout.descriptor).read_text()})
        for found in shown:
            self.assertEqual(found["images"], shown[0]["images"])
            self.assertEqual(found["manifest"], shown[0]["manifest"])
        [image] = shown[0]["images"]
        self.assertEqual(shown[5]["name"], name)
        self.assertEqual(shown[0]["manifest"]["digest"], other["Digest"])
        self.assertEqual([layer["digest"] for layer in image["layers"]], other["Layers"])
        self.assertEqual(image["image"], layout.config)
        self.assertEqual(image["totalSize"], layout.manifest["config"]["size"] + sum(
            layer["size"] for layer in layout.manifest["layers"]))
        made = {line["layer"]: line["created_by"] for line in image["history"] if "layer" in line}
        self.assertEqual(list(made), other["Layers"])
        self.assertIn("/bin/sh -c echo made > /made", list(made.values())[-1])

    def test_people_see_each_layer_with_its_instruction(self):
        context = self.context(Dockerfile=DOCKERFILE, file="content\n")
        path = self.build(context)
        text = self.inspect(str(path))
        for line in (r"(?m)^Digest: +sha256:", r"(?m)^User: +www-data$", r"(?m)^Env: +GREETING=hello world$",
                     r'(?m)^Entrypoint: +\["/bin/cat"\]$', r"(?m)^Label: +a=b$",
                     r"(?m)^[0-9a-f]{12}  \S+B +tar\+gzip  RUN .*/bin/sh -c echo made > /made$",
                     r"(?m)^- +- +- +USER www-data$"):
            self.assertRegex(text, line)

    def test_what_cannot_be_shown_is_told(self):
        context = self.context(Dockerfile=COPIED, file="content\n")
        path = self.build(context, "-t", "app:1")
        damaged = self.scratch / "damaged"
        shutil.copytree(path, damaged)
        layout = Layout(damaged)
        layout.blob(layout.descriptor).write_text("{}")
        plain = self.scratch / "plain.tar"
        with tarfile.open(plain, "w", format=tarfile.USTAR_FORMAT) as archive:
            archive.add(context / "file", "file")
        (self.scratch / "long").write_bytes(os.urandom(30_000))
        cut, junk = self.scratch / "cut.tar", self.scratch / "junk.tar"
        with tarfile.open(cut, "w") as archive:
            archive.add(self.scratch / "long", "blobs/long")
        os.truncate(cut, 20_000)
        junk.write_bytes(plain.read_bytes()[:1024] + b"\x1b[31m" * 1024)
        os.mkfifo(self.scratch / "ff")
        with Registry(self.scratch / "registry") as registry:
            for arguments, code, reason in (
                # The working directory has it, so no registry is asked for an image of that name.
                (("ff",), 2, "cannot read ff: it is a pipe, not a regular file"),
                ((f"{registry.host}/none:1",), 3, "does not exist"),
                ((f"{path}:2",), 2, 'no image "2"; it has 1'),
                (("--platform", "linux/s390x", str(path)), 1, "there is no image for linux/s390x"),
                ((str(damaged),), 1, "expected sha256:"),
                ((str(plain),), 2, "it has no file oci-layout"),
                ((str(context / "file"),), 2, "it is no tar archive\n"),
                ((str(cut),), 2, "it breaks off after 20000 bytes\n"),
                ((str(junk),), 2, "it is no tar archive after byte 520\n"),
                (("./missing",), 2, "No such file"),
                (("UPPER",), 2, "repository name must be lowercase"),
            ):
                failed = self.run_layerwright("inspect", *arguments, code=code)
                self.assertIn(reason, failed.stderr)
                self.assertEqual(failed.stdout, "")


class Index(Case):
    """As if on two machines: each with a store of its own, and nothing but the registry between them."""

    def build_on(self, machine, platform, name, *arguments):
        context = self.scratch / f"context-{machine}"
        if not context.exists():
            self.context(f"context-{machine}", Dockerfile=COPIED, file="content\n")
        self.run_layerwright("build", "--platform", platform, "-t", name, *arguments, context,
                             root=self.scratch / f"store-of-{machine}")

    def create(self, *arguments, **options):
        return self.run_layerwright("index", "create", *arguments, **options)

    def pulled(self, name, architecture):
        target = self.scratch / f"pulled-{architecture}"
        shutil.rmtree(target, ignore_errors=True)
        subprocess.run(["skopeo", "--override-arch", architecture, "copy", "--src-tls-verify=false",
                        f"docker://{name}", f"oci:{target}:1"], check=True, stdout=subprocess.DEVNULL)
        return Layout(target)

    def test_images_of_two_machines_become_one_index(self):
        with Registry(self.scratch / "registry") as registry:
            host = registry.host
            self.build_on("a", "linux/amd64", f"{host}/team/app:amd64", "--push")
            self.build_on("b", "linux/arm64", f"{host}/elsewhere/app:arm64", "--push")
            name, other = f"{host}/team/app:1", f"{host}/third/app:1"
            sources = (f"{host}/team/app:amd64", f"{host}/elsewhere/app:arm64")
            before = len(registry.requests())
            created = self.create("-q", "-t", name, "-t", other, "--annotation", "index:made=here", *sources)
            asked = registry.requests()[before:]
            self.assertFalse([path for method, path, _ in asked if method == "PATCH"], "blobs are mounted, not sent")
            shown = json.loads(self.run_layerwright("inspect", "--json", name).stdout)
            self.assertEqual(created.stdout, shown["manifest"]["digest"] + "\n")
            self.assertEqual([image["platform"] for image in shown["images"]], ["linux/amd64", "linux/arm64"])
            self.assertEqual(shown["manifest"]["annotations"], {"made": "here"})
            raw = self.run_layerwright("inspect", "--raw", other).stdout
            self.assertEqual(raw, self.run_layerwright("inspect", "--raw", name).stdout)
            validate("image-index-schema.json", json.loads(raw))
            for architecture in ("amd64", "arm64"):
                for place in (name, other):
                    image = self.pulled(place, architecture)
                    self.assertEqual(image.config["config"]["Labels"]["arch"], architecture)
                    self.assertEqual(image.read("file"), b"content\n")
            dry = self.create("--dry-run", "--annotation", "index:made=here", *sources).stdout
            self.assertEqual(dry, raw + "\n", "the same sources give the same bytes")

    def test_layouts_are_sources_and_appending_replaces_a_platform(self):
        with Registry(self.scratch / "registry") as registry:
            name = f"{registry.host}/app:1"
            layouts = {}
            for machine, platform in (("a", "linux/amd64"), ("b", "linux/arm64")):
                layouts[platform] = self.scratch / f"layout-{machine}"
                self.build_on(machine, platform, "app:1", "-o", f"type=oci,tar=false,dest={layouts[platform]}")
            self.create("-t", name, str(layouts["linux/amd64"]))
            self.create("-t", name, "--append", str(layouts["linux/arm64"]))
            platforms = lambda: [entry["platform"]["architecture"] for entry in json.loads(
                self.run_layerwright("index", "inspect", "--json", name).stdout)["manifest"]["manifests"]]
            self.assertEqual(platforms(), ["amd64", "arm64"])
            self.assertEqual(self.pulled(name, "arm64").read("file"), b"content\n")
            (self.scratch / "context-a" / "file").write_text("new\n")
            self.build_on("a", "linux/amd64", "app:1", "-o", f"type=oci,tar=false,dest={layouts['linux/amd64']}")
            self.create("-t", name, "--append", f"{layouts['linux/amd64']}:1")
            self.assertEqual(platforms(), ["arm64", "amd64"])
            self.assertEqual(self.pulled(name, "amd64").read("file"), b"new\n")

    def test_an_index_alone_keeps_what_it_says_of_itself(self):
        context = self.context(Dockerfile=COPIED, file="content\n")
        out = self.build(context, "--platform", "linux/amd64,linux/arm64", "--annotation", "index:who=we")
        [root] = json.loads((out / "index.json").read_text())["manifests"]
        same = self.create("--dry-run", out).stdout.rstrip("\n")
        self.assertEqual(same, (out / "blobs" / root["digest"].replace(":", "/")).read_text())
        more = json.loads(self.create("--dry-run", "--annotation", "index:more=1", out).stdout)
        self.assertEqual(more["annotations"], {"who": "we", "more": "1"})

    def test_what_cannot_be_joined_is_told_and_names_nothing(self):
        with Registry(self.scratch / "registry") as registry:
            host = registry.host
            self.build_on("a", "linux/amd64", f"{host}/app:a", "--push")
            (self.scratch / "context-a" / "file").write_text("other\n")
            self.build_on("a", "linux/amd64", f"{host}/app:b", "--push")
            for arguments, code, reason in (
                ((f"{host}/app:a", f"{host}/app:b"), 2, "two images are for linux/amd64: sha256:"),
                ((f"{host}/app:a", f"{host}/app:none"), 3, "does not exist"),
                (("--append", f"{host}/app:a"), 3, "does not exist"),
                (("--annotation", "a=b", f"{host}/app:a"), 2, "a manifest that exists cannot be annotated"),
                (("--annotation", "manifest-descriptor[arm64]:a=b", f"{host}/app:a"), 2, "linux/arm64"),
            ):
                failed = self.create("-t", f"{host}/app:new", *arguments, code=code)
                self.assertIn(reason, failed.stderr)
            self.assertIn("does not exist", self.run_layerwright("inspect", f"{host}/app:new", code=3).stderr)
