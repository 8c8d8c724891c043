#!/usr/bin/env bash
# containerd.sh - a containerd of its own, to compare with: thaw bench --vs-containerd.
#
# Usage: containerd.sh install DIR   # build the pinned version into DIR/bin, by the Go proxy; a minute or two
#        containerd.sh serve DIR     # run it until Ctrl-C; the socket is DIR/containerd.sock (root)
#
# CONTAINERD_BIN is another directory for its programs than DIR/bin.
#
# All that it keeps is below DIR, which has to be on ext4 or xfs; its snapshotters are overlayfs and, with mkfs.erofs
# and the kernel's erofs, erofs. It touches no other containerd of the machine.
set -euo pipefail

version=v2.2.9 # as in go.mod

usage() { sed -n 's/^# \{0,1\}//p' "$0" | sed -n 3,4p >&2; exit 2; }
[ $# = 2 ] || usage
mkdir -p "$2"
dir=$(cd "$2" && pwd)
bin=${CONTAINERD_BIN:-$dir/bin}

install() {
  local module=github.com/containerd/containerd/v2
  [ "$(cat "$bin/version" 2>/dev/null || true)" != "$version" ] || return 0
  GOBIN=$bin CGO_ENABLED=0 GOFLAGS='' go install -trimpath -ldflags '-s -w' \
    "$module/cmd/containerd@$version" "$module/cmd/containerd-shim-runc-v2@$version" "$module/cmd/ctr@$version"
  echo "$version" >"$bin/version"
}

# differs : the EROFS one makes images from tar, which takes erofs-utils 1.8
differs() {
  if mkfs.erofs --help 2>&1 | grep -q -- --tar; then echo "'erofs', 'walking'"; else echo "'walking'"; fi
}

serve() {
  cat >"$dir/config.toml" <<EOF
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
EOF
  PATH=$bin:$PATH exec "$bin/containerd" --config "$dir/config.toml" --log-level "${LOG_LEVEL:-warn}"
}

case $1 in
  install) install ;;
  serve) [ -x "$bin/containerd" ] || install; serve ;;
  *) usage ;;
esac
