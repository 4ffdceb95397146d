/* SPDX-License-Identifier: Apache-2.0 */
/* Paths of a root that is not ours yet: whatever links its image has, they do not lead out of it. */
#ifndef HYPEMAN_INROOT_H
#define HYPEMAN_INROOT_H

#include <stdbool.h>

/* An fd (O_PATH) of a folder below `root`, made with what is missing on the way to it; -1 with errno. */
int folder_in_root(int root, const char *path);

/* Is there a folder of this path below `root`? */
bool folder_is_in_root(int root, const char *path);

/* Give a folder a file with this text, whole or not at all, in place of whatever has the name (a link itself,
 * not what it points to). False with errno. */
bool file_replace(int folder, const char *name, const char *text);

#endif
