#!/usr/bin/env bash
# corpus-build.sh - build a corpus of real container images from Debian and npm packages.
#
# Called by corpus.sh, which chooses the place and skips what is there.
#
# Usage:   corpus-build.sh [-l] OUTDIR [IMAGE...]
# Example: corpus-build.sh ./out                 # every image
#          corpus-build.sh ./out nginx node      # two of them
#          corpus-build.sh -l                    # list the image names
#
# Result:  OUTDIR/oci                an OCI image layout (one tag per image)
#          OUTDIR/images.tsv         name, port, ready path, layers, bytes compressed / unpacked, files
#          OUTDIR/work/<layer>       unpacked layer trees (kept: a second run reuses them; KEEP_WORK=0 drops them)
#
# Every image is a chain of layers, each made like a Dockerfile RUN/COPY step:
# an overlay mount of the parents, a command inside it, and the upper directory
# turned into a gzip'ed tar with OCI whiteouts. All images share one base layer.
#
# Settings (environment):
#   SUITE        Debian suite                     (bookworm)
#   MIRROR       Debian mirror                    (http://deb.debian.org/debian)
#   APT_PROXY    http proxy for apt               (none)
#   GZIP_LEVEL   layer compression level          (6)
#   PUSH         registry to push to, host:port   (none)  plain http
#   PREFIX       repository prefix in PUSH        (corpus)
#   TAG          image tag                        (latest)
#   KEEP_WORK    1 keeps the unpacked layers      (1)
#
# Needs: root, bash, mmdebstrap, python3, overlayfs, npm (image node), skopeo (only for PUSH).
set -euo pipefail

