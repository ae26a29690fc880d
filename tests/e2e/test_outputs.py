"""Every form of output: what agrees between them, and what foreign tools make of them."""

import gzip
import hashlib
import json
import os
import pathlib
import pwd
import shutil
import signal
import subprocess
import tarfile
import unittest

from support import WATCHDOG, Case, Layout, Registry, validate, wait_for

DOCKERFILE = """\
FROM busybox
RUN mkdir /d && echo old > /d/old && echo gone > /gone
RUN rm -rf /d /gone && mkdir -m 700 /d && echo new > /d/new && ln /d/new /d/hard && ln -s new /d/soft
COPY --chmod=640 file /data/
ENV A=b
CMD ["cat", "/d/new"]
"""


class Archive:
    """The tar of a layout: its files by name."""

    def __init__(self, path):
        with tarfile.open(path) as tar:
            self.files = {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}
        self.index = self.json("index.json")
        self.descriptor = self.index["manifests"][-1]
        self.manifest = self.blob(self.descriptor)

    def json(self, name):
        return json.loads(self.files[name])

    def blob(self, descriptor):
        return self.json("blobs/" + descriptor["digest"].replace(":", "/"))


class Podman:
    """A user's podman with a store of its own, which goes with the test's directory."""

    def __init__(self, case, user="root"):
        self.case, self.user = case, user
        self.directory, self.runtime = case.scratch / f"podman-{user}", case.scratch / f"podman-{user}" / "runtime"
        for directory in (self.directory, self.runtime):
            directory.mkdir(mode=0o700)
            shutil.chown(directory, user, user)
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("XDG_")},
            "HOME": pwd.getpwnam(user).pw_dir, "LAYERWRIGHT_LOAD": "podman", "XDG_RUNTIME_DIR": str(self.runtime),
            "CONTAINERS_STORAGE_CONF": str(self.storage()), "TMPDIR": str(self.directory),
        }
        case.addCleanup(self.end)

    def storage(self):
        path = self.directory / "storage.conf"
        path.write_text(f'[storage]\ndriver = "vfs"\ngraphroot = "{self.directory}/graph"\n'
                        f'rootless_storage_path = "{self.directory}/graph"\nrunroot = "{self.directory}/run"\n')
        shutil.chown(path, self.user, self.user)
        return path

    def __call__(self, *arguments, code=0):
        command = ["podman", *map(str, arguments)]
        if self.user != "root":
            command = ["runuser", "-u", self.user, "--", *command]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=WATCHDOG,
                              env=self.environment, cwd=self.case.scratch)
        self.case.assertEqual(done.returncode, code, f"{command}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def image(self, name):
        return json.loads(self("image", "inspect", name))[0]

    def end(self):
        """An ordinary user's podman leaves a process that holds its user namespace."""
        pid = self.runtime / "libpod" / "tmp" / "pause.pid"
        if pid.exists():
            os.kill(int(pid.read_text()), signal.SIGKILL)


def tree(entries):
    """What a tar or directory holds, in a form that two of them can be compared in."""
    return {name: what for name, what in entries if name not in (".", "")}


def of_tar(path):
    with tarfile.open(path) as tar:
        members = {member.name: member for member in tar}
        for name, member in members.items():
            target = members[member.linkname] if member.islnk() else member
            if target.isfile():
                content = hashlib.sha256(tar.extractfile(target).read()).hexdigest()
            else:
                content = member.linkname
            yield name, (target.type in (tarfile.REGTYPE, tarfile.AREGTYPE), target.isdir(),
                         target.mode if not target.issym() else None, target.mtime, content)


def of_directory(root):
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        if path.is_symlink():
            what = (False, False, None, int(status.st_mtime), os.readlink(path))
        elif path.is_dir():
            what = (False, True, status.st_mode & 0o7777, int(status.st_mtime), "")
        elif path.is_file():
            what = (True, False, status.st_mode & 0o7777, int(status.st_mtime),
                    hashlib.sha256(path.read_bytes()).hexdigest())
        else:
            continue
        yield str(path.relative_to(root)), what


class Outputs(Case):
    def sample(self):
        return self.context(Dockerfile=DOCKERFILE, file="content\n")

    def test_all_outputs_of_one_build_agree(self):
        out, podman = self.scratch, Podman(self)
        with Registry(out / "registry") as registry:
            name = f"{registry.host}/app:1"
            self.run_layerwright(
                "build", "-t", name, "--push", "--load",
                "-o", f"type=oci,dest={out}/oci.tar", "-o", f"type=oci,tar=false,dest={out}/oci",
                "-o", f"type=docker,dest={out}/docker.tar", "-o", f"type=docker,tar=false,dest={out}/docker",
                "-o", f"type=docker,oci-mediatypes=true,dest={out}/both.tar",
                "-o", f"type=tar,dest={out}/rootfs.tar", "-o", f"type=local,dest={out}/rootfs",
                "--metadata-file", out / "metadata.json", "--iidfile", out / "iid", self.sample(),
                env=podman.environment)
            pushed = json.loads(subprocess.check_output(
                ["skopeo", "inspect", "--tls-verify=false", f"docker://{name}"]))
        layout, archive, docker = Layout(out / "oci"), Archive(out / "oci.tar"), Archive(out / "docker.tar")
        layout.validate()
        validate("image-index-schema.json", archive.index)
        self.assertEqual(pushed["Digest"], layout.digest)
        self.assertEqual(archive.descriptor["digest"], layout.digest)
        self.assertEqual(Archive(out / "both.tar").descriptor["digest"], layout.digest)
        self.assertEqual(json.loads((out / "metadata.json").read_text())["containerimage.digest"], layout.digest)

        config = layout.manifest["config"]["digest"]
        self.assertEqual(docker.manifest["config"]["digest"], config)
        self.assertEqual((out / "iid").read_text(), config)
        self.assertEqual(Layout(out / "docker").digest, docker.descriptor["digest"])
        self.assertEqual(podman.image(name)["Id"], config.removeprefix("sha256:"))
        self.check_docker_archive(docker, name)

        files = tree(of_tar(out / "rootfs.tar"))
        self.assertIn("d/hard", files)
        self.assertEqual(tree(of_directory(out / "rootfs")), files)

    def check_docker_archive(self, docker, name):
        """What `docker load` reads names the same blobs as what layouts' readers read, by Docker's names."""
        [image] = docker.json("manifest.json")
        self.assertEqual(image["RepoTags"], [name])
        path = lambda descriptor: "blobs/" + descriptor["digest"].replace(":", "/")
        self.assertEqual(image["Config"], path(docker.manifest["config"]))
        self.assertEqual(image["Layers"], [path(layer) for layer in docker.manifest["layers"]])
        types = {docker.manifest["mediaType"], docker.manifest["config"]["mediaType"],
                 *(layer["mediaType"] for layer in docker.manifest["layers"])}
        self.assertTrue(all(kind.startswith("application/vnd.docker.") for kind in types), types)
        diff_ids = docker.json(image["Config"])["rootfs"]["diff_ids"]
        for diff_id, layer in zip(diff_ids, image["Layers"], strict=True):
            plain = docker.files[layer]
            plain = gzip.decompress(plain) if plain.startswith(b"\x1f\x8b") else plain
            self.assertEqual("sha256:" + hashlib.sha256(plain).hexdigest(), diff_id)

    def test_foreign_tools_take_every_form(self):
        out, podman = self.scratch, Podman(self)
        forms = {
            "oci.tar": ("oci", "oci-archive"), "docker.tar": ("docker", "docker-archive"),
            "v2s2.tar": ("oci,oci-mediatypes=false", "oci-archive"),
        }
        outputs = [word for file, (kind, _) in forms.items() for word in ("-o", f"type={kind},dest={out}/{file}")]
        self.run_layerwright("build", "-t", "example.org/app:1", *outputs, self.sample())
        for file, (_, transport) in forms.items():
            with self.subTest(file):
                config = json.loads(subprocess.check_output(
                    ["skopeo", "inspect", "--config", f"{transport}:{out}/{file}"]))
                self.assertIn("A=b", config["config"]["Env"])
                copied = out / f"copied-{file}"
                subprocess.run(["skopeo", "copy", "--quiet", f"{transport}:{out}/{file}", f"oci:{copied}:1"], check=True)
                bundle = out / f"bundle-{file}"
                subprocess.run(["umoci", "unpack", "--image", f"{copied}:1", bundle], check=True, stderr=subprocess.DEVNULL)
                self.assertEqual((bundle / "rootfs/d/new").read_text(), "new\n")
                podman("load", "--input", out / file)
                self.assertEqual(podman.image("example.org/app:1")["Config"]["Env"][-1], "A=b")
                # Not `run`: whether a runtime may set its limits is a matter of the machine.
                podman("create", "--name", "made", "--network=none", "example.org/app:1")
                podman("export", "--output", out / "exported.tar", "made")
                with tarfile.open(out / "exported.tar") as tar:
                    self.assertEqual(tar.extractfile("d/new").read(), b"new\n")
                    self.assertNotIn("gone", tar.getnames())
                podman("rmi", "--force", "example.org/app:1")

    def test_docker_archives_have_the_same_bytes_everywhere(self):
        context, made = self.sample(), []
        for name, jobs in (("a", 1), ("b", 8)):
            file = self.scratch / f"{name}.tar"
            self.run_layerwright("build", "-t", "app", "-o", f"type=docker,dest={file}", "--jobs", jobs, context,
                                 root=self.scratch / f"store-{name}")
            made.append(hashlib.sha256(file.read_bytes()).hexdigest())
        done = subprocess.run(
            self.command("build", "-t", "app", "-o", "type=docker,dest=-", context), check=True, timeout=WATCHDOG,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        made.append(hashlib.sha256(done.stdout).hexdigest())
        self.assertEqual(len(set(made)), 1, made)

    def test_annotations_are_of_their_output_only(self):
        out = self.scratch
        self.run_layerwright(
            "build", "--annotation", "all=1", "-o", f"type=oci,tar=false,dest={out}/plain",
            "-o", f"type=oci,tar=false,dest={out}/own,annotation.Own=2,annotation-manifest-descriptor.d=3",
            "-o", f"type=docker,dest={out}/docker.tar", self.sample())
        plain, own, docker = Layout(out / "plain"), Layout(out / "own"), Archive(out / "docker.tar")
        self.assertEqual(plain.manifest["annotations"], {"all": "1"})
        self.assertEqual(own.manifest["annotations"], {"all": "1", "Own": "2"})
        self.assertEqual(own.descriptor["annotations"]["d"], "3")
        self.assertEqual(docker.descriptor["digest"], plain.digest, "annotations need OCI's media types")
        own.validate()

    def test_what_an_interrupted_output_would_replace_stays(self):
        file = self.scratch / "image.tar"
        file.write_text("old")
        # The second output cannot be written: the lock of its layout is held by somebody else.
        layout = self.build(self.sample())
        index = (layout / "index.json").read_bytes()
        with subprocess.Popen(["flock", layout / "oci-layout", "sh", "-c", "echo held; cat"], text=True,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
            self.assertEqual(holder.stdout.readline(), "held\n")
            command = self.command("build", "--progress", "plain", "-o", f"type=oci,tar=false,dest={layout},name=x:new",
                                   "-o", f"type=docker,dest={file}", self.scratch / "context")
            with subprocess.Popen(command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as build:
                for line in build.stderr:
                    if "waiting for another program that holds the lock" in line:
                        build.terminate()
                self.assertEqual(build.wait(WATCHDOG), 143)
            holder.stdin.close()
        self.assertEqual(file.read_text(), "old")
        self.assertEqual((layout / "index.json").read_bytes(), index)

    def test_ordinary_users_load_into_their_own_podman(self):
        context = self.sample()
        for user in ("lw-sub", "lw-one"):
            with self.subTest(user):
                podman = Podman(self, user)
                iid = self.scratch / f"iid-{user}"
                done = self.run_layerwright("build", "-t", "localhost/mine:1", "--load", "--iidfile", iid,
                                            context, user=user, env=podman.environment)
                self.assertIn("loaded into podman as localhost/mine:1", done.stderr)
                self.assertEqual("sha256:" + podman.image("localhost/mine:1")["Id"], iid.read_text())
        
    def test_images_with_no_name_and_with_several_are_loaded(self):
        podman, iid, context = Podman(self), self.scratch / "iid", self.sample()
        self.run_layerwright("build", "--load", "--iidfile", iid, context, env=podman.environment)
        image = iid.read_text().removeprefix("sha256:")
        self.assertEqual(podman.image(image)["RepoTags"] or [], [])
        self.run_layerwright("build", "-t", "example.org/a:1", "-t", "example.org/b:1", "--load", context,
                             env=podman.environment)
        self.assertEqual(sorted(podman.image(image)["RepoTags"]), ["example.org/a:1", "example.org/b:1"])


class Loaders(Case):
    """What is there to load into, and what goes wrong with it; the programs are scripts."""

    def programs(self, **scripts):
        directory = self.scratch / "bin"
        directory.mkdir()
        for name, script in scripts.items():
            (directory / name).write_text(f"#!/bin/sh\n{script}\n")
            (directory / name).chmod(0o755)
        return {"PATH": f"{directory}:/usr/sbin:/usr/bin:/sbin:/bin" if scripts else str(directory)}

    def load(self, environment, user="root", **options):
        context = self.context(Dockerfile="FROM busybox\nRUN echo x > /x\n")
        return self.run_layerwright("build", "-t", "app", "--load", context, env=environment, user=user, **options)

    def test_without_a_loader_nothing_is_built(self):
        environment = self.programs()
        context = self.context(Dockerfile="FROM busybox\nRUN echo x > /x\n")
        done = subprocess.run(self.command("build", "--load", context), env={**os.environ, **environment},
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=WATCHDOG)
        self.assertEqual(done.returncode, 4)
        self.assertIn("docker is not in PATH; podman is not in PATH", done.stderr)
        self.assertNotIn("RUN", done.stderr)
        self.assertEqual(list(self.store().iterdir()), [])

    def test_docker_takes_the_archive_in_the_callers_namespaces(self):
        environment = self.programs(docker=f"""
case $1 in
version) exit 0 ;;
load) readlink /proc/self/ns/mnt /proc/self/ns/user > {self.scratch}/spaces; id -u >> {self.scratch}/spaces
      exec cat > {self.scratch}/taken.tar ;;
esac""")
        for user in ("root", "lw-sub"):
            with self.subTest(user):
                spaces = subprocess.check_output(["readlink", "/proc/self/ns/mnt", "/proc/self/ns/user"], text=True)
                done = self.load(environment, user) if user == "root" else self.run_layerwright(
                    "build", "-t", "app", "--load", self.scratch / "context", env=environment, user=user)
                self.assertIn("loaded into docker as app:latest", done.stderr)
                uid = pwd.getpwnam(user).pw_uid
                self.assertEqual((self.scratch / "spaces").read_text(), f"{spaces}{uid}\n")
                self.assertEqual(Archive(self.scratch / "taken.tar").json("manifest.json")[0]["RepoTags"], ["app:latest"])
                for name in ("spaces", "taken.tar"):
                    (self.scratch / name).unlink()

    def test_a_loader_that_fails_is_quoted(self):
        for script, want in (("cat > /dev/null; echo no space left >&2; exit 3", "exit status: 3\nno space left"),
                             ("kill -9 $$", "signal: 9"),
                             ("exec <&-; exit 1", "exit status: 1")):
            with self.subTest(script):
                environment = self.programs(podman=script) | {"LAYERWRIGHT_LOAD": "podman"}
                done = self.load(environment, code=4)
                self.assertIn(f"podman did not load the image: {want}", done.stderr)
                shutil.rmtree(self.scratch / "bin")
                shutil.rmtree(self.scratch / "context")

    def test_a_stopped_build_takes_the_loader_with_it(self):
        environment = self.programs(podman=f"echo $$ > {self.scratch}/pid; sleep 1000 & wait")
        context = self.context(Dockerfile="FROM busybox\nRUN echo x > /x\n")
        command = self.command("build", "--load", context)
        with subprocess.Popen(command, env={**os.environ, **environment, "LAYERWRIGHT_LOAD": "podman"},
                              stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as build:
            pid = self.scratch / "pid"
            wait_for(lambda: pid.exists() and pid.read_text(), "the loader to start")
            build.terminate()
            self.assertEqual(build.wait(WATCHDOG), 143)
        wait_for(lambda: not pathlib.Path(f"/proc/{pid.read_text().strip()}").exists(), "the loader to end")


if __name__ == "__main__":
    unittest.main()
