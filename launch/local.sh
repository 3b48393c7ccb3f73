#!/usr/bin/env bash
# Several ranks on this host, started by pretrain itself: one per GPU, or processes on a CPU.
#
#   launch/local.sh RANKS CONFIG [section.option=value ...] [--stop-after STEPS]
#
# The same command again resumes the run. Ctrl-C, and the death of this process, end all ranks.

set -euo pipefail

if [[ $# -lt 2 ]]; then
    echo "usage: $0 RANKS CONFIG [section.option=value ...] [--stop-after STEPS]" >&2
    exit 2
fi
ranks=$1
shift

exec pretrain train "$@" "sharding.ranks=$ranks"
