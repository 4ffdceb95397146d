/* SPDX-License-Identifier: Apache-2.0 */
/* All of the guest stands still but PID 1, the agent and the kernel's own threads (cgroup v2's freezer, see
 * the kernel's admin-guide/cgroup-v2). What this has frozen is written down in /run/hypeman/frozen before it
 * is frozen, so that an agent that is started anew thaws it. */
#ifndef HYPEMAN_FREEZER_H
#define HYPEMAN_FREEZER_H

#include "reason.h"

#include <sys/types.h>

/* `keeper`: a process that goes on like PID 1. False with words: then nothing is frozen that was not before.
 * It waits FREEZER_MS at most. */
bool freezer_freeze(pid_t keeper, struct reason *why);

/* All that was frozen goes on, if anything was. `freezer_tidy` is to follow. */
bool freezer_thaw(struct reason *why);

/* Remove what a freezing needed that is thawed. That takes the guest as long as the thaw itself. */
void freezer_tidy(void);

/* Has an agent frozen the guest, maybe one before this? */
bool freezer_is_frozen(void);

enum { FREEZER_MS = 2000 };

#endif
