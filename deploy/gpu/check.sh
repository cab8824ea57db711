#!/usr/bin/env bash
# Everything that only a GPU can show, in less than eight minutes: the tests marked gpu, then both benchmarks.
#
#     deploy/gpu/check.sh FOLDER
#
# FOLDER gets the CSV files with this machine's rows and what every part printed; the rows also stay where the
# benchmarks keep them. A part that fails or takes too long does not keep the next from running; the status is
# the worst of all.
#
# It needs one NVIDIA GPU with 80 GB of memory (sm_80 or later), its driver, GNU coreutils, and a Python (PYTHON,
# by default python3) with torch, triton, safetensors, transformers, numpy, pillow and tqdm; for the tests also
# pytest, hypothesis, psutil and sentencepiece; for the comparison diffusers. No weights and no network.
set -euo pipefail

if [ $# -ne 1 ]; then
    echo "usage: $0 FOLDER" >&2
    exit 64
fi
mkdir -p "$1"
folder=$(cd "$1" && pwd)
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
export PYTHONUNBUFFERED=1
started=$(mktemp)
trap 'rm -f "$started"' EXIT
worst=0

# part NAME SECONDS ARGUMENTS...: runs Python with these arguments for at most so long
part() {
    local name=$1 limit_s=$2 status=0
    shift 2
    echo "== $name: $python $*"
    timeout --kill-after=5 "$limit_s" "$python" "$@" 2>&1 | tee "$folder/$name.log" || status=$?
    if [ "$status" -eq 124 ]; then
        echo "== $name: stopped after $limit_s s; the rows that it wrote count"
    elif [ "$status" -ne 0 ]; then
        echo "== $name: status $status"
    fi
    if [ "$status" -gt "$worst" ]; then
        worst=$status
    fi
}

# Only files with such tests are collected: the others want the packages of the server.
mapfile -t tests < <(grep -rl --include='*.py' 'mark\.gpu' tests)
part tests 100 -m pytest -m gpu "${tests[@]}"

# Where the targets are: one picture of 1024x1024, beside diffusers eager and compiled (a minute or two).
part targets 200 -m model.bench --compare diffusers --quantize none fp8 --sides 1024 --batches 1

part kernels 70 -m kernels.bench --sides 1024 --batches 1

part shapes 90 -m model.bench --compare diffusers --compile-mode none --quantize none fp8 \
    --sides 512 256 1536 --batches 1 4 --rounds 3

for package in kernels model; do
    find "$package/bench" -name '*.csv' -newer "$started" | while read -r rows; do
        cp "$rows" "$folder/$package-${rows##*/}"
    done
done

exit "$worst"
