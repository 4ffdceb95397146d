/* SPDX-License-Identifier: Apache-2.0 */
/* The units that a guest with systemd gets from us. They are written to /run/systemd/system: that is gone
 * with the boot that they are for, works with an /etc that is read-only, and gives way to what stands in
 * /etc. */
#ifndef HYPEMAN_UNITFILES_H
#define HYPEMAN_UNITFILES_H

#include "config.h"
#include "reason.h"
#include "runfolder.h"

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#define TOOLS_FOLDER "/opt/hypeman"

/* Write units, their links, and the agent's environment. `keeper`: the process that the agent tells to power
 * off. False with the reason if the image stands in the agent's way. */
bool unit_files_write(const struct config *config, pid_t keeper, struct reason *why);

/* `KEY=value` as a line of a file for EnvironmentFile=, by which systemd reads exactly that value: an
 * allocation, or NULL without memory. Empty for a name that systemd does not take. */
char *environment_file_line(const char *variable);

#endif
