"""The table of hostile layers: an attack at several places and in several forms, each a list of tars, lowest first.

`layers(canary)` gives them by name. What must not be read or changed is the directory `canary`, which holds `file` and
`d/file`; all its names are writable by all. What each of them comes to is in `testdata/hostile/layers`.
"""

import bz2
import lzma

from craft import (END, binary, directory, entry, fifo, file, hardlink, header, long_name, pax, pax_raw, record, symlink, xattr,
                   zipped, zstd)

CAPABILITY = b"\x01\0\0\x02\0\x04\0\0" + bytes(12)


def layers(canary):
    """Every hostile layer by name, as (tars, what packs them)."""
    up = b"../" * 12 + canary.lstrip(b"/")
    table = {}
    for part in (names, links(canary, up), links_below(canary, up), hard_links(canary, up), whiteouts(canary), kinds, numbers,
                 pax_records(canary, up), attributes, archives, replacements):
        for name, tars in (part() if callable(part) else part).items():
            assert name not in table, name
            tars = tars if isinstance(tars, list) else [tars]
            table[name] = ([tar + END for tar in tars], None)
    table.update(raw())
    return table


def names():
    """Names that lead up, that are none, that are long, that are alike."""
    made = {
        "file": lambda path: file(path), "directory": lambda path: directory(path), "link": lambda path: symlink(path, b"t"),
        "fifo": lambda path: fifo(path), "hard link": lambda path: file(b"own") + hardlink(path, b"own"),
        "whiteout": lambda path: file(path.rpartition(b"/")[0] + b"/.wh.e", b""),
        "opaque": lambda path: file(path.rpartition(b"/")[0] + b"/.wh..wh..opq", b""),
    }
    places = {"above": b"../e", "above from inside": b"a/../../e", "above the root": b"/../e", "far above": b"../../../../../../e"}
    table = {f"name: {kind} {place}": make(path) for place, path in places.items() for kind, make in made.items()}
    table |= {
        "name: the parent": directory(b".."), "name: the parent as a file": file(b".."), "name: dots inside": file(b"a/../f"),
        "name: the root as a file": file(b"."), "name: the root as a link": symlink(b"/", b"t"), "name: none": file(b""),
        "name: slashes only": directory(b"///"), "name: absolute": file(b"/f"), "name: absolute twice": file(b"//f"),
        "name: dots and slashes": file(b"./a//.//f"), "name: file with a slash": file(b"f/"), "name: link with a slash": symlink(b"l/", b"t"),
        "name: three dots": file(b".../f"), "name: blank": file(b" "), "name: dash": file(b"-rf"), "name: newline": file(b"a\nb"),
        "name: escapes": file(b"\x1b[31mred\x07"), "name: backslashes": file(b"..\\..\\e"), "name: not UTF-8": file(b"\xff\xfe"),
        "name: 255 bytes": pax(path=b"n" * 255) + file(b"f"), "name: 256 bytes": pax(path=b"n" * 256) + file(b"f"),
        "name: 4096 bytes": pax(path=b"d/" * 2047 + b"ff") + file(b"f"), "name: 4097 bytes": pax(path=b"d/" * 2048 + b"f") + file(b"f"),
        "name: prefix leads up": entry(b"e", prefix=b"../.."), "name: absolute prefix": entry(b"e", b"x", prefix=b"/a"),
        "name: twins of case": file(b"Name", b"1") + file(b"name", b"2"),
        "name: twins of Unicode": file("\u00e9".encode(), b"1") + file("e\u0301".encode(), b"2"),
        "name: NUL in the middle": entry(b"a\0/../../e", b"x"), "name: GNU leads up": long_name(b"../e") + file(b"f"),
    }
    return table


THROUGH = {  # what is done through the link `l`
    "file": lambda: file(b"l/file", b"own"), "file deeper": lambda: file(b"l/d/file", b"own"),
    "directory": lambda: directory(b"l/d", mode=0o700), "the link listed as a directory": lambda: directory(b"l") + file(b"l/f"),
    "link": lambda: symlink(b"l/new", b"t"), "fifo": lambda: fifo(b"l/new"), "hard link from": lambda: hardlink(b"h", b"l/file"),
    "hard link into": lambda: file(b"own") + hardlink(b"l/new", b"own"), "whiteout": lambda: file(b"l/.wh.file", b""),
    "opaque": lambda: file(b"l/.wh..wh..opq", b""), "file over it": lambda: file(b"l", b"own"),
    "attributes": lambda: xattr(b"user.x", b"1") + directory(b"l/d", mode=0o4777, uid=5),
}


