"""Odd trees through a remote cache: whatever encoder filled it, what comes out is what the steps made, on disk, in the image and for
whoever goes on from there; and a manifest does not tell whether a layer was built, here, or brought.

`test_lazy` has what one step after another does to one small tree; here each tree has two steps of its own, and all that a
Linux file system knows: names of any bytes, devices, sockets, holes, access lists, times of any year. `LAYERWRIGHT_NIGHTLY=1` makes 40
trees for every user and encoder; by day there are two, of one user.
"""

import os
import random
import re
import shutil
import unittest

import support
from test_lazy import merged, meta

NIGHTLY = "LAYERWRIGHT_NIGHTLY" in os.environ

# What busybox has no tool for.
ODD = r"""
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/xattr.h>
#include <unistd.h>
/* odd attribute PATH NAME HEX | fill PATH NAME BYTES | time PATH SECONDS NANOSECONDS | socket PATH - - | holes PATH OFFSET TEXT
   | link PATH NAME - */
int main(int count, char **words) {
    if (count != 5) return 2;
    const char *path = words[2];
    static unsigned char value[65536];
    if (!strcmp(words[1], "link")) return linkat(AT_FDCWD, path, AT_FDCWD, words[3], 0) ? 1 : 0;
    if (!strcmp(words[1], "fill")) {
        for (size_t at = 0; at < sizeof value; at++) value[at] = at * 7 + at / 256;
        return lsetxattr(path, words[3], value, atoll(words[4]), 0) ? 1 : 0;
    }
    if (!strcmp(words[1], "attribute")) {
        size_t size = strlen(words[4]) / 2;
        for (size_t at = 0; at < size; at++) sscanf(words[4] + 2 * at, "%2hhx", &value[at]);
        return lsetxattr(path, words[3], value, size, 0) ? 1 : 0;
    }
    if (!strcmp(words[1], "time")) {
        struct timespec times[2] = {{atoll(words[3]), atol(words[4])}, {atoll(words[3]), atol(words[4])}};
        return utimensat(AT_FDCWD, path, times, AT_SYMLINK_NOFOLLOW) ? 1 : 0;
    }
    if (!strcmp(words[1], "socket")) {
        struct sockaddr_un name = {AF_UNIX, ""};
        strncpy(name.sun_path, path, sizeof name.sun_path - 1);
        return bind(socket(AF_UNIX, SOCK_STREAM, 0), (struct sockaddr *) &name, sizeof name) ? 1 : 0;
    }
    int file = open(path, O_WRONLY | O_CREAT, 0644);
    ssize_t size = strlen(words[4]);
    return pwrite(file, words[4], size, atoll(words[3])) == size && !ftruncate(file, 2 * atoll(words[3])) ? 0 : 1;
}
"""
NAMES = [b"a", b"b", b"c", b"d", b"d/a", b"d/b", b"d/e", b"d/e/f", b"d/e/g/h", b"sp ace", b"new\nline", b"\xff\xfe", "\u00e9".encode(),
         "e\u0301".encode(), b"-dash", b"back\\slash", b"n" * 255, b"/".join([b"deep" * 10] * 8), b"D", b"...", b"wh.a", b"tab\t"]
TIMES = [(0, 0), (1, 5), (-1, 0), (-3_000_000_000, 7), (951_782_400, 999_999_999), (1_735_689_599, 999_999_999), (1_735_689_600, 0),
         (4_102_444_800, 0), (9_000_000_000, 3)]
ACCESS = "0200000001000700ffffffff0200050001000000040005" + "00ffffffff10000700ffffffff20000500ffffffff"
CAPABILITY = "0100000200200000" + "00" * 12
ATTRIBUTES = [("user.a", ""), ("user.a", "6f6e65"), ("user.b", "00ff0a3d20"), ("user.long" + "x" * 200, "61" * 200),
              ("security.capability", CAPABILITY), ("system.posix_acl_access", ACCESS), ("system.posix_acl_default", ACCESS)]
MODES = [b"0", b"111", b"400", b"644", b"1777", b"2750", b"4755", b"6711", b"7777"]
WITNESS = b"""\
cd /t
find . | sort | while read -r path; do
  # How many links and bytes a directory has depends on how many layers show it.
  if [ -d "$path" ] && [ ! -L "$path" ]; then stat -c '%A %u:%g %n' "$path"; else stat -c '%A %u:%g %h %s %t,%T %n' "$path"; fi
  [ -L "$path" ] || [ ! -f "$path" ] || [ ! -r "$path" ] || sha256sum < "$path"
done > /out 2>&1
for tree in *; do
  mv "$tree/d" "$tree/moved"; chmod -R g+w "$tree/moved"; ln "$tree/a" "$tree/again"; rm -rf "$tree/c"; echo more >> "$tree/b"
done 2> /dev/null
true
"""


