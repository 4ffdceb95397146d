/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HYPEMAN_BOOTID_H
#define HYPEMAN_BOOTID_H

#include "sentinel.h"

#include <stdbool.h>

/* The value of `hypeman.boot=` in a kernel command line: 32 lower-case hex digits, else false. */
bool boot_id_parse(const char *command_line, char boot[BOOT_ID_LENGTH + 1]);

/* The same from /proc/cmdline. */
bool boot_id_read(char boot[BOOT_ID_LENGTH + 1]);

#endif
