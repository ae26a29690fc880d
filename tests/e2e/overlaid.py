"""A machine where the kernel merges no layers: the store is on an overlay, on which no other overlay can lie."""

import shutil

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
