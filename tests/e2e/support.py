"""What the end-to-end tests share: the binary, ordinary users, a real registry, reading what was written.

The tests are run by `scripts/test` as root (`run.py`), with $LAYERWRIGHT naming the binary. Every test has a scratch
directory of its own that all users may enter and that goes when the test ends, failed or not, unless $LAYERWRIGHT_KEEP is
set; every child is ended by its pid.
"""

import atexit
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import tarfile
import tempfile
import time
import unittest

REPO = pathlib.Path(__file__).resolve().parents[2]
SCHEMAS = REPO.parent / "shared" / "fixtures" / "image-spec"
USERS = ("root", "lw-sub", "lw-one")
WATCHDOG = 300  # seconds; ten times what the slowest call needs


class Failed(AssertionError):
    """A command ended otherwise than the test expects."""


def remove(directory):
    """Removes what a test has made, unless it is to be looked at."""
    if os.environ.get("LAYERWRIGHT_KEEP"):
        print(f"kept: {directory}")
    else:
        shutil.rmtree(directory)


def prepare(directory):
    """Puts a copy of the binary that every user can run and a busybox base into a directory, for all tests of a run."""
    directory, binary = pathlib.Path(directory), os.environ.get("LAYERWRIGHT")
    if not binary or not os.access(binary, os.X_OK):
        raise SystemExit(f"LAYERWRIGHT must name the binary under test: {binary or 'it is not set'}")
    directory.chmod(0o755)
    copy = directory / "layerwright"
    shutil.copy2(binary, copy)
    copy.chmod(0o755)
    environment = {**os.environ, "LAYERWRIGHT": str(copy)}
    subprocess.run([REPO / "scripts" / "busybox-layout", directory / "base"], check=True, env=environment, timeout=WATCHDOG)
    subprocess.run(["chmod", "-R", "a+rX", directory / "base"], check=True)
    os.environ["LAYERWRIGHT_PREPARED"] = str(directory)


def prepared():
    """The directory of `prepare`: that of `run.py`, else one of this process."""
    if "LAYERWRIGHT_PREPARED" not in os.environ:
        directory = tempfile.mkdtemp(prefix="layerwright-e2e.")
        atexit.register(remove, directory)
        prepare(directory)
    return pathlib.Path(os.environ["LAYERWRIGHT_PREPARED"])


