#!/usr/bin/env bash
# Everything that a machine with CUDA can prove. Where a call may take ten minutes, two calls are needed:
#
#   tests/gpu/run.sh OUT machine parity sharding train    less than 430 seconds
#   tests/gpu/run.sh OUT machine bench                    less than 580
#
# Without names of parts it does them all.
# Run from anywhere; needs Python with the packages of `.[train]`, pytest, pytest-timeout and, for the baselines,
# transformers. PYTHON names the interpreter. No network: the text is Python's own documentation.
#
# Taken along where they lie in the checkout (both folders are ignored by git):
#   .carry/data        fixtures of published models (else PRETRAIN_SHARED_DATA)
#   .carry/prepared    prepared corpora, as a `run_root` holds them
#   .carry/packages    packages that the interpreter lacks, put on PYTHONPATH
#
# OUT gets one log per part (machine, parity, sharding, bench, train), summary.json with an object per part, rewritten
# after each, and loss.png. A failed part does not stop the others; the exit code is 1 where any failed.
# PRETRAIN_GPU_DRY=1 does it all at tiny sizes, on a CPU too: that is how the suite tests this script.

set -u

if [[ $# -lt 1 ]]; then
    echo "usage: $0 OUT [PART…]" >&2
    exit 2
fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
wanted=${*:-machine parity sharding bench train}
cd "$(dirname "$0")/../.." || exit 2

python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HF_HUB_OFFLINE=1 WANDB_MODE=offline TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
[[ -d .carry/packages ]] && export PYTHONPATH="$PYTHONPATH:$PWD/.carry/packages"
[[ -d .carry/data ]] && export PRETRAIN_SHARED_DATA="$PWD/.carry/data"
mkdir "$work/runs"
[[ -d .carry/prepared ]] && cp -r .carry/prepared "$work/runs/prepared"

failed=0

# part NAME SECONDS COMMAND...: runs a part into its log, and writes it into the summary
part() {
    local name=$1 limit=$2 began=$SECONDS code
    [[ " $wanted " == *" $name "* ]] || return 0
    shift 2
    timeout --kill-after=5 "$limit" "$@" > "$out/$name.log" 2>&1
    code=$?
    [[ $code -eq 0 ]] || failed=1
    echo "$name: exit code $code after $((SECONDS - began)) s (at most $limit)"
    "$python" -m tests.gpu.summary "$out" "$work" "$name" "$code" $((SECONDS - began))
}

machine() {
    command -v nvidia-smi > /dev/null && nvidia-smi
    "$python" -m tests.gpu.machine "$work/machine.json"
}

bench() {
    local code=0
    while read -r name config steps overrides; do
        # shellcheck disable=SC2086  # overrides are words
        "$python" -m pretrain bench "$config" "run_root=$work/runs" "name=$name" $overrides \
            --steps "$steps" --json "$work/bench-$name.json" < /dev/null || code=1
    done < <("$python" -m tests.gpu.sizes bench)
    return $code
}

train() {
    local code=0
    while read -r name config limit overrides; do
        # shellcheck disable=SC2086
        timeout --kill-after=5 "$limit" "$python" -m pretrain train "$config" "run_root=$work/runs" \
            "name=$name" $overrides < /dev/null
        local ended=$?
        [[ $ended -eq 0 || $ended -eq 124 ]] || code=1 # a curve that the limit cut is a curve
    done < <("$python" -m tests.gpu.sizes train)
    "$python" -m tests.gpu.curves "$work/runs" "$work" "$out/loss.png" || code=1
    return $code
}

export -f machine bench train
export python work out
part machine 30 bash -c machine
part parity 60 "$python" -m tests.gpu.parity "$work/parity.json"
part sharding 200 "$python" -m pytest tests/gpu/test_cuda.py -m gpu -rs -W default -p no:cacheprovider \
    --basetemp="$work/pytest" --junitxml="$work/sharding.xml"
part bench 540 bash -c bench
part train 125 bash -c train
exit $failed