def links(canary, up):
    targets = {"absolute": canary, "up": up, "through this process": b"/proc/self/root" + canary}
    table = {f"link {way}: {what}": symlink(b"l", target) + make() for way, target in targets.items() for what, make in THROUGH.items()}
    chain = lambda length: b"".join(symlink(b"l" if at == 0 else b"l%d" % at, b"l%d" % (at + 1)) for at in range(length))  # noqa: E731
    return table | {
        "link chain: two": symlink(b"l", b"m") + symlink(b"m", up) + file(b"l/file"),
        "link chain: from a directory": directory(b"a/b") + symlink(b"a/b/l", b"../../../../" + up) + file(b"a/b/l/file"),
        "link chain: of parts": symlink(b"a", b".") + symlink(b"a/b", b"a/..") + symlink(b"l", b"a/b/" + up) + file(b"l/file"),
        "link chain: 40": chain(40) + file(b"l/file"), "link chain: 41": chain(41) + file(b"l/file"),
        "link loop: itself": symlink(b"l", b"l") + file(b"l/file"), "link loop: two": symlink(b"l", b"m") + symlink(b"m", b"l") + file(b"l/f"),
        "link loop: grows": symlink(b"l", b"l/l") + file(b"l/f"), "link: dangling": symlink(b"l", b"nowhere/at/all") + file(b"l/file"),
        "link: to nothing": entry(b"l", kind=b"2", link=b""), "link: to the root": symlink(b"l", b"/") + file(b"l/l", b"own"),
        "link: to itself as a directory": symlink(b"l", b".") + file(b"l/l/l/f"), "link: of 4096 bytes": symlink(b"l", b"t" * 4096),
        "link: of 4095 bytes": symlink(b"l", b"t" * 4095), "link: with content": entry(b"l", b"xyz", kind=b"2", link=b"t"),
        "link: longer through a link": symlink(b"l", b"d/" * 2000) + directory(b"d/" * 40) + pax(path=b"l/" + b"d/" * 2000 + b"f") + file(b"f"),
        "link: target not UTF-8": symlink(b"l", b"\xff\n\x1b"),
    }


def links_below(canary, up):
    """The same, where the link is of a lower layer."""
    table = {f"link below: {what}": [symlink(b"l", canary), make()] for what, make in THROUGH.items()}
    return table | {
        "link below: to a file": [symlink(b"l", canary + b"/file"), file(b"l", b"own", mode=0o600)],
        "link below: replaced by a directory": [symlink(b"l", up), file(b".wh.l", b"") + file(b"l/file", b"own")],
        "link below: over a directory": [file(b"l/file", b"own"), symlink(b"l", canary), file(b"l/file", b"third")],
        "link below: whiteout of it": [symlink(b"l", canary), file(b".wh.l", b"")],
    }


def hard_links(canary, up):
    own = file(b"f", b"own")
    return {
        "hard link: absolute, outside": hardlink(b"h", canary + b"/file"), "hard link: up": hardlink(b"h", up + b"/file"),
        "hard link: to a link outside": symlink(b"l", canary + b"/file") + hardlink(b"h", b"l") + file(b"h", b"own"),
        "hard link: through a link inside": own + symlink(b"l", b".") + hardlink(b"h", b"l/f"),
        "hard link: of a link, written through": symlink(b"l", canary) + hardlink(b"h", b"l") + file(b"h/file", b"own"),
        "hard link: to a directory": directory(b"d") + hardlink(b"h", b"d"), "hard link: to the root": hardlink(b"h", b"/"),
        "hard link: to itself": own + hardlink(b"f", b"f"), "hard link: to what comes later": hardlink(b"h", b"f") + own,
        "hard link: to nothing": entry(b"h", kind=b"1"), "hard link: to the layer below": [own, hardlink(b"h", b"f")],
        "hard link: to a whiteout": [own, file(b".wh.f", b"") + hardlink(b"h", b"f")],
        "hard link: to a whiteout by its name": [own, file(b".wh.f", b"") + hardlink(b"h", b".wh.f")],
        "hard link: to a fifo": fifo(b"p") + hardlink(b"h", b"p"), "hard link: to a device": entry(b"n", kind=b"3", device=(1, 3)) + hardlink(b"h", b"n"),
        "hard link: a chain": own + b"".join(hardlink(b"h%d" % (at + 1), b"h%d" % at if at else b"f") for at in range(50)),
        "hard link: with content": own + entry(b"h", b"xyz", kind=b"1", link=b"f"), "hard link: name is a whiteout": own + hardlink(b".wh.g", b"f"),
        "hard link: setuid on one name": own + hardlink(b"h", b"f") + file(b"h", b"other", mode=0o4755),
        "hard link: of 4097 bytes": own + hardlink(b"h", b"t" * 4097),
    }


