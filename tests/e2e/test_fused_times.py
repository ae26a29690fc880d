"""Times of directories under fuse-overlayfs: those of the kernel's overlay, whatever a step does to them and what is in them."""

import io
import subprocess
import tarfile
import unittest

from support import WATCHDOG
from test_fused import Ground

# Every step has a directory of its own, with what an old base image has in one. `find -depth` does as `chown -R` of coreutils.
STEPS = {
    "chown": "find D -depth -exec chown -h 33:33 {} +",
    "chown-same": "find D -depth -exec chown -h 0:0 {} +",
    "chown-before": "chown -R 33:33 D",
    "chmod": "find D -depth ! -type l -exec chmod g+w {} +",
    "chmod-same": "find D -depth ! -type l -exec chmod g+rX {} +",
    "chgrp": "find D -depth -exec chgrp -h 7 {} +; find D -depth -exec chgrp -h 7 {} +",
    "one-file": "chmod 600 D/a; chmod 700 D",
    "one-file-owner": "chown 5 D/a; chown 5 D",
    "one-link": "chown -h 5 D/link; chown 5 D",
    "below": "echo more >> D/sub/deep/f; chmod 700 D/sub/deep; chmod 700 D/sub; chmod 700 D",
    "written": "echo more >> D/a; chmod 700 D",
    "before": "chmod 700 D; echo more >> D/a",
    "back": "chmod 700 D; echo more >> D/a; chmod 755 D",
    "sed": "sed -i s/a/b/ D/a; chmod 600 D/b; chmod 700 D",
    "moved": "mv D/a D/z; chmod 600 D/b; chmod 700 D",
    "moved-back": "mv D/a D/z; mv D/z D/a; chmod 600 D/b; chmod 700 D",
    "moved-away": "mv D/a /a; chmod 600 D/b; chmod 700 D",
    "moved-in": "mv D/sub/deep/f D/f; chmod 600 D/b; chmod 700 D/sub/deep D/sub D",
    "moved-over": "mv D/sub/deep/f D/a; chmod 600 D/b; chmod 700 D/sub/deep D/sub D",
    "made-again": "rm D/a; echo a > D/a; chmod 600 D/b; chmod 700 D",
    "link-made-again": "rm D/link; ln -s a D/link; chmod 600 D/b; chmod 700 D",
    "directory-made-again": "rm -r D/sub; mkdir D/sub; chmod 600 D/b; chmod 700 D",
    "all-made-again": "rm -r D; mkdir -p D/sub/deep; echo a > D/a; chmod 700 D",
    "made": "touch D/new; chmod 600 D/b; chmod 700 D",
    "removed": "rm D/a; chmod 600 D/b; chmod 700 D",
    "link-removed": "rm D/link; chmod 600 D/b; chmod 700 D",
    "temporary": "touch D/t; rm D/t; chmod 700 D",
    "temporary-only": "echo more >> D/a; touch D/t; rm D/t",
    "touched": "touch D; chmod 700 D",
    "dated": "chmod 600 D/a; touch -d '2003-03-03 03:03:03' D; chmod 700 D",
    "dated-later": "chmod 600 D/a; touch -d '2042-03-03 03:03:03' D; chmod 700 D",
    "replaced": "rm D/a; mkdir D/a; chmod 600 D/b; chmod 700 D",
}


def old_tree(path, directories):
    """An archive of directories that nobody has touched since 2020."""
    with tarfile.open(path, "w") as tar:
        def add(name, kind, linkname="", content=b""):
            info = tarfile.TarInfo(name)
            info.type, info.mtime, info.mode = kind, 1_577_836_800 + len(name), 0o755 if kind == tarfile.DIRTYPE else 0o644
            info.linkname, info.size = linkname, len(content)
            tar.addfile(info, io.BytesIO(content))

        for name in ("old", *(f"old/{directory}{below}" for directory in directories for below in ("", "/sub", "/sub/deep"))):
            add(name, tarfile.DIRTYPE)
        for directory in directories:
            for name in ("a", "b", "c", "d", "e", "sub/f", "sub/g", "sub/h", "sub/deep/f", "sub/deep/i", "sub/deep/j"):
                add(f"old/{directory}/{name}", tarfile.REGTYPE, content=b"a\n")
            add(f"old/{directory}/link", tarfile.SYMTYPE, linkname="nowhere")


class Times(Ground):
    maxDiff = None

    def compare(self, directories, steps, users=("root", "lw-sub")):
        context = self.context(Dockerfile="FROM busybox\nADD old.tar /\n" + "".join(f"RUN {step}\n" for step in steps), file="")
        old_tree(context / "old.tar", directories)
        subprocess.run(["chmod", "-R", "a+rX", context], check=True, timeout=WATCHDOG)
        _, kernel = self.build_on([], context)
        for user in users:
            _, image = self.build_on(self.fused(user), context, user, self.place(user))
            self.same(kernel, image, user)
        return kernel

    def test_the_time_of_a_directory_is_the_kernels(self):
        self.compare(STEPS, [step.replace("D", f"/old/{name}") for name, step in STEPS.items()])

    def test_a_step_itself_sees_new_times_of_what_it_changes(self):
        """Of a directory once it is changed itself, and of a link: what docs/sandbox.md tells. The layer has the old ones."""
        steps = ("chmod 600 D/a; stat -c %Y D; chmod 700 D; stat -c %Y D", "chown -h 5 D/link; stat -c %Y D/link", "chmod 600 D/a; stat -c %Y D/a")
        context = self.context(Dockerfile="FROM busybox\nADD old.tar /\n" + "".join(
            f"RUN {step.replace('D', f'/old/{number}')}\n" for number, step in enumerate(steps)), file="")
        old_tree(context / "old.tar", "012")
        subprocess.run(["chmod", "-R", "a+rX", context], check=True, timeout=WATCHDOG)
        seen, images = [], []
        for machine, store in (([], None), (self.fused(), self.place("root"))):
            events, image = self.build_on(machine, context, store=store)
            seen.append([int(event["text"]) for event in events if event.get("text", "").isdigit()])
            images.append(image)
        kernel, fused = seen
        self.assertEqual([len(kernel), len(fused)], [4, 4])
        self.assertEqual([ours > old for old, ours in zip(kernel, fused)][1:], [True, True, False], seen)
        self.same(*images, "root")

    def test_also_where_a_step_does_much(self):
        """All at once, and again on what that has left."""
        all_of_them = "; ".join(step.replace("D", f"/old/{name}") for name, step in STEPS.items())
        again = "find /old -depth -exec chown -h 44:44 {} +"
        self.compare(STEPS, [all_of_them, again, "rm -rf /old/made/sub && mkdir /old/made/sub", "chmod -R 750 /old", again])


if __name__ == "__main__":
    unittest.main()
