/* SPDX-License-Identifier: Apache-2.0 */
/* A guest that goes on as another VM: what of its identity the host gives it. */
#ifndef HYPEMAN_RENEW_H
#define HYPEMAN_RENEW_H

#include "thaw.h"

/* All of it; again, if it is called again. False with words. */
bool renew_identity(const struct thaw *thaw, struct reason *why);

/* In a guest with systemd have SSH host keys made that are missing, and the server read them: a command that
 * nobody waits for. */
void renew_ssh_host_keys(void);

#endif
