"""The table of images that lie: manifests, configs and indexes that say what is not so, or more than anybody could use.

`images()` gives (image, Dockerfile) by name. What each comes to is in `testdata/hostile/images`.
"""

import json

from craft import CONFIG, END, INDEX, MANIFEST, OCI, TAR, Image, digest, file

COPY = "FROM hostile\nCOPY Dockerfile /d\n"
RUN = "FROM hostile\nRUN true\n"
DOCKER = "application/vnd.docker."
WRONG = "sha256:" + "0" * 64


def image(name, **options):
    return Image(file(b"f", name.encode()) + END, **options)


def images():
    table = {}
    for part in (manifests, layers, configs, values, indexes):
        for name, change in part().items():
            dockerfile = COPY
            if isinstance(change, tuple):
                change, dockerfile = change
            made = image(name)
            change(made)
            assert name not in table, name
            table[name] = (made.finish(), dockerfile)
    return table


def put(place, **fields):
    """Puts fields into a part of an image."""
    return lambda made: place(made).update(fields)


def layer(made):
    return made.manifest["layers"][0]


def entry(**fields):
    """What the index says of the manifest."""
    def change(made):
        made.finish()
        made.index["manifests"][0].update(fields)
    return change


def config(**fields):
    """What the manifest says of the config."""
    def change(made):
        made.manifest["config"] = {**made.document(CONFIG, made.config), **fields}
    return change


def body(text):
    """Other bytes as a manifest."""
    def change(made):
        content = text if isinstance(text, bytes) else text.encode()
        made.index["manifests"] = [made.blob(MANIFEST, content)]
    return change


def manifests():
    manifest = lambda made: made.manifest  # noqa: E731
    return {
        "manifest: size too small": entry(size=5), "manifest: size too large": entry(size=100000), "manifest: size of 2^62": entry(size=1 << 62),
        "manifest: negative size": entry(size=-1), "manifest: size is a word": entry(size="12"), "manifest: another digest": entry(digest=WRONG),
        "manifest: digest is a path": entry(digest="sha256:../../../../etc/passwd"), "manifest: digest of MD5": entry(digest="md5:" + "0" * 32),
        "manifest: digest of SHA-512": entry(digest="sha512:" + "0" * 128), "manifest: digest in capitals": entry(digest="sha256:" + "A" * 64),
        "manifest: digest with NUL": entry(digest=WRONG[:-1] + "\0"), "manifest: announced as an index": entry(mediaType=INDEX),
        "manifest: announced as Docker's": entry(mediaType=DOCKER + "distribution.manifest.v2+json"), "manifest: announced as a config": entry(mediaType=CONFIG),
        "manifest: announced as nothing": entry(mediaType=""), "manifest: odd annotations": entry(annotations={"org.opencontainers.image.ref.name": "../../x", "\x1b[31m": "\n" * 99}),
        "manifest: annotation is a number": entry(annotations={"a": 1}), "manifest: urls": entry(urls=["http://127.0.0.1:1/x"]), "manifest: other data within": entry(data="e30="),
        "manifest: both an index and a manifest": put(manifest, manifests=[]), "manifest: of version 1": put(manifest, schemaVersion=1), "manifest: of version 3": put(manifest, schemaVersion=3),
        "manifest: Docker's first format": body('{"schemaVersion":1,"name":"x","tag":"y","fsLayers":[]}'), "manifest: not JSON": body("\x00\x01"), "manifest: nothing": body(""),
        "manifest: cut": body('{"schemaVersion":2,"layers":['), "manifest: a list": body("[]"), "manifest: nested 100000 deep": body("[" * 100000),
        "manifest: a key twice": body('{"schemaVersion":2,"layers":[],"layers":[],"config":{}}'), "manifest: not UTF-8": body(b'{"schemaVersion":2,"mediaType":"\xff"}'),
        "manifest: 5 MiB": body('{"schemaVersion":2,"x":"' + "x" * (5 << 20) + '"}'), "manifest: rubbish behind": body('{"schemaVersion":2,"config":{},"layers":[]}{}'),
        "manifest: no layers": put(manifest, layers=[]), "manifest: layers are null": put(manifest, layers=None), "manifest: artifact type": put(manifest, artifactType="a/b"),
        "manifest: subject": put(manifest, subject={"mediaType": MANIFEST, "digest": WRONG, "size": 1}), "manifest: unknown fields": put(manifest, x={"y": [1] * 1000}),
        "manifest: a BOM before": body(b"\xef\xbb\xbf{}"),
    }


def many(count, same):
    def change(made):
        for at in range(count - 1):
            tar = file(b"f%d" % at, b"%d" % at) + END
            made.manifest["layers"].append(made.manifest["layers"][0] if same else made.blob(TAR, tar))
            made.config["rootfs"]["diff_ids"].append(made.config["rootfs"]["diff_ids"][0] if same else digest(tar))
    return change


