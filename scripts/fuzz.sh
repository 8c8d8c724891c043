#!/usr/bin/env bash
# fuzz.sh - run every fuzz target for a while, one after the other.
#
# Usage: fuzz.sh [TIME]              # of each target, default 10s
set -euo pipefail

time=${1:-10s}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u | while read -r package; do
  for target in $(go test -list '^Fuzz' "$package" | grep '^Fuzz'); do
    echo "fuzz: $package $target" >&2
    # Else an interesting input of some kilobytes is made smaller for a minute, and nothing is tried meanwhile.
    go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" -fuzzminimizetime 100x "$package" </dev/null
  done
done
