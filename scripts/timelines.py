#!/usr/bin/env python3
"""Print timelines of `thaw run --timeline-file` side by side.

Usage: timelines.py FILE...          # docs/formats/timeline.md
"""
import json
import os
import sys


def megabytes(n):
    return f"{n / 1e6:.1f} MB"


def rows(lines):
    """Yield a name and a cell for each timeline."""
    names = []
    for line in lines:  # in the order of the first that has them
        for at, phase in enumerate(line["phases"]):
            if phase["name"] not in names:
                known = [p["name"] for p in line["phases"][:at]]
                names.insert(names.index(known[-1]) + 1 if known else 0, phase["name"])
    for name in names:
        if name != "complete":
            ends = [[p["end_ms"] for p in line["phases"] if p["name"] == name] for line in lines]
            yield name, [f"{end[-1]:.0f}" if end else "-" for end in ends]
    yield "", [""] * len(lines)
    for name, cell in (
        ("mount path", lambda line, cost: line["mode"]),
        ("index", lambda line, cost: line["index"]),
        ("fetched until ready", lambda line, cost: megabytes(cost["network_bytes"])),
        ("  layers among it", lambda line, cost: megabytes(cost["layer_bytes"])),
        ("  share of the image", lambda line, cost: f"{cost['share_percent']:.0f} %"),
        ("requests", lambda line, cost: str(cost["requests"])),
        ("reads that waited", lambda line, cost: str(cost["waits"])),
        ("  p50, p99", lambda line, cost: f"{cost['wait_p50_ms']:.0f}, {cost['wait_p99_ms']:.0f} ms" if cost["waits"] else "-"),
    ):
        yield name, [cell(line, line["at_ready"]) if line.get("at_ready") else "-" for line in lines]


def main(files):
    lines = []
    for name in files:
        with open(name, encoding="utf-8") as f:
            lines.append(json.load(f))
        if lines[-1]["version"] != 1:
            sys.exit(f"{name}: timeline version {lines[-1]['version']} is not known")
    titles = [os.path.splitext(os.path.basename(name))[0] for name in files]
    print(f"{'':22}" + "".join(f"{title:>14}" for title in titles))
    for name, cells in rows(lines):
        print((f"{name:22}" + "".join(f"{cell:>14}" for cell in cells)).rstrip())
    ready = [line["ready_ms"] for line in lines]
    if len(ready) == 2 and all(ready):
        print(f"\n{titles[1]} is ready {ready[0] / ready[1]:.1f} times as fast as {titles[0]}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1:])
