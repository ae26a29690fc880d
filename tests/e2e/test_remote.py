"""Files from elsewhere: git over HTTP, git:// and SSH, URLs, archives on standard input; as every user."""

import http.server
import io
import os
import pathlib
import shutil
import socket
import subprocess
import tarfile
import threading
import unittest
import urllib.parse

from support import Case, Layout, USERS, WATCHDOG, accepts, wait_for

GIT = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_AUTHOR_DATE": "1600000000 +0000",
       "GIT_COMMITTER_DATE": "1600000000 +0000"}
# x-access-token:hush-hush, as git and as HTTP want it
TOKENS = ("basic eC1hY2Nlc3MtdG9rZW46aHVzaC1odXNo", "Bearer hush-hush")


def git(directory, *arguments):
    command = ["git", "-c", "user.name=A", "-c", "user.email=a@example.com", "-C", directory, *arguments]
    done = subprocess.run(command, env={**os.environ, **GIT}, stdout=subprocess.PIPE, check=True, text=True, timeout=WATCHDOG)
    return done.stdout.strip()


class Handler(http.server.BaseHTTPRequestHandler):
    """Repositories below the root by `git http-backend`, everything else as files."""

    def answer(self):
        path, _, query = self.path.partition("?")
        if path.startswith("/private/"):
            if self.headers.get("Authorization") not in TOKENS:
                self.send_response(401)
                self.send_header("WWW-Authenticate", "Basic realm=x")
                return self.end_headers()
            path = path.removeprefix("/private")
        if ".git/" not in path:
            file = self.server.root / urllib.parse.unquote(path.lstrip("/"))
            if not file.is_file():
                return self.send_error(404)
            body = file.read_bytes()
            self.send_response(200)
            self.send_header("Last-Modified", "Sun, 06 Nov 1994 08:49:37 GMT")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            return self.wfile.write(body)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        environment = {
            **os.environ, **GIT, "GIT_PROJECT_ROOT": str(self.server.root), "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path, "QUERY_STRING": query, "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""), "REMOTE_ADDR": "127.0.0.1",
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        output = subprocess.run(["git", "http-backend"], input=body, env=environment, stdout=subprocess.PIPE).stdout
        head, _, body = output.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().splitlines())
        self.send_response(int(headers.pop("Status", "200").split()[0]))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = answer

    def log_message(self, *_):
        pass


