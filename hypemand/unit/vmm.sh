#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# ExecStart= of a VM's unit: vmm.sh RUNTIME_DIR PYTHON KERNEL_WORDS VMM...
#
# The boot id is the invocation id: systemd gives every start a new one, also a restart of its own making.
#
# The VMM becomes the main process. Beside it stays the leader, the process that machinectl signals:
# poweroff sends it SIGRTMIN+4 (38), of which a VMM would die at once, and here it becomes an orderly
# shutdown of the guest. The leader blocks on a FIFO that nobody writes to; systemd ends it with the unit.
runtime=$1
python=$2
words=$3
shift 3
(
    exec </dev/null 9<>"$runtime/leader"
    # shellcheck disable=SC2172 # a number: dash has no names for real-time signals
    trap '"$python" -I -m hypemand.unit.stop "$runtime" 25 &' 38
    while :; do
        read -r _ <&9
    done
) &
exec "$@" -append "$words hypeman.boot=$INVOCATION_ID"
