#!/usr/bin/env bash
# corpus.sh - build the real images that tests, benchmarks and the demo use.
#
# Usage: corpus.sh [IMAGE...]        # default nginx; corpus-build.sh -l lists them
#
# They go to $THAW_CORPUS, or /var/cache/thaw/corpus: an OCI layout in oci, and
# images.tsv. What is there already is kept, so a second run takes no time.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${THAW_CORPUS:-/var/cache/thaw/corpus}
[ $# -gt 0 ] || set -- nginx

# A row of images.tsv is the last thing that the build of an image writes.
missing() {
  local image
  for image in "$@"; do
    grep -qs "^$image	" "$out/images.tsv" || echo "$image"
  done
}

mapfile -t todo < <(missing "$@")
if [ ${#todo[@]} -eq 0 ]; then
  echo "corpus: $* in $out" >&2
  exit 0
fi
mkdir -p "$out"
exec 9>"$out/.lock"
flock 9 # another build may be under way
mapfile -t todo < <(missing "$@")
if [ ${#todo[@]} -gt 0 ]; then
  echo "corpus: building ${todo[*]} in $out (about a minute each; python-ml three)" >&2
  "$here/corpus-build.sh" "$out" "${todo[@]}"
fi