# Each line is tried, and whether it can be done is part of the layer. What a name ends with says who can.
BELOW = """\
d        mkdir d dir; echo below > d/kept; echo below > d/changed; echo below > d/gone; cp d/kept dir/f
f        echo file > f; echo one > one; ln one two; mkfifo pipe
times    odd time f 5 5; odd time d -7 250000000; odd time one 1735689599 999999999
"""
CHANGED = """\
opaque   rm -rf d; mkdir d; echo below > d/kept; echo above > d/changed; odd time d 1000 1
swapped  rm -rf dir f; echo now > dir; mkdir f; echo now > f/dir; echo more >> one
deep     mkdir -p LONG; echo deep > LONG/f; odd attribute LONG/f user.deep 00ff
names    mkdir N255 "$(printf '\\377\\001')"; echo x > N255/N255; ln -s N255 "$(printf '\\377\\001/\\376')"
modes    mkdir m1 m2 m3; chmod 1777 m1; chmod 2755 m2; chmod 6711 m3; chmod 0 pipe; chmod 7000 two
times    mkdir t; for at in 0 -1 -62135596800 253402300800 8589934592; do echo $at > t/$at; odd time t/$at $at 7; done
links    ln -s nowhere l; odd link l m -; odd link pipe d/pipe -; odd time l 77 77
holes    odd holes sparse 5000000 x; odd holes dense 10 x
binary   odd attribute d user.binary 000aff3d2200; odd fill f user.4000 3000
ownlist  odd attribute pipe system.posix_acl_access OWN; mkdir o; odd attribute o system.posix_acl_default OWN; echo x > o/f
list     odd attribute pipe system.posix_acl_access ACCESS; odd attribute d system.posix_acl_default ACCESS
overlay  odd attribute d user.overlay.note 79
cap      odd attribute one security.capability CAPABILITY
caplink  ln -s x lc; odd attribute lc security.capability CAPABILITY
64k      odd fill one user.64k 65536
pipeuser odd attribute pipe user.a 00
linkuser odd attribute l user.a 00
linklist odd attribute l system.posix_acl_access ACCESS
trusted  odd attribute d trusted.overlay.opaque 79
trust    odd attribute d trusted.note 79
selinux  odd attribute d security.note 79
zero     mknod zero c 0 0
device   mknod null c 1 3; odd link null same -; odd attribute null system.posix_acl_access ACCESS
block    mknod sd b 8 300; odd attribute sd security.capability CAPABILITY
caproot  odd attribute two security.capability ROOTED
owner    chown -h 7:8 l; chown 5:6 sparse; chmod 4750 sparse
"""
# What nobody can do, and what needs more than an ordinary user has. A file system with less room for attributes than Linux
# allows (ext4: one block) refuses the large one.
NEVER = {"pipeuser", "linkuser", "linklist", "trusted", "trust", "selinux", "zero"}
NEEDS = {"root": set(), "lw-sub": {"device", "block"}, "lw-one": {"device", "block", "caproot", "list", "owner"}}
MAYBE = {"64k"}


def tried(lines):
    """A script that tries lines, and says in /tried which could be done."""
    words = {"LONG": "/".join(["deep" * 50] * 18), "N255": "n" * 255, "ACCESS": ACCESS, "CAPABILITY": CAPABILITY,
             "OWN": ACCESS.replace("0200050001000000", "0200050000000000"),
             "ROOTED": CAPABILITY.replace("02", "03", 1) + "e8030000"}
    script = "mkdir -p /t/0 && cd /t/0 || exit 1\n"
    for line in lines.splitlines():
        name, commands = line.split(maxsplit=1)
        for word, text in words.items():
            commands = commands.replace(word, text)
        script += f"( set -e; {commands}; ) 2> /dev/null; echo {name} $? >> /tried\n"
    return script


def quoted(name):
    return b"'./" + name + b"'"


