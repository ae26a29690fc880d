#!/usr/bin/python3
"""Judges a run of the cases by the lists of testdata/cases: `NAME reason` a line.

`not-yet` names cases that nobody passes; `needs-ids` cases (of those that are not ours, which say it themselves) that a
user with one id does not pass. A listed case that passes is as wrong as an unlisted one that fails.
"""

import argparse
import json
import pathlib
import sys

LOG_LINES = 25  # of what a builder printed, for a case that fails


def read_list(path):
    lines = (line.strip() for line in path.read_text().splitlines())
    return dict(line.split(maxsplit=1) for line in lines if line and not line.startswith("#"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=pathlib.Path, help="what run.py --json wrote")
    parser.add_argument("output", type=pathlib.Path, help="what run.py printed")
    parser.add_argument("--lists", type=pathlib.Path, required=True, help="the folder of the lists")
    parser.add_argument("--lacks", default="", help="as given to run.py")
    parser.add_argument("--as", dest="user", required=True, help="who ran the cases")
    options = parser.parse_args()
    if not options.results.exists():
        sys.exit(options.output.read_text() + f"FAILED as {options.user}: the runner did not come to its end")

    results = json.loads(options.results.read_text())
    excused = read_list(options.lists / "not-yet")
    if "ids" in options.lacks.split(","):
        excused |= read_list(options.lists / "needs-ids")
    names = {kind: {name for name, row in results.items() if row["result"] == kind} for kind in ("pass", "fail", "skip")}
    failed, fixed = sorted(names["fail"] - excused.keys()), sorted(names["pass"] & excused.keys())
    for name in failed:
        print(f"FAILED as {options.user}: {name}" + "".join(f"\n    {line}" for line in results[name]["why"]))
        print("    | " + "\n    | ".join(results[name]["log"].rstrip().splitlines()[-LOG_LINES:]))
    for name in fixed:
        print(f"PASSES NOW as {options.user}, take it off {options.lists}: {name}")
    for name in sorted(names["fail"] & excused.keys()):
        print(f"SKIPPED as {options.user}: {name}: {excused[name]}")
    for name in sorted(names["skip"]):
        print(f"SKIPPED as {options.user}: {name}: {'; '.join(results[name]['why'])}")
    seconds = sum(row["seconds"] for row in results.values())
    skipped = len(names["skip"]) + len(names["fail"]) - len(failed)
    print(f"as {options.user}: {len(names['pass'])} passed, {len(failed)} failed, {skipped} skipped"
          f" ({seconds:.0f} s of cases)", flush=True)
    sys.exit(bool(failed or fixed or not names["pass"]))


if __name__ == "__main__":
    main()
