/* SPDX-License-Identifier: Apache-2.0 */
/* What the config disk says of the VM's volumes. Nothing here touches a disk. */
#ifndef HYPEMAN_VOLUMERECORDS_H
#define HYPEMAN_VOLUMERECORDS_H

#include "reason.h"

#include <stdbool.h>
#include <stddef.h>

struct volume {
    const char *serial; /* NULL: there is no disk, but a tmpfs */
    const char *path;   /* absolute, neither `.` nor `..` in it, no slash too many */
    const char *type;
    const char *options; /* of a tmpfs */
    bool readonly;
    bool overlay;   /* what is written goes to a layer on the VM's disk; the volume itself is readonly */
    bool required;  /* or the boot goes on without it, with a warning */
    int filesystem; /* an fd of its root, -1 if it is not mounted */
};

struct volumes {
    struct volume *all;
    size_t count;
};

/* Can a volume have this place? */
bool volume_path_valid(const char *path);

/* The value of a `volume` record, which is written to and stays in use. */
bool volume_parse(char *value, struct volume *volume, struct reason *why);

/* Sort the volumes so that a folder comes before what is in it. False if two have one place. */
bool volumes_sort(struct volumes *volumes, struct reason *why);

/* Does one of them hold what the set-up of the network writes to: is its place /, /etc or below /etc? */
bool volumes_hold_etc(const struct volumes *volumes);

/* Is one of them the root itself? */
bool volumes_hold_root(const struct volumes *volumes);

#endif