def whiteouts(canary):
    below = directory(b"d") + file(b"d/old", b"old") + file(b"f", b"old")
    def over(top):
        return [below, top]
    return {
        "whiteout: of no name": over(file(b".wh.", b"")), "whiteout: of the directory": over(file(b"d/.wh..", b"")),
        "whiteout: of the parent": over(file(b"d/.wh...", b"")), "whiteout: of a whiteout": over(file(b".wh..wh.f", b"")),
        "whiteout: of nothing": over(file(b".wh.nothing", b"")), "whiteout: in a directory that is none": over(file(b"f/.wh.x", b"")),
        "whiteout: with children": over(file(b".wh.d/f", b"")), "whiteout: as a directory": over(directory(b".wh.f")),
        "whiteout: as a link": over(symlink(b".wh.f", canary)), "whiteout: as a fifo": over(fifo(b".wh.f")),
        "whiteout: as a device": over(entry(b".wh.f", kind=b"3", device=(1, 3))), "whiteout: with content": over(file(b".wh.f", b"content")),
        "whiteout: of 255 bytes": over(pax(path=b".wh." + b"n" * 251) + file(b"w", b"")),
        "whiteout: setuid": over(file(b".wh.f", b"", mode=0o4755, uid=7)),
        "whiteout: and a file": over(file(b".wh.f", b"") + file(b"f", b"new")), "whiteout: after the file": over(file(b"f", b"new") + file(b".wh.f", b"")),
        "whiteout: and a directory": over(file(b".wh.d", b"") + file(b"d/new", b"new")), "whiteout: of all, one by one": over(file(b".wh.d", b"") + file(b".wh.f", b"")),
        "opaque: of the root": over(file(b".wh..wh..opq", b"") + file(b"new", b"new")),
        "opaque: of a directory": over(file(b"d/.wh..wh..opq", b"") + file(b"d/new", b"new")),
        "opaque: at the end": over(file(b"d/new", b"new") + file(b"d/.wh..wh..opq", b"")),
        "opaque: of a file": over(file(b"f/.wh..wh..opq", b"")), "opaque: as a directory": over(directory(b"d/.wh..wh..opq")),
        "opaque: below one": over(file(b"d/.wh..wh..opq/x", b"")), "opaque: of nothing": over(file(b"none/.wh..wh..opq", b"")),
        "whiteout: AUFS's files": over(directory(b".wh..wh.plnk") + file(b".wh..wh.plnk/1.2", b"x") + file(b".wh..wh.aufs", b"")),
        "whiteout: AUFS's files elsewhere": over(file(b"d/.wh..wh.plnk", b"")), "whiteout: in the lowest layer": file(b".wh.f", b"") + file(b"d/.wh.g", b""),
        "whiteout: overlay's device": over(entry(b"f", kind=b"3")), "whiteout: overlay's attribute": over(xattr(b"trusted.overlay.whiteout", b"y") + file(b"f", b"")),
        "whiteout: overlay's attribute of users": over(xattr(b"user.overlay.whiteout", b"y") + file(b"f", b"")),
        "opaque: overlay's attribute": over(xattr(b"trusted.overlay.opaque", b"y") + directory(b"d")),
        "opaque: overlay's attribute of users": over(xattr(b"user.overlay.opaque", b"y") + directory(b"d")),
        "whiteout: comes back": [below, file(b".wh.f", b""), file(b"f", b"third")],
    }


