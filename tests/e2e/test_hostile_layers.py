"""Hostile layers: whatever an image holds, nothing outside is read or changed, and it is unpacked as written down or refused."""

import itertools
import os
import re
import shutil
import tarfile
import unittest
from concurrent.futures import ThreadPoolExecutor

from craft import Image
from hostile import NIGHTLY, Hostile, kinds, layout_contexts
from hostile_layers import layers
from support import USERS, Layout

# Runs in the image, with programs and eyes that are not the image's.
LOOK = r"""cd /
own() { find . -xdev \( -path ./proc -o -path ./sys -o -path ./dev -o -path ./.look -o -path ./.seen \
    -o -path ./etc/hosts -o -path ./etc/resolv.conf \) -prune -o "$@"; }
{ own -type d -print0 | xargs -0 stat -c '%A %u:%g %n'
  own -type l -print0 | xargs -r -0 stat -c '%A %u:%g %N, %h names'
  own ! -type d ! -type l -print0 | xargs -r -0 stat -c '%A %u:%g %n, %h names, %s bytes, device %t,%T'
  own -type f -size -3 -print0 | LC_ALL=C sort -z | head -c 4000 | xargs -r -0 sh -c 'for f; do printf "holds 0:0 %s: " "$f"; head -c 60 "$f"; echo; done' sh
} | cat -v | LC_ALL=C sort -k 3 > /.seen
"""
RUN = 'RUN --mount=type=bind,from=look,target=/.look ["/.look/bin/busybox", "env", "PATH=/.look/bin", "/.look/bin/sh", "/.look/look"]\n'
# By night all; by day root has one of every family and of every error, and an ordinary user every so-manieth of these.
ALL = NIGHTLY or bool(os.environ.get("UPDATE_EXPECT"))
SAMPLE = 1 if ALL else 8


