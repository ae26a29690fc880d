"""RUN --mount=type=cache with the tools it is for: make and cargo never take a changed source for an old one, wherever its
layer comes from and whatever times it has, and make nothing again that did not change."""

import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tarfile
import unittest

from support import USERS, WATCHDOG, Case, Layout, wait_for

OLD = 1_000_000_000  # 2001
LATE = 1_767_225_600  # 2026


def write_layout(directory, files):
    """An OCI layout of an image of one layer: files of this machine by their paths in the image, all of 1970."""
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def blob(content=None):
        """Puts bytes, or the file that was begun, among the blobs."""
        if content is not None:
            (blobs / "partial").write_bytes(content)
        with open(blobs / "partial", "rb") as partial:
            digest = hashlib.file_digest(partial, "sha256").hexdigest()
        size = (blobs / "partial").stat().st_size
        (blobs / "partial").rename(blobs / digest)
        return {"digest": f"sha256:{digest}", "size": size}

    def plain(member):
        member.uid = member.gid = member.mtime = 0
        member.uname = member.gname = ""
        return member

    with tarfile.open(blobs / "partial", "w") as tar:
        for path, source in sorted(files.items()):
            tar.add(os.path.realpath(source), arcname=path, recursive=False, filter=plain)
    layer = {"mediaType": "application/vnd.oci.image.layer.v1.tar", **blob()}
    config = {"architecture": "amd64" if os.uname().machine == "x86_64" else "arm64", "os": "linux",
              "config": {"Env": ["PATH=/usr/bin:/bin"]}, "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}}
    config = {"mediaType": "application/vnd.oci.image.config.v1+json", **blob(json.dumps(config).encode())}
    manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config,
                "layers": [layer]}
    manifest = {"mediaType": manifest["mediaType"], **blob(json.dumps(manifest).encode())}
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest]}))
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    subprocess.run(["chmod", "-R", "a+rX", directory], check=True)


def libraries(*programs):
    """The shared libraries of programs, by the path under which the loader finds them."""
    found = {}
    for program in programs:
        for line in subprocess.check_output(["ldd", program], text=True).splitlines():
            path = next((word for word in line.split() if word.startswith("/")), None)
            if path:
                name = pathlib.Path(path).name
                found[f"{'lib64' if name.startswith('ld-') else 'usr/lib/x86_64-linux-gnu'}/{name}"] = path
    return found


def shell():
    """A shell and its tools."""
    busybox = shutil.which("busybox")
    names = ("sh", "cat", "cp", "echo", "grep", "ls", "mkdir", "rm", "test", "touch", "true")
    return {"bin/busybox": busybox, **{f"bin/{name}": busybox for name in names}}


class Tools(Case):
    """Builds of one project after another, each run of the tool forced by a build argument."""

    number = 0

    def project(self, files, time):
        """A context whose files all have one time, or times of their own."""
        type(self).number += 1
        context = self.scratch / f"context{self.number}"
        for path, text in files.items():
            path = context / path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            os.utime(path, (time, time))
        subprocess.run(["chmod", "-R", "a+rX", context], check=True)
        return context

    def make_all(self, files, time=LATE, **options):
        """Builds, and gives what was made and the product."""
        context = self.project({"Dockerfile": self.DOCKERFILE, **files}, time)
        layout = Layout(self.build(
            context, "--build-context", f"tools=oci-layout://{self.tools}", "--build-arg", f"RUN={self.number}",
            name=f"out{self.number}", **options))
        return layout.read("made").decode().split(), layout.read("product").decode()


class MakeTools(Tools):
    """A project for make, with its objects in a cache mount."""

    MAKEFILE = """\
objects = $(patsubst %.c,/obj/%.o,$(wildcard *.c))
/obj/product: $(objects)
\tcat $^ > $@; echo product >> /made
/obj/%.o: %.c common.h
\tcat common.h $< > $@; echo $* >> /made
"""
    FILES = {"Makefile": MAKEFILE, "common.h": "h\n", "a.c": "a1\n", "b.c": "b1\n", "README": "1\n"}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.tools = cls.shared / "tools"
        make = shutil.which("make")
        write_layout(cls.tools, {**shell(), "usr/bin/make": make, **libraries(make)})

    def steps(self):
        """Files, their time, what is made of them, and of what the product consists."""
        one = self.FILES
        two = {**one, "a.c": "a2\n"}
        more = {**one, "c.c": "c1\n"}
        return [
            (one, LATE, {"a", "b", "product"}, "h a1 h b1"),
            (one, LATE, set(), "h a1 h b1"),
            ({**one, "README": "2\n"}, OLD, set(), "h a1 h b1"),
            (two, OLD, {"a", "product"}, "h a2 h b1"),
            (one, LATE, {"a", "product"}, "h a1 h b1"),
            (two, LATE, {"a", "product"}, "h a2 h b1"),
            ({**one, "common.h": "g\n"}, OLD, {"a", "b", "product"}, "g a1 g b1"),
            (more, OLD, {"a", "b", "c", "product"}, "h a1 h b1 h c1"),
            ({**more, "README": "3\n"}, OLD + 9, set(), "h a1 h b1 h c1"),
        ]

    def check_steps(self, users):
        for user in users:
            for files, time, made, product in self.steps():
                with self.subTest(user=user, files=files, time=time):
                    found, text = self.make_all(files, time, user=user)
                    self.assertEqual((set(found), text.split()), (made, product.split()))
                    self.assertEqual(len(found), len(made), "nothing is made twice")


