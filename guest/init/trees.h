/* SPDX-License-Identifier: Apache-2.0 */
/* Folders as a whole, by fd: no link that somebody else makes meanwhile leads out of them. */
#ifndef HYPEMAN_TREES_H
#define HYPEMAN_TREES_H

#include <stdbool.h>
#include <sys/types.h>

/* Remove what has this name in a folder, with all that is in it. What is on another device than `device`
 * stays, and so what it is in: errno is EXDEV then. False with errno of the first thing that stayed. */
bool tree_remove(int folder, const char *name, dev_t device);

/* Copy what is in a folder into another one, with all that is in it: owners, modes, times, extended
 * attributes and hard links; of the names that are there already none may be in it. Of what is mounted in it
 * the folder alone. False with errno of the first thing that could not be copied; what was copied before
 * stays. */
bool tree_copy(int from, int to);

/* Give a folder the owner, mode, times and extended attributes of another one. False with errno. */
bool folder_resemble(int to, int from);

#endif
