#!/usr/bin/env bash
# containerd.sh - containerd of its own, to test with and to compare with: thaw bench --vs-containerd.
#
# Usage: containerd.sh install DIR [2|1.7]...   # build what is missing, by the Go proxy; default both; minutes on two cores
#        containerd.sh serve DIR                # run 2.x until Ctrl-C; the socket is DIR/containerd.sock (root)
#
# DIR/2 and DIR/1.7 get the programs containerd, its shim and ctr. For the tests DIR goes into THAW_CONTAINERD.
# CONTAINERD_BIN is another directory for serve's programs than DIR/2.
#
# Not to be had here are crictl and nerdctl: the Go proxy refuses their modules, Debian 12 has no packages. The tests
# speak CRI themselves. runc and the CNI plugins are Debian's: setup.sh containerd.
#
# All that serve keeps is below DIR, which has to be on ext4 or xfs; its snapshotters are overlayfs and, with mkfs.erofs
# and the kernel's erofs, erofs. It touches no other containerd of the machine.
set -euo pipefail

declare -A versions=([2]=v2.2.9 [1.7]=v1.7.35) # 2 as in go.mod
declare -A modules=([2]=github.com/containerd/containerd/v2 [1.7]=github.com/containerd/containerd)

usage() { sed -n 's/^# \{0,1\}//p' "$0" | sed -n 3,4p >&2; exit 2; }
[ $# -ge 2 ] || usage
verb=$1
mkdir -p "$2"
dir=$(cd "$2" && pwd)
shift 2

# install SERIES : from the module as it is in the cache, with its own versions of everything; go install refuses 1.7
# for the exclude directives in its go.mod.
install() {
  local version=${versions[$1]:?"no such series: $1"} bin=$dir/$1 source
  [ "$(cat "$bin/version" 2>/dev/null || true)" != "$version" ] || return 0
  echo "containerd: build $version" >&2
  source=$(cd / && go mod download -json "${modules[$1]}@$version" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
  mkdir -p "$bin"
  (cd "$source" && CGO_ENABLED=0 GOFLAGS='-mod=readonly -buildvcs=false' GOWORK=off go build -trimpath \
    -ldflags "-s -w" -tags no_btrfs,no_devmapper,no_zfs,no_aufs \
    -o "$bin/" ./cmd/containerd ./cmd/containerd-shim-runc-v2 ./cmd/ctr)
  echo "$version" >"$bin/version"
}

# differs : the EROFS one makes images from tar, which takes erofs-utils 1.8
differs() {
  if mkfs.erofs --help 2>&1 | grep -q -- --tar; then echo "'erofs', 'walking'"; else echo "'walking'"; fi
}

serve() {
  local bin=${CONTAINERD_BIN:-$dir/2}
  [ -x "$bin/containerd" ] || install 2
  cat >"$dir/config.toml" <<CONFIG
version = 3
root = '$dir/root'
state = '$dir/state'
disabled_plugins = ['io.containerd.grpc.v1.cri', 'io.containerd.cri.v1.runtime', 'io.containerd.cri.v1.images', 'io.containerd.nri.v1.nri']
[grpc]
  address = '$dir/containerd.sock'
[ttrpc]
  address = '$dir/containerd.sock.ttrpc'
[plugins.'io.containerd.service.v1.diff-service']
  default = [$(differs)]
CONFIG
  PATH=$bin:$PATH exec "$bin/containerd" --config "$dir/config.toml" --log-level "${LOG_LEVEL:-warn}"
}

case $verb in
  install)
    [ $# -gt 0 ] || set -- 2 1.7
    for series; do install "$series"; done
    ;;
  serve) serve ;;
  *) usage ;;
esac