class Make(MakeTools):
    """Sources that are copied."""

    DOCKERFILE = """\
FROM tools
COPY . /src/
WORKDIR /src
ARG RUN
RUN --mount=type=cache,target=/obj touch /made && make && cp /obj/product /product
"""

    def test_what_changed_is_made_and_nothing_else(self):
        self.check_steps(USERS)

    def test_an_empty_store_makes_all_and_the_same(self):
        for store in ("one", "two"):
            root = self.scratch / store
            root.mkdir(mode=0o700)
            found, text = self.make_all(self.FILES, OLD, root=root)
            self.assertEqual((set(found), text.split()), ({"a", "b", "product"}, "h a1 h b1".split()))

    def test_a_failed_and_a_killed_make_leave_nothing_stale(self):
        self.make_all(self.FILES)
        broken = {**self.FILES, "a.c": "a2\n", "Makefile": self.MAKEFILE + "\tfalse\n"}
        with self.assertRaises(AssertionError):
            self.make_all(broken, OLD)
        # It makes a.o of version 3 and is killed with its builder before the rest.
        stuck = self.DOCKERFILE.replace("make &&", "make /obj/a.o && echo stuck && cat /dev/zero > /dev/null &&")
        context = self.project({**self.FILES, "a.c": "a3\n", "Dockerfile": stuck}, OLD)
        command = self.command("build", "--progress", "plain", "--build-context", f"tools=oci-layout://{self.tools}",
                               "--build-arg", "RUN=killed", context)
        with open(self.scratch / "log", "w+") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
            wait_for(lambda: " stuck\n" in (self.scratch / "log").read_text(), "the step to have made a part")
            process.send_signal(signal.SIGKILL)
            process.wait(WATCHDOG)
        found, text = self.make_all({**self.FILES, "a.c": "a4\n"}, OLD)
        self.assertEqual((set(found), text.split()), ({"a", "product"}, "h a4 h b1".split()))
        found, text = self.make_all(self.FILES, OLD)
        self.assertEqual((set(found), text.split()), ({"a", "product"}, "h a1 h b1".split()))


class MakeOfABindMount(MakeTools):
    """Sources that are mounted, not copied."""

    DOCKERFILE = """\
FROM tools
WORKDIR /src
ARG RUN
RUN --mount=type=bind,target=/src --mount=type=cache,target=/obj touch /made && make && cp /obj/product /product
"""

    def test_what_changed_is_made_and_nothing_else(self):
        self.check_steps(("root", "lw-one"))


