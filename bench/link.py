"""A link of a stated rate, for packages: a forward proxy (RFC 9112, section 3.2.2) on loopback that hands on what it is asked
for no faster than so many bytes a second, all connections together.

What a build takes depends on how fast packages come. Beside the machine they come at once, which nobody's do; who measures
through this, and says the rate, measures what can be had again elsewhere. Only plain HTTP, which is what apt speaks: what
it brings is signed. Every request goes where its own address says.
"""

import http.client
import http.server
import socketserver
import threading
import time
import urllib.parse

# Bytes handed on at once: 16 ms at 4 MB/s.
PIECE = 64 << 10
# What is said of one connection, and not of what comes over it (RFC 9110, section 7.6.1).
HOP = {"connection", "keep-alive", "proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
PATIENCE = 60
# A busy machine wakes us late; what a link would have carried meanwhile, it has.
LATE = 0.02


class Pace:
    """When the next bytes may go."""

    def __init__(self, rate):
        self.rate, self.free, self.lock = rate, 0.0, threading.Lock()

    def wait(self, count):
        """Waits until the link has carried so many bytes more."""
        with self.lock:
            self.free = max(self.free, time.monotonic() - LATE) + count / self.rate
            until = self.free
        time.sleep(max(0, until - time.monotonic()))


class Request(http.server.BaseHTTPRequestHandler):
    protocol_version, timeout, wbufsize = "HTTP/1.1", PATIENCE, PIECE

    def do_GET(self):
        asked = urllib.parse.urlsplit(self.path)
        if asked.scheme != "http" or not asked.hostname:
            return self.send_error(501, "only http:// is spoken")
        try:
            answer = self.ask(asked)
        except (OSError, http.client.HTTPException) as error:
            return self.send_error(502, str(error) or type(error).__name__)
        self.server.link.count += 1
        self.hand_on(answer)

    do_HEAD = do_GET

    def ask(self, asked):
        """The answer of who is meant; connections stay open as long as the client's."""
        mine = self.__dict__.setdefault("connections", {})
        server = mine.setdefault(asked.netloc, http.client.HTTPConnection(asked.netloc, timeout=PATIENCE))
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP}
        path = urllib.parse.urlunsplit(("", "", asked.path or "/", asked.query, ""))
        try:
            server.request(self.command, path, headers=headers)
            return server.getresponse()
        except (OSError, http.client.HTTPException):
            # One that has been idle for too long: the next is a new one.
            server.close()
            server.request(self.command, path, headers=headers)
            return server.getresponse()

    def hand_on(self, answer):
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in HOP:
                self.send_header(name, value)
        if answer.length is None and self.command == "GET" and answer.status not in (204, 304):
            # Its end is that of the connection.
            self.close_connection = True
            self.send_header("Connection", "close")
        self.end_headers()
        while piece := answer.read(PIECE):
            self.server.link.pace.wait(len(piece))
            self.server.link.bytes += len(piece)
            self.wfile.write(piece)
            self.wfile.flush()

    def finish(self):
        for server in self.__dict__.get("connections", {}).values():
            server.close()
        super().finish()

    def log_message(self, *_):
        pass


class Server(socketserver.ThreadingTCPServer):
    daemon_threads, allow_reuse_address, block_on_close = True, True, False

    def handle_error(self, *_):
        """A client that has gone, which it says itself."""


class Link:
    """The proxy, on a port of its own; a context manager. `rate` in bytes a second."""

    def __init__(self, rate):
        self.pace, self.count, self.bytes = Pace(rate), 0, 0

    def __enter__(self):
        self.server = Server(("127.0.0.1", 0), Request)
        self.server.link = self
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
