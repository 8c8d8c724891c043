"""Summarise the timelines that bench-start.sh keeps: python3 starts.py DIR.

A file is IMAGE.VARIANT.RUN.json (docs/formats/timeline.md). Prints a Markdown
table of medians, with the range of the time to ready.
"""
import collections
import json
import pathlib
import statistics
import sys

runs = collections.defaultdict(list)
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.*.*.json")):
    image, variant, _, _ = path.name.rsplit(".", 3)
    runs[image, variant].append(json.loads(path.read_text()))


def median(values):
    return statistics.median(values)


def phase(run, name):
    return sum(p["end_ms"] - p["start_ms"] for p in run["phases"] if p["name"] == name)


print("| image | variant | runs | ready ms: median (min-max) | mount ms | requests | MB fetched | share | reads that waited | p50 / p99 ms |")
print("|---|---|---|---|---|---|---|---|---|---|")
for (image, variant), group in sorted(runs.items()):
    ready = [r["ready_ms"] for r in group]
    cost = [r["at_ready"] for r in group]
    print(
        f"| {image} | {variant} | {len(group)} | {median(ready):.0f} ({min(ready):.0f}-{max(ready):.0f}) "
        f"| {median([phase(r, 'mount') for r in group]):.1f} | {median([c['requests'] for c in cost]):.0f} "
        f"| {median([c['network_bytes'] for c in cost]) / 1e6:.1f} | {median([c['share_percent'] for c in cost]):.0f} % "
        f"| {median([c['waits'] for c in cost]):.0f} | {median([c['wait_p50_ms'] for c in cost]):.1f} / {median([c['wait_p99_ms'] for c in cost]):.1f} |"
    )
