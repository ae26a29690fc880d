"""What a step sees and what it can break: the probes of executor/examples/probes as RUN steps, on every rung of the ladder.

`testdata/probes/RUNG.txt` is what they find there, line by line (`UPDATE_EXPECT=1` writes it); docs/sandbox.md explains it. Where
copies or fuse-overlayfs stand for overlays, steps find what they find on the same rung with overlays.
The canaries that a step must not find are first found by the same program outside of a sandbox, as the same user: so a probe
that looks in the wrong place fails the test.
"""

import collections
import fnmatch
import hashlib
import json
import os
import pathlib
import pwd
import re
import shutil
import socket
import subprocess
import sys
import unittest

from locked import PROFILE
from overlaid import WITH_DEVICE, WITHOUT_DEVICE
from support import REPO, WATCHDOG, Case
from test_ladder import ALLOW_FUSE

GOLDEN = REPO / "testdata" / "probes"
NIGHTLY = bool(os.environ.get("LAYERWRIGHT_NIGHTLY"))
# Linux 6.12; before, a step on the builder's network reaches its abstract sockets, and may not share its processes.
SCOPES = tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 12)
BYSTANDER = pathlib.Path(__file__).with_name("bystander.py")
LOCKED = pathlib.Path(__file__).with_name("locked.py")

Rung = collections.namedtuple("Rung", "user options setup nested told")
AS_IT_IS, MASKED = "true", "mount -t tmpfs none /proc/fs"
# The store is on an overlay, on which no other overlay can lie; what it holds is in parts/upper.
ON_OVERLAY = """cd {directory} && mkdir -p store parts/lower parts/work && install -d -m 700 -o {user} -g {user} parts/upper
mount -t overlay none -o lowerdir=parts/lower,upperdir=parts/upper,workdir=parts/work store; cd /
"""
COPYING = ON_OVERLAY + WITHOUT_DEVICE
FUSING = ON_OVERLAY + WITH_DEVICE.replace("{parts}", "{directory}/parts")
NO_PIDS = ["unshare", "--user", "--map-root-user", "--map-auto", "--", "sh", "-c",
           "echo 0 > /proc/sys/user/max_pid_namespaces && exec \"$@\"", "sh"]
SUBORDINATE, ONE = "user namespace with subordinate ids", "user namespace with one id"
COPIED, FUSED = ", with copies for overlays", ", with fuse-overlayfs; allowed: fuse-overlayfs"
RUNGS = {
    "root": Rung("root", (), AS_IT_IS, [], "root"),
    "userns": Rung("root", ("--sandbox=userns",), "mount --bind {subids} /etc/subuid && mount --bind {subids} /etc/subgid", [],
                   SUBORDINATE),
    "sub": Rung("lw-sub", (), AS_IT_IS, [], SUBORDINATE),
    "one": Rung("lw-one", (), AS_IT_IS, [], ONE),
    "masked": Rung("lw-sub", (), MASKED, [], SUBORDINATE + ", with this machine's /proc"),
    "shared": Rung("lw-sub", (), AS_IT_IS, NO_PIDS, SUBORDINATE + ", with this machine's /proc and processes"),
    "root-copied": Rung("root", (), COPYING, [], "root" + COPIED),
    "sub-copied": Rung("lw-sub", (), COPYING, [], SUBORDINATE + COPIED),
    "root-fused": Rung("root", (ALLOW_FUSE,), FUSING, [], "root" + FUSED),
    "sub-fused": Rung("lw-sub", (ALLOW_FUSE,), FUSING, [], SUBORDINATE + FUSED),
    "chroot": Rung("root", ("--sandbox=chroot",), AS_IT_IS, [], "chroot, without namespaces, mounts and /proc"),
}
# A machine of its own: processes, mounts, and somebody else of the same user. What it must not be able to do a step could
# otherwise do to whoever runs the tests.
MACHINE = """set -e
{setup}
stat -L --format='%i' /proc/self/ns/{{user,mnt,pid,ipc,uts,cgroup,net,time}} > {directory}/namespaces
TOKEN=$(cat {directory}/token) {bystander} & bystander=$!
until test -e {directory}/ready; do kill -0 $bystander; sleep 0.02; done
code=0; "$@" || code=$?
kill -0 $bystander || {{ echo "the bystander was ended" >&2; exit 99; }}
exit $code
"""
HOME_FILES = {
    "docker-login": ".docker/config.json", "ssh-key": ".ssh/id_ed25519", "netrc": ".netrc", "aws": ".aws/credentials",
    "git-login": ".git-credentials", "kube-config": ".kube/config", "gnupg-key": ".gnupg/secring.gpg", "npm-token": ".npmrc",
    "cargo-token": ".cargo/credentials.toml", "shell-history": ".bash_history",
}
# Held by the two programs that run beside the step, or by another step; the others are in files.
OF_BYSTANDER = ("bystander-environment", "bystander-argument", "bystander-memory", "bystander-descriptor", "abstract-socket",
                "path-socket", "agent-socket", "keyring")
