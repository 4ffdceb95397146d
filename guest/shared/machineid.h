/* SPDX-License-Identifier: Apache-2.0 */
/* The machine id of an image's systemd (machine-id(5)): the VM's own, not one that all VMs of the image would
 * have. */
#ifndef HYPEMAN_MACHINEID_H
#define HYPEMAN_MACHINEID_H

#include "reason.h"

#include <stdbool.h>

enum { MACHINE_ID_LENGTH = 32 };

/* 32 lower-case hex digits, not all of them 0. */
bool machine_id_valid(const char *text);

/* Has the VM got an id of its own? `upper` is an fd of the folder of what was written in it, `image` one of
 * the image, from whose D-Bus a systemd takes an id where it has none. */
bool machine_id_is_own(int upper, int image);

/* Is this what was written of it to the folder `upper` is an fd of? */
bool machine_id_is(int upper, const char *id);

/* Let D-Bus have systemd's id, in the root at `root`, instead of one that is a file of the image. False with
 * errno. */
bool machine_id_share(int root, int upper);

/* Give the guest another id, in the root that is ours: it is what programs read that start from then on.
 * False with words. */
bool machine_id_set(const char *id, struct reason *why);

#endif