ALL_IMAGES=(nginx node python-ml)
[ "${1:-}" = "-l" ] && { printf '%s\n' "${ALL_IMAGES[@]}"; exit 0; }
[ $# -ge 1 ] || { sed -n '2,/^set -e/p' "$0" | sed 's/^# \{0,1\}//;$d'; exit 2; }

OUT=$(mkdir -p "$1" && cd "$1" && pwd); shift
IMAGES=("$@"); [ ${#IMAGES[@]} -gt 0 ] || IMAGES=("${ALL_IMAGES[@]}")
SUITE=${SUITE:-bookworm}
MIRROR=${MIRROR:-http://deb.debian.org/debian}
GZIP_LEVEL=${GZIP_LEVEL:-6}
PREFIX=${PREFIX:-corpus}
TAG=${TAG:-latest}
KEEP_WORK=${KEEP_WORK:-1}
WORK=$OUT/work; OCI=$OUT/oci
mkdir -p "$WORK" "$OCI/blobs/sha256"

log() { printf '%s %s\n' "$(date +%T)" "$*" >&2; }

# ---------------------------------------------------------------- helpers
MOUNTS=()
cleanup() { local i; for ((i=${#MOUNTS[@]}-1; i>=0; i--)); do umount -l "${MOUNTS[i]}" 2>/dev/null || true; done; }
trap cleanup EXIT

# lower_of LAYER... -> overlay lowerdir string (topmost first)
lower_of() { local l s=; for l in "$@"; do s="$WORK/$l/diff${s:+:$s}"; done; printf '%s' "$s"; }

# layer NAME PARENT... -- COMMAND...
# Runs COMMAND with $R = the merged root; what it changes becomes layer NAME.
layer() {
  local name=$1 parents=(); shift
  while [ "$1" != "--" ]; do parents+=("$1"); shift; done; shift
  local d=$WORK/$name
  [ -e "$d/done" ] && return 0
  log "layer $name"
  rm -rf "$d"; mkdir -p "$d/diff" "$d/ovl" "$d/merged"
  mount -t overlay overlay -o "lowerdir=$(lower_of "${parents[@]}"),upperdir=$d/diff,workdir=$d/ovl" "$d/merged"
  MOUNTS+=("$d/merged")
  R=$d/merged "$@"
  umount "$d/merged"; unset 'MOUNTS[-1]'
  rm -rf "$d/ovl" "$d/merged"
  touch "$d/done"
}

# in_root COMMAND... : run inside $R with proc, dev and name resolution
in_root() {
  local rc=0 had_resolv=0
  mount -t proc proc "$R/proc"; MOUNTS+=("$R/proc")
  mount --bind /dev "$R/dev"; MOUNTS+=("$R/dev")
  [ -e "$R/etc/resolv.conf" ] && had_resolv=1
  [ $had_resolv = 1 ] || cp -L /etc/resolv.conf "$R/etc/resolv.conf"
  env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 \
      DEBIAN_FRONTEND=noninteractive ${APT_PROXY:+http_proxy=$APT_PROXY} \
      chroot "$R" "$@" || rc=$?
  [ $had_resolv = 1 ] || rm -f "$R/etc/resolv.conf"
  umount "$R/dev" "$R/proc"; unset 'MOUNTS[-1]'; unset 'MOUNTS[-1]'
  return $rc
}

# apt_install PACKAGE... : like the RUN line of a careful Dockerfile
apt_install() {
  in_root sh -ec 'apt-get update -qq
    apt-get install -y -qq --no-install-recommends "$@" >/tmp/apt.log 2>&1 || { tail -20 /tmp/apt.log >&2; exit 1; }
    apt-get clean; rm -rf /var/lib/apt/lists/* /tmp/apt.log /var/cache/apt/*.bin /var/log/apt /var/log/dpkg.log' sh "$@"
}

# put PATH [MODE] < content
put() { mkdir -p "$R$(dirname "$1")"; cat >"$R$1"; chmod "${2:-644}" "$R$1"; }

# pack LAYER : diff directory -> gzip'ed tar blob; writes LAYER/blob.json
pack() {
  local d=$WORK/$1
  [ -e "$d/blob.json" ] && [ -e "$OCI/blobs/sha256/$(sed 's/.*"digest": "sha256:\([0-9a-f]*\)".*/\1/' "$d/blob.json")" ] && return 0
  log "pack $1"
  python3 - "$d/diff" "$OCI/blobs/sha256" "$d/blob.json" "$GZIP_LEVEL" <<'PY'
import hashlib, json, os, stat, sys, tarfile, zlib
src, blobs, desc, level = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])

class GzipWriter:                       # one gzip member, no name, no time: what docker build writes
    def __init__(self, f):
        self.f, self.c, self.crc, self.n = f, zlib.compressobj(level, zlib.DEFLATED, -15), 0, 0
        self.sha, self.diff, self.size = hashlib.sha256(), hashlib.sha256(), 0
        self.out(b"\x1f\x8b\x08\0\0\0\0\0\0\xff")
    def out(self, b):
        self.f.write(b); self.sha.update(b); self.size += len(b)
    def write(self, b):
        self.diff.update(b); self.crc = zlib.crc32(b, self.crc); self.n += len(b)
        z = self.c.compress(b)
        if z: self.out(z)
        return len(b)
    def close(self):
        self.out(self.c.flush())
        self.out(self.crc.to_bytes(4, "little") + (self.n & 0xffffffff).to_bytes(4, "little"))

tmp = os.path.join(blobs, ".tmp.%d" % os.getpid())
stats = {"files": 0, "dirs": 0, "links": 0, "whiteouts": 0}
with open(tmp, "wb") as f:
    gz = GzipWriter(f)
    tar = tarfile.open(fileobj=gz, mode="w|", format=tarfile.PAX_FORMAT, bufsize=1 << 20)
    inodes = {}
    def whiteout(path):
        ti = tarfile.TarInfo(path); ti.mode = 0; tar.addfile(ti); stats["whiteouts"] += 1
    def walk(d, rel):
        for name in sorted(os.listdir(d)):
            p, r = os.path.join(d, name), (rel + "/" + name) if rel else name
            st = os.lstat(p)
            if stat.S_ISCHR(st.st_mode) and st.st_rdev == 0:
                whiteout((rel + "/" if rel else "") + ".wh." + name); continue
            if stat.S_ISSOCK(st.st_mode):
                continue
            ti = tarfile.TarInfo(r)
            ti.mode, ti.uid, ti.gid, ti.mtime = stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid, int(st.st_mtime)
            for x in os.listxattr(p, follow_symlinks=False):
                if x.startswith("trusted.overlay."): continue
                v = os.getxattr(p, x, follow_symlinks=False)
                ti.pax_headers["SCHILY.xattr." + x] = v.decode("utf-8", "surrogateescape")
            if stat.S_ISDIR(st.st_mode):
                ti.type = tarfile.DIRTYPE; ti.name += "/"; tar.addfile(ti); stats["dirs"] += 1
                try: opaque = os.getxattr(p, "trusted.overlay.opaque") == b"y"
                except OSError: opaque = False
                if opaque: whiteout(r + "/.wh..wh..opq")
                walk(p, r)
            elif stat.S_ISLNK(st.st_mode):
                ti.type, ti.linkname = tarfile.SYMTYPE, os.readlink(p); tar.addfile(ti); stats["links"] += 1
            elif stat.S_ISREG(st.st_mode):
                key = (st.st_dev, st.st_ino)
                if st.st_nlink > 1 and key in inodes:
                    ti.type, ti.linkname = tarfile.LNKTYPE, inodes[key]; tar.addfile(ti)
                else:
                    inodes[key] = r; ti.size = st.st_size
                    with open(p, "rb") as fh: tar.addfile(ti, fh)
                stats["files"] += 1
            elif stat.S_ISFIFO(st.st_mode):
                ti.type = tarfile.FIFOTYPE; tar.addfile(ti)
            else:
                ti.type = tarfile.CHRTYPE if stat.S_ISCHR(st.st_mode) else tarfile.BLKTYPE
                ti.devmajor, ti.devminor = os.major(st.st_rdev), os.minor(st.st_rdev); tar.addfile(ti)
    walk(src, "")
    tar.close(); gz.close()
os.rename(tmp, os.path.join(blobs, gz.sha.hexdigest()))
json.dump({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": "sha256:" + gz.sha.hexdigest(),
           "size": gz.size, "diff_id": "sha256:" + gz.diff.hexdigest(), "tar_size": gz.n, **stats}, open(desc, "w"))
PY
}

# image NAME PORT READY LAYER... -- ENTRYPOINT... [++ KEY=VALUE...]
image() {
  local name=$1 port=$2 ready=$3 layers=() l; shift 3
  while [ "$1" != "--" ]; do layers+=("$1"); shift; done; shift
  for l in "${layers[@]}"; do pack "$l"; done
  python3 - "$WORK" "$OCI" "$OUT/images.tsv" "$name" "$TAG" "$port" "$ready" "${layers[*]}" "$@" <<'PY'
import datetime, hashlib, json, os, sys
work, oci, tsv, name, tag, port, ready, layers = sys.argv[1:9]
rest = sys.argv[9:]
cut = rest.index("++") if "++" in rest else len(rest)
cmd, env = rest[:cut], rest[cut + 1:]
ls = [json.load(open(f"{work}/{l}/blob.json")) for l in layers.split()]
now = datetime.datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", "1700000000")), datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
def blob(obj):
    b = json.dumps(obj, separators=(",", ":")).encode(); h = hashlib.sha256(b).hexdigest()
    open(f"{oci}/blobs/sha256/{h}", "wb").write(b); return {"digest": "sha256:" + h, "size": len(b)}
cfg = blob({"created": now, "architecture": "amd64", "os": "linux",
            "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8"] + env,
                       "Entrypoint": cmd, "ExposedPorts": {f"{port}/tcp": {}}, "Labels": {"corpus.ready": ready}},
            "rootfs": {"type": "layers", "diff_ids": [l["diff_id"] for l in ls]},
            "history": [{"created": now, "created_by": n} for n in layers.split()]})
man = blob({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", **cfg},
            "layers": [{k: l[k] for k in ("mediaType", "digest", "size")} for l in ls]})
ref = f"{name}-{tag}" if tag != "latest" else name
idx = f"{oci}/index.json"
index = json.load(open(idx)) if os.path.exists(idx) else {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}
index["manifests"] = [m for m in index["manifests"] if m["annotations"]["org.opencontainers.image.ref.name"] != ref]
index["manifests"].append({"mediaType": "application/vnd.oci.image.manifest.v1+json", **man,
    "platform": {"architecture": "amd64", "os": "linux"}, "annotations": {"org.opencontainers.image.ref.name": ref}})
json.dump(index, open(idx, "w"), indent=1)
json.dump({"imageLayoutVersion": "1.0.0"}, open(f"{oci}/oci-layout", "w"))
rows = {}
if os.path.exists(tsv):
    for line in open(tsv).read().splitlines()[1:]: rows[line.split("\t")[0]] = line
rows[name] = "\t".join(map(str, [name, port, ready, len(ls), sum(l["size"] for l in ls), sum(l["tar_size"] for l in ls),
                                 sum(l["files"] + l["dirs"] + l["links"] for l in ls)]))
open(tsv, "w").write("name\tport\tready\tlayers\tcompressed\tunpacked\tentries\n" + "\n".join(rows[k] for k in sorted(rows)) + "\n")
PY
  log "image $name: $(grep -P "^$name\t" "$OUT/images.tsv" | tr '\t' ' ')"
  if [ -n "${PUSH:-}" ]; then
    skopeo copy -q --dest-tls-verify=false "oci:$OCI:$name$([ "$TAG" = latest ] || echo "-$TAG")" "docker://$PUSH/$PREFIX/$name:$TAG"
  fi
}

# ---------------------------------------------------------------- layers
build_base() {
  [ -e "$WORK/base/done" ] && return 0
  log "layer base ($SUITE)"
  rm -rf "$WORK/base"; mkdir -p "$WORK/base"
  mmdebstrap --quiet --variant=minbase --mode=root \
    ${APT_PROXY:+--aptopt="Acquire::http::Proxy \"$APT_PROXY\""} \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/info/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-include=/usr/share/locale/locale.alias' \
    --include=ca-certificates "$SUITE" "$WORK/base/diff" "deb $MIRROR $SUITE main"
  R=$WORK/base/diff
  printf '#!/bin/sh\nexit 101\n' | put /usr/sbin/policy-rc.d 755
  printf 'APT::Sandbox::User "root";\nAcquire::Languages "none";\n' | put /etc/apt/apt.conf.d/90image
  rm -rf "$R"/var/lib/apt/lists/* "$R"/var/cache/apt/*.bin "$R"/var/log/* "$R/etc/resolv.conf" "${R:?}"/dev/*
  : >"$R/etc/machine-id"; rm -f "$R/etc/hostname"
  mkdir -p "$R"/usr/share/man/man{1..8}      # update-alternatives (java, postgresql) fails without them
  touch "$WORK/base/done"
}

# ---- nginx: small static server
l_nginx_conf() {
  put /var/www/html/index.html <<<'<html><body>corpus nginx</body></html>'
  put /var/www/html/ready <<<'ok'
  put /etc/nginx/nginx.conf.in <<'N'
daemon off; worker_processes 1; error_log stderr; pid /run/nginx.pid;
events { worker_connections 256; }
http { include /etc/nginx/mime.types; access_log off; sendfile on;
  server { listen @BIND@:@PORT@; root /var/www/html; } }
N
  put /entrypoint.sh 755 <<'N'
#!/bin/sh
set -e
sed "s/@BIND@/$BIND/; s/@PORT@/$PORT/" /etc/nginx/nginx.conf.in >/etc/nginx/nginx.conf
exec nginx "$@"
N
}
img_nginx() {
  layer nginx base -- apt_install nginx-light
  layer nginx-conf base nginx -- l_nginx_conf
  image nginx 18083 http:/ready base nginx nginx-conf -- /entrypoint.sh ++ BIND=127.0.0.1 PORT=18083
}

# ---- node: Debian nodejs, a node_modules tree, an express app
l_node_modules() {
  mkdir -p "$R/app"
  put /app/package.json <<'N'
{ "name": "app", "version": "1.0.0", "private": true,
  "dependencies": { "express": "^4.21.0", "lodash": "^4.17.21", "axios": "^1.7.0", "pg": "^8.12.0", "sequelize": "^6.37.0",
    "winston": "^3.14.0", "helmet": "^7.1.0", "cors": "^2.8.5", "moment": "^2.30.0", "ajv": "^8.17.0", "date-fns": "^3.6.0",
    "rxjs": "^7.8.0", "graphql": "^16.9.0", "uuid": "^9.0.1", "joi": "^17.13.0" } }
N
  (cd "$R/app" && npm install --silent --no-audit --no-fund --omit=dev --cache "$WORK/.npm")
}
l_node_app() {
  put /app/server.js <<'N'
const t0 = Date.now();
const express = require('express'), _ = require('lodash'), moment = require('moment');
require('axios'); require('pg'); require('winston'); require('helmet'); require('sequelize'); require('joi');
require('date-fns'); require('rxjs'); require('graphql'); require('ajv');
const app = express();
app.get('/health/ready', (q, s) => s.json({ ready: true, ms: Date.now() - t0 }));
app.get('/', (q, s) => s.json({ sum: _.sum([1, 2, 3]), now: moment(0).toISOString() }));
app.listen(+process.env.PORT, process.env.BIND);
N
}
img_node() {
  layer nodejs base -- apt_install nodejs
  layer node-modules base nodejs -- l_node_modules
  layer node-app base nodejs node-modules -- l_node_app
  image node 18084 http:/health/ready base nodejs node-modules node-app -- node /app/server.js ++ BIND=127.0.0.1 PORT=18084 NODE_ENV=production
}

# ---- python-ml: flask + gunicorn + pandas + scikit-learn (+ matplotlib, statsmodels, numba), a model trained at build time
l_ml_app() {
  put /app/model.py <<'N'
import joblib, pandas as pd
from sklearn.datasets import load_wine
from sklearn.ensemble import RandomForestClassifier
def train(path):
    d = load_wine(as_frame=True)
    m = RandomForestClassifier(n_estimators=60, random_state=1).fit(d.data, d.target)
    joblib.dump((m, list(d.data.columns)), path)
if __name__ == "__main__": train("/app/model.joblib")
N
  put /app/app.py <<'N'
import time; T0 = time.time()
import joblib, numpy as np, pandas as pd
from flask import Flask, jsonify, request
import sklearn.ensemble, sklearn.preprocessing, sklearn.model_selection
MODEL, COLS = joblib.load("/app/model.joblib")
app = Flask(__name__)
LOADED = time.time() - T0
@app.get("/health/ready")
def ready(): return jsonify(ready=True, load_ms=round(1000 * LOADED))
@app.get("/predict")
def predict():
    rng = np.random.default_rng(int(request.args.get("seed", 1)))
    df = pd.DataFrame(rng.normal(10, 5, (1, len(COLS))), columns=COLS)
    return jsonify(cls=int(MODEL.predict(df)[0]), mean=float(df.mean(axis=1).iloc[0]))
@app.get("/train")
def train():
    import model; model.train("/tmp/m.joblib"); return jsonify(ok=True)
N
  put /entrypoint.sh 755 <<'N'
#!/bin/sh
cd /app && exec gunicorn --workers 1 --threads 4 --bind "$BIND:$PORT" app:app
N
  in_root sh -ec 'cd /app && PYTHONDONTWRITEBYTECODE=1 python3 model.py && python3 -m py_compile app.py model.py'
}
img_python_ml() {
  layer py-web base -- apt_install python3 python3-flask gunicorn
  layer py-sci base py-web -- apt_install python3-pandas python3-sklearn
  layer py-extra base py-web py-sci -- apt_install python3-matplotlib python3-statsmodels python3-numba python3-opencv
  layer py-app base py-web py-sci py-extra -- l_ml_app
  image python-ml 18081 http:/health/ready base py-web py-sci py-extra py-app -- /entrypoint.sh ++ BIND=127.0.0.1 PORT=18081 PYTHONUNBUFFERED=1
}

# ---------------------------------------------------------------- main
[ "$(id -u)" = 0 ] || { echo "corpus-build.sh: needs root (mount, chroot)" >&2; exit 1; }
for i in "${IMAGES[@]}"; do
  printf '%s\n' "${ALL_IMAGES[@]}" | grep -qx -- "$i" || { echo "corpus-build.sh: unknown image '$i' (known: ${ALL_IMAGES[*]})" >&2; exit 2; }
done
build_base
for i in "${IMAGES[@]}"; do "img_${i//-/_}"; done
[ "$KEEP_WORK" = 1 ] || rm -rf "$WORK"
column -t "$OUT/images.tsv" >&2 || true
