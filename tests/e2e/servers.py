"""Servers of files and git repositories on free loopback ports, each a context manager that ends with its test."""

import base64
import http.client
import http.server
import os
import pathlib
import select
import socket
import subprocess
import sys
import threading
import urllib.parse

from support import WATCHDOG, accepts, wait_for


class Serving:
    """A context manager: an HTTP server on a free port, begun by `serve`, which gives its `HOST:PORT`."""

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True
        # As many as a builder may open at once: what is turned away comes again a second later.
        request_queue_size = 64

        def handle_error(self, *arguments):
            """A client that has gone is none of the test's business."""
            if not isinstance(sys.exc_info()[1], ConnectionError):
                super().handle_error(*arguments)

    def serve(self, handler):
        self.server = self.Server(("127.0.0.1", 0), handler)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()
        return f"127.0.0.1:{self.server.server_address[1]}"

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class Files(Serving):
    """Files by their path over HTTP, and repositories below the same directory through `git http-backend`."""

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)

    def __enter__(self):
        directory, log = self.directory, self.log = self.directory, []

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *arguments):
                super().__init__(*arguments, directory=str(directory))

            def log_message(self, *_):
                log.append(f"{self.command} {self.path}")

            def do_GET(self):
                if ".git/" in self.path:
                    self.backend(b"")
                else:
                    super().do_GET()

            def do_POST(self):
                self.backend(self.rfile.read(int(self.headers["Content-Length"])))

            def backend(self, body):
                path, _, query = self.path.partition("?")
                environment = {
                    "PATH": os.environ["PATH"], "GIT_PROJECT_ROOT": str(directory), "GIT_HTTP_EXPORT_ALL": "1",
                    "REQUEST_METHOD": self.command, "PATH_INFO": urllib.parse.unquote(path), "QUERY_STRING": query,
                    "CONTENT_TYPE": self.headers.get("Content-Type", ""), "CONTENT_LENGTH": str(len(body)),
                    "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
                    "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
                    "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*",
                }
                done = subprocess.run(["git", "http-backend"], input=body, stdout=subprocess.PIPE, env=environment,
                                      timeout=WATCHDOG, check=True)
                head, _, content = done.stdout.partition(b"\r\n\r\n")
                headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
                self.send_response(int(headers.pop("Status", "200").split()[0]))
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        self.url = f"http://{self.serve(Handler)}"
        return self


class GitDaemon:
    """Repositories over git://."""

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)

    def __enter__(self):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        environment = {**os.environ, "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"}
        # Not `git daemon`: its child would outlive it.
        program = pathlib.Path(subprocess.check_output(["git", "--exec-path"], text=True).strip()) / "git-daemon"
        self.process = subprocess.Popen(
            [program, "--export-all", "--listen=127.0.0.1", f"--port={port}", f"--base-path={self.directory}"],
            env=environment, stderr=subprocess.DEVNULL)
        wait_for(lambda: accepts(port), "git-daemon to listen")
        self.url = f"git://127.0.0.1:{port}"
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(WATCHDOG)


class Proxy(Serving):
    """A proxy for those who know its name and password: tunnels by CONNECT, and plain requests with a whole URL."""

    LOGIN = "me:pr0xy-pw"

    def __enter__(self):
        log = self.log = []
        wanted = "Basic " + base64.b64encode(self.LOGIN.encode()).decode()

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def admit(self):
                log.append(f"{self.command} {self.path}")
                if self.headers.get("Proxy-Authorization") == wanted:
                    return True
                self.send_response(407)
                self.send_header("Proxy-Authenticate", "Basic realm=proxy")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return False

            def do_CONNECT(self):
                if not self.admit():
                    return
                host, port = self.path.rsplit(":", 1)
                with socket.create_connection((host, int(port)), WATCHDOG) as far:
                    self.send_response(200)
                    self.end_headers()
                    ends = {self.connection: far, far: self.connection}
                    while True:
                        for end in select.select(list(ends), [], [], WATCHDOG)[0]:
                            received = end.recv(1 << 16)
                            if not received:
                                self.close_connection = True
                                return
                            ends[end].sendall(received)

            def forward(self):
                if not self.admit():
                    return
                url = urllib.parse.urlsplit(self.path)
                far = http.client.HTTPConnection(url.netloc, timeout=WATCHDOG)
                path = url.path + (f"?{url.query}" if url.query else "")
                headers = {k: v for k, v in self.headers.items() if not k.lower().startswith("proxy-")}
                far.request(self.command, path, self.rfile.read(int(self.headers.get("Content-Length", 0))), headers)
                answer = far.getresponse()
                content = answer.read()
                far.close()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("transfer-encoding", "connection"):
                        self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = forward

        host = self.serve(Handler)
        self.url, self.stranger = f"http://{self.LOGIN}@{host}", f"http://me:wr0ng-pw@{host}"
        return self


def repository(path, files, branch="main"):
    """A bare repository with one commit of these files; gives the commit."""
    work = pathlib.Path(f"{path}.work")
    for name, content in files.items():
        file = work / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    environment = {
        **os.environ, "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@example.org", "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@example.org", "GIT_CONFIG_NOSYSTEM": "1", "HOME": str(work)}

    def git(*arguments, cwd=work):
        return subprocess.run(["git", *arguments], cwd=cwd, check=True, env=environment, text=True, timeout=WATCHDOG,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE).stdout.strip()

    git("init", "--quiet", f"--initial-branch={branch}")
    git("add", "--all")
    git("commit", "--quiet", "--message", "files")
    git("clone", "--quiet", "--bare", str(work), str(path), cwd=work.parent)
    return git("rev-parse", "HEAD")
