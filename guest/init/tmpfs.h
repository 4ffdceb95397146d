/* SPDX-License-Identifier: Apache-2.0 */
/* File systems in memory that the VM is to have: records PATH[:OPTION,…], as tmpfs of Docker. */
#ifndef HYPEMAN_TMPFS_H
#define HYPEMAN_TMPFS_H

#include "volumerecords.h"

/* The value of a `tmpfs` record, which is written to and stays in use, as a volume of type tmpfs. */
bool tmpfs_parse(char *value, struct volume *volume, struct reason *why);

/* Make it, nowhere yet: an fd of its root, or -1 with errno. */
int tmpfs_open(const struct volume *volume);

/* Does the folder that it gets the place of say nothing about its owner and mode? */
bool tmpfs_has_mode(const struct volume *volume);

#endif