class Remote(Case):
    def setUp(self):
        super().setUp()
        self.root = self.scratch / "site"
        self.repository = self.root / "app.git"
        self.repository.mkdir(parents=True)
        git(self.repository, "init", "-q", "-b", "main")
        self.put("Dockerfile", "FROM busybox\nCOPY . /app\nRUN ls -l /app > /list\n")
        self.put("run.sh", "#!/bin/sh\n").chmod(0o755)
        self.put("ignored", "x")
        self.put(".dockerignore", "ignored\n")
        self.put("sub/file", "sub\n")
        self.commit = self.save()
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.root = self.root
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        self.site = f"http://127.0.0.1:{server.server_port}"

    def put(self, path, text):
        path = self.repository / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def save(self):
        git(self.repository, "add", "-A")
        git(self.repository, "commit", "-q", "-m", "x")
        return git(self.repository, "rev-parse", "HEAD")

    def spawn(self, *command, **options):
        process = subprocess.Popen(command, **options)
        self.addCleanup(process.wait, WATCHDOG)
        self.addCleanup(process.terminate)
        return process

    def free_port(self):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return probe.getsockname()[1]

    def names(self, layout):
        return sorted(name for layer in Layout(layout).layers() for name in layer if name.startswith("app/"))

    def test_a_repository_is_a_context_for_every_user(self):
        digests = set()
        for user in USERS:
            layout = self.build(f"{self.site}/app.git", user=user, name=user)
            self.assertEqual(
                self.names(layout), ["app/.dockerignore", "app/Dockerfile", "app/run.sh", "app/sub", "app/sub/file"])
            digests.add(Layout(layout).digest)
        self.assertEqual(len(digests), 1, digests)
        # The same commit by other names is the same build.
        again = self.build(f"{self.site}/app.git#{self.commit}", name="root")
        self.assertEqual(Layout(again).digest, digests.pop())
        self.assertEqual(self.last.stderr.count("CACHED"), 2, self.last.stderr)

    def test_repositories_are_added_and_named_by_every_user(self):
        dockerfile = (
            f"FROM busybox\nADD {self.site}/app.git#main:sub /a/\nADD --keep-git-dir {self.site}/app.git /b/\n"
            f"ADD --checksum={self.commit[:8]} {self.site}/app.git /c/\nCOPY --from=code . /d/\n")
        context = self.context(Dockerfile=dockerfile)
        digests = set()
        for user in USERS:
            named = ("--build-context", f"code={self.site}/app.git")
            image = Layout(self.build(context, *named, user=user, name=user))
            self.assertEqual(image.read("a/file"), b"sub\n")
            self.assertEqual(image.read("b/.git/HEAD").decode().strip(), self.commit)
            self.assertEqual(image.read("c/ignored"), b"x")
            self.assertEqual(image.read("d/run.sh"), b"#!/bin/sh\n")
            self.assertFalse(any("d/ignored" in layer for layer in image.layers()))
            digests.add(image.digest)
        self.assertEqual(len(digests), 1, digests)
        wrong = self.context("wrong", Dockerfile=f"FROM busybox\nADD --checksum={'0' * 40} {self.site}/app.git /c/\n")
        done = self.run_layerwright("build", wrong, code=1)
        self.assertIn(f"expected checksum to match {'0' * 40}, got {self.commit}", done.stderr)

    def test_a_context_that_nobody_reads_is_not_fetched(self):
        context = self.context(Dockerfile="FROM busybox\nRUN true\n")
        self.build(context, "--build-context", f"code=http://127.0.0.1:{self.free_port()}/gone.git")

    def test_files_behind_urls_are_added_by_every_user(self):
        (self.root / "a b.txt").write_text("text\n")
        digest = "sha256:" + subprocess.run(
            ["sha256sum", self.root / "a b.txt"], stdout=subprocess.PIPE, check=True, text=True).stdout.split()[0]
        dockerfile = (f"FROM busybox\nADD {self.site}/a%20b.txt /plain/\n"
                      f"ADD --checksum={digest} --chmod=755 {self.site}/a%20b.txt /named\nCOPY --from=url context /ctx\n")
        context = self.context(Dockerfile=dockerfile)
        digests = set()
        for user in USERS:
            named = ("--build-context", f"url={self.site}/a%20b.txt")
            image = Layout(self.build(context, *named, user=user, name=user))
            members = {name: member for layer in image.layers() for name, member in layer.items()}
            self.assertEqual((members["plain/a b.txt"].mode, members["plain/a b.txt"].mtime), (0o600, 784111777))
            self.assertEqual(members["named"].mode, 0o755)
            self.assertEqual(image.read("ctx"), b"text\n")
            digests.add(image.digest)
        self.assertEqual(len(digests), 1, digests)
        wrong = self.context("wrong", Dockerfile=f"FROM busybox\nADD --checksum=sha256:{'0' * 64} {self.site}/a%20b.txt /c\n")
        self.assertIn(f"digest mismatch {digest}: sha256:{'0' * 64}", self.run_layerwright("build", wrong, code=1).stderr)

    def test_tokens_open_private_places_for_every_user_and_are_kept_nowhere(self):
        (self.root / "file").write_text("text\n")
        context = self.context(
            Dockerfile=f"FROM busybox\nADD {self.site}/private/app.git /a/\nADD {self.site}/private/file /f\n")
        secrets = ("--secret", "id=GIT_AUTH_TOKEN,env=TOKEN", "--secret", "id=HTTP_AUTH_TOKEN_127.0.0.1,env=TOKEN")
        for user in USERS:
            layout = self.build(context, *secrets, user=user, name=user, env={"TOKEN": "hush-hush"})
            self.assertEqual(Layout(layout).read("f"), b"text\n")
            self.assertNotIn("hush", self.last.stderr)
            for place in (self.store(user), layout):
                found = subprocess.run(["grep", "-rlE", "hush-hush|eC1hY2Nlc3M", place], stdout=subprocess.PIPE, text=True)
                self.assertEqual(found.stdout, "")
        done = self.run_layerwright("build", context, root=self.scratch / "other", code=3)
        self.assertRegex(done.stderr, "GIT_AUTH_TOKEN|HTTP_AUTH_TOKEN")

    def test_who_logs_in_is_in_an_address_only(self):
        """A token may stand where a user does; of a commit's remote, too, which CI systems write so."""
        (self.root / "file").write_text("text\n")
        site = self.site.replace("://", "://s3cret-token@")
        context = self.context(Dockerfile=f"FROM busybox\nADD {site}/app.git /a/\nADD {site.replace('token@', 'user:s3cret@')}/file /f\n")
        cache, source = self.scratch / "cache", "org.opencontainers.image.source"
        layout = self.build(context, "--cache-to", f"type=local,dest={cache},mode=max", "--label", f"{source}={site}/app",
                            "--annotation", f"{source}={site}/app", "--label", f"other={self.site}")
        self.assertNotIn("s3cret", self.last.stderr)
        for flag in ("label", "annotation"):
            self.assertIn(f"warning: --{flag} {source}: who logs in is left out of its URL", self.last.stderr)
        image = Layout(layout)
        self.assertEqual(image.config["config"]["Labels"], {source: f"{self.site}/app", "other": self.site})
        self.assertEqual(image.manifest["annotations"][source], f"{self.site}/app")
        added = [step["created_by"] for step in image.config["history"] if "ADD http" in step["created_by"]]
        self.assertEqual([step.split("@")[0] for step in added], ["ADD http://xxxxx", "ADD http://xxxxx:xxxxx"])
        packed = [path for place in (layout, cache) for path in place.rglob("*") if path.is_file()]
        contents = [subprocess.run(["zstd", "-dcfq", path], stdout=subprocess.PIPE).stdout or path.read_bytes() for path in packed]
        self.assertTrue(any(b"xxxxx" in content for content in contents))
        self.assertEqual([path for path, content in zip(packed, contents) if b"s3cret" in content], [])
        found = subprocess.run(["grep", "-rl", "s3cret", self.store()], stdout=subprocess.PIPE, text=True)
        self.assertEqual(found.stdout, "")

    def test_archives_are_contexts_for_every_user(self):
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:xz") as archive:
            for name in ("Dockerfile", "run.sh", "sub", "ignored", ".dockerignore"):
                archive.add(self.repository / name, name)
        (self.root / "context.tar").write_bytes(packed.getvalue())
        digests = set()
        for user in USERS:
            out = self.scratch / f"piped-{user}"
            out.mkdir()
            shutil.chown(out, user, user)
            command = self.command("build", "-o", f"type=oci,tar=false,dest={out}/layout", "-", user=user)
            done = subprocess.run(command, input=packed.getvalue(), stderr=subprocess.PIPE, timeout=WATCHDOG, cwd=self.scratch)
            self.assertEqual(done.returncode, 0, done.stderr.decode())
            behind = self.build(f"{self.site}/context.tar", user=user, name=user)
            digests |= {Layout(out / "layout").digest, Layout(behind).digest}
            self.assertNotIn("app/ignored", self.names(behind))
        self.assertEqual(len(digests), 1, digests)

    def test_git_over_its_own_protocol_and_ssh_for_every_user(self):
        port = self.free_port()
        self.spawn("git", "daemon", "--listen=127.0.0.1", f"--port={port}", "--export-all", "--reuseaddr",
                   f"--base-path={self.root}", env={**os.environ, **GIT}, stderr=subprocess.DEVNULL)
        wait_for(lambda: accepts(port), "git daemon to listen")
        ssh = self.sshd()
        for user in USERS:
            agent = self.agent(user)
            for remote, options in ((f"git://127.0.0.1:{port}/app.git", ()), (f"{ssh}{self.repository}", ("--ssh", f"default={agent}"))):
                context = self.context(f"c-{user}-{len(options)}", Dockerfile=f"FROM busybox\nADD {remote} /app/\n")
                image = Layout(self.build(context, *options, user=user, name=f"{user}-{len(options)}"))
                self.assertEqual(image.read("app/run.sh"), b"#!/bin/sh\n")
        # Whoever has no agent is told, and the key that was seen is remembered.
        context = self.context("nobody", Dockerfile=f"FROM busybox\nADD {ssh}{self.repository}?branch=main /app/\n")
        done = self.run_layerwright("build", context, user="lw-sub", code=3)
        self.assertIn("--ssh default", done.stderr)
        known = (self.store("root") / "git" / "known_hosts").read_text()
        self.assertIn("127.0.0.1", known)
        # Another key at the same place is refused.
        kind, key = (self.shared / "sshd" / "user.pub").read_text().split()[:2]
        host = next(line.split()[0] for line in known.splitlines() if "127.0.0.1" in line)
        (self.store("root") / "git" / "known_hosts").write_text(f"{host} {kind} {key}\n")
        done = self.run_layerwright("build", "--ssh", f"default={self.scratch}/agent-root", context, code=3)
        self.assertIn("Host key verification failed", done.stderr)

    def sshd(self):
        """An SSH server on a free port; gives the beginning of an address."""
        home = self.shared / "sshd"
        if not home.exists():
            home.mkdir()
            for name in ("host", "user"):
                subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", home / name], check=True)
            shutil.copy2(home / "user.pub", home / "authorized")
        port = self.free_port()
        pathlib.Path("/run/sshd").mkdir(exist_ok=True)
        options = (f"HostKey={home}/host", f"AuthorizedKeysFile={home}/authorized", "PermitRootLogin=yes",
                   "PasswordAuthentication=no", "StrictModes=no", "UsePAM=no", f"PidFile={home}/pid.{port}")
        self.spawn("/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", "-p", str(port), "-o", "ListenAddress=127.0.0.1",
                   *(word for option in options for word in ("-o", option)), stderr=subprocess.DEVNULL)
        wait_for(lambda: accepts(port), "sshd to listen")
        return f"ssh://root@127.0.0.1:{port}"

    def agent(self, user):
        """The socket of an agent with the key; agents answer only to their own user."""
        socket_path = self.scratch / f"agent-{user}"
        key = self.scratch / f"key-{user}"
        shutil.copy2(self.shared / "sshd" / "user", key)
        shutil.chown(key, user, user)
        as_user = [] if user == "root" else ["runuser", "-u", user, "--"]
        self.spawn(*as_user, "ssh-agent", "-D", "-a", str(socket_path), stdout=subprocess.DEVNULL)
        wait_for(socket_path.exists, "the agent's socket")
        environment = {**os.environ, "SSH_AUTH_SOCK": str(socket_path)}
        subprocess.run([*as_user, "ssh-add", "-q", str(key)], env=environment, check=True, timeout=WATCHDOG)
        return socket_path


if __name__ == "__main__":
    unittest.main()