def kinds():
    """Entries that are no files."""
    table = {f"kind: {name}": entry(b"n", kind=kind, device=device) for name, kind, device in (
        ("null", b"3", (1, 3)), ("memory", b"3", (1, 1)), ("a disk", b"4", (254, 0)), ("block 0:0", b"4", (0, 0)),
        ("FUSE", b"3", (10, 229)), ("fifo", b"6", (0, 0)), ("contiguous", b"7", (0, 0)))}
    table |= {f"kind: {kind.decode()}": entry(b"n", kind=kind) for kind in (b"S", b"V", b"M", b"D", b"N", b"A", b"X", b"Z", b"9")}
    return table | {
        "kind: major number too large": entry(b"n", kind=b"3", device=(binary(1 << 40, 8), 0)),
        "kind: negative device": entry(b"n", kind=b"3", device=(binary(-1, 8), 0)), "kind: device with content": entry(b"n", b"xyz", kind=b"3", device=(1, 3)),
        "kind: fifo with content": entry(b"n", b"xyz", kind=b"6"), "kind: directory with content": entry(b"n", b"xyz", kind=b"5"),
        "kind: setuid": file(b"s", b"x", mode=0o6755), "kind: sticky file": file(b"s", b"x", mode=0o1644),
        "kind: setuid directory": directory(b"s", mode=0o7777), "kind: mode 0": file(b"s", b"x", mode=0) + directory(b"t", mode=0),
    }


def numbers():
    return {
        "number: negative size": header(b"f", size=binary(-1, 12)), "number: size of 2^62": header(b"f", size=binary(1 << 62, 12)),
        "number: size of 2^63": header(b"f", size=binary(1 << 63, 12)), "number: size of 2^90": header(b"f", size=binary(1 << 90, 12)),
        "number: size of 8 GiB and no content": header(b"f", size=b"7" * 11), "number: size is no number": header(b"f", size=b"12x\0"),
        "number: size in decimal": header(b"f", size=b"00000000009\0"), "number: size is minus one": header(b"f", size=b"-0000000001\0"),
        "number: owner of 2^32": file(b"f", uid=binary(1 << 32, 8)), "number: owner is minus one": file(b"f", uid=binary(-1, 8)),
        "number: owner of 2^32-1": file(b"f", uid=binary((1 << 32) - 1, 8)), "number: group of 2^63": file(b"f", gid=b"\x80" + b"\xff" * 7),
        "number: owner is no number": file(b"f", uid=b"root\0\0\0\0"), "number: mode is no number": file(b"f", mode=b"rwxr-x-\0"),
        "number: mode of all bits": file(b"f", mode=b"7777777\0"), "number: negative mode": file(b"f", mode=binary(-1, 8)),
        "number: before 1970": file(b"f", mtime=binary(-1, 12)), "number: time of 2^40": file(b"f", mtime=binary(1 << 40, 12)),
        "number: time of 2^62": file(b"f", mtime=binary(1 << 62, 12)), "number: time of 2^90": file(b"f", mtime=binary(1 << 90, 12)),
        "number: wrong checksum": header(b"f", checksum=b"000000\0 "), "number: checksum is no number": header(b"f", checksum=b"\xff" * 8),
        "number: no magic": file(b"f", magic=b"\0" * 8), "number: GNU's magic": file(b"f", magic=b"ustar  \0"),
    }


