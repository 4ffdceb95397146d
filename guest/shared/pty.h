/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HYPEMAN_PTY_H
#define HYPEMAN_PTY_H

#include "reason.h"

#include <stdbool.h>
#include <sys/types.h>

/* A pseudoterminal: the master end, non-blocking, and the process's end, owned by `owner`; both
 * close-on-exec. */
struct pty {
    int master;
    int process;
};

bool pty_open(struct pty *pty, uid_t owner, struct reason *why);

#endif