def made(noise):
    """A command that makes something below the current directory, or changes it, if it can."""
    one, other = noise.choice(NAMES), noise.choice(NAMES)
    path, second = quoted(one), quoted(other)
    above = quoted(one + b"/..")
    text = b"%d" % noise.randrange(10**9)
    seconds, nanoseconds = noise.choice(TIMES)
    attribute, value = noise.choice(ATTRIBUTES)
    make = b"mkdir -p %s; rmdir %s; " % (path, path)
    return noise.choice([
        make + b"echo %s > %s" % (text, path),
        make + b"seq %d > %s" % (noise.randint(1, 20_000), path),
        b"true > %s" % path,
        b"odd holes %s %d %s" % (path, noise.choice([4096, 100_000, 3_000_000]), text),
        b"mkdir -p %s" % path,
        b"rm -rf %s" % path,
        b"rm -rf %s; mkdir -p %s; echo new > %s/new" % (path, path, path),
        b"rm -rf %s; ln -s %s %s" % (path, noise.choice([second, b"/" + b"l" * 300, b"nowhere", b"'new\nline'"]), path),
        b"ln -f %s %s" % (path, second),
        b"ln -f %s %s.same; ln -f %s.same %s.third" % (path, path, path, path),
        b"mv %s %s" % (path, second),
        b"cp -a %s %s" % (path, second),
        # Under a name that nobody writes to: that would wait for a reader.
        b"mkdir -p %s; mkfifo %s/pipe" % (path, path),
        b"rm -rf %s; mknod %s c 1 3" % (path, path),
        b"rm -rf %s; mknod %s b 240 %d" % (path, path, noise.randint(0, 300)),
        b"rm -rf %s; odd socket %s - -" % (path, path),
        b"chmod %s %s" % (noise.choice(MODES), path),
        b"chown -h %d:%d %s" % (noise.choice([0, 1, 1000, 60_000]), noise.choice([0, 5, 1000]), path),
        b"odd time %s %d %d" % (path, seconds, nanoseconds),
        b"odd time %s %d %d" % (above, seconds, nanoseconds),
        b"odd attribute %s %s '%s'" % (path, attribute.encode(), value.encode()),
        b"odd attribute %s %s '%s'" % (above, attribute.encode(), value.encode()),
        b"rm -f %s/*; touch %s" % (path, path),
    ])


def script(noise, tree, count):
    commands = b"".join(b"{ %s; } 2> /dev/null\n" % made(noise) for _ in range(count))
    return b"mkdir -p /t/%d && cd /t/%d || exit 1\n%strue\n" % (tree, tree, commands)


