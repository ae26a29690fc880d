#!/usr/bin/python3
"""Black-box cases for a Dockerfile builder: `run.py --driver DRIVER --cases DIR... --registry HOST:PORT [-k REGEX]`.

Every folder with a case.toml is one case (its format: README.md). It is copied to a scratch folder, built by the builder
that the driver describes, and the OCI layout that came out is compared. Each worker has builder state of its own, so that
no case sees what another has cached at the same moment. The last line is 'N passed, N failed, N skipped'.
"""

import argparse
import concurrent.futures
import contextlib
import json
import os
import pathlib
import queue
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib

import bases
from builder import TIMED_OUT, Builder, is_remote
from expect import EXPECTATIONS, compare
from image import Bad, Image
from web import serve

REGISTRY_TOKEN, WEB_TOKEN = "localhost:5000", "localhost:8000"
BUILD_KEYS = {
    "file", "context", "target", "platform", "args", "contexts", "secrets", "ssh", "epoch", "no_cache", "flags", "stdin"}
MERGED = ("args", "secrets", "contexts")  # a rebuild's table is laid over the first build's
CASE_KEYS = {
    "summary", "topics", "needs", "because", "peer", "setup", "after", "build", "expect", "config", "image", "env", "files",
    "rebuild", "meant_to_fail"}
REBUILD_KEYS = EXPECTATIONS | BUILD_KEYS | {"setup", "fresh", "same", "differ", "same_digest", "other_digest"}
ENVIRONMENT = {
    "TZ": "UTC", "LC_ALL": "C.UTF-8", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@b",
    "GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@b", "GIT_AUTHOR_DATE": "@1000000000 +0000",
    "GIT_COMMITTER_DATE": "@1000000000 +0000"}


class Stopped(Exception):
    """A case cannot go on: its own script failed, or it is written wrongly."""


