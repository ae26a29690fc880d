"""The table of hostile contexts: what lies in one, what the Dockerfile asks of it, and what else the command says.

`contexts(canary)` gives (prepare, Dockerfile, arguments) by name; `prepare` is called with the context. What each comes to
is in `testdata/hostile/contexts`. Nothing outside of the context may be looked at, but for what the command line names.
"""

import bz2
import lzma
import os
import socket

from craft import END, directory, entry, fifo, file, hardlink, pax, symlink, zipped, zstd

ALL = "FROM scratch\nCOPY . /all/\n"
BIND = "FROM busybox\nRUN --mount=type=bind,{} find /m > /found\n"
STDIN = object()  # an argument: what `prepare` gives is the context, on standard input


def contexts(canary):
    up = os.path.join(*[".."] * 12, canary.lstrip("/"))

    def link(*pairs):
        def prepare(context):
            for name, target in pairs:
                (context / name).parent.mkdir(parents=True, exist_ok=True)
                (context / name).symlink_to(target)
        return prepare

    def chain(length, last):
        return link(*((f"l{at}", f"l{at + 1}") for at in range(length)), (f"l{length}", last))

    table = {}
    for way, target in (("absolute", canary), ("up", up)):
        for what, dockerfile in (
                ("copied with all", ALL), ("copied itself", "FROM scratch\nCOPY l /l\n"), ("copied through", "FROM scratch\nCOPY l/file /f\n"),
                ("copied as a directory", "FROM scratch\nCOPY l/ /d/\n"), ("by a wildcard", "FROM scratch\nCOPY l/* /d/\n"),
                ("with its parents", "FROM scratch\nCOPY --parents l/file /d/\n"), ("mounted", BIND.format("source=l,target=/m")),
                ("mounted through", BIND.format("source=l/file,target=/m"))):
            table[f"link {way}: {what}"] = (link(("l", target)), dockerfile)
        table[f"link {way}: in the middle"] = (link(("a/b/l", target)), "FROM scratch\nCOPY a/b/l/d/file /f\n")
        table[f"link {way}: the Dockerfile"] = (link(("Dockerfile", target + "/file")), None)
        table[f"link {way}: the ignore file"] = (link((".dockerignore", target + "/file")), ALL)
        table[f"link {way}: an archive"] = (link(("a.tar", target + "/file")), "FROM scratch\nADD a.tar /a/\n")
    table |= {
        "link: a chain of two": (link(("l", "m"), ("m", up + "/file")), "FROM scratch\nCOPY l /f\n"),
        "link: a chain of 41": (chain(41, "Dockerfile"), "FROM scratch\nCOPY l0 /f\n"),
        "link: a loop": (link(("l", "m"), ("m", "l")), "FROM scratch\nCOPY l /f\n"),
        "link: a loop of directories": (link(("d/l", "../d")), ALL), "link: to the context": (link(("l", ".")), "FROM scratch\nCOPY l/l/l/Dockerfile /f\n"),
        "link: through this process": (link(("l", "/proc/self/root" + canary)), "FROM scratch\nCOPY l/file /f\n"),
        "link: a descriptor": (link(("l", "/proc/self/fd/0")), "FROM scratch\nCOPY l /f\n"), "link: endless": (link(("l", "/dev/zero")), "FROM scratch\nCOPY l /f\n"),
    }
    table |= paths(canary, up) | inputs(canary) | trees(canary) | archives(canary, up) | arguments(canary, up)
    return {name: (*case, *[()] * (3 - len(case))) for name, case in table.items()}


def nothing(context):
    (context / "f").write_text("own")


def paths(canary, up):
    """Paths of instructions that lead out."""
    return {f"path: {name}": (nothing, text) for name, text in {
        "source up": "FROM scratch\nCOPY ../canary/file /f\n", "source far up": f"FROM scratch\nCOPY {up}/file /f\n",
        "source absolute": f"FROM scratch\nCOPY {canary}/file /f\n", "source up from inside": "FROM scratch\nCOPY a/../../canary/file /f\n",
        "source by a wildcard": "FROM scratch\nCOPY ../c*/file /f\n", "source by ADD": "FROM scratch\nADD ../canary /f\n",
        "destination up": "FROM scratch\nCOPY f ../../../f\n", "destination absolute and up": "FROM scratch\nCOPY f /../../f\n",
        "heredoc's name": "FROM scratch\nCOPY <<../../e /d/\nx\n../../e\n", "working directory up": "FROM scratch\nWORKDIR ../../../a/..\nCOPY f .\n",
        "of a stage": f"FROM scratch AS s\nCOPY f /f\nFROM scratch\nCOPY --from=s {up}/file /f\n", "exclude up": "FROM scratch\nCOPY --exclude=../../* . /d/\n",
        "parents up": "FROM scratch\nCOPY --parents ./../canary/file /f\n", "mounted up": BIND.format("source=../canary,target=/m"),
        "mounted far up": BIND.format(f"source={up},target=/m"), "mounted absolute": BIND.format(f"source={canary},target=/m"),
        "mount target up": BIND.format("target=/../../m"), "mount target in /proc": BIND.format("target=/proc/self/m"),
        "mount target is a device": BIND.format("source=f,target=/dev/null"), "mount target is the root": BIND.format("target=/"),
        "cache mount from a path up": "FROM busybox\nRUN --mount=type=cache,from=busybox,source=../../etc,target=/m find /m > /found\n",
        "cache id is a path": f"FROM busybox\nRUN --mount=type=cache,id=../../{canary},target=/m echo x > /m/file\n",
        "a source of 5000 bytes": f"FROM scratch\nCOPY {'d/' * 2500}f /f\n", "a source of NULs": "FROM scratch\nCOPY a\0b /f\n",
    }.items()}


