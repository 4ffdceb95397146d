/* SPDX-License-Identifier: Apache-2.0 */
/* How a program is started, beside argv, environment, folder and user: records that the config disk has for
 * the VM's program and EXEC for a command (docs/protocol.md, "Settings"). One row of a table in settings.c
 * each. */
#ifndef HYPEMAN_SETTINGS_H
#define HYPEMAN_SETTINGS_H

#include "reason.h"
#include "records.h"

#include <stdbool.h>
#include <stddef.h>

/* Valid records, in which those that are settings were checked. A process of ours has none: NULL. */
struct settings {
    const char *records;
    size_t size;
};

/* Can the record's value be what it says? True for a record that is no setting. */
bool settings_check(const struct record *record, struct reason *why);

/* In the process itself, while it is root: all of them, the last of those that contradict each other. False
 * with errno if one could not be, which *failed then is. */
bool settings_apply(const struct settings *settings, struct record *failed);

/* What a guest's systemd is to give its services, as lines of systemd-system.conf(5): an allocation, empty if
 * there is nothing, or NULL without memory. */
char *settings_manager_lines(const struct settings *settings);

#endif
