/* SPDX-License-Identifier: Apache-2.0 */
/* Folders as a whole, by fd: no link that somebody else makes meanwhile leads out of them. */
#ifndef HYPEMAN_TREES_H
#define HYPEMAN_TREES_H

#include <stdbool.h>
#include <sys/types.h>

/* Remove what has this name in a folder, with all that is in it. What is on another device than `device`
 * stays, and so what it is in: errno is EXDEV then. False with errno of the first thing that stayed. */
bool tree_remove(int folder, const char *name, dev_t device);

/* Copy the files of a folder, not its folders and links, into another one. False with errno. */
bool files_copy(int from, int to);

#endif