OF_STEPS = ("secret-file", "secret-variable", "cache-of-another")

# Two stages of a build run at the same time: one has secrets, the other one looks for them.
DOCKERFILE = """\
FROM busybox AS base
COPY probes /probes
RUN cp /probes /set-user-id && chmod 4755 /set-user-id && touch /shadow && chmod 600 /shadow && chmod 777 /tmp
FROM base AS seen
RUN ["/probes", "see"]
RUN ["/probes", "calls"]
RUN ["/probes", "flood"]
{network}FROM base AS escapes
ENV PROBE_ABSTRACT={abstract} PROBE_SOCKET={directory}/socket
RUN ["/probes", "escape"]
FROM base AS victim
{victim}FROM base AS thief
COPY . /context
ENV PROBE_ABSTRACT={abstract} PROBE_SOCKET={directory}/socket SSH_AUTH_SOCK={directory}/agent PROBE_PATHS={paths}
{thief}{user}
FROM base
COPY --from=seen /probes /1
COPY --from=escapes /probes /2
COPY --from=victim /probes /3
COPY --from=thief /probes /4
"""
NO_NETWORK = """\
RUN --network=none ["/probes", "network"]
"""
VICTIM = """\
RUN --mount=type=cache,id=meet,target=/meet --mount=type=cache,id=theirs,target=/theirs --mount=type=secret,id=file \\
 --mount=type=secret,id=variable,env=SECRET --mount=type=secret,id=cache,target=/cache-secret \\
 cp /cache-secret /theirs/ && test -n "$SECRET" && test -s /run/secrets/file && touch /meet/there && i=0; \\
 until test -e /meet/done || test $i -gt 3000; do sleep 0.02; i=$((i+1)); done; rm -f /theirs/*; test -e /meet/done
"""
THIEF = """\
RUN --mount=type=cache,id=meet,target=/meet \\
 i=0; until test -e /meet/there || test $i -gt 3000; do sleep 0.02; i=$((i+1)); done; \\
 test -e /meet/there && echo "the victim is there" && /probes steal; touch /meet/done
"""
# Where nothing can be mounted the two meet on the machine's loopback, and secrets are in variables alone.
VICTIM_WITHOUT_MOUNTS = """\
RUN --mount=type=secret,id=variable,env=SECRET test -n "$SECRET" && echo there | nc -l -p PORT > /dev/null && \\
 echo done | nc -l -p PORT > /dev/null
"""
THIEF_WITHOUT_MOUNTS = """\
RUN meet() { i=0; until nc 127.0.0.1 PORT < /dev/null 2> /dev/null | grep -q $1; do test $i -lt 3000 || exit 9; sleep 0.02; \\
 i=$((i+1)); done; }; meet there; echo "the victim is there"; /probes steal; meet done
"""
# What root can write in a chroot is a file for this step alone; and on its disk there is no other end than the disk's.
WRITABLE = {"flood./dev": "NO END", "flood./dev/shm": "NO END", "flood./sys": "DONE", "lent./etc/hosts": "WRITABLE",
            "lent./etc/resolv.conf": "WRITABLE", "locked./sys": "WRITABLE"}
