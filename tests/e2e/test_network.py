"""Networks of RUN steps: what an isolated one reaches and what it does not, whom it asks for names, and how it ends."""

import ctypes
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import unittest

import outside
from support import Case, USERS, WATCHDOG, wait_for
from test_ladder import OUTER_PROC, SHARED, masked, without_pid_namespaces

# Says hello to addresses over TCP and UDP, once as anybody would and once bound to the interface, which passes by routes
# that only forbid. `reach ADDRESS...` never fails; who was reached is for those to say.
REACH = r"""
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <fcntl.h>

static void hello(const char *address, int type, int bound) {
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons(8080)};
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons(8080)};
    int is_six = inet_pton(AF_INET6, address, &six.sin6_addr) == 1;
    if (!is_six && inet_pton(AF_INET, address, &four.sin_addr) != 1) return;
    if (IN6_IS_ADDR_LINKLOCAL(&six.sin6_addr)) six.sin6_scope_id = if_nametoindex("eth0");
    int fd = socket(is_six ? AF_INET6 : AF_INET, type | SOCK_NONBLOCK, 0);
    if (bound && setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, "eth0", 5)) return;
    connect(fd, is_six ? (void *)&six : (void *)&four, is_six ? sizeof six : sizeof four);
    struct pollfd ready = {.fd = fd, .events = type == SOCK_STREAM ? POLLOUT : POLLIN};
    if (type == SOCK_DGRAM) send(fd, "hello", 5, 0);
    poll(&ready, 1, 1000);
    close(fd);
}

int main(int count, char **words) {
    for (int i = 1; i < count; i++)
        for (int way = 0; way < 4; way++)
            if (fork() == 0) {
                hello(words[i], way & 1 ? SOCK_STREAM : SOCK_DGRAM, way & 2);
                _exit(0);
            }
    while (wait(NULL) > 0);
    return 0;
}
"""
FORBIDDEN = (*outside.HERE, "::ffff:127.0.0.1", "0.0.0.0", "::")
# The routers a step sees, which must not stand for this machine.
ROUTERS = ("192.0.0.1", "fd6c:6179:6572:7700::1")


PR_SET_CHILD_SUBREAPER = 36


def kin():
    """Processes that this test has begun and that run, whoever was left by its parent among them; other tests begin the
    same ones. By number, with their names."""
    found = {}
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            number, name, rest = re.fullmatch(r"(\d+) \((.*)\) (.*)", stat.read_text(), re.DOTALL).groups()
        except (FileNotFoundError, ProcessLookupError):
            continue
        state, parent = rest.split()[:2]
        found[int(number)] = (name, state, int(parent))

    def is_ours(number):
        while number in found and number != os.getpid():
            number = found[number][2]
        return number == os.getpid()
    return {number: name for number, (name, state, _) in found.items() if state != "Z" and is_ours(number)}


def stacks():
    """The processes of user-mode stacks."""
    return [number for number, name in kin().items() if name.startswith(("pasta", "passt"))]