class Case(unittest.TestCase):
    """A test with a scratch directory, the binary and a busybox base."""

    machines = 0

    @classmethod
    def setUpClass(cls):
        cls.binary, cls.base = prepared() / "layerwright", prepared() / "base"
        cls.shared = pathlib.Path(tempfile.mkdtemp(prefix="layerwright-e2e."))
        cls.addClassCleanup(remove, cls.shared)
        cls.shared.chmod(0o755)

    @classmethod
    def program(cls, name, source):
        """A static program of a few lines of C, which tests copy into their contexts."""
        path = cls.shared / name
        path.with_suffix(".c").write_text(source)
        subprocess.run(["cc", "-static", "-o", path, path.with_suffix(".c")], check=True, timeout=WATCHDOG)
        return path

    def setUp(self):
        self.scratch = pathlib.Path(tempfile.mkdtemp(prefix="test.", dir=self.shared))
        self.scratch.chmod(0o1777)
        # The first clean-up is the last: what the test has begun is ended by then.
        self.addCleanup(remove, self.scratch)

    def context(self, name="context", **files):
        """Makes a context; keys are paths with `__` for `/` and `_DOT_` for a dot."""
        directory = self.scratch / name
        directory.mkdir(mode=0o755)
        for key, text in files.items():
            path = directory / key.replace("__", "/").replace("_DOT_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return directory

    def command(self, *arguments, user="root", root=None):
        """The argument list that runs layerwright as a user, with that user's own store."""
        store = root or self.store(user)
        command = [str(self.binary), *map(str, arguments)]
        if arguments and arguments[0] == "build":
            command += ["--root", str(store), "--build-context", f"busybox=oci-layout://{self.base}"]
        return command if user == "root" else ["runuser", "-u", user, "--", *command]

    def store(self, user="root"):
        store = self.scratch / f"store-{user}"
        return store if store.exists() else self.directory(store.name, user)

    def directory(self, name, user="root"):
        """An empty directory of a user's."""
        path = self.scratch / name
        path.mkdir(mode=0o700)
        shutil.chown(path, user, user)
        return path

    def machine(self, user="root"):
        """A store that has seen nothing."""
        self.machines += 1
        return self.directory(f"machine-{self.machines}", user)

    def run_layerwright(self, *arguments, user="root", root=None, code=0, env=None, umask=None, **options):
        """Runs to the end; the exit code must be `code`, unless that is None. Gives the completed process, output as text."""
        environment = {k: v for k, v in os.environ.items() if k != "SOURCE_DATE_EPOCH"} | (env or {})
        if umask is not None:
            options["umask"] = umask
        done = subprocess.run(
            self.command(*arguments, user=user, root=root), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL, text=True, env=environment, timeout=WATCHDOG, cwd=self.scratch, **options)
        if code is not None and done.returncode != code:
            raise Failed(f"exit code {done.returncode}, expected {code}\n{done.stdout}\n{done.stderr}")
        return done

    def build(self, context, *arguments, **options):
        """Builds to an OCI layout directory and gives its path; `name` tells several results apart."""
        name = options.pop("name", "image")
        user = options.get("user", "root")
        out = self.scratch / f"out-{name}"
        if not out.exists():
            out.mkdir()
            shutil.chown(out, user, user)
        out = out / "layout"
        self.last = self.run_layerwright(
            "build", "--progress", "plain", "-o", f"type=oci,tar=false,dest={out}", *arguments, context, **options)
        return out


class Layout:
    """An OCI layout that was written: its last image, read and verified by the tests' own eyes."""

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.index = json.loads((self.path / "index.json").read_text())
        self.descriptor = self.index["manifests"][-1]
        self.digest = self.descriptor["digest"]
        self.manifest = self.json(self.descriptor)
        self.config = self.json(self.manifest["config"])

    def blob(self, descriptor):
        return self.path / "blobs" / descriptor["digest"].replace(":", "/")

    def json(self, descriptor):
        return json.loads(self.blob(descriptor).read_text())

    def layers(self):
        """The tar of every layer, as a list of members."""
        for descriptor in self.manifest["layers"]:
            with tarfile.open(self.blob(descriptor), "r:*") as tar:
                yield {member.name: member for member in tar}

    def read(self, path):
        """The bytes of a file in the topmost layer that has it."""
        for descriptor in reversed(self.manifest["layers"]):
            with tarfile.open(self.blob(descriptor), "r:*") as tar:
                if path in tar.getnames():
                    return tar.extractfile(path).read()
        raise Failed(f"no layer has {path}")

    def validate(self):
        """Checks config, manifest and index against image-spec's JSON schemas."""
        validate("image-manifest-schema.json", self.manifest)
        validate("config-schema.json", self.config)
        validate("image-index-schema.json", self.index)
        validate("image-layout-schema.json", json.loads((self.path / "oci-layout").read_text()))


def validate(schema, document):
    """Validates one JSON document; loudly skips where the schemas are not beside the repository."""
    if not SCHEMAS.is_dir():
        print(f"SKIPPED: no JSON schemas at {SCHEMAS}")
        return
    import jsonschema

    # The schemas refer to each other by file name, below bases that the `id`s in them move about.
    schemas = {path.name: json.loads(path.read_text()) for path in SCHEMAS.glob("*.json")}
    by_name = {"https": lambda address: schemas[address.rsplit("/", 1)[1]]}
    main = schemas[schema]
    resolver = jsonschema.RefResolver(main["id"], main, handlers=by_name)
    jsonschema.Draft4Validator(main, resolver=resolver).validate(document)


class Registry:
    """A docker-registry on a free loopback port; a context manager.

    `tls` is a certificate with its key, `clients` the authority of the clients it speaks to, `address` another one of
    this machine; it deletes things unless it `keeps` them."""

    def __init__(self, directory, htpasswd=None, tls=None, clients=None, address="127.0.0.1", keeps=False):
        self.directory, self.keeps = pathlib.Path(directory), keeps
        self.htpasswd, self.tls, self.clients, self.address = htpasswd, tls, clients, address

    def __enter__(self):
        self.directory.mkdir(parents=True, exist_ok=True)
        # A port that was free a moment ago may be somebody else's by now.
        for _ in range(20):
            if self.listens():
                return self
        raise Failed(f"the registry did not start: {(self.directory / 'log').read_text()}")

    def listens(self):
        """Starts it on a port that is free now; whether it got it."""
        with socket.socket() as probe:
            probe.bind((self.address, 0))
            self.host = f"{self.address}:{probe.getsockname()[1]}"
        tls = f", tls: {{certificate: {self.tls[0]}, key: {self.tls[1]}" if self.tls else ""
        tls += f", clientcas: [{self.clients}]" if self.clients else ""
        tls += "}" if tls else ""
        auth = f"auth: {{htpasswd: {{realm: test, path: {self.htpasswd}}}}}\n" if self.htpasswd else ""
        config = self.directory / "config.yml"
        config.write_text(
            f"version: 0.1\nlog: {{level: info, formatter: json}}\n"
            f"storage: {{filesystem: {{rootdirectory: {self.directory}/data}}, delete: {{enabled: {json.dumps(not self.keeps)}}}}}\n"
            f"http: {{addr: '{self.host}'{tls}}}\n{auth}")
        self.log = open(self.directory / "log", "w+")
        self.process = subprocess.Popen(["docker-registry", "serve", config], stdout=self.log, stderr=self.log)
        # Not whether the port answers: that may be another test's.
        wait_for(lambda: self.process.poll() is not None or "listening on" in (self.directory / "log").read_text(),
                 "the registry to listen")
        return self.process.poll() is None

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(WATCHDOG)
        self.log.close()

    def collect_garbage(self):
        """Frees what no manifest names any more, as whoever runs the registry does."""
        subprocess.run(["docker-registry", "garbage-collect", self.directory / "config.yml"], check=True, timeout=WATCHDOG,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def requests(self):
        """(method, path, status) of everything the registry has answered, in order."""
        found = []
        for line in (self.directory / "log").read_text().splitlines():
            entry = re.search(r'"http.request.method":"(\w+)".*?"http.request.uri":"([^"]+)".*?"http.response.status":(\d+)', line)
            if entry:
                found.append((entry[1], entry[2], int(entry[3])))
        return found


def held(name):
    """The beginning of a command that fails, after longer than anything lasts here, where it is told to by `holding`: a step
    that is remembered is called back, however late the cache answers, and one that is not brings the build down. Proxy
    arguments are in no key."""
    return f'case "$NO_PROXY" in *:{name}:*) sleep {WATCHDOG // 2}; exit 9;; esac; '


def holding(names):
    """Arguments of a build whose steps of these names must be known to its caches."""
    return ["--build-arg", f"NO_PROXY=:{':'.join(names)}:"]


def accepts(port, address="127.0.0.1"):
    with socket.socket() as probe:
        return probe.connect_ex((address, port)) == 0


def wait_for(condition, what):
    """Polls; the bound is a watchdog, not an expectation."""
    deadline = time.monotonic() + WATCHDOG
    while not condition():
        if time.monotonic() > deadline:
            raise Failed(f"waited in vain for {what}")
        time.sleep(0.02)
