/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HYPEMAN_ROOT_H
#define HYPEMAN_ROOT_H

#include "reason.h"
#include "report.h"

#include <stdbool.h>
#include <stdint.h>

#define ROOT "/root"

/* Mount the image and the VM's disk, and the overlay of the two at ROOT. A disk that the host has made larger
 * grows; if it cannot, that is a warning. */
bool root_mount(struct report *report, int64_t deadline, struct reason *why);

/* Make what is mounted at ROOT the root. Gives back an fd of the initrd's, through which the disk can still
 * be reached. */
bool root_enter(int *initrd, struct reason *why);

/* Make the VM's disk read-only, so that it is clean; for when nothing runs any more. */
void root_leave(int initrd);

/* For an image's own init: leave image and disk to the overlay alone, so that both are clean once it has been
 * unmounted. The initrd stays out of everybody's sight. */
void root_let_go(int initrd);

#endif
