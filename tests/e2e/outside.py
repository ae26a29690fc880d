#!/usr/bin/python3 -B
"""A machine with an outside, made of a network namespace: outside.py USER HITS COMMAND...

Runs the command as that user, who can open /dev/net/tun, on a machine with the addresses below and a default route. On
all of them somebody listens, and who is reached is written to the file HITS as JSON, by protocol and address. Beyond the
default route, a name server says that every name is 198.51.100.7. Has to be started below `unshare --mount --net`.
"""

import json
import os
import pathlib
import socket
import subprocess
import sys
import threading

PORT = 8080
# Of the outside, and what a step must not reach: loopback, link-local, metadata.
OUTSIDE = ("203.0.113.2", "2001:db8::2")
NAMES = "203.0.113.53"
HERE = ("127.0.0.1", "127.0.0.53", "::1", "169.254.169.254", "100.100.100.200", "fe80::a9fe:1", "fd00:ec2::254",
        "fd20:ce::254")
DEVICE = "out0"


def ip(*words):
    subprocess.run(["ip", *words], check=True)


def make_machine():
    ip("link", "set", "lo", "up")
    ip("link", "add", DEVICE, "type", "veth", "peer", "name", "out1")
    for device in (DEVICE, "out1"):
        ip("link", "set", device, "up")
    for address in (*OUTSIDE, NAMES, *HERE[3:]):
        ip("address", "add", f"{address}/{64 if ':' in address else 24}", "dev", DEVICE,
           *(["nodad"] if ":" in address else []))
    ip("route", "add", "default", "via", "203.0.113.1", "dev", DEVICE)
    ip("-6", "route", "add", "default", "via", "2001:db8::1", "dev", DEVICE)


def let_everybody_open_tun():
    place = pathlib.Path("/dev/net")
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
    os.mknod(place / "tun", 0o020666, os.makedev(10, 200))
    (place / "tun").chmod(0o666)


def bound(kind, address, port):
    family, _, _, _, at = socket.getaddrinfo(
        f"{address}%{DEVICE}" if address.startswith("fe80") else address, port, type=kind)[0]
    listener = socket.socket(family, kind)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(at)
    return listener


def serve_tcp(address, hits):
    listener = bound(socket.SOCK_STREAM, address, PORT)
    listener.listen()

    def serve():
        while True:
            connection, _ = listener.accept()
            hits.add(f"tcp {address}")
            connection.close()
    threading.Thread(target=serve, daemon=True).start()


def serve_udp(address, hits, port=PORT, answer=lambda question: question):
    listener = bound(socket.SOCK_DGRAM, address, port)

    def serve():
        while True:
            question, sender = listener.recvfrom(512)
            hits.add(f"udp {address}")
            listener.sendto(answer(question), sender)
    threading.Thread(target=serve, daemon=True).start()


def name_answer(question):
    """One address for what asks for one, and no other record."""
    end = question.index(b"\0", 12) + 5
    asks_for_address = question[end - 4:end - 2] == b"\0\1"
    head = question[:2] + b"\x81\x80\0\1" + (b"\0\1" if asks_for_address else b"\0\0") + b"\0\0\0\0"
    record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + bytes([198, 51, 100, 7])
    return head + question[12:end] + (record if asks_for_address else b"")


def main(user, found, *command):
    make_machine()
    let_everybody_open_tun()
    hits = set()
    for address in (*OUTSIDE, *HERE):
        serve_tcp(address, hits)
        serve_udp(address, hits)
    serve_udp(NAMES, hits, 53, name_answer)
    done = subprocess.run(command if user == "root" else ["runuser", "-u", user, "--", *command], check=False)
    pathlib.Path(found).write_text(json.dumps(sorted(hits)))
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
