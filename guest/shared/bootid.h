/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HYPEMAN_BOOTID_H
#define HYPEMAN_BOOTID_H

#include "reason.h"
#include "sentinel.h"

#include <stdbool.h>

/* The value of `hypeman.boot=` in a kernel command line: 32 lower-case hex digits, else false. */
bool boot_id_parse(const char *command_line, char boot[BOOT_ID_LENGTH + 1]);

/* The same from /proc/cmdline. */
bool boot_id_read(char boot[BOOT_ID_LENGTH + 1]);

/* 32 lower-case hex digits. */
bool boot_id_valid(const char *text);

/* A guest that goes on as another VM gets the id of that one, which the kernel's command line does not have.
 * Keep it for all that sign with it. False with words. */
bool boot_id_write(const char *boot, struct reason *why);

/* The id that it has now, in place of one from the command line or an earlier one. `run`: RUN_FOLDER's fd, or
 * AT_FDCWD for that itself. Fit for a signal handler. */
void boot_id_renew(int run, char boot[BOOT_ID_LENGTH + 1]);

/* The same of the one from the command line. False if there is none. */
bool boot_id_current(char boot[BOOT_ID_LENGTH + 1]);

#endif
