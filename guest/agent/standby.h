/* SPDX-License-Identifier: Apache-2.0 */
/* The guest on its way to being saved, and back. */
#ifndef HYPEMAN_STANDBY_H
#define HYPEMAN_STANDBY_H

#include "reason.h"
#include "thaw.h"

#include <stdbool.h>
#include <sys/types.h>

/* Freeze all but PID 1, the agent and `keeper`, and have the file systems write what they hold, for SYNC_MS
 * at most: the words say whether that was enough. False with words: nothing is frozen. */
bool standby_freeze(pid_t keeper, struct reason *words);

/* Set clock and entropy, make the guest another VM if it is to be one, and let all go on. False with words:
 * what was frozen is. */
bool standby_thaw(const struct thaw *thaw, struct reason *why);

enum { SYNC_MS = 5000 };

#endif