def made(name, make):
    def prepare(context):
        (context / "Dockerfile").unlink(missing_ok=True)
        (context / "Dockerfile").write_text(ALL)
        (context / name).unlink(missing_ok=True)
        make(context / name)
    return prepare


def sparse(path):
    with path.open("wb") as made_file:
        made_file.truncate(200 << 20)


def inputs(canary):
    """Dockerfiles and ignore files that are none."""
    kinds = {"a fifo": os.mkfifo, "a directory": lambda path: path.mkdir(), "200 MiB": sparse, "binary": lambda path: path.write_bytes(bytes(range(256)) * 9),
             "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"), "a loop": lambda path: path.symlink_to(path.name), "a socket": listen}
    table = {f"Dockerfile: {kind}": (made("Dockerfile", make), None) for kind, make in kinds.items()}
    table |= {f"ignore file: {kind}": (made(".dockerignore", make), None) for kind, make in kinds.items()}
    texts = {"patterns up": f"../canary\n!../canary\n../**\n!{canary}\n", "a bad pattern": "a\n[\n", "backtracking": "**/" * 60 + "*a*a*a*a*a*a*a*a*a*b\n",
             "10000 patterns": "".join(f"!x{at}\ny{at}/**/z\n" for at in range(10000)), "a line of 1 MiB": "x" * (1 << 20) + "\n", "NULs": "a\0b\n"}
    return table | {f"ignore file: {kind}": (made(".dockerignore", lambda path, text=text: path.write_text(text)), None) for kind, text in texts.items()}


def listen(path):
    here = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as own:
        # A whole path may be too long for an address.
        own.bind(f"/proc/self/fd/{here}/{path.name}")
    os.close(here)


