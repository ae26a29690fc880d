"""diff tells of two images which instruction, which path and which field of it are not the same."""

import hashlib
import json
import unittest

from support import Case, Layout, Registry

DOCKERFILE = """\
FROM busybox
ARG V=1
COPY file /data/
RUN echo version $V > /built; mkdir -m 75$V /dir; ln -s to$V /link; echo same > /same; rm -f /etc/group-$V
RUN if [ $V = 2 ]; then touch /only-second; chown 7:8 /data/file; else touch -d @86400 /only-first; fi
ENV VERSION=$V
"""


class Diff(Case):
    def diff(self, *arguments, code):
        return self.run_layerwright("diff", *arguments, code=code).stdout

    def images(self):
        context = self.context(Dockerfile=DOCKERFILE, file="content\n")
        return [self.build(context, "--build-arg", f"V={version}", name=str(version)) for version in (1, 2)]

    def test_each_difference_has_its_instruction_path_and_field(self):
        first, second = self.images()
        told = self.diff(first, second, code=1)
        for line in [
            'config.Env.VERSION  "1" → "2"',
            '  /built  content, line 1: "version 1" → "version 2"',
            "  /dir  mode 0751 → 0752",
            '  /link  target "to1" → "to2"',
            "  /only-first  only in the first (file)",
            "  /only-second  only in the second (file)",
        ]:
            self.assertIn(line, told)
        self.assertNotIn("/same", told)
        self.assertRegex(told, r"(?s)\[\d/\d\] RUN \|1 V=1 /bin/sh -c echo version.*  /built .*\n\n\[\d/\d\] RUN")
        # A file that only one of them changed, and its directory.
        self.assertIn("  /data/file  only in the second (file)", told)

        limited = self.diff(first, second, "--limit", "1", code=1)
        self.assertIn("  ... and 2 more (--limit 0 shows all)", limited)
        everything = json.loads(self.diff(first, second, "--format", "json", code=1))
        [image] = everything["images"]
        fields = {file["path"]: file["fields"] for step in image["steps"] for file in step.get("files", [])}
        self.assertEqual(fields["/dir"], [{"field": "mode", "first": "0751", "second": "0752"}])
        self.assertEqual(fields["/built"][0]["offset"], 8)
        self.assertEqual((everything["same"], image["platform"].split("/")[0]), (False, "linux"))

    def test_what_is_the_same_is_not_read(self):
        first, second = self.images()
        copy = self.build(self.scratch / "context", name="copy")
        self.assertIn("They are the same.", self.diff(first, copy, code=0))
        with Registry(self.scratch / "registry") as registry:
            names = [f"{registry.host}/app:{tag}" for tag in (1, 2)]
            for layout, name in zip((first, second), names):
                self.run_layerwright("push", layout, name)
            before = len(registry.requests())
            self.assertIn("  /dir  mode 0751 → 0752", self.diff(*names, code=1))
            blobs = [path for method, path, _ in registry.requests()[before:] if "/blobs/" in path]
            # Two configs, and two layers of each that differ, one of which is read twice for what stands in it.
            self.assertEqual(len(blobs), 2 + 4 + 2, blobs)
            self.assertIn("does not exist", self.run_layerwright(
                "diff", names[0], f"{registry.host}/other:1", code=3).stderr)

    def test_blobs_of_the_same_files_are_told_apart_from_other_files(self):
        context = self.context(Dockerfile=DOCKERFILE, file="content\n")
        first = self.build(context)
        second = self.scratch / "zstd.tar"
        self.run_layerwright("build", "-o", f"type=oci,dest={second},compression=zstd", context)
        told = self.diff(first, second, code=1)
        self.assertIn("the same files, packed differently: ", told)
        self.assertNotIn("  /built", told)

    def test_what_is_no_image_is_never_a_difference(self):
        context = self.context(Dockerfile=DOCKERFILE, file="content\n")
        first = self.build(context)
        told = self.run_layerwright("diff", "--platform", "linux/s390x", first, first, code=2).stderr
        self.assertIn("there is no image for linux/s390x", told)
        index = first / "index.json"
        whole = index.read_text()
        for text in ("{", "{}", "[]", whole.replace('"manifests":[', '"manifests":[{},')):
            index.write_text(text)
            told = self.run_layerwright("diff", first, first, code=None)
            self.assertIn(told.returncode, (2, 4), (text, told.stderr))
        index.write_text(whole)
        manifest = json.loads(whole)["manifests"][0]["digest"].removeprefix("sha256:")
        (first / "blobs" / "sha256" / manifest).write_text("{}")
        self.assertIn("cannot inspect", self.run_layerwright("diff", first, first, code=4).stderr)

    def test_a_damaged_layer_is_an_error(self):
        first, second = self.images()
        layout = json.loads(self.run_layerwright("inspect", "--json", second).stdout)
        layer = layout["images"][0]["layers"][-1]["digest"].removeprefix("sha256:")
        blob = second / "blobs" / "sha256" / layer
        blob.write_bytes(blob.read_bytes()[:-9])
        told = self.run_layerwright("diff", first, second, code=4).stderr
        self.assertIn(f"cannot read layer sha256:{layer} of {second}", told)


    def test_what_a_config_says_of_a_layer_is_not_believed(self):
        first, second = self.images()
        good, evil = Layout(first), Layout(second)

        def put(document):
            """Writes a document into the evil layout, and what a descriptor says of it."""
            text = json.dumps(document).encode()
            digest = hashlib.sha256(text).hexdigest()
            (evil.path / "blobs" / "sha256" / digest).write_bytes(text)
            return {"digest": f"sha256:{digest}", "size": len(text)}
        config = evil.config | {"rootfs": good.config["rootfs"], "history": good.config["history"]}
        manifest = evil.manifest | {"config": evil.manifest["config"] | put(config)}
        evil.index["manifests"] = [evil.descriptor | put(manifest)]
        (evil.path / "index.json").write_text(json.dumps(evil.index))
        told = self.run_layerwright("diff", first, second, code=4).stderr
        self.assertIn(f"of {second}: ", told)
        self.assertRegex(told, "its config says that its tar is sha256:[0-9a-f]{64}, and it is sha256:")


if __name__ == "__main__":
    unittest.main()