class Layers(Hostile):
    def setUp(self):
        super().setUp()
        self.table = layers(os.fsencode(self.canary))
        self.assertGreaterEqual(len(self.table), 150)
        self.attempts = itertools.count()
        self.numbers = {case: f"case{number}" for number, case in enumerate(self.table)}
        self.cases = {number: case for case, number in self.numbers.items()}

    def layout(self, number):
        """The OCI layout of a case, written when it is first asked for."""
        path = self.scratch / "layouts" / number
        if not path.exists():
            tars, pack = self.table[self.cases[number]]
            Image(*tars, pack=pack).write(path)
        return path

    def attempt(self, name, dockerfile, user="root", **files):
        """A build with all cases as images; gives its layout, or the failure."""
        name = f"{name}-{next(self.attempts)}"
        context = self.context(f"context-{name}", Dockerfile=dockerfile, **files)
        layouts = {number: self.layout(number) for number in set(re.findall(r"\bcase\d+", dockerfile))}
        out = self.scratch / f"out-{name}"
        out.mkdir()
        shutil.chown(out, user, user)
        done = self.run_layerwright("build", "--progress", "plain", "-o", f"type=oci,tar=false,dest={out}/layout",
                                    *layout_contexts(layouts), context, user=user, code=None)
        return self.failure(done) or Layout(out / "layout")

    def seen(self, cases, user="root"):
        """What each of these images looks like from inside; or the failure of them all."""
        own = [self.numbers[case] for case in cases]
        stages = "".join(f"FROM {case} AS at-{case}\n{RUN}" for case in own)
        copies = "".join(f"COPY --from=at-{case} /.seen /{case}\n" for case in own)
        layout = self.attempt(f"seen-{own[0]}", f"FROM busybox AS look\nCOPY look /look\n{stages}FROM scratch\n{copies}", user, look=LOOK)
        if isinstance(layout, str):
            return layout
        found = {}
        for descriptor in layout.manifest["layers"]:
            with tarfile.open(layout.blob(descriptor)) as tar:
                found |= {member.name: tar.extractfile(member).read().decode() for member in tar}
        return {case: self.plain(self.own_lines(found[self.numbers[case]])) for case in cases}

    def own_lines(self, text):
        """Without what every image has, and the directories above the canaries."""
        usual = {f"drwxr-xr-x 0:0 .{path}" for path in ("", "/etc", *self.canary.parents)} | {"drwxr-xr-x 0:0 ."}
        return "\n".join(line for line in text.split("\n") if line not in usual) or "(nothing)"

    def refused(self, case, user="root", instruction="RUN true"):
        """What a build says that needs this image."""
        failure = self.attempt(f"{self.numbers[case]}-{instruction[:3]}", f"FROM {self.numbers[case]}\n{instruction}\n", user)
        self.assertIsInstance(failure, str, f"{case} was let through")
        return failure

    def classes(self, user):
        """The cases that are refused, and those that are not, as is written down."""
        written = self.golden("layers")
        known = [case for case in self.table if case in written or not os.environ.get("UPDATE_EXPECT")]
        refused = [case for case in known if written.get(case, "exit").startswith("exit")]
        whole = [case for case in known if case not in set(refused)]
        if not ALL:
            # What is not refused is read in one build, so that a few of each family cost little more than one.
            refused, whole = kinds(refused, written), sorted({*kinds(whole, {}), *whole[::4]})
        return tuple(cases[::SAMPLE if user != "root" else 1] for cases in (refused, whole))

    def found(self, user):
        refused, whole = self.classes(user)
        with ThreadPoolExecutor(2) as pool:
            found = dict(zip(refused, pool.map(lambda case: self.refused(case, user), refused)))
        seen = self.seen(whole, user) if whole else {}
        self.assertIsInstance(seen, dict, seen)
        return {**found, **seen}

    def test_in_the_way_of_a_step(self):
        """Each is the base of a RUN that reads all of it: as is written down, by root and by ordinary users."""
        if os.environ.get("UPDATE_EXPECT"):
            for case in self.table.keys() - self.golden("layers").keys():
                seen = self.seen([case])
                self.check("layers", {case: seen if isinstance(seen, str) else seen[case]})
        self.check("layers", self.found("root"))
        self.assert_unharmed(self.store(), self.scratch / "layouts")
        self.assert_sound(self.store())
        written = self.golden("layers")
        for case, text in self.found("lw-sub").items():
            # Device nodes are left out, which is told.
            if not re.search("^[cb]", written[case], re.MULTILINE):
                self.assertEqual(text, written[case], f"{case}, by an ordinary user")
        self.assert_unharmed(self.store("lw-sub"))
        self.assert_sound(self.store("lw-sub"), "lw-sub")

    @unittest.skipUnless(NIGHTLY, "SKIPPED: what COPY --from makes of each hostile layer is looked at by night")
    def test_read_by_copy(self):
        """Every image that is not refused, as COPY --from reads it: the same layers for every user."""
        written = self.golden("layers")
        # Only root makes device nodes, and keeps a capability that is somebody else's root's.
        whole = [case for case in self.classes("root")[1]
                 if not re.search("^[cb]", written[case], re.MULTILINE) and "a root of its own" not in case]
        copies = "".join(f"COPY --from={self.numbers[case]} / /{self.numbers[case]}/\n" for case in whole)
        digests = {}
        for user in USERS:
            layout = self.attempt("copied", f"FROM scratch\n{copies}", user)
            self.assertIsInstance(layout, Layout, layout)
            digests[user] = layout.digest
            self.assert_unharmed(self.store(user))
        self.assertEqual(len(set(digests.values())), 1, digests)

    def test_only_looked_at(self):
        """What is refused by whoever unpacks it is refused by whoever only looks something up in it."""
        written = self.golden("layers")
        for case in self.classes("root")[0][::1 if NIGHTLY else 7]:
            # Nothing is written here, so what a file system says of it is not heard.
            if re.search("cannot (make|write|set)", written[case]):
                self.attempt(f"look-{self.numbers[case]}", f"FROM {self.numbers[case]}\nCOPY Dockerfile /a/b/\n")
            else:
                self.assertEqual(self.refused(case, instruction="COPY Dockerfile /a/b/"), written[case], case)
        self.assert_unharmed(self.store())

    def test_as_archives_to_add(self):
        """ADD of the same tars unpacks them below its destination, by its own rules, or says why not."""
        cases = list(self.table)[::1 if NIGHTLY else 36]
        for number, case in enumerate(cases):
            tars, pack = self.table[case]
            context = self.context(f"add-{number}", Dockerfile="FROM busybox\nADD hostile.tar /to/\nRUN find /to >/seen\n")
            (context / "hostile.tar").write_bytes(pack(tars[0]) if pack else tars[0])
            user = USERS[number % 2]
            self.failure(self.run_layerwright("build", context, user=user, code=None))
        for user in USERS[:2]:
            self.assert_unharmed(self.store(user))
            self.assert_sound(self.store(user), user)


if __name__ == "__main__":
    unittest.main()
