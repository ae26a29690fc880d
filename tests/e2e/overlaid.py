"""Machines where the kernel merges no layers, and builds on them: the store is on an overlay, on which no other overlay can lie."""

import shutil
import subprocess

from support import Case, WATCHDOG

# Two ways to stand in for the kernel. Where fuse-overlayfs may not serve, copies are all that is left; and it may where /dev/fuse
# can be opened, which is root's alone on some machines and everybody's on others.
WITHOUT_DEVICE = "mount --bind /dev/null /dev/fuse"
WITH_DEVICE = "rm -f {parts}/fuse && mknod {parts}/fuse c 10 229 && chmod 666 {parts}/fuse && mount --bind {parts}/fuse /dev/fuse"
AS_IT_IS = "true"


def on_overlay(machine, store, user, device=WITHOUT_DEVICE):
    """The same machine with an overlay where the store will be; what that holds is in STORE-parts/upper."""
    parts = store.with_name(store.name + "-parts")
    for name in ("lower", "upper", "work"):
        (parts / name).mkdir(parents=True, exist_ok=True)
    shutil.chown(parts / "upper", user, user)
    (parts / "upper").chmod(0o700)
    options = f"lowerdir={parts}/lower,upperdir={parts}/upper,workdir={parts}/work"
    device = device.format(parts=parts)
    script = f"mkdir -p {store} && mount -t overlay none -o {options} {store} && {device} && exec \"$@\""
    return ["unshare", "--mount", "--", "sh", "-c", script, "sh", *machine]


def as_user(user):
    return [] if user == "root" else ["runuser", "-u", user, "--"]


class Machines(Case):
    """Tests of what builds on several machines make of the same."""

    def on(self, machine, *arguments, user="root", name="x", code=0):
        """A build on a machine, with a store of its own; gives the completed process and the layout. No code is any."""
        store, out = self.scratch / f"store-{name}", self.scratch / f"out-{name}"
        for path in (store, out):
            path.mkdir(mode=0o700)
            shutil.chown(path, user, user)
        command = [str(self.binary), "build", "--progress", "json", "--root", str(store), "--build-context",
                   f"busybox=oci-layout://{self.base}", "-o", f"type=oci,dest={out}/image,tar=false", *map(str, arguments)]
        done = subprocess.run([*machine, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              stdin=subprocess.DEVNULL, cwd="/", timeout=WATCHDOG)
        self.assertIn(code, (None, done.returncode), done.stderr)
        return done, out / "image"

    def copying(self, name, user="root"):
        return on_overlay(as_user(user), self.scratch / f"store-{name}-copied", user)

    def merging(self, name, user="root"):
        return on_overlay(as_user(user), self.scratch / f"store-{name}-fused", user, WITH_DEVICE)