def pax_records(canary, up):
    hidden = file(b"hidden", b"")
    table = {
        "leads up": pax(path=b"../e") + file(b"f"), "absolute path outside": pax(path=canary + b"/file") + file(b"f", b"own"),
        "link target outside": pax(linkpath=canary) + symlink(b"l", b"t") + file(b"l/file", b"own"),
        "hard link outside": pax(linkpath=up + b"/file") + entry(b"h", kind=b"1", link=b"f"),
        "size hides an entry": pax(size=b"512") + header(b"f") + hidden + file(b"after"),
        "size shows an entry": pax(size=b"0") + header(b"f", size=512) + hidden, "size beyond the end": pax(size=b"99999999999999") + file(b"f"),
        "size of 2^63": pax(size=b"9223372036854775808") + file(b"f"), "negative size": pax(size=b"-1") + file(b"f"), "size is no number": pax(size=b"0x10") + file(b"f"),
        "size of a directory": pax(size=b"512") + directory(b"d") + hidden, "size of a link": pax(size=b"512") + symlink(b"l", b"t") + hidden,
        "size twice": pax((b"size", b"0"), (b"size", b"1")) + file(b"f"), "path twice": pax((b"path", b"../e"), (b"path", b"g")) + file(b"f"),
        "path taken back": pax((b"path", b"../e"), (b"path", b"")) + file(b"f"), "NUL in the path": pax(path=b"a\0b") + file(b"f"),
        "NUL in the link": pax(linkpath=b"a\0b") + symlink(b"l", b"t"), "newline in the path": pax(path=b"a\n13 path=evil\n") + file(b"f"),
        "unknown": pax((b"LAYERWRIGHT.evil", b"1"), (b"comment", b"x" * 999)) + file(b"f"), "two headers": pax(uid=b"1") + pax(uid=b"2") + file(b"f"),
        "with GNU's name": pax(path=b"a") + long_name(b"b") + file(b"f"), "size, then GNU's name": pax(size=b"1") + long_name(b"n") + file(b"f"),
        "GNU's name twice": long_name(b"a") + long_name(b"b") + file(b"f"), "GNU's target outside": long_name(canary, b"K") + symlink(b"l", b"t") + file(b"l/file"),
        "before nothing": pax(uid=b"1"), "GNU's name before nothing": long_name(b"a"), "of 2 MiB": pax(comment=b"x" * (2 << 20)) + file(b"f"),
        "GNU's name of 2 MiB": long_name(b"n" * (2 << 20)) + file(b"f"), "GNU's name with NULs": long_name(b"a\0../e") + file(b"f"),
        "owner of 2^32": pax(uid=b"4294967296") + file(b"f"), "owner of 2^32-1": pax(uid=b"4294967295") + file(b"f"),
        "group is no number": pax(gid=b"staff") + file(b"f"), "time of 10^30": pax(mtime=b"1" + b"0" * 30) + file(b"f"),
        "time is no number": pax(mtime=b"nan") + file(b"f"), "time of -2^63": pax(mtime=b"-9223372036854775808") + file(b"f"),
        "time of many digits": pax(mtime=b"1." + b"9" * 5000) + file(b"f"),
        "device numbers": pax((b"SCHILY.devmajor", b"8"), (b"SCHILY.devminor", b"0")) + entry(b"n", kind=b"3", device=(1, 3)),
    }
    malformed = {"length too long": b"99 a=b\n", "length too short": b"3 a=b\n", "no length": b" a=b\n", "length of 10^30": b"1" + b"0" * 30 + b" a=b\n",
                 "negative length": b"-6 a=b\n", "length is not decimal": b"0x7 a=b\n", "no newline": b"6 a=b ", "no equals sign": b"5 ab\n",
                 "no key": b"5 =b\n", "NUL in the key": record(b"a\0b", b"c"), "zeros": bytes(512), "rest": record(b"uid", b"1") + b"7 "}
    table |= {name: pax_raw(content) + file(b"f") for name, content in malformed.items()}
    table |= {f"global {key.decode()}": pax_raw(record(key, value), b"g") + file(b"f") for key, value in (
        (b"path", b"../e"), (b"linkpath", canary), (b"size", b"0"), (b"uid", b"0"), (b"comment", b"0123456789abcdef"), (b"mtime", b"1"))}
    sparse = {"0.0": [(b"GNU.sparse.size", b"1000000000"), (b"GNU.sparse.numblocks", b"0")],
              "0.1": [(b"GNU.sparse.map", b"0,1,999999999,1"), (b"GNU.sparse.size", b"1000000000")],
              "1.0": [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"1000000000")],
              "by another name": [(b"GNU.sparse.name", b"../e")]}
    table |= {f"sparse {form}": pax(*records) + file(b"f", b"1\n0\n1\n") for form, records in sparse.items()}
    return {f"PAX: {name}": tars for name, tars in table.items()}


