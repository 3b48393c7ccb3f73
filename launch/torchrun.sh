#!/usr/bin/env bash
# Several ranks started by torchrun, on this host or on several.
#
#   launch/torchrun.sh RANKS CONFIG [section.option=value ...] [--stop-after STEPS] [--extend]
#
# RANKS is per host. For several hosts, run it on each of them, with `run_root` on a file system that they share, and
#
#   NODES=2 NODE_RANK=0 MASTER_ADDR=host0 MASTER_PORT=29500 launch/torchrun.sh ...
#
# On one host the text is prepared before the ranks start. On several, rank 0 prepares it while the others wait, since
# torchrun gives up on a host that comes ten minutes late. The same command again resumes the run.
#
# Ctrl-C and SIGTERM save after the current step, within the 30 seconds that torchrun leaves its ranks. It makes 1 of
# every exit code but 0: `pretrain train` itself has
# 0 done, 1 a bug, 2 a mistake in the input, 75 stopped when asked to, and saved.

set -euo pipefail

if [[ $# -lt 2 ]]; then
    echo "usage: $0 RANKS CONFIG [section.option=value ...] [--stop-after STEPS] [--extend]" >&2
    exit 2
fi
ranks=$1
shift

rendezvous=(--standalone)
if [[ ${NODES:-1} -gt 1 ]]; then
    : "${NODE_RANK:?the number of this host, from 0}" "${MASTER_ADDR:?the name of host 0}"
    rendezvous=(--nnodes "$NODES" --node-rank "$NODE_RANK"
                --master-addr "$MASTER_ADDR" --master-port "${MASTER_PORT:-29500}")
else
    options=() # without those of `pretrain train` alone
    value=false
    for argument in "$@"; do
        if $value; then
            value=false
        elif [[ $argument == --stop-after ]]; then
            value=true
        elif [[ $argument != --stop-after=* && $argument != --extend ]]; then
            options+=("$argument")
        fi
    done
    pretrain prepare "${options[@]}"
fi
exec torchrun "${rendezvous[@]}" --nproc-per-node "$ranks" -m pretrain train "$@" "sharding.ranks=$ranks"