class Case:
    """One case in a scratch copy: its tables, its paths, and what was found so far."""

    def __init__(self, name, source, builder, options):
        self.name, self.builder, self.options = name, builder, options
        self.scratch = pathlib.Path(tempfile.mkdtemp(prefix="case-", dir=builder.work))
        self.folder = self.scratch / "c"
        self.web = f"127.0.0.1:{options.port}/{name}"
        self.log, self.failures = "", []
        materialise(source, self.folder, options.registry, self.web)
        self.table = tomllib.loads((self.folder / "case.toml").read_text())
        self.build_table = self.table.get("build", {})
        self.images = []

    def lacking(self):
        return sorted(set(self.table.get("needs", [])) & self.options.lacks)

    def run(self):
        """Builds and rebuilds, and gives every difference from what the case expects."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.clean)
            try:
                self.check_keys()
                self.prepare(stack)
                self.steps()
                if not self.failures:
                    self.script(self.table.get("after"))
            except Stopped as error:
                self.failures.append(str(error))
        return self.failures

    def check_keys(self):
        """A misspelt key would be an expectation that nobody checks."""
        unknown = self.table.keys() - CASE_KEYS | self.build_table.keys() - BUILD_KEYS
        unknown |= self.table.get("expect", {}).keys() - EXPECTATIONS
        for step in self.table.get("rebuild", []):
            unknown |= step.keys() - REBUILD_KEYS
        if unknown:
            raise Stopped(f"case.toml has unknown keys: {', '.join(sorted(unknown))}")

    def prepare(self, stack):
        context = self.build_table.get("context", "context")
        if not is_remote(context):
            (self.folder / context).mkdir(parents=True, exist_ok=True)
        (self.folder / "www").mkdir(exist_ok=True)
        served = pathlib.Path(self.options.served, self.name)
        served.symlink_to(self.folder / "www")
        stack.callback(served.unlink)
        self.script(self.table.get("setup"))
        if self.build_table.get("ssh"):
            self.start_agent(stack)

    def start_agent(self, stack):
        command = ["ssh-agent", "-D", "-a", self.socket]
        agent = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        stack.callback(agent.wait)
        stack.callback(agent.terminate)
        while not self.socket.exists() and agent.poll() is None:
            time.sleep(0.01)

    @property
    def socket(self):
        return self.scratch / "agent.sock"

    def script(self, text):
        if not text:
            return
        environment = os.environ | ENVIRONMENT | {
            "REGISTRY": self.options.registry, "HTTP": self.web, "CASE": str(self.folder)}
        done = subprocess.run(
            ["sh", "-euc", "umask 022\n" + text], cwd=self.folder, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        if done.returncode:
            raise Stopped("a script of the case failed: " + done.stdout)

    def steps(self):
        first = self.table.get("expect", {}) | {
            key: self.table[key] for key in ("files", "env", "config", "image") if key in self.table}
        rebuilds = self.table.get("rebuild", [])
        cached = any(step.get("fresh") for step in rebuilds)
        for number, step in enumerate([first, *rebuilds]):
            given = self.given(step, cached) if number else self.build_table | {"cache_to": cached}
            values = self.values(number, given)
            if number:
                self.script(step.get("setup"))
            if step.get("fresh") and (output := self.builder.wipe(values)):
                raise Stopped("wiping failed: " + output)
            code, output = self.builder.build(given, values)
            self.log += f"--- build {number}: exit {code}\n{output}\n"
            found = list(self.compare_step(step, given, code, output, values["out"]))
            self.failures += [f"rebuild {number}: {line}" if number else line for line in found]
            if found and (code or step.get("fail")):
                return

    def given(self, step, cached):
        """What a rebuild gives the builder: the first build's table with the step's own laid over it."""
        given = self.build_table | {key: step[key] for key in BUILD_KEYS if key in step}
        given |= {key: self.build_table.get(key, {}) | step.get(key, {}) for key in MERGED}
        return given | {"cache_to": cached and not step.get("fresh"), "cache_from": bool(step.get("fresh"))}

    def values(self, number, given):
        def place(text):
            return text if is_remote(text) else os.path.normpath(self.folder / text)

        dockerfile = place(given.get("file", "Dockerfile"))
        tag = "case-" + re.sub(r"[^a-z0-9.-]", "-", self.name.lower())
        return {
            "case": self.folder, "scratch": self.scratch, "work": self.builder.work, "sock": self.socket, "tag": tag,
            "out": self.scratch / f"out{number}", "name": "latest", "registry": self.options.registry,
            "cacheref": f"{self.options.registry}/cache/{tag}:c", "cacherepo": f"{self.options.registry}/cache/{tag}",
            "context": place(given.get("context", "context")), "dockerfile": dockerfile,
            "dockerdir": os.path.dirname(dockerfile), "dockername": os.path.basename(dockerfile)}

    def compare_step(self, step, given, code, output, out):
        end = output.strip()[-400:]
        expected_to_fail = step.get("fail") and not (step["fail"] == "maybe" and code == 0)
        if code == TIMED_OUT:
            yield "timed out"
        elif expected_to_fail and code == 0:
            yield "the build succeeded, expected it to fail"
        elif expected_to_fail:
            if not re.search(step.get("error", ""), output, re.IGNORECASE | re.DOTALL):
                yield f"output does not match {step['error']!r}: ...{end!r}"
            if code != step.get("exit", code):
                yield f"exit code {code}, expected {step['exit']}"
        elif code:
            yield f"exit code {code}: ...{end!r}"
        else:
            yield from self.compare_success(step, given, output, out)
        for path in step.get("host_absent", []):
            if os.path.lexists(path):
                yield f"{path} exists on the host"

    def compare_success(self, step, given, output, out):
        if not re.search(step.get("output", ""), output, re.DOTALL):
            yield f"output does not match {step['output']!r}"
        if "no_output" in step and re.search(step["no_output"], output, re.DOTALL):
            yield f"output matches {step['no_output']!r}"
        try:
            image = Image(out, given.get("platform") or "linux/amd64")
        except (Bad, tarfile.TarError, OSError, ValueError, KeyError, subprocess.CalledProcessError) as error:
            yield f"image: {type(error).__name__}: {error}"
            return
        yield from compare(image, step)
        yield from self.compare_with_before(step, image)
        self.images.append(image)

    def compare_with_before(self, step, image):
        for path in step.get("same", []):
            if image.content(path) is None or image.content(path) != self.images[-1].content(path):
                yield f"{path} changed, so the step ran again: expected a cache hit"
        for path in step.get("differ", []):
            if image.content(path) is None or image.content(path) == self.images[-1].content(path):
                yield f"{path} is as before, so the step did not run: expected a cache miss"
        if step.get("same_digest") and image.digest != self.images[0].digest:
            yield f"manifest digest {image.digest} differs from the first build's {self.images[0].digest}"
        if step.get("other_digest") and image.digest == self.images[0].digest:
            yield "manifest digest is the first build's"

    def clean(self):
        if self.options.keep:
            return
        subprocess.run(["chmod", "-R", "u+rwX", self.scratch], stderr=subprocess.DEVNULL)
        shutil.rmtree(self.scratch, ignore_errors=True)


def materialise(source, target, registry, web):
    """Copies a case with the modes that git keeps (0644 and 0755), and replaces its tokens."""
    unique = os.urandom(6).hex()
    shutil.copytree(source, target, symlinks=True)
    for folder, _, files in os.walk(target):
        os.chmod(folder, 0o755)
        for path in (pathlib.Path(folder, name) for name in files):
            if path.is_symlink():
                continue
            path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
            if path.name.startswith(("Dockerfile", "Containerfile", "case.toml")):
                content = path.read_bytes()
                tokens = {REGISTRY_TOKEN: registry, WEB_TOKEN: web, "@ID@": unique}
                if path.name == "case.toml":
                    tokens["@L@"] = "n" * 200
                for token, value in tokens.items():
                    content = content.replace(token.encode(), value.encode())
                path.write_bytes(content)


def find_cases(folders, pattern):
    """Name and folder of every case below some folders, sorted by name; the name is the path with dots."""
    for folder in map(pathlib.Path, folders):
        if not folder.is_dir():
            sys.exit(f"no folder of cases: {folder}")
        for table in folder.rglob("case.toml"):
            name = ".".join(table.parent.relative_to(folder).parts)
            if re.search(pattern, name):
                yield name, table.parent


def run_one(name, source, builders, options):
    """Runs one case with whichever builder is free; gives result, reasons, output and seconds."""
    begin, builder = time.monotonic(), builders.get()
    try:
        case = Case(name, source, builder, options)
        if lacking := case.lacking():
            case.clean()
            reason = case.table.get("because", "")
            return "skip", ["needs " + ", ".join(lacking) + (f": {reason}" if reason else "")], "", 0
        failures = case.run()
        return "fail" if failures else "pass", failures, case.log, time.monotonic() - begin
    except Exception as error:  # a case must not take the others down
        return "fail", [f"runner: {type(error).__name__}: {error}"], "", time.monotonic() - begin
    finally:
        builders.put(builder)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--driver", required=True)
    parser.add_argument("--cases", action="append", required=True, metavar="DIR")
    parser.add_argument("--registry", default=REGISTRY_TOKEN, metavar="HOST:PORT")
    parser.add_argument("-k", dest="pattern", default="", metavar="REGEX", help="only cases whose name matches")
    parser.add_argument("-v", dest="verbose", action="store_true", help="the builder's output of failing cases, too")
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time")
    parser.add_argument("--lacks", default="", help="what the builder's user cannot do, besides the driver's list")
    parser.add_argument("--no-push", action="store_true", help="the base images are in the registry already")
    parser.add_argument("--keep", action="store_true", help="keep the scratch folders")
    parser.add_argument("--timeout", type=int, default=120, help="seconds for one build")
    parser.add_argument("--work", help="where scratch folders and builder state go")
    parser.add_argument("--json", help="write the results to this file")
    return parser.parse_args()


def main():
    options = parse_arguments()
    os.umask(0o022)
    work = pathlib.Path(options.work or tempfile.mkdtemp(prefix="cases-")).absolute()
    options.served = work / "www"
    options.served.mkdir(parents=True, exist_ok=True)
    if not options.no_push:
        bases.push(options.registry)
    options.port = serve(options.served)
    builders = queue.SimpleQueue()
    for number in range(options.jobs):
        place = work / f"worker-{number}"
        place.mkdir(exist_ok=True)
        builder = Builder(options.driver, place, options.timeout)
        builders.put(builder)
    options.lacks = {*options.lacks.split(","), *builder.driver.get("lacks", [])}
    cases = sorted(find_cases(options.cases, options.pattern))
    names = [name for name, _ in cases]
    if len(names) != len(set(names)):
        sys.exit(f"two cases have one name: {sorted(name for name in set(names) if names.count(name) > 1)}")
    results = run_all(cases, builders, options)
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(results, indent=1))
    counts = {kind: sum(row["result"] == kind for row in results.values()) for kind in ("pass", "fail", "skip")}
    print(f"{counts['pass']} passed, {counts['fail']} failed, {counts['skip']} skipped")
    sys.exit(bool(counts["fail"]))


def run_all(cases, builders, options):
    results = {}
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        running = {pool.submit(run_one, name, source, builders, options): name for name, source in cases}
        for future in concurrent.futures.as_completed(running):
            name, (result, why, log, seconds) = running[future], future.result()
            results[name] = {"result": result, "why": why, "seconds": round(seconds, 2), "log": log}
            print(f"{result.upper():4} {name} ({seconds:.1f}s)" + "".join(f"\n       {line}" for line in why), flush=True)
            if options.verbose and result == "fail":
                print("       | " + log.strip().replace("\n", "\n       | "), flush=True)
    return dict(sorted(results.items()))


if __name__ == "__main__":
    main()
