#!/usr/bin/env bash
# Several ranks started by torchrun, on this host or on several.
#
#   launch/torchrun.sh RANKS CONFIG [section.option=value ...] [--stop-after STEPS]
#
# RANKS is per host. For several hosts, run it on each of them, with `run_root` on a file system that they share, and
#
#   NODES=2 NODE_RANK=0 MASTER_ADDR=host0 MASTER_PORT=29500 launch/torchrun.sh ...
#
# The text is prepared before the ranks start. The same command again resumes the run.

set -euo pipefail

if [[ $# -lt 2 ]]; then
    echo "usage: $0 RANKS CONFIG [section.option=value ...] [--stop-after STEPS]" >&2
    exit 2
fi
ranks=$1
shift

options=()
for argument in "$@"; do
    [[ $argument == --stop-after* ]] && break
    options+=("$argument")
done
pretrain prepare "${options[@]}"

rendezvous=(--standalone)
if [[ ${NODES:-1} -gt 1 ]]; then
    rendezvous=(--nnodes "$NODES" --node-rank "$NODE_RANK"
                --master-addr "$MASTER_ADDR" --master-port "${MASTER_PORT:-29500}")
fi
exec torchrun "${rendezvous[@]}" --nproc-per-node "$ranks" -m pretrain train "$@" "sharding.ranks=$ranks"