class Cargo(Tools):
    """cargo with its target directory in a cache mount."""

    DOCKERFILE = """\
FROM tools
ENV CARGO_HOME=/cargo CARGO_TARGET_DIR=/target CARGO_TERM_COLOR=never
COPY . /src/
WORKDIR /src
ARG RUN
RUN --mount=type=cache,target=/target --mount=type=cache,target=/cargo,sharing=locked \\
    cargo build --offline 2> /log || { cat /log; false; } \\
 && { grep Compiling /log || true; } > /made && grep -aoh 'mark-[a-z]*-[0-9]' /target/debug/libapp.rlib > /product
"""
    FILES = {
        "Cargo.toml": '[package]\nname = "app"\nversion = "1.0.0"\nedition = "2021"\n[dependencies]\ndep = { path = "dep" }\n',
        "src/lib.rs": "mod part;\npub use part::PART;\npub static DEP: [u8; dep::MARK.len()] = *dep::MARK;\n",
        "src/part.rs": '#[no_mangle]\npub static PART: [u8; 11] = *b"mark-part-1";\n',
        "dep/Cargo.toml": '[package]\nname = "dep"\nversion = "1.0.0"\nedition = "2021"\n',
        "dep/src/lib.rs": 'pub const MARK: &[u8; 10] = b"mark-dep-1";\n',
        "README.md": "1\n",
    }

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.tools = cls.shared / "tools"
        root = pathlib.Path(subprocess.check_output(["rustc", "--print", "sysroot"], text=True).strip())
        programs = [root / "bin" / "cargo", root / "bin" / "rustc"]
        host = next((root / "lib" / "rustlib").glob("*-unknown-linux-gnu")) / "lib"
        files = {f"usr/{path.relative_to(root)}": path
                 for path in [*programs, *root.glob("lib/*.so*"), *host.glob("*.rlib"), *host.glob("*.rmeta")]}
        needed = {path: file for path, file in libraries(*programs).items() if not str(file).startswith(str(root))}
        write_layout(cls.tools, {**shell(), **files, **needed})

    def test_what_changed_is_compiled_and_nothing_else(self):
        one = self.FILES
        part = {**one, "src/part.rs": one["src/part.rs"].replace("part-1", "part-2")}
        dep = {**one, "dep/src/lib.rs": one["dep/src/lib.rs"].replace("dep-1", "dep-2")}
        both = {**dep, **{"src/part.rs": part["src/part.rs"]}}
        for files, time, compiled, marks in [
            (one, LATE, {"app", "dep"}, {"part-1", "dep-1"}),
            ({**one, "README.md": "2\n"}, OLD, set(), {"part-1", "dep-1"}),
            (part, OLD, {"app"}, {"part-2", "dep-1"}),
            (one, LATE, {"app"}, {"part-1", "dep-1"}),
            (dep, OLD, {"app", "dep"}, {"part-1", "dep-2"}),
            (both, OLD, {"app"}, {"part-2", "dep-2"}),
            (one, OLD, {"app", "dep"}, {"part-1", "dep-1"}),
        ]:
            with self.subTest(time=time, marks=marks):
                found, text = self.make_all(files, time)
                self.assertEqual({word for word in found if word in ("app", "dep")}, compiled)
                self.assertEqual({mark.removeprefix("mark-") for mark in text.split()}, marks)


class Processes(Case):
    """Builds of several processes that want the same cache mount at the same time."""

    HOLD = "echo held && until test -e /gate/go; do :; done && echo first > /c/first"

    def begin(self, name, command, user, target="/c", sharing="locked"):
        """Starts a build of one RUN, and gives the process and its log."""
        context = self.context(name, Dockerfile=(
            f"FROM busybox\nRUN --mount=type=cache,target=/gate --mount=type=cache,target={target},sharing={sharing} "
            f"{command}\n"))
        path = self.scratch / f"{name}.log"
        with open(path, "w") as log:
            process = subprocess.Popen(
                self.command("build", "--progress", "plain", context, user=user), stdout=log, stderr=log, cwd=self.scratch)
        self.addCleanup(process.wait, WATCHDOG)
        return process, path

    def finish(self, process, log):
        self.assertEqual(process.wait(WATCHDOG), 0, log.read_text())
        return log.read_text()

    def said(self, log, text):
        wait_for(lambda: f" {text}" in log.read_text(), text)

    def test_locked_waits(self):
        for number, user in enumerate(USERS):
            holder = self.begin(f"holder{number}", self.HOLD, user)
            self.said(holder[1], "held\n")
            waiter = self.begin(f"waiter{number}", "cat /c/first", user)
            self.said(waiter[1], "waiting for the cache mount at /c: another step or build uses it\n")
            self.finish(*self.begin(f"other{number}", "touch /gate/go", user, target="/d"))
            self.finish(*holder)
            self.assertIn(" first\n", self.finish(*waiter))

    def test_private_does_not_wait(self):
        for number, user in enumerate(USERS):
            holder = self.begin(f"holder{number}", f"touch /c/mine && {self.HOLD}", user, sharing="private")
            self.said(holder[1], "held\n")
            other = self.begin(f"other{number}", "test ! -e /c/mine && touch /gate/go", user, sharing="private")
            self.finish(*other)
            self.finish(*holder)

    def test_who_dies_holds_nothing(self):
        holder = self.begin("holder", self.HOLD, "root")
        self.said(holder[1], "held\n")
        waiter = self.begin("waiter", "ls /c && echo mine", "root")
        self.said(waiter[1], "waiting for the cache mount")
        holder[0].send_signal(signal.SIGKILL)
        self.assertIn(" mine\n", self.finish(*waiter))


if __name__ == "__main__":
    unittest.main()
