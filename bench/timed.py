"""Runs a command and prints its wall seconds, its exit code, the largest memory of it or its children in KiB, and the CPU
seconds of all of them.

A process of its own, which already is the user in question and small: starting a process as another user costs a fork of
the starter, and what a child has at most is counted from the memory of its parent on.
"""

import os
import subprocess
import sys
import time

begin = time.perf_counter()
process = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL, stdout=open(sys.argv[1], "wb"), stderr=subprocess.STDOUT)
_, status, usage = os.wait4(process.pid, 0)
print(time.perf_counter() - begin, os.waitstatus_to_exitcode(status), usage.ru_maxrss, usage.ru_utime + usage.ru_stime, flush=True)
os._exit(0)
