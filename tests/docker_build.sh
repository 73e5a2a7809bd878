#!/usr/bin/env bash
# Builds docker/Dockerfile without a Docker engine, and runs the image on the CPU.
# usage: bash tests/docker_build.sh [12|13]     the CUDA argument of the build, 12 by default
# Needs root, buildah, debootstrap, the network, and 25 GB of disk under $TMPDIR.
set -euo pipefail
cd "$(dirname "$0")/.."
cuda=${1:-12}

work=$(mktemp -d -p "${TMPDIR:-/var/tmp}" fastast-docker.XXXXXX)
export BUILDAH_ISOLATION=chroot TMPDIR=$work/tmp
mkdir "$work/tmp"

# overlay needs no copy of the image for each container; it does not stack on another overlay.
STORAGE_DRIVER=vfs
mkdir "$work/"{lower,upper,index,merged}
layers=lowerdir=$work/lower,upperdir=$work/upper,workdir=$work/index
if mount -t overlay overlay -o "$layers" "$work/merged" 2>/dev/null; then
  umount "$work/merged"
  STORAGE_DRIVER=overlay
fi
export STORAGE_DRIVER

in_store() { buildah --root "$work/store" --runroot "$work/runtime" "$@"; }

clean() {
  [ ! -s "$work/4321/out/pid" ] || kill -KILL "$(cat "$work/4321/out/pid")" 2>/dev/null || true
  in_store rm --all >/dev/null 2>&1 || true
  in_store umount --all >/dev/null 2>&1 || true
  awk -v under="$work/" 'index($2, under) == 1 {print $2}' /proc/mounts | sort -r | xargs -r -n 1 umount -l || true
  rm -rf --one-file-system "$work"
}
trap clean EXIT

say() { printf '%4d s  %s\n' "$SECONDS" "$*"; }
fail() {
  say "FAILED: $*"
  exit 1
}

# The host's own release and mirror make the base; its pip configuration, with the files it names, serves the build.
# shellcheck disable=SC1091
suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
# shellcheck disable=SC2016
mirror=$(apt-get indextargets --format '$(RELEASE) $(SITE)' 'Created-By: Packages' | sed -n "s/^$suite //p" | head -n 1)
python3 -m pip config list | python3 -c '
import ast, os, re, sys
options = {}
for line in sys.stdin:
    name, value = line.split("=", 1)
    options.setdefault(name.rpartition(".")[2], ast.literal_eval(value))  # those of the environment come first, and win
text = "\n".join(["[global]", *(f"{name} = {value}" for name, value in options.items())])
local = re.compile(r"(?<=file://)/\S+|(?<=\s)/\S+")
with open(sys.argv[1], "w") as file:
    file.write(local.sub(r"/host\g<0>", text) + "\n")
# An index links to files beside it, so its parent goes with it.
found = {os.path.dirname(path) if "file://" + path in text else path for path in local.findall(text)}
print(*filter(os.path.exists, found), sep="\n")
' "$work/pip.conf" >"$work/paths"
volumes=()
while read -r path; do
  [ -z "$path" ] || volumes+=(--volume "$path:/host$path:ro")
done <"$work/paths"

say "base: $suite by debootstrap, storage driver $STORAGE_DRIVER"
container=$(in_store from scratch)
debootstrap --variant=minbase "$suite" "$(in_store mount "$container")" "$mirror" >"$work/debootstrap.log" 2>&1 ||
  { tail -n 20 "$work/debootstrap.log"; fail "debootstrap"; }
in_store commit --quiet --rm "$container" localhost/base >/dev/null

say "build with CUDA=$cuda"
in_store build --format docker --layers=false --network host --isolation chroot \
  --build-arg BASE=localhost/base --build-arg CUDA="$cuda" \
  --secret id=pip.conf,src="$work/pip.conf" "${volumes[@]}" \
  --file docker/Dockerfile --tag localhost/fastast . >"$work/build.log" 2>&1 ||
  { tail -n 60 "$work/build.log"; fail "build"; }

tail -n 3 "$work/build.log"
say "built; $(in_store images --format '{{.Size}}' localhost/fastast)"
in_store inspect --type image localhost/fastast | python3 -c '
import json, sys
docker = json.load(sys.stdin)["Docker"]["config"]
print("       user", docker["User"], "entry", docker["Entrypoint"], "health", docker["Healthcheck"]["Test"])
assert docker["User"] == "10001:10001" and docker["Entrypoint"] == ["tini", "--"]
assert docker["Healthcheck"]["Test"] == ["CMD", "fastast", "doctor", "--quick"]
'
container=$(in_store from localhost/fastast)
# as_user UID [OPTION...] CONTAINER -- COMMAND: runs it as a user who owns what is mounted at /out and at the home.
as_user() {
  local user=$1 folder
  shift
  for folder in out home; do
    mkdir -p "$work/$user/$folder"
    chown "$user:$user" "$work/$user/$folder"
  done
  in_store run --network host --user "$user:$user" --volume "$work/$user/out:/out" \
    --volume "$work/$user/home:/home/fastast" "$@"
}

say "health check"
as_user 10001 "$container" -- fastast doctor --quick
code=0
as_user 4321 "$container" -- sh -c 'cd / && exec fastast doctor --quick' || code=$?
[ "$code" = 1 ] || fail "a folder that is not writable is healthy: $code"
locked=$(sed -n 's/^torch==\([^ ]*\).*/\1/p' "docker/cuda$cuda.txt")
as_user 10001 "$container" -- python -c "
import benchmarks, torch
assert torch.__version__.split('+')[0] == '$locked', torch.__version__
print('       torch', torch.__version__)"
as_user 10001 "$container" -- sh -c 'cd /opt/fastast && pytest -q -m gpu tests/gpu' || fail "the GPU tests are not collected"

say "demo as the image's user"
as_user 10001 "$container" -- tini -s -- \
  fastast train --epochs 0.4 --warmup-epochs 0.2 --image-size 32 --out /out/demo
[ -s "$work/10001/out/demo/report.html" ] || fail "the demo left no report"

# `docker run --user ... -v DATA:/data:ro`, then `docker stop`: SIGTERM to the first process.
say "another user, data read-only, SIGTERM"
as_user 4321 --volume "$work/10001/home/.cache/fastast/demo:/data:ro" "$container" -- \
  sh -c 'echo $$ >/out/pid && exec tini -s -- "$@"' sh \
  fastast train --data /data --arch resnet18 --epochs 100 --image-size 32 --out /out/stopped >"$work/stopped.log" 2>&1 &
runner=$!
stopped=$work/4321/out/stopped
for _ in $(seq 240); do
  [ ! -s "$stopped/metrics.jsonl" ] || break
  kill -0 "$runner" 2>/dev/null || { cat "$work/stopped.log"; fail "the trainer ended by itself"; }
  sleep 1
done
kill -TERM "$(cat "$work/4321/out/pid")"
code=0
wait "$runner" || code=$?
rm "$work/4321/out/pid"
grep SIGTERM "$work/stopped.log" || true
[ "$code" = 143 ] || fail "exit code $code after SIGTERM, not 143"
[ "$(stat -c %u "$stopped/checkpoints/last.pt")" = 4321 ] || fail "no checkpoint of this user after SIGTERM"
say "done"