OTHER_USER = """\
USER 1000
RUN ["/probes", "user"]
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def canary(name):
    return f"LWCANARY:{name}:{hashlib.sha256(os.urandom(8)).hexdigest()[:16]}"


def fingerprint(directory):
    """Everything about what is in a directory, but for when it was read."""
    found = {}
    for path in sorted(directory.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found[str(path)] = (status.st_mode, status.st_uid, status.st_gid, status.st_nlink, status.st_mtime_ns, content)
    return found


class Ground(Case):
    """Builds on a rung."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.probes = cls.shared / "probes"
        # Users who are no root need not be able to read the repository.
        cls.bystander = shutil.copy(BYSTANDER, cls.shared)
        subprocess.run([REPO / "scripts" / "probes", cls.probes], check=True, timeout=WATCHDOG)

    def setUp(self):
        super().setUp()
        self.subids = self.scratch / "subids"
        self.subids.write_text("root:400000:65536\n")
        self.subids.chmod(0o644)

    def rung_directory(self, name, rung):
        directory = self.directory(name, rung.user)  # short: a socket is in it
        directory.chmod(0o755)
        return directory

    def setup_of(self, rung, directory):
        """What makes the rung's machine, in a mount namespace that ends with what runs there."""
        return rung.setup.format(subids=self.subids, directory=directory, user=rung.user)

    def build_on(self, rung, directory, context, *arguments, env=None, wrap=(), code=0):
        """A build with a store in `directory`; gives what its steps have said, and its result."""
        command = [*rung.nested, str(self.binary), "build", *rung.options, "--progress", "json", "--root",
                   str(directory / "store"), "--build-context", f"busybox=oci-layout://{self.base}",
                   *map(str, arguments), str(context)]
        command = ["runuser", "-u", rung.user, "--", *command]
        done = subprocess.run([*wrap, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
                              text=True, cwd="/", timeout=WATCHDOG, pass_fds=self.passed,
                              env={**os.environ, **(env or {})})
        self.assertEqual(done.returncode, code, done.stderr)
        events = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
        told = {event["rung"] for event in events if event["event"] == "sandbox"}
        self.assertEqual(told, {rung.told})
        return [event["text"] for event in events if event["event"] == "log" and event["stream"] == "stdout"], done

    passed = ()


class Probes(Ground):
    """A build of all probes on each rung, on a machine full of canaries."""

    def plant(self, directory, rung):
        """Puts canaries where secrets are kept; gives their names and places, and the environment of the builder."""
        files = {name: directory / "home" / place for name, place in HOME_FILES.items()}
        files |= {
            "other-store": directory / "other-store" / "blobs" / "secret", "other-project": directory / "project" / ".env",
            "temporary-file": directory / "tmp" / "token", "runtime-file": directory / "runtime" / "token",
            "ignored-file": directory / "context" / ".env", "in-working-directory": directory / "work" / "token",
            "shared-memory": pathlib.Path("/dev/shm") / f"lw-canary-{os.getpid()}-{directory.name}",
        }
        self.addCleanup(lambda: files["shared-memory"].unlink(missing_ok=True))
        for name, path in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(canary(name) + "\n")
        held = {name: canary(name) for name in OF_BYSTANDER}
        (directory / "bystander.json").write_text(json.dumps({**held, "memory": held["bystander-memory"]}))
        subprocess.run(["chown", "-R", f"{rung.user}:", directory, files["shared-memory"]], check=True)
        environment = {"HOME": str(directory / "home"), "XDG_RUNTIME_DIR": str(directory / "runtime"),
                       "TMPDIR": str(directory / "tmp"), "SSH_AUTH_SOCK": str(directory / "agent"),
                       "BUILDER_TOKEN": canary("builder-environment")}
        return files, held, environment

    def machine(self, directory, rung, held, abstract):
        (directory / "token").write_text(held["bystander-environment"])
        bystander = ["runuser", "-u", rung.user, "--", sys.executable, "-B", str(self.bystander), str(directory), abstract,
                     held["bystander-argument"]]
        setup = self.setup_of(rung, directory)
        if "--sandbox=chroot" in rung.options:
            places = [directory, self.shared, self.binary.parent, "/dev/shm"]
            inside = [sys.executable, "-B", str(LOCKED), ":".join(map(str, places)), "bash", "-c"]
        else:
            inside = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--", "bash", "-c"]
        words = " ".join(f"'{word}'" for word in bystander)
        script = MACHINE.format(setup=setup, directory=directory, bystander=words)
        return [*inside, script, "bash"]

    def settled(self, lines, directory, rung):
        """The lines of the probes, with what the machine decides by its name."""
        inodes = (directory / "namespaces").read_text().split()
        owner = pwd.getpwnam(rung.user)
        settled = {}
        for line in lines:
            if "\t" not in line:
                continue
            name, result = line.split("\t", 1)
            space = re.fullmatch(r"\w+:\[(\d+)\]", result)
            if space:
                result = "the machine's" if space[1] in inodes else "own"
            if name.split(".")[1] in ("uid_map", "gid_map"):
                result = re.sub(rf"\b{owner.pw_uid}\b", "USER", result) if owner.pw_uid else result
                result = re.sub(r"\b(100000|200000|400000)\b", "SUBORDINATE", result)
            self.assertNotIn(name, settled)
            settled[name] = result.replace(str(directory), "DIRECTORY")
        return settled

    def compare(self, name, found):
        self.assertGreaterEqual(len(found), 120)
        if os.uname().machine != "x86_64":
            return print("SKIPPED: the tables of probes, which name the system calls of x86_64")
        alike = name.removesuffix("-copied").removesuffix("-fused")
        if name.endswith("-fused"):
            self.assertEqual(found["mount./"], "fuse rw,nodev")
            found = {**found, "mount./": "overlay rw,nodev"}
        path = GOLDEN / f"{alike}.txt"
        text = "".join(f"{probe}\t{result}\n" for probe, result in sorted(found.items()))
        if os.environ.get("UPDATE_EXPECT") and alike == name:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        self.assertEqual(text.splitlines(), path.read_text().splitlines(), f"{name}: UPDATE_EXPECT=1 writes it anew")

    def stolen(self, lines):
        """What the probes have found, by place."""
        found = dict(line.split("\t", 1) for line in lines if line.startswith("theft."))
        return {place: set(told.split()[1:]) for place, told in found.items() if told != "nothing"}

    def meeting(self, name):
        """The steps of two stages that run at the same time, and one without a network."""
        if name != "chroot":
            return {"network": NO_NETWORK, "victim": VICTIM, "thief": THIEF}
        port = str(free_port())
        return {"network": "", "victim": VICTIM_WITHOUT_MOUNTS.replace("PORT", port),
                "thief": THIEF_WITHOUT_MOUNTS.replace("PORT", port)}

    def on_rung(self, name):
        rung = RUNGS[name]
        directory = self.rung_directory(name, rung)
        files, held, environment = self.plant(directory, rung)
        abstract = f"layerwright-probe-{os.getpid()}-{name}"
        paths = ":".join(map(str, files.values()))
        context = directory / "context"
        other_user = f"FROM base AS other\n{OTHER_USER}" if rung.told != ONE else ""
        (context / "Dockerfile").write_text(
            DOCKERFILE.format(abstract=abstract, directory=directory, paths=paths, user=other_user, **self.meeting(name))
            + ("COPY --from=other /probes /5\n" if other_user else ""))
        shutil.copy2(self.probes, context / "probes")
        (context / ".dockerignore").write_text(".env\n")
        for secret in OF_STEPS:
            (directory / secret).write_text(canary(secret))
        subprocess.run(["chown", "-R", f"{rung.user}:", directory], check=True)

        inherited = os.memfd_create("builder", 0)
        os.write(inherited, canary("builder-descriptor").encode())
        self.passed = (inherited,)
        self.addCleanup(os.close, inherited)
        wrap = self.machine(directory, rung, held, abstract)

        # Outside of a sandbox, as the same user, all of them can be had.
        outside = {"PROBE_ABSTRACT": abstract, "PROBE_SOCKET": f"{directory}/socket", "PROBE_PATHS": paths}
        done = subprocess.run([*wrap, "runuser", "-u", rung.user, "--", str(self.probes), "steal"], stdout=subprocess.PIPE,
                              text=True, check=True, timeout=WATCHDOG, pass_fds=self.passed,
                              env={**os.environ, **environment, **outside})
        has_keys = (directory / "ready").read_text() == "keys"
        everything = {*files, *held, "builder-environment", "builder-descriptor"}
        if not has_keys:
            print("SKIPPED: the canary in a keyring: this kernel has no keys")
            everything -= {"keyring"}
        self.assertEqual(set().union(*self.stolen(done.stdout.splitlines()).values()), everything)
        self.assertGreaterEqual(len(everything), 20)

        for made in ("ready", "socket", "agent"):
            (directory / made).unlink()
        (directory / "bystander.json").write_text(json.dumps(held))
        shutil.chown(directory / "bystander.json", rung.user)
        before = fingerprint(directory / "home")
        secrets = [f"--secret=id={key},src={directory}/{file}" for key, file in
                   zip(("file", "variable", "cache"), OF_STEPS)]
        lines, _ = self.build_on(rung, directory, context, "--jobs", "8", "-o", "type=cacheonly", *secrets, env=environment, wrap=wrap)
        self.assertIn("the victim is there", lines)
        self.assertEqual(fingerprint(directory / "home"), before)
        return self.settled(lines, directory, rung)

    def check(self, name):
        if not SCOPES and name in ("shared", "chroot"):
            self.skipTest("SKIPPED: steps that share the machine's processes: this kernel has no Landlock scopes")
        if name == "chroot" and not PROFILE.exists():
            self.skipTest("SKIPPED: a chroot in a container: podman's system call filter is not here")
        found = self.on_rung(name)
        if not SCOPES:
            print("SKIPPED: abstract sockets: this kernel has no Landlock scopes")
            found |= {"escape.abstract-socket": "refused", "theft.abstract-socket": "nothing"}
        attacks = {probe: told for probe, told in found.items() if probe.startswith(("escape.", "theft."))}
        done = {probe: told for probe, told in attacks.items() if not told.startswith("refused") and told != "nothing"}
        # Any user of a machine sees the command lines of all, and so does a step that sees the machine's /proc.
        known = {"theft.command-lines": "STOLEN bystander-argument"} if "machine's" in RUNGS[name].told else {}
        self.assertEqual(done, known)
        # What nobody has thought of is told in capital letters.
        loud = {probe: told for probe, told in found.items() if re.search(r"\b(DONE|VISIBLE|WRITABLE|REACHED|PROPAGATES|READ|"
                                                                          r"BLOCK|FILE|NO END)\b", told)}
        self.assertEqual(loud, WRITABLE if name == "chroot" else {})
        self.compare(name, found)


def children_of_all_kinds(marker):
    """Shell words that leave processes behind which have `marker` among their arguments: in sessions and groups of their own,
    forked twice, deaf to signals, holding the output, stopped, and one that is started anew whenever it ends."""
    sleep = f"sleep {marker}"
    return "; ".join((
        f"{sleep} &", f"setsid {sleep} &", f"(setsid {sleep} &) &", f"(trap '' TERM HUP INT; exec {sleep}) &",
        f"nohup setsid sh -c 'trap \"\" TERM HUP INT QUIT; (setsid {sleep} &) ; {sleep}' < /dev/null > /dev/null 2>&1 &",
        f"(setsid sh -c 'kill -STOP $$; {sleep}' &) &", f"setsid sh -c '{sleep} & kill -STOP $$' &",
        f"setsid sh -c 'trap \"\" TERM; while :; do {sleep}; done' &",
        f"f() {{ test $1 = 0 && exec {sleep}; (f $(($1 - 1))) & {sleep}; }}; f 10 &",
        f"for i in $(seq {CROWD}); do setsid {sleep} & done; true")).replace("&;", "&")


def processes_with(marker):
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        if marker.encode() in words:
            found.append(words)
    return found


# By day as many processes as do not slow down others, and what takes seconds on one rung of each kind.
CROWD = 500 if NIGHTLY else 40
BY_DAY = list(RUNGS) if NIGHTLY else ["root", "shared", "sub-copied", "sub-fused"]

# What a step leaves that wants to be hard to remove; `outside` is a directory of the host's, and what runs at the end moves
# directories about as long as it can.
MESS = """set -e
mkdir -p /mess/locked/inner /mess/many /mess/owned
name=$(printf %0{longest}d 7); mkdir /mess/$name; echo x > /mess/$name/$name
echo x > /mess/locked/inner/file; ln /mess/locked/inner/file /mess/hard; chmod 000 /mess/locked/inner /mess/locked
ln -s {outside} /mess/outside; ln -s {outside} /mess/many/outside; ln -s / /mess/root; ln -s . /mess/loop
ln -s ../../../../../../../../../..{outside} /mess/up
touch /mess/.wh.hard /mess/.wh..wh..opq || {markless}; mkfifo /mess/fifo; /probes socket /mess/socket; mknod /mess/device c 0 0 || true; mknod /mess/disk b 8 0 || true
chattr +i /mess/hard 2> /dev/null && exit 9
cd /mess/many; seq {entries} | xargs touch; chmod 555 /mess/many
/probes deep /mess {depth}
chown -R 33:33 /mess/owned || true; chmod 4000 /mess/owned
(setsid sh -c 'while :; do mv /mess/many /mess/moved; mv /mess/moved /mess/many; done' > /dev/null 2>&1 &)
(setsid sh -c 'cd /mess/loop; while :; do mkdir -p a/b/c; mv a b; rm -rf b; done' > /dev/null 2>&1 &)
"""

class Leftovers(Ground):
    """What steps leave behind goes with them: processes at once, files when they are told to."""

    def on(self, name, code=0, arguments=(), **files):
        rung = RUNGS[name]
        directory = self.rung_directory(name, rung)
        # However it ends: Python's own ways through directories end before some that steps make do.
        self.addCleanup(subprocess.run, ["rm", "-rf", directory / "store", directory / "parts"], check=True)
        context = self.context(f"context-{name}", **files)
        shutil.copy2(self.probes, context / "probes")
        wrap = self.wrap(rung, directory)
        return directory, self.build_on(rung, directory, context, "-o", "type=cacheonly", *arguments, wrap=wrap, code=code)

    def wrap(self, rung, directory):
        return ["unshare", "--mount", "--", "sh", "-c", f'set -e; {self.setup_of(rung, directory)}; exec "$@"', "sh"]

    def left_in(self, directory):
        """The messes in a store, wherever it keeps them."""
        found = subprocess.run(["find", directory, "-name", "hard", "-printf", "%h\n"], check=True, text=True,
                               stdout=subprocess.PIPE, timeout=WATCHDOG)
        return found.stdout.splitlines()

    def test_no_process_outlives_its_step(self):
        for number, name in enumerate(RUNGS):
            with self.subTest(name):
                marker = f"{100_000 + os.getpid()}{number}"
                crowd = children_of_all_kinds(marker)
                # The next step sees them, too, where it sees the machine's; what it looks for is not in its own arguments.
                look = f"! grep -s '[{marker[0]}]{marker[1:]}' /proc/[0-9]*/cmdline"
                self.on(name, Dockerfile=f"FROM busybox\nRUN {crowd}\nRUN {look}\n")
                self.assertEqual(processes_with(marker), [])

    def test_no_process_outlives_a_step_that_fails_or_is_killed(self):
        for number, (name, last) in enumerate((("root", "exit 3"), ("sub", "kill -9 $$"), ("shared", "kill -9 $$"))):
            with self.subTest(name):
                marker = f"{200_000 + os.getpid()}{number}"
                self.on(name, code=1, Dockerfile=f"FROM busybox\nRUN {children_of_all_kinds(marker)}; {last}\n")
                self.assertEqual(processes_with(marker), [])

    def test_processes_are_bounded(self):
        """By a limit of one's own; for the machine's root, whom the kernel excepts, only where a control group is ours."""
        for name in BY_DAY:
            with self.subTest(name):
                user = "USER 1000\n" if RUNGS[name].user == "root" else ""
                dockerfile = f'FROM busybox\nCOPY probes /probes\n{user}RUN ["/probes", "processes"]\n'
                _, (lines, _) = self.on(name, arguments=("--ulimit", "nproc=300"), Dockerfile=dockerfile)
                self.assertEqual(lines, ["flood.processes\tbounded by --ulimit nproc"])
        print("SKIPPED: a limit of processes for root: no control group of version 2 here")

    def test_a_mess_is_cleaned_up(self):
        """By the step's own end where it fails, and by `gc` where it is kept; nothing outside is touched."""
        entries, depth = (20_000, 3000) if NIGHTLY else (500, 1000)
        # In a chroot there are no cache mounts.
        for name in set(BY_DAY) - {"chroot"}:
            with self.subTest(name):
                rung = RUNGS[name]
                outside = self.directory(f"outside-{name}", rung.user)
                (outside / "canary").write_text("alive")
                (outside / "below").mkdir()
                subprocess.run(["chown", "-R", f"{rung.user}:", outside], check=True)
                before = fingerprint(outside)
                # fuse-overlayfs keeps `.wh.` for marks: no name has it, and each has room for it. It takes paths as openat(2) does.
                is_fused = name.endswith("-fused")
                longest, levels, markless = (251, min(depth, 800), "true") if is_fused else (255, depth, "false")
                mess = MESS.format(outside=outside, entries=entries, longest=longest, depth=levels, markless=markless)
                # Once in a layer that is kept nowhere, for the step fails, and once in a cache mount, which stays.
                dockerfile = (f"FROM busybox\nCOPY probes /probes\nRUN --mount=type=cache,target=/mess <<'END'\n{mess}END\n"
                              f"RUN <<'END'\n{mess}exit 7\nEND\n")
                directory, (_, done) = self.on(name, code=1, Dockerfile=dockerfile)
                self.assertIn("exit code: 7", done.stderr, "all of it was made, both times")
                store = directory / "store"
                self.assertEqual(len(self.left_in(directory)), 1, "of the cache mount, and not of the step that failed")
                # Where there are ids that are not the user's own, only layerwright can remove their files.
                machine = ["runuser", "-u", rung.user, "--", *rung.nested]
                wrap = self.wrap(rung, directory)
                for arguments in (["gc", "--all"], ["fsck"]):
                    done = subprocess.run([*wrap, *machine, str(self.binary), *arguments, "--root", str(store)], text=True,
                                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=WATCHDOG)
                    self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
                self.assertEqual(self.left_in(directory), [])
                self.assertEqual(fingerprint(outside), before)


class Page(unittest.TestCase):
    """docs/sandbox.md and the tables tell of the same probes."""

    def test_it_names_every_probe_and_no_other(self):
        text = (REPO / "docs" / "sandbox.md").read_text()
        found = {line.split("\t")[0] for path in GOLDEN.glob("*.txt") for line in path.read_text().splitlines()}
        families = {name.split(".")[0] for name in found}
        # Whatever stands in the last column of a table and begins as a probe does.
        cells = [line.rstrip(" |").rsplit("|", 1)[-1] for line in text.splitlines() if line.startswith("|")]
        named = {word for cell in cells for word in re.findall(r"`([^`]+)`", cell) if word.split(".")[0] in families}
        self.assertEqual({word for word in named if not fnmatch.filter(found, word)}, set(), "there are no such probes")
        self.assertEqual({name for name in found if not any(fnmatch.fnmatch(name, word) for word in named)}, set())


for rung in RUNGS:
    setattr(Probes, f"test_{rung.replace('-', '_')}", lambda self, rung=rung: self.check(rung))


if __name__ == "__main__":
    unittest.main()
