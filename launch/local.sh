#!/usr/bin/env bash
# Several ranks on this host, started by pretrain itself: one per GPU, or processes on a CPU.
#
#   launch/local.sh RANKS CONFIG [section.option=value ...] [--stop-after STEPS] [--extend]
#
# The same command again resumes the run. Ctrl-C and SIGTERM save after the current step; a second one, and the death of
# this process, end all ranks at once. Exit codes: 0 done, 1 a bug, 2 a mistake in the input, 75 stopped when asked to,
# and saved.

set -euo pipefail

if [[ $# -lt 2 ]]; then
    echo "usage: $0 RANKS CONFIG [section.option=value ...] [--stop-after STEPS] [--extend]" >&2
    exit 2
fi
ranks=$1
shift

exec pretrain train "$@" "sharding.ranks=$ranks"
