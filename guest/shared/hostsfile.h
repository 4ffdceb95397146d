/* SPDX-License-Identifier: Apache-2.0 */
/* The file /etc/hosts of the root that is ours. */
#ifndef HYPEMAN_HOSTSFILE_H
#define HYPEMAN_HOSTSFILE_H

#include "hosts.h"
#include "reason.h"

#include <stdbool.h>

/* Give it the VM's name, in place of a `former` one (or NULL), and the names of others. An image that has its
 * own knows neither; that it cannot be written to, or is too long, is a warning in the kernel's log. */
bool hosts_set(const char *name, const char *former, const struct hosts *hosts, struct reason *why);

#endif