def attributes():
    values = {
        "a capability": (b"security.capability", CAPABILITY), "a capability cut short": (b"security.capability", CAPABILITY[:9]),
        "a capability of version 9": (b"security.capability", b"\0\0\0\x09" + bytes(16)),
        "a capability with a root of its own": (b"security.capability", b"\x01\0\0\x03" + bytes(16) + b"\xe8\x03\0\0"),
        "redirect": (b"trusted.overlay.redirect", b"/etc"), "redirect of users": (b"user.overlay.redirect", b"/etc"),
        "metacopy": (b"trusted.overlay.metacopy", b""), "origin": (b"trusted.overlay.origin", b"\0\xfb\x1d\0" + bytes(25)),
        "trusted": (b"trusted.x", b"1"), "SELinux": (b"security.selinux", b"system_u:object_r:shadow_t:s0"), "IMA": (b"security.ima", b"\x01" * 21),
        "an access list": (b"system.posix_acl_access", b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x04\0\x04\0\xff\xff\xff\xff\x20\0\x04\0\xff\xff\xff\xff"),
        "an access list of rubbish": (b"system.posix_acl_access", b"\xff" * 30), "a default list on a file": (b"system.posix_acl_default", b"\x02\0\0\0"),
        "of a user": (b"user.x", b"a\nb\0c"), "of no name": (b"", b"1"), "of no kind": (b"x", b"1"), "of no such kind": (b"evil.x", b"1"),
        "name of 256 bytes": (b"user." + b"n" * 251, b"1"), "name with NUL": (b"user.\0x", b"1"), "value of 64 KiB and one": (b"user.x", b"v" * 65537),
        "name leads up": (b"user.../../x", b"1"),
    }
    table = {f"attribute: {name}": xattr(*pair) + file(b"f") for name, pair in values.items()}
    for kind, make in (("link", lambda: symlink(b"n", b"t")), ("fifo", lambda: fifo(b"n")), ("device", lambda: entry(b"n", kind=b"3", device=(1, 3)))):
        table[f"attribute: of a user on a {kind}"] = xattr(b"user.x", b"1") + make()
    table["attribute: 65 of them"] = pax(*((b"SCHILY.xattr.user.%d" % at, b"1") for at in range(65))) + file(b"f")
    table["attribute: in another dialect"] = pax((b"LIBARCHIVE.xattr.user.x", b"MQ"), (b"SCHILY.acl.access", b"user::rwx")) + file(b"f")
    return table


def archives():
    tail = file(b"hidden")
    return {
        "archive: one block of zeros": file(b"f") + bytes(512) + tail, "archive: rubbish after the end": file(b"f") + END + b"\xff" * 5000,
        "archive: another after the end": file(b"f") + END + tail, "archive: nothing but its end": b"",
        "archive: rubbish between": file(b"f") + b"\xff" * 512 + tail, "archive: text": b"#!/bin/sh\necho this is no archive\n" * 40,
        "archive: 3000 entries of one directory": b"".join(file(b"d/%d" % at, b"") for at in range(3000)),
        "archive: 2047 directories deep": pax(path=b"d/" * 2047) + directory(b"d"),
        "archive: 60 deep, by links": b"".join(directory(b"d/" * 30 + b"%d" % at) for at in range(10)) + symlink(b"l", b"d/" * 30) + file(b"l/" + b"d/" * 30 + b"f"),
        "archive: 3000 names of one file": file(b"f") + b"".join(hardlink(b"h/%d" % at, b"f") for at in range(3000)),
        "archive: one path 2000 times": b"".join(file(b"f", b"%d" % at) + directory(b"f") for at in range(1000)),
    }


def replacements():
    outside = symlink(b"d", b"/")
    return {
        "replaced: file, directory, link": file(b"d") + directory(b"d") + outside + file(b"d/f", b"own"),
        "replaced: link, directory": outside + directory(b"d") + file(b"d/f", b"own"), "replaced: directory, link": file(b"d/f", b"own") + outside + file(b"d/g"),
        "replaced: a parent by a file": file(b"d/f") + file(b"d") + file(b"d/g"), "replaced: a file as a parent": file(b"d") + file(b"d/f"),
        "replaced: link twice": outside + symlink(b"d", b"e") + file(b"d/f", b"own"), "replaced: fifo, file": fifo(b"f") + file(b"f", b"own"),
        "replaced: file, fifo": file(b"f") + fifo(b"f"), "replaced: device, file": entry(b"f", kind=b"3", device=(1, 3)) + file(b"f", b"own"),
        "replaced: by the layer above": [file(b"d/f") + file(b"g"), file(b"d", b"own") + directory(b"g"), symlink(b"d", b"g") + file(b"g/f", b"third")],
        "replaced: a directory that is opaque": [file(b"d/f"), file(b"d/.wh..wh..opq", b"") + file(b"d") + directory(b"d")],
        "replaced: times and modes of a directory": directory(b"d", mode=0o700, mtime=5) + file(b"d/f") + directory(b"d", mode=0o711, mtime=7),
    }


def raw():
    """Blobs that are damaged as such: the tar that the diff ID is of, and what becomes of it. No two are of one tar, of which
    the second would be there already."""
    noise = b"\x00\xff rubbish" * 50

    def flipped(blob, at):
        return blob[:at] + bytes([blob[at] ^ 4]) + blob[at + 1:]

    forms = {
        "cut in a header": lambda tar: tar[:300], "cut in a file": lambda tar: tar[:5000], "of no bytes": lambda tar: b"", "cut behind a block": lambda tar: tar[:512],
        "without its end": lambda tar: tar[:-1024], "end twice": lambda tar: tar + END,
        "gzip: many members": lambda tar: b"".join(zipped(tar[at:at + 700]) for at in range(0, len(tar), 700)),
        "gzip: an empty member in between": lambda tar: zipped(tar[:600]) + zipped(b"") + zipped(tar[600:]),
        "gzip: rubbish after the end": lambda tar: zipped(tar) + noise, "gzip: zeros after the end": lambda tar: zipped(tar) + bytes(1000),
        "gzip: cut": lambda tar: zipped(tar)[:-20], "gzip: cut in its header": lambda tar: zipped(tar)[:5], "gzip: cut in its trailer": lambda tar: zipped(tar)[:-3],
        "gzip: wrong checksum": lambda tar: zipped(tar)[:-8] + bytes(4) + zipped(tar)[-4:], "gzip: wrong length": lambda tar: zipped(tar)[:-4] + b"\xff" * 4,
        "gzip: flipped bit": lambda tar: flipped(zipped(tar), 60), "gzip: twice": lambda tar: zipped(zipped(tar)),
        "gzip: unknown flags": lambda tar: b"\x1f\x8b\x08\xe0" + zipped(tar)[4:], "gzip: another method": lambda tar: b"\x1f\x8b\x07" + zipped(tar)[3:],
        "gzip: name with a path": lambda tar: b"\x1f\x8b\x08\x08" + bytes(4) + b"\0\x03../../e\0" + zipped(tar)[10:],
        "gzip: 20000 empty members": lambda tar: zipped(b"") * 20000 + zipped(tar), "zstd: cut": lambda tar: zstd(tar)[:-10], "zstd: flipped bit": lambda tar: flipped(zstd(tar), 20),
        "zstd: window of 2 GiB": lambda tar: b"\x28\xb5\x2f\xfd\x00\xa8" + zstd(tar, "--no-check", "--no-content-size")[6:],
        "zstd: skippable frames": lambda tar: b"\x50\x2a\x4d\x18\x08\0\0\0../../ev" + zstd(tar), "zstd: two frames": lambda tar: zstd(tar[:700]) + zstd(tar[700:]),
        "zstd: a dictionary that is not here": lambda tar: b"\x28\xb5\x2f\xfd\x03\x58\x01\x02\x03\x04" + zstd(tar, "--no-content-size")[6:],
        "bzip2": bz2.compress, "xz": lambda tar: lzma.compress(tar, preset=0), "rubbish": lambda tar: noise, "another tar": lambda tar: file(b"other") + END,
    }
    def tar(name):
        return file(b"f", name.encode()) + file(b"g", bytes(range(256)) * 64) + END

    table = {f"blob: {name}": ([tar(name)], form) for name, form in forms.items()}
    for name, form in (("gzip", lambda tar: zipped(tar, 9)), ("zstd", zstd)):
        table[f"blob: {name}: 16 MiB of zeros"] = ([file(name.encode(), bytes(16 << 20)) + END], form)
    return table
