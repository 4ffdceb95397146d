/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HYPEMAN_MOUNTS_H
#define HYPEMAN_MOUNTS_H

#include "reason.h"

#include <stdbool.h>

/* What init itself needs in the initrd: /proc, /sys, /dev. */
bool mounts_early(struct reason *why);

/* Take them away again, before the root is switched. */
void mounts_early_leave(void);

/* The API filesystems of the image's root, once it is /. Folders that the image lacks are made. */
bool mounts_root(struct reason *why);

#endif
