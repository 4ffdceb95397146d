// SPDX-License-Identifier: Apache-2.0
/* The process beside the VMM that machinectl signals. `machinectl poweroff` sends SIGRTMIN+4, of which a VMM
 * would die at once; here it becomes an order to the guest. */
#pragma once

/** SIGRTMIN+4 as systemd counts, whatever the C library keeps for itself. */
#define POWEROFF_SIGNAL 38

/** WatchdogSignal= of the unit, which all of its processes get: the VMM, and who does not wait for it,
 * ignores it (SIGURG). */
#define WATCHDOG_SIGNAL 23

/** Seconds that the guest's program gets to end. */
#define POWEROFF_GRACE 25

/** Start it. It ends with the process that calls this. Returns its pid, or -1 with errno. */
int start_leader(const char *runtime);
