#!/usr/bin/env bash
# demo.sh - start a real image eagerly and lazily, and show the two timelines.
#
# Usage: demo.sh                     # or make demo
#
# Settings (environment):
#   DEMO_IMAGE   nginx, node or python-ml                      (nginx)
#   DEMO_NET     network of the registry: cloud, slow, fast    (cloud)
#   DEMO_DIR     where state directories go: ext4, xfs, btrfs  (/var/tmp)
#   THAW_CORPUS  where the built images are                    (/var/cache/thaw/corpus)
#
# Installs what is missing, builds thaw and the image, serves it from the lab
# registry, makes its index, and runs it twice with nothing local and the page
# cache dropped. Leaves only bin/thaw and the corpus behind.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
image=${DEMO_IMAGE:-nginx}
net=${DEMO_NET:-cloud}
export THAW_CORPUS=${THAW_CORPUS:-/var/cache/thaw/corpus}
unset THAW_ROOT THAW_CONFIG

say() { printf '\n== %s\n' "$*" >&2; }
[ "$(id -u)" = 0 ] || { echo "demo: needs root: it mounts and runs containers" >&2; exit 1; }

dir=
lab_pid=
cleanup() {
  trap '' INT TERM
  local root
  for root in "$dir"/eager "$dir"/lazy; do
    [ ! -S "$root/daemon.sock" ] || bin/thaw --root "$root" daemon stop --force || true
  done
  if [ -n "$lab_pid" ]; then
    kill "$lab_pid" 2>/dev/null || true
    wait "$lab_pid" 2>/dev/null || true
  fi
  [ -z "$dir" ] || rm -rf --one-file-system "$dir"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say "install what is missing"
groups=(run corpus)
[ "$image" != node ] || groups+=(node)
scripts/setup.sh "${groups[@]}"

say "build thaw"
make --no-print-directory build

say "build the image $image from Debian packages"
scripts/corpus.sh "$image"
IFS=$'\t' read -r port ready < <(awk -F'\t' -v name="$image" '$1 == name { print $2 "\t" $3 }' "$THAW_CORPUS/images.tsv")
ready="http://127.0.0.1:$port${ready#http:}"

# free : what already answers there would be taken for the image
free() {
  if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
    echo "demo: something else listens on port $port, which $image needs" >&2
    exit 1
  fi
}
free

dir=$(mktemp -d "${DEMO_DIR:-/var/tmp}/thaw-demo.XXXXXX")
mkdir "$dir/eager" "$dir/lazy" "$dir/maker"

say "serve it from a registry with the network \"$net\""
mkfifo "$dir/lab.out"
bin/thaw lab serve --dir "$THAW_CORPUS/oci" --listen 127.0.0.1:0 --net "$net" --json >"$dir/lab.out" &
lab_pid=$!
read -r hello <"$dir/lab.out"
address=$(sed -n 's/.*"address":"\([^"]*\)".*/\1/p' <<<"$hello")
ref="$address/$image"
echo "$ref" >&2

say "make its index, once, and put it beside the image"
bin/thaw --root "$dir/maker" index build --push "$ref"

# start NAME FLAG... : a cold start in a state directory of its own
start() {
  local name=$1
  shift
  say "start it: $name"
  sync
  echo 3 >/proc/sys/vm/drop_caches
  free
  curl -fsS -X POST -o /dev/null "http://$address/warm" # the registry's disk is not what is measured
  bin/thaw --root "$dir/$name" run "$@" --ready "$ready" --exit-when-ready --timeline-file "$dir/$name.json" "$ref"
  bin/thaw --root "$dir/$name" daemon stop
}
start eager --mount=eager --index=ignore
start lazy --index=require

say "both, milliseconds from the command to the end of each phase"
scripts/timelines.py "$dir/eager.json" "$dir/lazy.json"
