#!/usr/bin/env bash
# setup.sh - install what is missing on a Debian or Ubuntu machine, by apt.
#
# Usage: setup.sh [GROUP...]         # default: all
#
# Groups: run     what thaw needs to run containers: crun and runc
#         corpus  what builds the real images: mmdebstrap, python3
#         node    and the one named node: npm
#         test    outside judges of the tests: bsdtar, fsck.erofs, ...
#         containerd  what containerd needs to run pods: CNI plugins
#         check   shellcheck
#         race    a C compiler, for go test -race
#
# Says what it does, does nothing where nothing is missing, adds no apt sources.
set -euo pipefail

# group, what shows that it is there (a program or a file), package
table='
run crun crun
run runc runc
run curl curl
corpus mmdebstrap mmdebstrap
corpus python3 python3
corpus column bsdextrautils
corpus flock util-linux
corpus update-ca-certificates ca-certificates
node node nodejs
node npm npm
test tar tar
test bsdtar libarchive-tools
test fsck.erofs erofs-utils
test umoci umoci
test strace strace
test chromium chromium
containerd /usr/lib/cni/host-local containernetworking-plugins
check shellcheck shellcheck
race cc gcc
race /usr/include/stdio.h libc6-dev
'
groups=" ${*:-run corpus node test containerd check race} "
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

say() { echo "setup: $*" >&2; }
die() { say "$*"; exit 1; }

updated=
# install PACKAGE... : one apt run; the lists are fetched once and only if needed
install() {
  [ "$(id -u)" = 0 ] || die "missing: $*; run as root, or install them"
  command -v apt-get >/dev/null || die "missing: $*; there is no apt-get here, install them with what there is"
  export DEBIAN_FRONTEND=noninteractive
  if [ -z "$updated" ]; then
    say "apt-get update"
    apt-get update -qq || say "apt-get update failed, going on with the lists that are here"
    updated=1
  fi
  say "apt-get install $*"
  apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

there() { command -v "$1" >/dev/null || [[ $1 == /* && -e $1 ]]; }

# wanted : packages of the chosen groups whose program is missing
wanted() {
  local group program package
  while read -r group program package; do
    [ -n "$group" ] || continue
    [[ $groups == *" $group "* ]] || continue
    there "$program" || echo "$package"
  done <<<"$table"
}

mapfile -t missing < <(wanted)
if [ ${#missing[@]} -gt 0 ]; then
  # npm on its own, later: some nodejs packages bring it with them and conflict with Debian's.
  mapfile -t first < <(printf '%s\n' "${missing[@]}" | grep -vx npm || true)
  [ ${#first[@]} -eq 0 ] || install "${first[@]}"
  mapfile -t missing < <(wanted)
  [ ${#missing[@]} -eq 0 ] || install "${missing[@]}"
  mapfile -t missing < <(wanted)
  [ ${#missing[@]} -eq 0 ] || die "installed, but their programs are not there: ${missing[*]}"
fi

command -v go >/dev/null || die "go is missing: install Go 1.26 or newer (https://go.dev/doc/install); Debian 12's own is too old"
# Go 1.21 and newer fetch the toolchain that go.mod asks for.
minor=$(go env GOVERSION 2>/dev/null | sed -n 's/^go1\.\([0-9]*\).*/\1/p')
[ "${minor:-99}" -ge 21 ] || die "go 1.$minor is too old: install Go 1.26 or newer (https://go.dev/doc/install)"
