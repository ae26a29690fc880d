"""Lists a tar from standard input with everything that Python's tarfile knows of its entries."""

import sys
import tarfile

with tarfile.open(fileobj=sys.stdin.buffer, mode="r|", errors="surrogateescape") as archive:
    for member in archive:
        shown = [member.type.decode(), ascii(member.name), f"{member.mode:04o}", f"{member.uid}:{member.gid}",
                 f"{member.uname!r}:{member.gname!r}", str(member.size), str(member.mtime)]
        if member.linkname:
            shown.append(f"-> {ascii(member.linkname)}")
        if member.isdev() and not member.isfifo():
            shown.append(f"{member.devmajor}:{member.devminor}")
        print(*shown)
        for keyword, value in member.pax_headers.items():
            print("   ", keyword, ascii(value))
