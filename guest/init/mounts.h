/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HYPEMAN_MOUNTS_H
#define HYPEMAN_MOUNTS_H

#include "reason.h"
#include "report.h"

#include <stdbool.h>

/* What init itself needs in the initrd: /proc, /sys, /dev. */
bool mounts_early(struct reason *why);

/* What the image's root will have of API file systems: as far as they can be there before the root is, to be
 * moved into it. False with words. */
bool mounts_ahead(struct reason *why);

/* A tmpfs for /run of the root at `root`, before volumes get their places, which may be in it. `content`:
 * with what the image has there, as in a container; or empty, as on a machine. That something of it cannot be
 * copied is a warning. */
bool mounts_run(const char *root, bool content, struct report *report, struct reason *why);

/* Have them in the image's root, once it is /. Folders that the image lacks are made. `has_init`: an init of
 * the image's own will run and mounts the rest. */
bool mounts_root(bool has_init, struct reason *why);

#endif
