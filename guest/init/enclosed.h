/* SPDX-License-Identifier: Apache-2.0 */
/* The PID namespace that the program of exec mode has of its own: neither it nor what the agent executes
 * there can see or signal init and the agent. Its PID 1 is the program itself, or a reaper that stands before
 * it. */
#ifndef HYPEMAN_ENCLOSED_H
#define HYPEMAN_ENCLOSED_H

#include "spawn.h"

struct enclosed {
    struct enclosure enclosure; /* the program's */
    pid_t reaper;               /* -1: the program is PID 1 */
};

#define ENCLOSED_NONE                                                                                        \
    ((struct enclosed){.enclosure = {.first = true, .beside = -1, .cgroup = -1, .mounts = true},             \
                       .reaper = -1})

/* Make a namespace whose PID 1 reaps orphans and forwards signals to the program, which is to be PID 2. Its
 * output is the console, too. False with words. */
bool enclosed_begin_reaper(struct enclosed *enclosed, int console, struct reason *why);

/* For what is to run among the program's processes while that, `program`, runs. `beside` is the caller's to
 * close, and -1 where there are none any more. */
struct enclosure enclosed_beside(const struct enclosed *enclosed, pid_t program);

void enclosed_close(struct enclosed *enclosed);

/* Would a process that is PID 1 of its namespace not notice this signal, which is to end it? The kernel holds
 * back from such a one what it neither catches nor waits for. */
bool enclosed_holds_back(pid_t pid, int number);

#endif
