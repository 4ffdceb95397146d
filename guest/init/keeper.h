/* SPDX-License-Identifier: Apache-2.0 */
/* The process that init leaves behind when it becomes the image's own init: it takes orders to power off,
 * from the stop port and from the agent, passes them on to PID 1, and sees to it that they are followed. */
#ifndef HYPEMAN_KEEPER_H
#define HYPEMAN_KEEPER_H

#include "reason.h"

#include <stdbool.h>
#include <sys/types.h>

/* Says to what comes after PID 1 that the end was asked for. */
#define STOP_REQUESTED "stop-requested"

/* Start it. `init`: hypeman-init as an fd to execute; `initrd`: the root that it goes to live in; `stop`: the
 * stop port, or -1 while there is none. */
bool keeper_start(int init, int initrd, int stop, pid_t *keeper, struct reason *why);

/* Its main, with the stop port as standard input and the initrd as fd 3. */
int keeper_main(bool has_port);

#endif
