/* SPDX-License-Identifier: Apache-2.0 */
/* Paths of a root that is not ours yet: whatever links its image has, they do not lead out of it. */
#ifndef HYPEMAN_INROOT_H
#define HYPEMAN_INROOT_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/* An fd (O_PATH) of a folder below `root`, made with what is missing on the way to it; -1 with errno. */
int folder_in_root(int root, const char *path);

/* Is there a folder of this path below `root`? */
bool folder_is_in_root(int root, const char *path);

/* What a file is made with. */
struct content {
    const char *bytes;
    size_t size;
    mode_t mode;
    uid_t uid;
    gid_t gid;
};

/* Give a folder a file with this content, whole or not at all, in place of whatever has the name but a
 * folder. False with errno. */
bool file_put(int folder, const char *name, const struct content *content);

/* The same with a text that is root's and that everybody reads: in place of a link itself, not of what it
 * points to. */
bool file_replace(int folder, const char *name, const char *text);

#endif