class Trees(support.Case):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.odd = cls.program("odd", ODD)

    def trees(self, user, count):
        """A context: each tree is made by one step, and changed by another one."""
        context = self.context(f"trees-{user}")
        (context / "witness").write_bytes(WITNESS)
        shutil.copy2(self.odd, context)
        lines = ["FROM busybox AS trees", "COPY --chmod=755 odd /bin/", "COPY s* w* /s/"]
        for tree in range(count):
            noise = random.Random(f"{tree}")
            for step, size in (("make", 30), ("change", 15)):
                (context / f"s{tree}{step}").write_bytes(script(noise, tree, size))
                lines.append(f"RUN sh /s/s{tree}{step}")
        lines += ["FROM trees AS read", "ARG AGAIN=0", "RUN : $AGAIN; sh /s/witness"]
        lines += ["FROM busybox AS copied", "COPY --from=trees /t /copied"]
        (context / "Dockerfile").write_text("\n".join(lines) + "\n")
        return context

    def image(self, user, store, target, out="", **options):
        """Builds a target; its image."""
        self.number = getattr(self, "number", 0) + 1
        arguments = options.pop("arguments", ())
        path = self.directory(f"out{self.number}", user) / "image"
        done = self.run_layerwright(
            "build", "--progress", "plain", "--target", target, "-o", f"type=oci,tar=false,dest={path}{out}", *arguments,
            self.project, user=user, root=store, **options)
        told = re.search(r"(\d+) steps?, (\d+) cached$", done.stderr, re.MULTILINE)
        self.ran = int(told[1]) - int(told[2])
        return support.Layout(path)

    # Ways to read the trees: target, output, environment.
    WAYS = {
        "nothing is read": ("trees", "", {}),
        "all is packed anew": ("trees", ",compression=zstd,force-compression=true", {}),
        "times are clamped": ("trees", ",rewrite-timestamp=true", {"SOURCE_DATE_EPOCH": "900000000"}),
        "a step reads them": ("read", "", {}),
        "a COPY reads them": ("copied", "", {}),
    }

    def image_by(self, way, user, store, *arguments):
        target, out, env = self.WAYS[way]
        return self.image(user, store, target, out, env=env, arguments=arguments)

    def check(self, user, count, encoders, ways):
        self.project = self.trees(user, count)
        first = self.directory(f"first-{user}", user)
        wanted = {way: self.image_by(way, user, first) for way in ways}
        if count > 4:
            # Having run the steps once more.
            again = self.directory(f"again-{user}", user)
            self.assertEqual(self.image_by(ways[0], user, again).digest, wanted[ways[0]].digest)
            self.assertGreater(self.ran, count)
        for encoder in encoders:
            cache = self.directory(f"cache-{user}-{encoder}", user)
            fill = f"type=local,dest={cache},tag=main,compression={encoder},force-compression=true"
            # Here, while the cache is filled.
            self.assertEqual(self.image(user, first, "trees", arguments=["--cache-to", fill]).digest,
                             self.image(user, first, "trees").digest)
            for way in ways:
                with self.subTest(user=user, encoder=encoder, way=way):
                    store = self.directory(f"{encoder}-{user}-{ways.index(way)}", user)
                    source = ["--cache-from", f"type=local,src={cache},tag=main"]
                    found = self.image_by(way, user, store, *source)
                    # Nobody waits for a cache: a busy machine may have begun before it heard of it.
                    self.assertLessEqual(self.ran, max(3, count // 4), "trees were cached")
                    self.same_layers(wanted[way], found)
                    self.same_disks(first, store)
                    # What was brought is here, and the cache is not needed.
                    if way == "a step reads them":
                        self.assertEqual(self.image_by(way, user, store).digest, found.digest)
                        self.assertEqual(self.image(user, store, "trees").digest, self.image(user, first, "trees").digest)
                    shutil.rmtree(store)

    def same_layers(self, wanted, found):
        """The same image; if not, what differs."""
        if wanted.digest != found.digest:
            for number, (one, other) in enumerate(zip(wanted.layers(), found.layers())):
                self.assertEqual({name: member.get_info() for name, member in one.items()},
                                 {name: member.get_info() for name, member in other.items()}, number)
            if "out" in list(wanted.layers())[-1]:
                self.assertEqual(wanted.read("out").split(b"\n"), found.read("out").split(b"\n"))
        self.assertEqual(wanted.digest, found.digest)

    def same_disks(self, first, second):
        """Every snapshot that both have is the same file system."""
        snapshots = [path.name for path in (second / "snapshots").iterdir() if (path / "meta.json").exists()]
        known = ({}, {})
        self.compared = 0
        for name in snapshots:
            if not (first / "snapshots" / name).exists():
                continue
            one, other = (merged(store, name, views) for store, views in zip((first, second), known))
            self.assertEqual({path: (one.get(path), other.get(path)) for path in one.keys() | other.keys()
                              if one.get(path) != other.get(path)}, {}, name)
            self.assertEqual(*(meta(store, name)["owners"] for store in (first, second)))
            self.compared += 1

    def test_what_a_kernel_allows_and_what_it_refuses(self):
        """The odds and ends one by one, for each user: done or refused, and the same wherever they come from."""
        for number, user in enumerate(support.USERS):
            # By day who can do all, and who can do least.
            if NIGHTLY or user != "lw-sub":
                with self.subTest(user=user):
                    self.check_odds(user, ("zstd", "uncompressed", "gzip")[number])

    def check_odds(self, user, encoder):
        context = self.context(f"odds-{user}", below=tried(BELOW), changed=tried(CHANGED))
        (context / "witness").write_bytes(WITNESS)
        shutil.copy2(self.odd, context)
        (context / "Dockerfile").write_text(
            "FROM busybox AS trees\nCOPY --chmod=755 odd /bin/\nCOPY below changed witness /s/\nRUN sh /s/below\n"
            "RUN sh /s/changed\nFROM trees AS read\nARG AGAIN=0\nRUN : $AGAIN; sh /s/witness\n")
        self.project = context
        first, second, third, cache = (self.directory(f"{name}-{user}", user) for name in ("one", "two", "three", "cached"))
        fill = f"type=local,dest={cache},tag=main,compression={encoder},force-compression=true"
        self.image(user, first, "read", arguments=["--cache-to", fill])
        trees = self.image(user, first, "trees")
        done = dict(line.split() for line in trees.read("tried").decode().splitlines())
        self.assertEqual({name for name, code in done.items() if code != "0"} - MAYBE, NEVER | NEEDS[user])
        source = ["--cache-from", f"type=local,src={cache},tag=main"]
        self.same_layers(trees, self.image(user, third, "trees", arguments=source))
        again = ["--build-arg", "AGAIN=1"]
        wanted = self.image(user, first, "read", arguments=again)
        self.same_layers(wanted, self.image(user, second, "read", arguments=[*again, *source]))
        self.same_disks(first, second)
        self.assertGreater(self.compared, 1)
        for store in (first, second):
            self.run_layerwright("fsck", "--root", store, user=user)

    def test_odd_trees_are_what_their_steps_made(self):
        encoders = ("gzip", "zstd", "uncompressed")
        if not NIGHTLY:
            return self.check("lw-sub", 2, ["zstd"], ["times are clamped", "a step reads them"])
        for user in support.USERS:
            self.check(user, 40, encoders, list(self.WAYS))


if __name__ == "__main__":
    unittest.main()
