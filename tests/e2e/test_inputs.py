"""Where Dockerfile and files may come from: every kind of context, for real, as every user; secrets and annotations."""

import io
import json
import os
import shutil
import subprocess
import tarfile
import unittest

from servers import Files, GitDaemon, repository
from support import Case, Layout, Registry, USERS

FILES = {
    "Dockerfile": "FROM scratch\nCOPY . /\n",
    "other/Dockerfile": "FROM scratch\nCOPY a.txt /other\n",
    ".dockerignore": "secret*\n**/*ockerfile*\nother\n.dockerignore\n",
    "a.txt": "a\n",
    "secret.txt": "hidden\n",
    "sub/Dockerfile": "FROM scratch\nCOPY . /\n",
    "sub/b.txt": "b\n",
}


def archive(files, compress=None):
    """A tar of these files, through a compressor's own program."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content.encode()))
    plain = buffer.getvalue()
    return plain if compress is None else subprocess.run([compress, "-c"], input=plain, stdout=subprocess.PIPE, check=True).stdout


class Inputs(Case):
    def built(self, context, *arguments, **options):
        """The names in the only layer of what is built."""
        layout = Layout(self.build(context, *arguments, **options))
        return sorted(name for layer in layout.layers() for name in layer)

    def piped(self, data, *arguments, user="root", code=0):
        out = self.scratch / f"piped-{len(list(self.scratch.iterdir()))}"
        out.mkdir()
        shutil.chown(out, user, user)
        command = self.command("build", "--progress", "plain", "-o", f"type=oci,tar=false,dest={out / 'x'}", *arguments, "-",
                               user=user)
        done = subprocess.run(command, input=data, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=self.scratch, timeout=300)
        self.assertEqual(done.returncode, code, done.stderr.decode())
        if code:
            return done.stderr.decode()
        return sorted(name for layer in Layout(out / "x").layers() for name in layer)

    def test_archives_on_standard_input_of_every_compression(self):
        for compress in (None, "gzip", "bzip2", "xz", "zstd"):
            with self.subTest(compress=compress):
                data = archive(FILES, compress)
                self.assertEqual(self.piped(data), ["a.txt", "sub", "sub/b.txt"])
        self.assertEqual(self.piped(data, "-f", "other/Dockerfile"), ["other"])
        for user in USERS[1:]:
            self.assertEqual(self.piped(data, user=user), ["a.txt", "sub", "sub/b.txt"])

    def test_a_dockerfile_on_standard_input_has_no_files(self):
        self.assertEqual(self.piped(b"FROM scratch\nCOPY <<x /y\nz\nx\n"), ["y"])
        self.assertIn('"/a": not found', self.piped(b"FROM scratch\nCOPY a /\n", code=1))
        self.assertIn("is a Dockerfile itself", self.piped(b"FROM scratch\n", "-f", "x", code=2))
        self.assertIn("<stdin>:2", self.piped(b"FROM scratch\nCOPPY a /\n", code=2))

    def test_an_archive_cannot_lead_out_of_the_context(self):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            link = tarfile.TarInfo("Dockerfile")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)
        self.assertIn("cannot read Dockerfile <stdin>/Dockerfile", self.piped(buffer.getvalue(), code=2))

    def test_urls(self):
        site = self.scratch / "site"
        site.mkdir()
        (site / "context.tar.gz").write_bytes(archive(FILES, "gzip"))
        (site / "Only").write_text("FROM scratch\nCOPY <<x /y\nz\nx\n")
        (site / "bad").write_text("FROM scratch\nCOPPY a b\n")
        (site / "one.txt").write_text("one\n")
        local = self.context(Dockerfile="FROM scratch\nCOPY --from=named context /named\n", mine="m\n")
        with Files(site) as server:
            for user in USERS:
                self.assertEqual(self.built(f"{server.url}/context.tar.gz", user=user, name=user), ["a.txt", "sub", "sub/b.txt"])
            self.assertEqual(self.built(f"{server.url}/context.tar.gz", "-f", "sub/Dockerfile", name="f"),
                             ["a.txt", "sub", "sub/b.txt"])
            self.assertEqual(self.built(f"{server.url}/Only", name="only"), ["y"])
            self.assertEqual(self.built(local, "-f", f"{server.url}/Only", name="f-url"), ["y"])
            self.assertEqual(self.built(local, "--build-context", f"named={server.url}/one.txt", name="named"), ["named"])
            done = self.run_layerwright("build", "-f", f"{server.url}/bad", local, code=2)
            self.assertIn(f"{server.url}/bad:2:1", done.stderr)
            for arguments in ((f"{server.url}/gone.tar",), ("-f", f"{server.url}/gone", local)):
                self.assertIn("404", self.run_layerwright("build", *arguments, code=3).stderr)
        done = self.run_layerwright("build", f"{server.url}/context.tar.gz", code=3)
        self.assertIn("127.0.0.1", done.stderr)

    def test_git(self):
        repository(self.scratch / "app.git", FILES)
        subprocess.run(["chmod", "-R", "a+rX", self.scratch / "app.git"], check=True)
        with Files(self.scratch) as http, GitDaemon(self.scratch) as daemon:
            url = f"{http.url}/app.git"
            whole = ["a.txt", "sub", "sub/b.txt"]
            for user in USERS:
                self.assertEqual(self.built(url, user=user, name=f"git-{user}"), whole)
            self.assertEqual(self.built(f"{daemon.url}/app.git", name="daemon"), whole)
            self.assertEqual(self.built(f"{url}#main:sub", name="sub"), ["Dockerfile", "b.txt"])
            self.assertEqual(self.built(f"{url}?branch=main&subdir=sub", name="query"), ["Dockerfile", "b.txt"])
            self.assertEqual(self.built(url, "-f", "other/Dockerfile", name="f"), ["other"])
            kept = self.built(url, "--build-arg", "BUILDKIT_CONTEXT_KEEP_GIT_DIR=1", name="kept")
            self.assertIn(".git/HEAD", kept)
            local = self.context(Dockerfile="FROM scratch\nCOPY --from=app sub/b.txt /\n")
            self.assertEqual(self.built(local, "--build-context", f"app={url}#main", name="named"), ["b.txt"])
            self.assertEqual(self.built(url, "-f", local / "Dockerfile", "--build-context", f"app={url}", name="absolute"), ["b.txt"])
            done = self.run_layerwright("build", "-f", "none", url, code=2)
            self.assertIn(f"cannot read Dockerfile {url}/none", done.stderr)
            self.assertIn("nowhere", self.run_layerwright("build", f"{url}#nowhere", code=None).stderr)
            every = self.context("every", Dockerfile="FROM scratch\nCOPY --from=app . /\n")
            self.assertEqual(self.built(every, "--build-context", f"app={url}", name="ignored"), whole)
            repository(self.scratch / "wrong.git", {"Dockerfile": "FROM scratch AS A\nCOPPY a b\n"})
            done = self.run_layerwright("build", f"{http.url}/wrong.git#main", code=2)
            self.assertIn(f"{http.url}/wrong.git#main:Dockerfile:2:1", done.stderr)
            for user in USERS:
                asked = self.command("build", "--call", "targets", url, user=user)
                done = subprocess.run(asked, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
                self.assertEqual(done.stdout, "TARGET    DESCRIPTION\n(default)\n")
            listed = self.run_layerwright("context", "ls", "--root", self.store(), url)
            self.assertEqual(listed.stdout, "a.txt\nsub/\nsub/b.txt\n")
            why = self.run_layerwright("context", "ls", "--root", self.store(), "--why", "secret.txt", url)
            self.assertEqual(why.stdout, "secret.txt: excluded by .dockerignore:1: secret*\n")

    def test_the_dockerfiles_own_ignore_file_counts_in_every_context(self):
        files = {**FILES, "Dockerfile.dockerignore": "*\n!secret.txt\n"}
        self.assertEqual(self.piped(archive(files)), ["secret.txt"])
        repository(self.scratch / "own.git", files)
        with Files(self.scratch) as http:
            self.assertEqual(self.built(f"{http.url}/own.git"), ["secret.txt"])

    def test_check_asks_without_a_store(self):
        context = self.context(Dockerfile="FROM scratch AS Base\nMAINTAINER me\n")
        done = self.run_layerwright("build", "--check", context, code=1)
        self.assertIn("Check complete, 2 warnings have been found!", done.stdout)
        self.assertEqual(list(self.store().iterdir()), [])
        checked = self.run_layerwright("build", "--call", "check,format=json,ignorestatus=true", context)
        rules = [warning["ruleName"] for warning in json.loads(checked.stdout)["warnings"]]
        self.assertEqual(rules, ["StageNameCasing", "MaintainerDeprecated"])


class Secrets(Case):
    DOCKERFILE = ("FROM busybox\nRUN --mount=type=secret,id=file --mount=type=secret,id=variable,env=TOKEN "
                  "wc -c < /run/secrets/file > /size && echo -n \"$TOKEN\" | wc -c >> /size\n")

    def test_secrets_reach_the_step_and_nothing_else(self):
        context = self.context(Dockerfile=self.DOCKERFILE)
        key = self.scratch / "key"
        key.write_text("hunter2-file")
        key.chmod(0o644)
        for user in USERS:
            layout = self.build(
                context, "--secret", f"id=file,src={key}", "--secret", "id=variable,env=HUSH", user=user, name=user,
                env={"HUSH": "hunter2-env"})
            self.assertEqual(Layout(layout).read("size"), b"12\n11\n")
            self.assertNotIn("hunter2", self.last.stderr + self.last.stdout)
            for place in (layout, self.store(user)):
                found = subprocess.run(["grep", "-r", "-l", "hunter2", place], stdout=subprocess.PIPE, text=True).stdout
                self.assertEqual(found, "")

    def test_no_process_is_called_with_a_secret(self):
        dockerfile = "FROM busybox\nRUN --mount=type=secret,id=s,env=S cat /proc/[0-9]*/cmdline | tr '\\0' ' ' > /lines\n"
        context = self.context(Dockerfile=dockerfile)
        image = self.build(context, "--secret", "id=s,env=HUSH", env={"HUSH": "hunter2"})
        self.assertNotIn(b"hunter2", Layout(image).read("lines"))


class Annotations(Case):
    GIVEN = ("--annotation", "org.example.a=1", "--annotation", "manifest[linux/amd64]:b=x=y")

    @unittest.skipUnless(os.uname().machine == "x86_64", "SKIPPED: the platform in the annotation is amd64")
    def test_they_are_in_the_manifest_of_layouts_and_registries(self):
        context = self.context(Dockerfile="FROM scratch\nCOPY a /\n", a="a\n")
        layout = Layout(self.build(context, *self.GIVEN, "--annotation", "manifest-descriptor:c=d"))
        layout.validate()
        want = {"org.example.a": "1", "b": "x=y"}
        self.assertEqual(layout.manifest["annotations"], want)
        self.assertEqual(layout.descriptor["annotations"]["c"], "d")
        with Registry(self.scratch / "registry") as registry:
            name = f"{registry.host}/app:1"
            self.run_layerwright("build", "-t", name, "--push", *self.GIVEN, context)
            raw = subprocess.run(["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{name}"], check=True,
                                 stdout=subprocess.PIPE).stdout
        self.assertEqual(json.loads(raw)["annotations"], want)
        done = self.run_layerwright("build", "--annotation", "index:a=b", context, code=2)
        self.assertIn("an image of one platform has no index", done.stderr)


class Hosts(Case):
    def test_names_are_found_in_etc_hosts(self):
        context = self.context(Dockerfile="FROM busybox\nRUN grep example /etc/hosts | tr '\\t' ' ' > /found\n")
        for user in USERS:
            image = self.build(context, "--add-host", "db.example:10.1.2.3", "--add-host", "six.example=[2001:db8::1]",
                               "--add-host", "host.example:host-gateway", user=user, name=user)
            self.assertEqual(Layout(image).read("found"),
                             b"10.1.2.3 db.example\n2001:db8::1 six.example\n127.0.0.1 host.example\n")


if __name__ == "__main__":
    unittest.main()
