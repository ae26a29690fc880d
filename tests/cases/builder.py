"""Calling the builder that a driver file describes.

A driver is a TOML file: `build` is the command; `{context}`, `{dockerfile}`, `{out}` (where the OCI layout goes), `{work}`
(where the builder's state lies) are filled in, and `{args*}`, `{target*}`, ... become the lists made of the template of
that name for what the case gives. `lacks` names what the builder cannot do: cases that need it are skipped.
"""

import os
import pathlib
import re
import shutil
import subprocess
import tomllib

TIMED_OUT = 124


def fill(template, values):
    return re.sub(r"\{(\w+)\}", lambda found: str(values.get(found[1], found[0])), template)


def is_remote(place):
    """Whether a context or Dockerfile is named by a URL or is standard input, and so is no path of the case."""
    return place == "-" or re.match(r"[a-z0-9+.-]+:", place) or re.match(r"[\w.-]+@", place)


class Builder:
    def __init__(self, driver, work, timeout):
        with open(driver, "rb") as file:
            self.driver = tomllib.load(file)
        self.work, self.timeout = work, timeout
        here = pathlib.Path(driver).absolute().parent
        values = {"work": work, "here": here}
        self.environment = os.environ | {k: fill(v, values) for k, v in self.driver.get("env", {}).items()}

    def build(self, given, values):
        """One build; gives the exit code and the output of both streams."""
        out = pathlib.Path(values["out"])
        shutil.rmtree(out, ignore_errors=True)
        environment = dict(self.environment)
        if "epoch" in given:
            environment["SOURCE_DATE_EPOCH"] = str(given["epoch"])
        command = self.expand(self.driver["build"], values, self.lists(given, values))
        stdin = values["case"] / given["stdin"] if "stdin" in given else os.devnull
        code, output = self.run(command, environment, values["case"], stdin)
        if code == 0 and "export" in self.driver:
            code, more = self.run(self.expand(self.driver["export"], values, {}), environment, values["case"], os.devnull)
            output += more
        return code, output

    def wipe(self, values):
        """Takes the builder's state away; gives the output of the command that failed, else None."""
        for command in self.driver.get("wipe", []):
            arguments = self.expand(command, values, {})
            code, output = self.run(arguments, self.environment, values["case"], os.devnull)
            if code:
                return output
        return None

    def run(self, command, environment, directory, stdin):
        with open(stdin, "rb") as file, subprocess.Popen(
                command, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, cwd=directory,
                start_new_session=True) as process:
            try:
                output, _ = process.communicate(timeout=self.timeout)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                output, _ = process.communicate()
                return TIMED_OUT, output.decode("utf-8", "replace") + "\ntimed out"
        return process.returncode, output.decode("utf-8", "replace")

    def expand(self, templates, values, lists):
        arguments = []
        for template in templates:
            name = re.fullmatch(r"\{(\w+)\*\}", template)
            arguments += lists.get(name[1], []) if name else [fill(template, values)]
        return arguments

    def lists(self, given, values):
        """The arguments that a case's `[build]` table stands for, by the name that the driver uses for them."""

        def each(name, rows):
            return [fill(template, row) for row in rows for template in self.driver.get(name, [])]

        def pairs(key):
            return [{"k": name, "v": value} for name, value in given.get(key, {}).items()]

        contexts = [row | {"v": row["v"] if is_remote(row["v"]) else values["case"] / row["v"]} for row in pairs("contexts")]
        return {
            "args": each("arg", pairs("args")), "contexts": each("context", contexts),
            "file": each("file", [values] if given.get("file") != "" else []),
            "target": each("target", [given] if given.get("target") else []),
            "secrets": each("secret", secret_files(given.get("secrets", {}), values["scratch"])),
            "ssh": each("ssh", [values] if given.get("ssh") else []),
            "nocache": each("no_cache", [{}] if given.get("no_cache") else []),
            "platform": each("platform", [given] if given.get("platform") else []),
            "epoch": each("epoch", [given] if "epoch" in given else []),
            "cache_to": each("cache_to", [values] if given.get("cache_to") else []),
            "cache_from": each("cache_from", [values] if given.get("cache_from") else []),
            "flags": [fill(flag, values) for flag in given.get("flags", [])]}


def secret_files(secrets, scratch):
    for name, content in secrets.items():
        path = scratch / f"secret-{name}"
        path.write_text(content)
        yield {"id": name, "path": path}
