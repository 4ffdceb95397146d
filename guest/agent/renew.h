/* SPDX-License-Identifier: Apache-2.0 */
/* A guest that goes on as another VM: what of its identity the host gives it. */
#ifndef HYPEMAN_RENEW_H
#define HYPEMAN_RENEW_H

#include "thaw.h"

/* All of it; again, if it is called again. False with words. */
bool renew_identity(const struct thaw *thaw, struct reason *why);

/* In a guest with systemd, once it goes on: the journal begins anew under the new ids, and SSH host keys that
 * are missing are made for a server that reads them. Nobody waits for that. */
void renew_services(const struct thaw *thaw);

#endif
