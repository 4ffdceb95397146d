/* SPDX-License-Identifier: Apache-2.0 */
/* Who sets up the kernel headers: a process of the least priority, beside the program. */
#ifndef HYPEMAN_HEADERSWORKER_H
#define HYPEMAN_HEADERSWORKER_H

#include "reason.h"

#include <stdbool.h>
#include <sys/types.h>

enum headers_state { HEADERS_PENDING, HEADERS_RUNNING, HEADERS_READY, HEADERS_FAILED };

/* What the worker tells init through its pipe: RUNNING, then READY or FAILED. One write each. */
struct headers_news {
    enum headers_state state;
    struct reason why;
};

/* Say in /run/hypeman/kernel-headers.status how it stands; `why` is the second line of FAILED, else NULL.
 * After the sentinel of that state, by the process that printed it: a program may end the machine when it
 * reads `ready`. */
void headers_status(enum headers_state state, const char *why);

/* Fork a worker that does `setup`. Gives back its pid, and in *news the non-blocking pipe of its
 * headers_news; -1 with a reason if there is no worker. */
pid_t headers_worker_start(bool (*setup)(struct reason *why), int *news, struct reason *why);

/* The same as a program of its own, for a machine whose PID 1 is not init: the sentinels go to the console
 * and to the report port. Its exit status. */
int headers_worker_main(void);

#endif