@unittest.skipUnless(shutil.which("pasta"), "SKIPPED: isolated networks: pasta is not installed")
class Isolated(Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.reach = cls.program("reach", REACH)
        # Whoever loses its parent stays below this process.
        if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "cannot become a subreaper")

    def steps(self, *lines):
        context = self.context(Dockerfile="\n".join(["FROM busybox", "COPY reach /bin/reach", *lines, ""]))
        shutil.copy2(self.reach, context)
        return context

    def build_outside(self, context, *arguments, user="root", code=0, machine=()):
        """Builds on a machine with an outside; what was reached there, and the build's words. `machine` starts a command as
        the user, when somebody else does not."""
        hits = self.scratch / f"hits-{user}"
        store = self.machine(user) if machine else self.store(user)
        command = self.command("build", "--progress", "plain", *arguments, context, root=store)
        wrapper = ["unshare", "--mount", "--net", shutil.which("python3"), "-B", outside.__file__,
                   "root" if machine else user, hits]
        done = subprocess.run([*wrapper, *machine, *command], capture_output=True, text=True, timeout=WATCHDOG, check=False,
                              cwd=self.scratch)
        self.assertEqual(done.returncode, code, done.stderr)
        return json.loads(hits.read_text()), done.stderr

    def test_the_outside_and_nothing_of_this_machine(self):
        everybody = " ".join([*outside.OUTSIDE, *FORBIDDEN, *ROUTERS])
        look = "ip addr show eth0 && cat /etc/resolv.conf && nslookup anything.test"
        context = self.steps(f"RUN {look}", f"RUN reach {everybody}")
        expected = sorted(f"{kind} {address}" for kind in ("tcp", "udp") for address in outside.OUTSIDE)
        for user in USERS:
            with self.subTest(user=user):
                flags = ["--network", "isolated", "--dns", outside.NAMES, "--dns-search", "a.test"]
                hits, said = self.build_outside(context, *flags, user=user)
                self.assertEqual(hits, sorted([*expected, f"udp {outside.NAMES}"]))
                for word in ("192.0.0.2/29", f"nameserver {outside.NAMES}", "search a.test", "198.51.100.7"):
                    self.assertIn(word, said)
        self.assertEqual(stacks(), [])

    def test_on_weaker_rungs(self):
        everybody = " ".join([*outside.OUTSIDE, *FORBIDDEN, *ROUTERS])
        expected = sorted(f"{kind} {address}" for kind in ("tcp", "udp") for address in outside.OUTSIDE)
        flags = ["--network", "isolated", "--dns", outside.NAMES]
        context = self.steps(f"RUN reach {everybody}")
        for machine, told in ((masked("lw-sub"), OUTER_PROC), (without_pid_namespaces("lw-sub"), SHARED)):
            with self.subTest(rung=told):
                hits, said = self.build_outside(context, *flags, user="lw-sub", machine=machine)
                self.assertEqual(hits, expected)
                self.assertIn(told, said)
        self.assertEqual(stacks(), [])

    def test_the_builders_own_reaches_all_of_it(self):
        """What the other tests find out of reach can be reached: the listeners are there."""
        hits, _ = self.build_outside(self.steps("RUN reach " + " ".join([*outside.OUTSIDE, *outside.HERE])))
        reached = {hit.split()[1] for hit in hits}
        # The program looks for link-local addresses on an interface that only an isolated step has.
        self.assertEqual(reached, {*outside.OUTSIDE, *outside.HERE} - {"fe80::a9fe:1"})

    def test_no_isolation_is_no_step(self):
        context = self.steps("RUN true")
        flags = ["--network=isolated", "--dns=192.0.2.1"]
        command = ["unshare", "--net", *self.command("build", *flags, context)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=WATCHDOG, check=False)
        self.assertEqual(done.returncode, 4, done.stderr)
        self.assertIn("isolate network: pasta ended", done.stderr)
        self.assertIn("give this machine a default route", done.stderr)
        done = self.run_layerwright("build", *flags, context, env={"PATH": "/nowhere"}, code=4)
        self.assertIn("isolate network: pasta is not installed", done.stderr)
        self.assertIn("install pasta (the package `passt`)", done.stderr)
        done = self.run_layerwright("build", "--network=isolated", "--dns=127.0.0.1", context, code=4)
        self.assertIn("cannot reach the name server of this machine (127.0.0.1)", done.stderr)
        done = self.run_layerwright("build", *flags, "--add-host=me:host-gateway", context, code=2)
        self.assertIn("me cannot be this machine (host-gateway)", done.stderr)
        done = self.run_layerwright("build", "--network=bridge", context, code=2)
        self.assertIn("expected default, none, host or isolated", done.stderr)
        self.assertEqual(stacks(), [])

    def test_nobody_to_ask_for_names(self):
        empty, pipe = self.scratch / "empty", self.scratch / "pipe"
        empty.touch()
        os.mkfifo(pipe)
        context = self.steps("RUN wc -l < /etc/resolv.conf", "RUN true")
        for place, network, why in ((empty, "isolated", "names no server"), (pipe, "isolated", "is a pipe, which is not read"),
                                    (pipe, "default", "is a pipe, which is not read"), (empty, "default", None), (pipe, "none", None)):
            for dns in ([], ["--dns", outside.NAMES]):
                with self.subTest(place=place.name, network=network, dns=dns):
                    machine = ["sh", "-c", f'mount --bind {place} /etc/resolv.conf && exec "$@"', "sh"]
                    _, said = self.build_outside(context, "--no-cache", "--network", network, *dns, machine=machine)
                    told = [line for line in said.splitlines() if "nobody to ask" in line]
                    self.assertEqual(len(told), int(bool(why) and not dns), said)
                    if told:
                        self.assertIn(f"/etc/resolv.conf of this machine {why}; name a server with --dns ADDRESS", told[0])

    def test_the_stack_and_the_step_end_together(self):
        """Whoever dies first: the builder takes both along, and without its stack a step does not go on."""
        context = self.steps("RUN echo begun && sleep 1000")
        shared = without_pid_namespaces("lw-sub")
        for user, victim, machine in (("root", "builder", []), ("lw-sub", "stack", []), ("lw-sub", "builder", shared)):
            with self.subTest(user=user, victim=victim, machine=machine):
                flags = ["--progress", "plain", "--network", "isolated", "--dns", outside.NAMES]
                store = self.machine(user) if machine else self.store(user)
                command = [*machine, *self.command("build", *flags, context, root=store)]
                wrapper = ["unshare", "--mount", "--net", shutil.which("python3"), "-B", outside.__file__]
                hits, said = self.scratch / "hits", self.scratch / f"said-{user}-{victim}"
                with said.open("w") as log:
                    build = subprocess.Popen([*wrapper, "root" if machine else user, hits, *command], stderr=log, cwd=self.scratch)
                wait_for(lambda: "begun" in said.read_text().replace("echo begun", ""), "the step to begin")
                [stack] = stacks()
                os.kill(stack if victim == "stack" else self.builder(), signal.SIGKILL)
                code = build.wait(WATCHDOG)
                wait_for(lambda: not stacks() and not self.sleepers(), "the end of all")
                if victim == "stack":
                    self.assertEqual(code, 4, said.read_text())
                    self.assertIn("isolate network: pasta ended (signal: 9 (SIGKILL))", said.read_text())

    def processes(self, program, argument):
        """Those of a program with an argument."""
        found = []
        for number in kin():
            try:
                words = pathlib.Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if words[0].endswith(program.encode()) and str(argument).encode() in words:
                found.append(number)
        return found

    def builder(self):
        [builder] = self.processes("layerwright", self.scratch / "context")
        return builder

    def sleepers(self):
        return self.processes("sleep", 1000)