def trees(canary):
    def names(context):
        for name in (b"new\nline", b"\x1b[31mred", b"\xff\xfe", b"-rf", b" ", b"n" * 255, b"back\\slash", b"a*b", b"$HOME", b'quote"'):
            (context / os.fsdecode(name)).write_text("x")

    def deep(context):
        here = os.open(context, os.O_RDONLY)
        for _ in range(600):
            os.mkdir("d", dir_fd=here)
            inner = os.open("d", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = inner
        os.close(here)

    def git(context):
        (context / ".git" / "hooks").mkdir(parents=True)
        (context / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
        (context / ".git" / "config").write_text(f"[core]\n\tfsmonitor = touch {canary}/fsmonitor\n\tsshCommand = touch {canary}/ssh\n")
        (context / ".git" / "hooks" / "post-checkout").write_text(f"#!/bin/sh\ntouch {canary}/hook\n")
        (context / ".git" / "hooks" / "post-checkout").chmod(0o755)

    def linked(context):
        (context / "f").write_text("own")
        for at in range(500):
            os.link(context / "f", context / f"f{at}")

    kinds = {"a fifo": os.mkfifo, "a socket": listen}
    table = {f"tree: {kind}": (made("n", make), None) for kind, make in kinds.items()}
    table |= {f"tree: {kind}, by name": (made("n", make), "FROM scratch\nCOPY n /n\n") for kind, make in kinds.items()}
    table |= {f"tree: {kind}, as an archive": (made("n", make), "FROM scratch\nADD n /n/\n") for kind, make in kinds.items()}
    return table | {
        "tree: odd names": (names, ALL), "tree: odd names, by a wildcard": (names, "FROM scratch\nCOPY *[!e] /d/\n"), "tree: 600 deep": (deep, ALL),
        "tree: a repository with hooks": (git, ALL), "tree: a repository elsewhere": (made(".git", lambda path: path.write_text(f"gitdir: {canary}\n")), None),
        "tree: 501 names of a file": (linked, ALL), "tree: a file of holes": (made("n", sparse), "FROM scratch\nCOPY n /n\n"),
    }


def archives(canary, up):
    """Archives as contexts, on standard input."""
    own, outside = file(b"Dockerfile", ALL.encode()), os.fsencode(canary)
    tars = {
        "a name up": own + file(b"../e"), "an absolute name": own + file(outside + b"/file", b"evil"), "a link outside": own + symlink(b"l", outside) + file(b"l/file", b"evil"),
        "a link up": own + symlink(b"l", os.fsencode(up)) + file(b"l/file", b"evil"), "a hard link outside": own + hardlink(b"h", outside + b"/file"),
        "a hard link through a link": own + symlink(b"l", outside) + hardlink(b"h", b"l/file"), "a link as Dockerfile": symlink(b"Dockerfile", outside + b"/file"),
        "a fifo as Dockerfile": fifo(b"Dockerfile"), "a device": own + entry(b"n", kind=b"3", device=(1, 3)), "a setuid file": own + file(b"s", mode=0o4755, uid=5),
        "a directory over a link": own + symlink(b"l", outside) + directory(b"l", mode=0o777), "a PAX name up": own + pax(path=b"../e") + file(b"f"),
        "a whiteout": own + file(b".wh.Dockerfile", b""), "cut": own + file(b"f", b"x" * 2000)[:1000], "no Dockerfile": file(b"f"), "an ignore file outside": own + symlink(b".dockerignore", outside + b"/file"),
    }
    table = {f"archive: {name}": (lambda _, tar=tar: tar + END, None, (STDIN,)) for name, tar in tars.items()}
    table["archive: 32 MiB of zeros, packed"] = (lambda _: zipped(own + file(b"f", bytes(32 << 20)) + END, 9), None, (STDIN,))
    table["archive: nothing"] = (lambda _: b"", None, (STDIN,))
    forms = {"gzip": zipped(own + END), "bzip2": bz2.compress(own + END), "xz": lzma.compress(own + END), "zstd": zstd(own + END, "--check")}
    for form, packed in forms.items():
        after = {"cut": packed[:-9], "cut in its last byte": packed[:-1], "rubbish after the end": packed + b"rubbish"}
        table |= {f"archive: {form}, {what}": (lambda _, stream=stream: stream, None, (STDIN,)) for what, stream in after.items()}
    others = {"a zip file": b"PK\3\4\x14\0\0\0\0\0", "cut in its first header": own[:300], "gzip of a text": zipped(ALL.encode()), "Latin-1": b"FROM scratch\n# \xe9\n"}
    table |= {f"archive: {name}": (lambda _, stream=stream: stream, None, (STDIN,)) for name, stream in others.items()}
    table["archive: gzip, zeros after the end"] = (lambda _: forms["gzip"] + bytes(10240), None, (STDIN,))
    return table


def arguments(canary, up):
    """What else the command line names, or a Dockerfile as a place."""
    # Each is a step of its own, lest one be cached for another.
    secret = "FROM scratch\nCOPY --from=busybox /bin /bin\nRUN --mount=type=secret,id=s,required cat /run/secrets/s > /found; : {}\n"
    ssh = "FROM scratch\nCOPY --from=busybox /bin /bin\nRUN --mount=type=ssh : {}\n"

    def odd(context):
        os.mkfifo(context / "fifo")
        (context / "dir").mkdir()
        (context / "up").symlink_to(canary)
        sparse(context / "large")
        listen(context / "socket")

    def named(where, dockerfile="FROM scratch\nCOPY --from=x . /x/\n"):
        return odd, dockerfile, ("--build-context", f"x={where}")

    table = {f"secret: {name}": (odd, secret.format(name), ("--secret", f"id=s,src={name}")) for name in ("fifo", "dir", "large", "socket", "missing", "/dev/zero", "/proc/self/mem")}
    table |= {f"ssh: {name}": (odd, ssh.format(name), ("--ssh", f"default={name}")) for name in ("fifo", "dir", "large", "socket", "missing", "/dev/zero")}
    table |= {
        "named: a directory with a link out": named("dir", f"FROM scratch\nCOPY --from=x {up}/file /f\n"), "named: a fifo": named("fifo"), "named: a device": named("/dev/zero"),
        "named: nothing": named("missing"), "named: a path up": named("dir", "FROM scratch\nCOPY --from=x ../up/file /f\n"), "named: a socket": named("socket"),
        "named: an option": named("--output=x"), "named: a layout that is none": named("oci-layout://dir"), "named: a layout with a tag up": named("oci-layout://dir:../../x"),
    }
    places = ("--upload-pack=touch", "-x", "https://127.0.0.1:1/x.git#main:../../etc", "git://127.0.0.1:1/x.git#--upload-pack=x", "file:///etc/passwd", "ext::sh -c x", "git@-oProxyCommand=x:y.git")
    table |= {f"place: {place}": (nothing, f"FROM scratch\nADD {place} /x/\n") for place in places}
    references = ("../../x", "a/../../b", "x:../y", "x@sha256:../../etc/passwd", "--pull", "x:" + "t" * 129, "X/Y", "127.0.0.1:1/x@sha256:" + "g" * 64, "x@md5:" + "0" * 32, "/etc", "./x", "http://127.0.0.1:1/x")
    return table | {f"reference: {reference[:40]}": (nothing, f"FROM {reference}\nCOPY f /\n") for reference in references}
