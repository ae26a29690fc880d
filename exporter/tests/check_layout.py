"""Validates every document of an OCI layout against image-spec's JSON schemas: check_layout.py SCHEMAS LAYOUT."""

import json
import pathlib
import sys
import warnings

warnings.simplefilter("ignore", DeprecationWarning)
import jsonschema  # noqa: E402

schemas_directory, layout = map(pathlib.Path, sys.argv[1:])


def without_ids(node):
    """The schemas refer to each other by file name; the ids in them would turn those into addresses on the network."""
    if isinstance(node, list):
        return [without_ids(child) for child in node]
    if not isinstance(node, dict):
        return node
    return {key: without_ids(value) for key, value in node.items() if not (key == "id" and isinstance(value, str))}


schemas = {path.name: without_ids(json.loads(path.read_text())) for path in schemas_directory.glob("*.json")}
KINDS = {
    "application/vnd.oci.image.index.v1+json": "image-index-schema.json",
    "application/vnd.oci.image.manifest.v1+json": "image-manifest-schema.json",
    "application/vnd.oci.image.config.v1+json": "config-schema.json",
}


def validate(name, document):
    resolver = jsonschema.RefResolver(name, schemas[name], store=dict(schemas))
    jsonschema.Draft4Validator(schemas[name], resolver=resolver).validate(document)
    print("valid:", name)


def follow(descriptor):
    name = KINDS.get(descriptor["mediaType"])
    if name is None:
        return
    algorithm, digest = descriptor["digest"].split(":")
    document = json.loads((layout / "blobs" / algorithm / digest).read_bytes())
    validate(name, document)
    for child in document.get("manifests", []) + [document[key] for key in ("config",) if "layers" in document]:
        follow(child)


validate("image-layout-schema.json", json.loads((layout / "oci-layout").read_text()))
index = json.loads((layout / "index.json").read_text())
validate("image-index-schema.json", index)
for manifest in index["manifests"]:
    follow(manifest)
