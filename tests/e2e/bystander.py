"""Another program of the builder's user, which holds canaries in all the places where a program can hold a secret.

TOKEN=CANARY bystander.py DIRECTORY ABSTRACT-NAME CANARY: reads the canaries it is to hold from DIRECTORY/bystander.json, makes
DIRECTORY/ready when it holds them, and stays until it is ended.
"""

import ctypes
import json
import os
import pathlib
import socket
import sys
import threading

KEYCTL = {"x86_64": (248, 250), "aarch64": (217, 219)}[os.uname().machine]  # add_key, keyctl
USER_KEYRING, SET_TIMEOUT, SECONDS = -4, 15, 600


def serve(listener, canary):
    """Says the canary to whoever comes."""
    while True:
        stream, _ = listener.accept()
        with stream:
            stream.sendall(canary.encode())


def listen(address, canary):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    threading.Thread(target=serve, args=(listener, canary), daemon=True).start()


def add_key(canary):
    """A key of the user's; it goes by itself, and every test puts its own in its place."""
    libc = ctypes.CDLL(None, use_errno=True)
    data = canary.encode()
    key = libc.syscall(KEYCTL[0], b"user", b"lw-canary", data, len(data), USER_KEYRING)
    if key < 0:
        return False
    libc.syscall(KEYCTL[1], SET_TIMEOUT, key, SECONDS)
    return True


def main():
    directory = pathlib.Path(sys.argv[1])
    place = directory / "bystander.json"
    canaries = json.loads(place.read_text())
    place.unlink()
    descriptor = os.open(directory / "unlinked", os.O_CREAT | os.O_RDWR, 0o600)
    (directory / "unlinked").unlink()
    os.write(descriptor, canaries["bystander-descriptor"].encode())
    listen("\0" + sys.argv[2], canaries["abstract-socket"])
    listen(str(directory / "socket"), canaries["path-socket"])
    listen(str(directory / "agent"), canaries["agent-socket"])
    os.chdir(directory / "work")
    has_keys = add_key(canaries["keyring"])
    # What is held in memory and nowhere else: "bystander-memory" is still in `canaries`.
    (directory / "ready").write_text("keys" if has_keys else "")
    threading.Event().wait()


main()
