"""Many builders on one store, while `gc` takes what it can and somebody is killed: every digest is right, nobody waits
for ever, and a step that several want is run by one."""

import concurrent.futures
import http.server
import random
import signal
import subprocess
import threading
import time
import unittest

from ground import NIGHTLY, SEED, WATCHDOG, Faults

PROCESSES = 8 if NIGHTLY else 4
BUILDS = 100 if NIGHTLY else 5
DOCKERFILES = 24 if NIGHTLY else 6
SHARED = 4
# A build takes a second; ten times what all of them take one after the other.
PATIENCE = WATCHDOG * 10 if NIGHTLY else WATCHDOG


class Counter(http.server.ThreadingHTTPServer):
    """Counts how often each shared step has run: the step asks for a page of its number."""

    daemon_threads = True

    def __init__(self):
        self.lock, self.count = threading.Lock(), {}
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):  # noqa: N802
        with self.server.lock:
            self.server.count[self.path] = self.server.count.get(self.path, 0) + 1
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def dockerfile(generator, port):
    """A stage with a shared step, and one that takes from it and from the context."""
    shared = generator.randrange(SHARED)
    files = generator.sample(range(8), 3)
    lines = [
        "FROM busybox AS shared",
        f"RUN wget -q -O /page http://127.0.0.1:{port}/{shared} && echo shared {shared} > /shared",
        "FROM busybox",
        *(f"COPY {'--link ' if generator.random() < 0.5 else ''}{number} /copied/{number}" for number in files),
        f"RUN --mount=type=cache,target=/cache date >> /cache/log; echo {generator.randrange(4)} > /own",
        "COPY --from=shared /shared /shared",
        f"RUN cat /shared /own /copied/* > /all; rm -rf /home; echo {generator.randrange(3)} >> /all",
    ]
    return "\n".join(lines) + "\n"


class Many(Faults):
    def setUp(self):
        super().setUp()
        self.counter = Counter()
        generator = random.Random(SEED)
        self.wanted = []
        for number in range(DOCKERFILES):
            context = self.context(f"context-{number}", Dockerfile=dockerfile(generator, self.counter.server_port))
            for name in range(8):
                (context / str(name)).write_text(f"file {name}\n" * 1000)
            self.wanted.append((context, self.build_one(context, self.scratch / "alone", number)))
        self.counter.count.clear()
        self.shared = self.scratch / "together"

    def tearDown(self):
        self.counter.shutdown()
        self.counter.server_close()

    def arguments(self, context, store):
        return self.command("build", "--progress", "quiet", "--network", "host", "--allow", "network.host", context,
                            root=store)

    def build_one(self, context, store, number):
        done = subprocess.run(self.arguments(context, store), capture_output=True, text=True, timeout=WATCHDOG)
        self.assertEqual(done.returncode, 0, f"build {number}, seed {SEED}: {done.stderr}")
        return done.stdout.strip()

    def builder(self, number):
        """One after the other; gives how many builds were killed by us."""
        generator, killed = random.Random(SEED * 1000 + number), 0
        for _ in range(BUILDS):
            context, digest = generator.choice(self.wanted)
            process = subprocess.Popen(self.arguments(context, self.shared), stdout=subprocess.PIPE,
                                       stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
            with self.lock:
                self.running.append(process)
            out, err = process.communicate(timeout=PATIENCE)
            with self.lock:
                self.running.remove(process)
            if process.returncode == -signal.SIGKILL and process in self.victims:
                killed += 1
                continue
            self.assertEqual((process.returncode, out.strip()), (0, digest), f"seed {SEED}: {err}")
        return killed

    def together(self, *disturbances):
        """All builders at once, beside what disturbs them every now and then."""
        self.lock, self.running, self.victims = threading.Lock(), [], set()
        over = threading.Event()
        threads = [threading.Thread(target=self.repeat, args=(over, *disturbance)) for disturbance in disturbances]
        self.failures = []
        for thread in threads:
            thread.start()
        try:
            with concurrent.futures.ThreadPoolExecutor(PROCESSES) as pool:
                killed = sum(pool.map(self.builder, range(PROCESSES), timeout=PATIENCE))
        finally:
            over.set()
            for thread in threads:
                thread.join()
        self.assertEqual(self.failures, [])
        self.clean(self.shared)
        return killed

    def repeat(self, over, seconds, disturb):
        generator = random.Random(SEED)
        while not over.wait(seconds):
            try:
                disturb(generator)
            except AssertionError as failure:
                self.failures.append(failure)

    def collect(self, generator):
        if not self.shared.exists():
            return
        how = generator.choice([["--all"], ["--keep-storage", "3MB"], ["--keep-storage", "1MB"]])
        done = subprocess.run([*self.command("gc"), *how, "--root", self.shared], capture_output=True, text=True,
                              timeout=WATCHDOG)
        self.assertEqual(done.returncode, 0, done.stderr)

    def kill_one(self, generator):
        with self.lock:
            if self.running:
                victim = generator.choice(self.running)
                self.victims.add(victim)
                victim.kill()

    def test_a_shared_step_runs_once(self):
        self.together()
        runs = self.counter.count
        self.assertLessEqual(sum(runs.values()), 1.1 * len(runs), runs)

    def test_beside_gc(self):
        self.together((2 if NIGHTLY else 0.3, self.collect))

    def test_beside_gc_and_kills(self):
        begun = time.monotonic()
        killed = self.together((2 if NIGHTLY else 0.3, self.collect), (1 if NIGHTLY else 0.4, self.kill_one))
        self.assertTrue(killed or time.monotonic() - begun < 1, "somebody was killed")


if __name__ == "__main__":
    unittest.main()
