/* SPDX-License-Identifier: Apache-2.0 */
/* The VM's volumes: disks of their own that get a place in the root. */
#ifndef HYPEMAN_VOLUMES_H
#define HYPEMAN_VOLUMES_H

#include "report.h"
#include "volumerecords.h"

#include <stdint.h>

/* Mount them all, nowhere yet; devices that are not there are waited for. */
bool volumes_mount(struct volumes *volumes, struct report *report, int64_t deadline, struct reason *why);

/* Give each its place in the root at `path`, and a new one what the image has there. */
bool volumes_place(struct volumes *volumes, struct report *report, const char *path, struct reason *why);

/* Make them clean; for when nothing runs any more. */
void volumes_leave(struct volumes *volumes);

#endif
