/* SPDX-License-Identifier: Apache-2.0 */
/* The host keys of an image's SSH server (sshd(8)), which a fork is not to share with its source. */
#ifndef HYPEMAN_SSHKEYS_H
#define HYPEMAN_SSHKEYS_H

#include "reason.h"

#include <stdbool.h>

/* What makes those that are missing, with -A. */
#define SSH_KEYGEN "/usr/bin/ssh-keygen"

/* Remove them from the root that is ours. None are no error. False with words. */
bool ssh_host_keys_remove(struct reason *why);

#endif
