#!/usr/bin/env bash
# bench-start.sh - time starts of real images: thaw bench for each of them.
#
# Usage: bench-start.sh [IMAGE...]   # or make bench-start; nginx and node
#
# Settings (environment):
#   RUNS         runs of each mode, interleaved                (5)
#   NET          network of the registry: cloud, slow, fast    (cloud)
#   BENCH_DIR    where state directories go: ext4, xfs, btrfs  (/var/tmp)
#   BENCH_FLAGS  more flags of thaw bench                      (none)
#   OUT          folder to keep IMAGE.json in                  (none)
#   THAW_CORPUS  where the built images are                    (/var/cache/thaw/corpus)
#
# Prints Markdown. Exit codes are those of thaw bench; 3 is "too noisy to say".
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
images=("$@"); [ ${#images[@]} -gt 0 ] || images=(nginx node)
corpus=${THAW_CORPUS:-/var/cache/thaw/corpus}
unset THAW_ROOT THAW_CONFIG
read -ra flags <<<"${BENCH_FLAGS:-}"
status=0
for image in "${images[@]}"; do
  IFS=$'\t' read -r port ready < <(awk -F'\t' -v name="$image" '$1 == name { print $2 "\t" $3 }' "$corpus/images.tsv")
  port=$((port + 10000)) # leave the usual ones to others
  bin/thaw bench --image "oci:$corpus/oci:$image" --net "${NET:-cloud}" --runs "${RUNS:-5}" --dir "${BENCH_DIR:-/var/tmp}" --markdown \
    -e PORT="$port" --ready "http://127.0.0.1:$port${ready#http:}" ${OUT:+--json-file "$OUT/$image.json"} "${flags[@]}" || status=$?
  [ "$status" = 0 ] || [ "$status" = 3 ] || exit "$status"
done
exit "$status"
