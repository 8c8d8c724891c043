#!/usr/bin/env bash
# bench-start.sh - time cold starts of real images with an index, without one, and warm.
#
# Usage: bench-start.sh [IMAGE...]   # or make bench-start; nginx and node
#
# Settings (environment):
#   RUNS         runs of each variant, interleaved             (5)
#   NET          network of the registry: cloud, slow, fast    (cloud)
#   BENCH_DIR    where state directories go: ext4, xfs, btrfs  (/var/tmp)
#   OUT          folder to keep every run's timeline in        (none)
#   THAW_CORPUS  where the built images are                    (/var/cache/thaw/corpus)
#
# Variants: index (lazy, its index beside the image), none (as if there were no
# index), warm (again, all local). Before each cold run the state directory is
# removed and the page cache dropped. Prints a Markdown table of medians.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
images=("$@"); [ ${#images[@]} -gt 0 ] || images=(nginx node)
runs=${RUNS:-5}
net=${NET:-cloud}
export THAW_CORPUS=${THAW_CORPUS:-/var/cache/thaw/corpus}
unset THAW_ROOT THAW_CONFIG
[ "$(id -u)" = 0 ] || { echo "bench-start: needs root: it mounts and runs containers" >&2; exit 1; }

dir=$(mktemp -d "${BENCH_DIR:-/var/tmp}/thaw-bench.XXXXXX")
lab_pid=
cleanup() {
  trap '' INT TERM
  [ ! -S "$dir/root/daemon.sock" ] || bin/thaw --root "$dir/root" daemon stop --force || true
  if [ -n "$lab_pid" ]; then
    kill "$lab_pid" 2>/dev/null || true
    wait "$lab_pid" 2>/dev/null || true
  fi
  rm -rf --one-file-system "$dir"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
out=${OUT:-$dir/out}
mkdir -p "$out"

bin/thaw lab serve --dir "$THAW_CORPUS/oci" --listen 127.0.0.1:0 --net "$net" --json >"$dir/lab.json" &
lab_pid=$!
for _ in $(seq 100); do [ -s "$dir/lab.json" ] && break; sleep 0.05; done
host=$(python3 -c 'import json,sys; print(json.loads(sys.stdin.readline())["address"])' <"$dir/lab.json")
for image in "${images[@]}"; do
  bin/thaw --root "$dir/build" index build --push "$host/$image:latest" >&2
done

# start IMAGE VARIANT RUN [FLAG...]: one start, its timeline kept in $out
start() {
  local image=$1 variant=$2 run=$3 port ready
  shift 3
  IFS=$'\t' read -r port ready < <(awk -F'\t' -v name="$image" '$1 == name { print $2 "\t" $3 }' "$THAW_CORPUS/images.tsv")
  port=$((port + 10000)) # leave the usual ones to others
  bin/thaw --root "$dir/root" run "$@" -e PORT="$port" --ready "http://127.0.0.1:$port${ready#http:}" --exit-when-ready \
    --timeline-file "$out/$image.$variant.$run.json" "$host/$image:latest" >/dev/null 2>"$dir/run.log" ||
    { cat "$dir/run.log" >&2; return 1; }
}

cold() {
  [ ! -S "$dir/root/daemon.sock" ] || bin/thaw --root "$dir/root" daemon stop --force
  rm -rf --one-file-system "$dir/root"
  sync
  echo 3 >/proc/sys/vm/drop_caches
  curl -fsS -X POST "http://$host/warm" >/dev/null # the registry's own reads are not what is timed
}

for run in $(seq "$runs"); do
  for image in "${images[@]}"; do
    cold; start "$image" index "$run" --index=require
    bin/thaw --root "$dir/root" pull "$host/$image:latest" >/dev/null
    start "$image" warm "$run"
    cold; start "$image" none "$run" --index=ignore
    echo "bench-start: $image, run $run of $runs" >&2
  done
done
python3 scripts/starts.py "$out"
