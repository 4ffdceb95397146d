// SPDX-License-Identifier: Apache-2.0
/* A start that goes on from a saved VM rather than boot one. */
#pragma once

#include <stddef.h>

/** What --restore=STATE,BOOT,COUNT says. */
struct saved {
    char state[128];  /* the file with the state of its devices */
    char boot[33];    /* the boot id that the guest has, or is to have */
    size_t arguments; /* so many at the end of the VMM's are for a restore alone */
};

/** Parse the value of the option. Returns 0, or -1; it has said why. */
int parse_saved(const char *value, struct saved *saved);

/** Open the state at FD_STATE. Returns 1, or 0 where there is none (any more): a cold start is left; -1 where
 * it cannot be read, and then it has said why. */
int open_saved(const struct saved *saved);
