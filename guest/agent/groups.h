/* SPDX-License-Identifier: Apache-2.0 */
/* A control group (cgroups(7), version 2) for each program that the agent executes: what it has started ends
 * with it, whatever session or process group that has made for itself. */
#ifndef HYPEMAN_GROUPS_H
#define HYPEMAN_GROUPS_H

#include <stdbool.h>

struct group {
    int fd; /* of its folder; -1: there is none */
    unsigned number;
};

#define GROUP_NONE ((struct group){.fd = -1})

/* Groups are made in a folder of this name below the caller's own group, which is the one that it has now.
 * The folder is made with the first of them: no start waits for it. Without this, or where the kernel has
 * none, every group is GROUP_NONE. */
void groups_begin(const char *folder);

/* The caller's own group, below the root of the hierarchy; "." is that itself. NULL: there is none. */
const char *groups_own(void);

/* A new one, with nothing in it; also those are removed in which something was left that has ended since. */
struct group group_make(void);

/* End all that is in it. False if there is no group. */
bool group_kill(const struct group *group);

/* What is in it may go on. */
void group_release(struct group *group);

#endif
