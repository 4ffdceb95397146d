/* SPDX-License-Identifier: Apache-2.0 */
/* /etc/hosts: the VM's own name, and names of others, which the host tells in `host` records. */
#ifndef HYPEMAN_HOSTS_H
#define HYPEMAN_HOSTS_H

#include "reason.h"

#include <stdbool.h>
#include <stddef.h>

enum { HOSTS_MAX = 4096, HOST_NAMES_MAX = 8 };

/* The lines that stand around what the host has told; it looks for them too (docs/protocol.md). */
#define HOSTS_BEGIN "# BEGIN hypemand"
#define HOSTS_END "# END hypemand"

struct host {
    const char *address;
    const char *names[HOST_NAMES_MAX];
    size_t name_count; /* at least 1 */
};

struct hosts {
    struct host *all;
    size_t count;
};

/* Take the value of a `host` record, which is written to and stays in use. */
bool host_parse(char *value, struct host *host, struct reason *why);

/* Can a host have this name? At most 253 letters, digits, `-`, `.` and `_`. */
bool host_name_valid(const char *name);

/* What /etc/hosts is to be where `old` is its text ("": there is none): an allocation, or NULL without
 * memory. Lines that somebody else has written stay as they are. `former`: the name that the VM has had, or
 * NULL. */
char *hosts_derive(const char *old, const char *name, const char *former, const struct hosts *hosts);

#endif
