"""What is written is what foreign tools accept: skopeo, umoci, a registry."""

import base64
import json
import os
import subprocess
import tarfile
import unittest

from support import Case, Layout, Registry

DOCKERFILE = """\
FROM busybox
RUN mkdir /d && echo old > /d/old && echo gone > /gone
RUN rm -rf /d /gone && mkdir -m 700 /d && echo new > /d/new
COPY --chown=33:33 --chmod=640 file /data/
EXPOSE 80
USER www-data
LABEL a=b
CMD ["cat", "/d/new"]
"""


class Images(Case):
    def image(self, *arguments, **options):
        return Layout(self.build(self.context(Dockerfile=DOCKERFILE, file="content\n"), *arguments, **options))

    def test_an_oci_layout_is_accepted_by_foreign_tools(self):
        layout = self.image("-t", "app:1")
        layout.validate()
        reference = f"oci:{layout.path}:1"
        inspected = json.loads(subprocess.check_output(["skopeo", "inspect", reference]))
        self.assertEqual(inspected["Digest"], layout.digest)
        self.assertEqual(inspected["Labels"], {"a": "b"})
        bundle = self.scratch / "bundle"
        subprocess.run(["umoci", "unpack", "--image", f"{layout.path}:1", bundle], check=True)
        rootfs = bundle / "rootfs"
        self.assertFalse((rootfs / "gone").exists())
        self.assertEqual(sorted(path.name for path in (rootfs / "d").iterdir()), ["new"])
        status = (rootfs / "data" / "file").stat()
        self.assertEqual((status.st_uid, status.st_gid, status.st_mode & 0o7777), (33, 33, 0o640))

    def test_an_oci_tar_holds_the_same_image(self):
        layout = self.image("-t", "app:1")
        tar = self.scratch / "image.tar"
        self.run_layerwright("build", "-o", f"type=oci,dest={tar}", "-t", "app:1", self.scratch / "context")
        with tarfile.open(tar) as archive:
            index = json.load(archive.extractfile("index.json"))
        self.assertEqual(index["manifests"][0]["digest"], layout.digest)

    def test_several_outputs_of_one_build(self):
        tar, directory = self.scratch / "rootfs.tar", self.scratch / "rootfs"
        layout = self.image("-o", f"type=tar,dest={tar}", "-o", f"type=local,dest={directory}")
        layout.validate()
        with tarfile.open(tar) as archive:
            names = archive.getnames()
            member = archive.getmember("data/file")
        self.assertIn("d/new", names)
        self.assertNotIn("d/old", names)
        self.assertEqual((member.uid, member.mode), (33, 0o640))
        self.assertEqual((directory / "d" / "new").read_text(), "new\n")

    def test_push_and_pull_back(self):
        with Registry(self.scratch / "registry") as registry:
            context = self.context(Dockerfile=DOCKERFILE, file="content\n")
            name = f"{registry.host}/team/app:1"
            metadata = self.scratch / "metadata.json"
            self.run_layerwright("build", "-t", name, "--push", "--metadata-file", metadata, context)
            digest = json.loads(metadata.read_text())["containerimage.digest"]
            copied = self.scratch / "copied"
            subprocess.run(["skopeo", "copy", "--src-tls-verify=false", f"docker://{name}", f"oci:{copied}:1"], check=True)
            self.assertEqual(Layout(copied).digest, digest)
            Layout(copied).validate()

            before = len(registry.requests())
            self.run_layerwright("build", "-t", name, "--push", context)
            again = [method for method, _, _ in registry.requests()[before:]]
            self.assertNotIn("PATCH", again)
            self.assertLessEqual(again.count("PUT"), 1, "a second push sends the manifest at most")

            child = self.context("child", Dockerfile=f"FROM {name}\nUSER root\nRUN echo child > /child\n")
            before = len(registry.requests())
            self.run_layerwright("build", "-t", f"{registry.host}/other/child:1", "--push", child)
            mounted = [path for method, path, status in registry.requests()[before:]
                       if method == "POST" and "mount=" in path and status == 201]
            self.assertGreaterEqual(len(mounted), 1, "base layers are mounted, not sent")

    def test_basic_auth(self):
        password = subprocess.check_output(["htpasswd", "-Bbn", "user", "secret-word"])
        (self.scratch / "htpasswd").write_bytes(password)
        with Registry(self.scratch / "registry", htpasswd=self.scratch / "htpasswd") as registry:
            context = self.context(Dockerfile=DOCKERFILE, file="content\n")
            name = f"{registry.host}/app:1"
            config = self.scratch / "docker"
            config.mkdir()
            empty = {"DOCKER_CONFIG": str(config)}
            refused = self.run_layerwright("build", "-t", name, "--push", context, env=empty, code=3)
            self.assertIn(registry.host, refused.stderr)
            auth = base64.b64encode(b"user:secret-word").decode()
            (config / "config.json").write_text(json.dumps({"auths": {registry.host: {"auth": auth}}}))
            done = self.run_layerwright("build", "-t", name, "--push", context, env=empty)
            self.assertNotIn("secret-word", done.stderr + done.stdout)

    def test_all_media_types_can_be_built_on(self):
        with Registry(self.scratch / "registry") as registry:
            base = self.context("base", Dockerfile="FROM busybox\nRUN echo base > /base && mkfifo /fifo\n")
            name = f"{registry.host}/base"
            self.run_layerwright("build", "-t", f"{name}:oci", "--push", base)
            source = f"docker://{name}:oci"
            copy = ["skopeo", "copy", "--src-tls-verify=false", "--dest-tls-verify=false"]
            subprocess.run([*copy, "--format", "v2s2", source, f"docker://{name}:docker"], check=True)
            subprocess.run([*copy, "--dest-compress-format", "zstd", source, f"dir:{self.scratch}/zstd"], check=True)
            for tag in ("oci", "docker"):
                context = self.context(tag, Dockerfile=f"FROM {name}:{tag}\nRUN cat /base > /copy\n")
                layout = Layout(self.build(context, name=tag))
                layout.validate()
                self.assertEqual(layout.read("copy"), b"base\n")


if __name__ == "__main__":
    unittest.main()
