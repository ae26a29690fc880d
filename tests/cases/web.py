"""The web server of the cases: every case's `www/` below its name, and git repositories (`NAME.git/`) by git's own CGI."""

import http.server
import os
import subprocess
import threading


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True


def serve(root):
    """Serves a folder on a free loopback port until the process ends, and gives the port."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def __init__(self, *arguments):
            super().__init__(*arguments, directory=root)

        def log_message(self, *_):
            pass

        def do_GET(self):
            if ".git/" in self.path:
                self.git()
            else:
                super().do_GET()

        def do_POST(self):
            if ".git/" in self.path:
                self.git()
            else:
                self.send_error(405)

        def git(self):
            command = ["git", "http-backend"]
            answer = subprocess.run(command, input=self.body(), stdout=subprocess.PIPE, env=self.cgi(root)).stdout
            head, _, content = answer.partition(b"\r\n\r\n")
            headers = dict(line.decode().split(": ", 1) for line in head.split(b"\r\n") if b": " in line)
            self.send_response(int(headers.pop("Status", "200").split()[0]))
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def body(self):
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = b""
            while size := int(self.rfile.readline().strip() or b"0", 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def cgi(self, root):
            path, _, query = self.path.partition("?")
            return {
                **os.environ, "GIT_PROJECT_ROOT": root, "GIT_HTTP_EXPORT_ALL": "1", "PATH_INFO": path,
                "QUERY_STRING": query, "REQUEST_METHOD": self.command, "REMOTE_ADDR": "127.0.0.1",
                "CONTENT_TYPE": self.headers.get("Content-Type") or "",
                "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding") or "",
                "GIT_PROTOCOL": self.headers.get("Git-Protocol") or "", "GIT_CONFIG_COUNT": "2",
                "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*",
                "GIT_CONFIG_KEY_1": "uploadpack.allowAnySHA1InWant", "GIT_CONFIG_VALUE_1": "true"}

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_address[1]
