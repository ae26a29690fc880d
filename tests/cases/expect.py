"""Comparing an image with what a case expects. Every difference is one line for people; none means the case passes."""

import hashlib
import posixpath
import re

EXPECTATIONS = {
    "fail", "error", "exit", "output", "no_output", "layers", "max_layers", "last_layer", "history", "host_absent", "config",
    "image", "env", "files"}
ABSENT = "__absent__"


def compare(image, expected):
    """All differences of an image from the tables of one step of a case."""
    config = image.config.get("config") or {}
    found = list(image.tree.problems)
    found += subset(expected.get("config", {}), config, "config")
    found += subset(expected.get("image", {}), image.config, "image")
    found += list(compare_environment(image, expected.get("env", {})))
    for path, wanted in expected.get("files", {}).items():
        found += compare_file(image.tree, path, wanted)
    return found + list(compare_layers(image, expected))


def subset(wanted, got, where):
    """`wanted` must be contained in `got`; lists must be equal; `__absent__` is missing or empty."""
    if wanted == ABSENT:
        return [f"{where}: expected nothing, got {got!r}"] if got else []
    if isinstance(wanted, dict) and wanted.keys() == {"match"}:
        matches = isinstance(got, str) and re.search(wanted["match"], got)
        return [] if matches else [f"{where}: {got!r} does not match {wanted['match']!r}"]
    if isinstance(wanted, dict) and isinstance(got, dict):
        return [line for key, value in wanted.items() for line in subset(value, got.get(key), f"{where}.{key}")]
    same = wanted == got or (wanted in ([], {}) and not got)
    return [] if same else [f"{where}: expected {wanted!r}, got {got!r}"]


def compare_environment(image, expected):
    got = image.environment()
    for name, value in expected.items():
        wanted = None if value == ABSENT else value
        if got.get(name) != wanted:
            yield f"env {name}: expected {wanted!r}, got {got.get(name)!r}"


def compare_layers(image, expected):
    count = len(image.layers)
    if expected.get("layers", count) != count:
        yield f"layers: expected {expected['layers']}, got {count}"
    if expected.get("max_layers", count) < count:
        yield f"layers: expected at most {expected['max_layers']}, got {count}"
    last = image.layers[-1] if image.layers else []
    wanted = expected.get("last_layer", {})
    yield from (f"last layer lacks {path}; has {last[:20]}" for path in wanted.get("has", []) if path not in last)
    yield from (f"last layer has {path}" for path in wanted.get("lacks", []) if path in last)
    if "only" in wanted and sorted(set(last) - set(wanted.get("may", []))) != sorted(wanted["only"]):
        yield f"last layer: expected only {wanted['only']}, got {last[:20]}"
    created_by = [entry.get("created_by") or "" for entry in image.config.get("history") or []]
    for pattern in expected.get("history", []):
        if not any(re.search(pattern, text) for text in created_by):
            yield f"history: nothing matches {pattern!r}"


def compare_file(tree, path, wanted):
    real = tree.resolve(path)
    node = tree.nodes.get(real)
    if wanted in ("absent", False):
        return [] if node is None else [f"{path}: exists ({node['type']}), expected absent"]
    if node is None:
        return [f"{path}: missing"]
    wanted = {"text": wanted} if isinstance(wanted, str) else dict(wanted)
    kind = wanted_kind(wanted)
    if kind and node["type"] != kind:
        return [f"{path}: type: expected {kind!r}, got {node['type']!r}"]
    found = []
    for check, value in wanted.items():
        got, good = attribute(tree, real, node, check, value)
        if not good:
            found.append(f"{path}: {check}: expected {value!r}, got {got!r}")
    return found


def wanted_kind(wanted):
    """Takes `type` and `dir` out of a table of checks and says which kind of file the checks are about."""
    kind = "dir" if wanted.pop("dir", False) else wanted.pop("type", None)
    if "link" in wanted:
        return "link"
    if kind is None and wanted.keys() & {"text", "sha256", "size", "match", "same_inode", "other_inode"}:
        return "file"
    return kind


def attribute(tree, path, node, check, value):
    """What a file has for one check, and whether that is what is wanted."""
    match check:
        case "mode":
            return f"{node['mode']:04o}", node["mode"] == int(value, 8)
        case "uid" | "gid" | "size" | "link" | "dev":
            return node.get(check), node.get(check) == value
        case "mtime":
            return node.get("mtime"), int(node.get("mtime", -1)) == value
        case "text":
            return excerpt(node), node["data"] == value.encode()
        case "match":
            return excerpt(node), re.search(value, node["data"].decode("utf-8", "replace"))
        case "sha256":
            got = hashlib.sha256(node["data"]).hexdigest()
            return got, got == value
        case "entries":
            got = sorted(posixpath.basename(other) for other in tree.below(path) if posixpath.dirname(other) == path)
            return got, got == sorted(value)
        case "tree":
            slash = {other: "/" if tree.nodes[other]["type"] == "dir" else "" for other in tree.below(path)}
            got = sorted(other[len(path.rstrip("/")) + 1:] + end for other, end in slash.items())
            return got, got == sorted(value)
        case "same_inode" | "other_inode":
            other = tree.nodes.get(tree.resolve(value))
            same = other is not None and other["inode"] == node["inode"]
            return "the same file" if same else "another file", same == (check == "same_inode")
        case "xattrs":
            return node["xattrs"], all(has_xattr(node["xattrs"].get(name), want) for name, want in value.items())
    raise ValueError(f"{path}: case.toml has the unknown check {check!r}")


def has_xattr(got, wanted):
    match wanted:
        case "present":
            return got is not None
        case "absent":
            return got is None
    return got == wanted


def excerpt(node):
    return node["data"][:400].decode("utf-8", "replace")
