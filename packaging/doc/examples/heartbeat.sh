#!/bin/sh
# How a shell script says that it goes on: heartbeat.sh, in a run, does three steps.
#
#     guardian run --readiness notify --heartbeat-timeout 1m --heartbeat-action kill -- ./heartbeat.sh
set -eu

guardian heartbeat --ready --status "begins"
for step in 1 2 3; do
    # A heartbeat that cannot be sent is no reason to stop working.
    guardian heartbeat --status "step $step of 3" || true
    sleep 0.1
done
guardian heartbeat --stopping --status "done"
