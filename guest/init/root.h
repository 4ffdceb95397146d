/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HYPEMAN_ROOT_H
#define HYPEMAN_ROOT_H

#include "reason.h"

#include <stdbool.h>
#include <stdint.h>

/* Mount the image and the VM's disk, the overlay of the two, and make it /. Gives back an fd of the initrd's
 * root, through which the disk can still be reached. */
bool root_switch(int64_t deadline, int *initrd, struct reason *why);

/* Make the VM's disk read-only, so that it is clean; for when nothing runs any more. */
void root_leave(int initrd);

#endif