def layers():
    return {
        "layer: size too small": (put(layer, size=5), RUN), "layer: size too large": (put(layer, size=100000), RUN), "layer: size of 2^62": (put(layer, size=1 << 62), RUN),
        "layer: size of 2^64": (put(layer, size=1 << 64), RUN), "layer: negative size": (put(layer, size=-1), RUN), "layer: size of a fraction": (put(layer, size=1.5), RUN),
        "layer: another digest": (put(layer, digest=WRONG), RUN), "layer: digest is a path": put(layer, digest="sha256:../../x"),
        "layer: announced as gzip": (put(layer, mediaType=TAR + "+gzip"), RUN), "layer: announced as zstd": (put(layer, mediaType=TAR + "+zstd"), RUN),
        "layer: announced as encrypted": put(layer, mediaType=TAR + "+encrypted"), "layer: announced as a config": put(layer, mediaType=CONFIG),
        "layer: announced as Windows's": put(layer, mediaType="application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
        "layer: not to be distributed": put(layer, mediaType=OCI + "layer.nondistributable.v1.tar", urls=["http://127.0.0.1:1/x"]),
        "layer: not to be distributed, and run": (put(layer, mediaType=OCI + "layer.nondistributable.v1.tar", urls=["http://127.0.0.1:1/x"]), RUN),
        "layer: urls": (put(layer, urls=["http://127.0.0.1:1/x", "file:///etc/passwd"]), RUN), "layer: urls, and not here": (put(layer, urls=["http://127.0.0.1:1/x"], digest=WRONG), RUN),
        "layer: one twice": (many(2, True), RUN), "layer: one 1000 times": (many(1000, True), RUN), "layer: 1000": (many(1000, False), RUN),
        "layer: odd annotations": (put(layer, annotations={"containerd.io/uncompressed": WRONG, "org.opencontainers.image.title": "../../x"}), RUN),
    }


def history(*entries):
    return put(lambda made: made.config, history=list(entries))


def configs():
    whole = lambda made: made.config  # noqa: E731
    roots = lambda made: made.config["rootfs"]  # noqa: E731

    def other(text):
        def change(made):
            made.manifest["config"] = made.document(CONFIG, text.encode())
        return change

    return {
        "config: size too small": config(size=5), "config: size too large": config(size=100000), "config: another digest": config(digest=WRONG),
        "config: announced as a layer": config(mediaType=TAR), "config: announced as nothing": config(mediaType=""), "config: a Helm chart's": config(mediaType="application/vnd.cncf.helm.config.v1+json"),
        "config: other data within": config(data="e30="), "config: not JSON": other("x"), "config: empty": other("{}"), "config: null": other("null"), "config: nested 100000 deep": other("[" * 100000),
        "config: 5 MiB": other('{"x":"' + "x" * (5 << 20) + '"}'), "config: a key twice": other('{"os":"linux","os":"windows"}'),
        "config: no diff IDs": put(roots, diff_ids=[]), "config: a diff ID too many": lambda made: made.config["rootfs"]["diff_ids"].append(WRONG),
        "config: another diff ID": (put(roots, diff_ids=[WRONG]), RUN), "config: diff ID is none": put(roots, diff_ids=["x"]), "config: diff ID of SHA-512": put(roots, diff_ids=["sha512:" + "0" * 128]),
        "config: rootfs of another type": put(roots, type="squashfs"), "config: no rootfs": lambda made: made.config.pop("rootfs"),
        "config: history too long": history({"created_by": "a"}, {"created_by": "b"}, {"created_by": "c"}), "config: history of nothing": history({"empty_layer": True}),
        "config: history of 10000": history(*[{"created_by": "x", "empty_layer": True}] * 10000, {"created_by": "y"}), "config: history is odd": history({"created_by": "\x1b[31m\0\n" * 99, "created": "yesterday"}),
        "config: history is null": put(whole, history=None), "config: created at no time": put(whole, created="never"), "config: created in year 99999": put(whole, created="99999-01-01T00:00:00Z"),
        "config: another architecture": put(whole, architecture="pdp11"), "config: another system": put(whole, os="windows"), "config: architecture is a path": put(whole, architecture="../../x"),
        "config: no platform": lambda made: (made.config.pop("os"), made.config.pop("architecture")),
    }


def values():
    """What a container of it would be: the first value of each is made to stand in the way of a step."""
    def value(**fields):
        return put(lambda made: made.config["config"], **fields), COPY + "RUN --mount=type=bind,from=busybox,source=/bin,target=/bin true\n"

    return {f"value: {name}": value(**fields) for name, fields in {
        "Env of 10000": {"Env": [f"N{at}=v" for at in range(10000)]}, "Env of 1 MiB": {"Env": ["N=" + "v" * (1 << 20)]}, "Env without a value": {"Env": ["N"]}, "Env without a name": {"Env": ["=v"]},
        "Env of nothing": {"Env": [""]}, "Env with NUL": {"Env": ["N=a\0b"]}, "Env name with NUL": {"Env": ["N\0=a"]}, "Env with a newline": {"Env": ["N=a\nb"]}, "Env twice": {"Env": ["N=a", "N=b"]},
        "Env is null": {"Env": None}, "Env is a map": {"Env": {"A": "b"}}, "Env of a number": {"Env": [1]}, "PATH of nothing": {"Env": ["PATH="]}, "LD_PRELOAD": {"Env": ["LD_PRELOAD=/x.so", "BASH_ENV=/x"]},
        "proxies": {"Env": ["http_proxy=http://127.0.0.1:1"]}, "User not there": {"User": "nobody-here"}, "User of 2^32": {"User": "4294967296"}, "User of -1": {"User": "-1"}, "User of 2^32-1": {"User": "4294967295"},
        "User is a path": {"User": "../../x"}, "User of colons": {"User": "::::"}, "User with NUL": {"User": "a\0b"}, "User with a newline": {"User": "root\nx"}, "User is null": {"User": None}, "User is a number": {"User": 0},
        "WorkingDir up": {"WorkingDir": "../../.."}, "WorkingDir relative": {"WorkingDir": "a/b"}, "WorkingDir with NUL": {"WorkingDir": "/a\0b"}, "WorkingDir of 5000 bytes": {"WorkingDir": "/" + "d/" * 2500},
        "WorkingDir of a name too long": {"WorkingDir": "/" + "d" * 300}, "WorkingDir of /proc": {"WorkingDir": "/proc/1/root"}, "WorkingDir of a descriptor": {"WorkingDir": "/proc/self/fd/8"},
        "Volumes up": {"Volumes": {"../../x": {}, "/": {}, "": {}}}, "Volumes is a list": {"Volumes": ["/x"]}, "Volumes of 10000": {"Volumes": {f"/v{at}": {} for at in range(10000)}}, "Volumes is null": {"Volumes": None},
        "ExposedPorts too large": {"ExposedPorts": {"99999/tcp": {}, "x/y/z": {}}}, "StopSignal is none": {"StopSignal": "SIGX"}, "StopSignal of 999": {"StopSignal": "999"}, "StopTimeout of -1": {"StopTimeout": -1},
        "Cmd is a word": {"Cmd": "x"}, "Entrypoint of NULs": {"Entrypoint": ["a\0b"]}, "Cmd of 10000": {"Cmd": ["x"] * 10000}, "Shell of nothing": {"Shell": []}, "Shell with NUL": {"Shell": ["/bin/sh\0", "-c"]}, "Shell not there": {"Shell": ["/x"]},
        "Labels with NUL": {"Labels": {"a\0": "b\0"}}, "Labels of numbers": {"Labels": {"a": 1}}, "OnBuild of ONBUILD": {"OnBuild": ["ONBUILD RUN x"]}, "OnBuild of FROM": {"OnBuild": ["FROM x"]},
        "OnBuild reads outside": {"OnBuild": ["COPY ../canary/file /x"]}, "OnBuild of a bind": {"OnBuild": ["RUN --mount=type=bind,source=../canary,target=/m cat /m/file"]}, "OnBuild is no instruction": {"OnBuild": ["\0"]},
        "OnBuild of two lines": {"OnBuild": ["RUN true\nRUN false"]}, "OnBuild insecure": {"OnBuild": ["RUN --security=insecure true"]}, "OnBuild on the host's network": {"OnBuild": ["RUN --network=host true"]},
        "Healthcheck of -1": {"Healthcheck": {"Test": ["CMD"], "Interval": -1}}, "config is a list": {"Env": [[]]}, "unknown": {"NetworkDisabled": True, "MacAddress": "x", "Hostname": "../x", "Domainname": "\0"},
    }.items()}


def nested(depth):
    def change(made):
        made.finish()
        for _ in range(depth):
            made.index["manifests"] = [made.document(INDEX, {"schemaVersion": 2, "mediaType": INDEX, "manifests": made.index["manifests"]})]
    return change


def index(**fields):
    return put(lambda made: made.finish().index, **fields)


def itself(made):
    """The index names a file that says of itself that it lies below it, which no digest could."""
    text = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [{"mediaType": INDEX, "digest": WRONG, "size": 219}]}).encode()
    made.blobs[WRONG] = text
    made.index["manifests"] = [{"mediaType": INDEX, "digest": WRONG, "size": len(text)}]


def copies(count, **fields):
    def change(made):
        made.index["manifests"] = made.finish().index["manifests"] * count
        made.index["manifests"] = [{**one, **fields} for one in made.index["manifests"]]
    return change


def indexes():
    return {
        **{f"index: {depth} deep": nested(depth) for depth in (1, 3, 4, 5, 100)}, "index: itself": itself, "index: empty": index(manifests=[]), "index: null": index(manifests=None), "index: of version 1": index(schemaVersion=1),
        "index: layers": index(layers=[]), "index: another type": index(mediaType=MANIFEST), "index: one twice": copies(2), "index: 20000 of one": copies(20000), "index: for nobody": copies(2, platform={"os": "x", "architecture": "y"}),
        "index: platform of paths": copies(1, platform={"os": "../x", "architecture": "\0"}), "index: platform is a word": copies(1, platform="linux"), "index: 5 MiB": index(annotations={"x": "x" * (5 << 20)}),
        "index: for two": copies(2, platform={"os": "linux", "architecture": "amd64"}), "index: unknown": index(x=[{}] * 1000),
    }
