/* SPDX-License-Identifier: Apache-2.0 */
/* A disk that was another VM's: of a fork, or of an import with an identity of its own. */
#ifndef HYPEMAN_NEWOWNER_H
#define HYPEMAN_NEWOWNER_H

#include "config.h"
#include "reason.h"

/* If the disk still has the machine id of a VM that it was of (`former_machine_id` of the config disk), give
 * it that of this one, and remove the SSH server's keys where that is asked for. `initrd`: an fd of the
 * initrd's root, from which the disk is reached; the root is the image's. False with words. */
bool new_owner(struct config *config, int initrd, struct reason *why);

#endif
