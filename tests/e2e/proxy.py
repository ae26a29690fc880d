"""A proxy in front of a registry: remembers every request in order, lets a test bend some, and lets steps wait for others."""

import http.client
import http.server
import threading
import time
import urllib.parse

from servers import Serving
from support import WATCHDOG

HOP = ("connection", "transfer-encoding", "keep-alive")


class Request:
    """What came, and what was answered."""

    def __init__(self, method, path, size):
        self.method, self.path, self.size, self.status = method, path, size, None
        self.asked, self.answered, self.received = time.monotonic(), None, 0

    def __repr__(self):
        return f"{self.method} {self.path} {self.size} -> {self.status}"

    def is_upload(self, repository):
        """Whether it has brought a blob's bytes."""
        return self.method == "PUT" and self.status == 201 and self.path.startswith(f"/v2/{repository}/blobs/uploads/")

    def digest(self):
        """The blob that was brought."""
        return urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)["digest"][0]


class Proxy(Serving):
    """A context manager. `rule` gets every request before it is passed on; what it returns, (status, headers, body), is
    the answer instead. Steps may ask `/wait/NAME`, which is answered when the test says so, `/uploads/REPOSITORY/N`,
    when so many blobs have been sent there, and `/mark`, which leaves a mark among the requests."""

    def __init__(self, upstream, rule=None):
        self.upstream, self.rule = upstream, rule or (lambda request: None)
        self.requests, self.names = [], set()
        self.changed = threading.Condition()

    def __enter__(self):
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def pass_on(self):
                size = int(self.headers.get("Content-Length") or 0)
                request = Request(self.command, self.path, size)
                body = self.rfile.read(size)
                answer = proxy.control(request)
                if answer is None:
                    with proxy.changed:
                        proxy.requests.append(request)
                        proxy.changed.notify_all()
                    answer = proxy.rule(request) or proxy.forward(request, dict(self.headers), body)
                self.answer(request, *answer)

            def answer(self, request, status, headers, body):
                with proxy.changed:
                    request.status, request.answered, request.received = status, time.monotonic(), len(body)
                    proxy.changed.notify_all()
                self.send_response(status)
                headers = {name: value for name, value in headers.items() if name.lower() not in HOP}
                if self.command != "HEAD" or "Content-Length" not in headers:
                    headers["Content-Length"] = str(len(body))
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = pass_on

        self.host = self.serve(Handler)
        return self

    def control(self, request):
        kind, *rest = request.path.strip("/").split("/")
        if kind == "wait":
            return self.when(lambda: rest[0] in self.names)
        if kind == "uploads":
            return self.when(lambda: len(self.uploads(rest[0])) >= int(rest[1]))
        if kind == "mark":
            with self.changed:
                request.status = 200
                self.requests.append(request)
            return 200, {}, b""
        return None

    def when(self, condition):
        with self.changed:
            met = self.changed.wait_for(condition, WATCHDOG / 5)
        return (200, {}, b"") if met else (504, {}, b"")

    def say(self, name):
        """Answers those who wait for the name."""
        with self.changed:
            self.names.add(name)
            self.changed.notify_all()

    def wait_for(self, fits, what):
        """Waits for a request; the bound is a watchdog."""
        with self.changed:
            assert self.changed.wait_for(lambda: any(map(fits, self.requests)), WATCHDOG / 5), what

    def forward(self, request, headers, body):
        connection = http.client.HTTPConnection(self.upstream, timeout=WATCHDOG)
        connection.request(request.method, request.path, body or None, headers)
        response = connection.getresponse()
        answer = response.status, dict(response.getheaders()), response.read()
        connection.close()
        return answer

    def uploads(self, repository):
        return [request for request in self.requests if request.is_upload(repository)]


class SlowProxy(Proxy):
    """Adds a time to every round trip, as a registry does that is far away, or one that has no time."""

    def __init__(self, upstream, seconds, rule=None):
        def late(request):
            # This is what is tested, and nothing is won by it.
            time.sleep(seconds)
            return rule(request) if rule else None
        super().__init__(upstream, late)

    def sequential(self, requests=None):
        """The longest chain of requests, of all or of these, of which each was sent when the one before was answered: whoever
        is so far away waits for so many round trips."""
        requests = self.requests if requests is None else requests
        chain, free = 0, 0.0
        for request in sorted(requests, key=lambda request: request.answered or float("inf")):
            if request.asked >= free and request.answered:
                chain, free = chain + 1, request.answered
        return chain

    def received(self):
        """Bytes of all bodies that were sent down."""
        return sum(request.received for request in self.requests)
