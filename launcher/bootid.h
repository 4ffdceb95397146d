// SPDX-License-Identifier: Apache-2.0
/* The id of the guest's boot, and the record of which run carries it. */
#pragma once

#include <stdbool.h>

/** Hex digits of a run id (systemd's invocation id) and of a boot id. */
#define ID_LENGTH 32

/** Is `text` an id: 32 lower-case hex digits? It may be NULL. */
bool is_id(const char *text);

/** Make a new boot id, of random bytes. Returns 0, or -1 with errno. */
int make_boot_id(char boot[ID_LENGTH + 1]);

/** Write RUNTIME/run: "RUN BOOT\n", in place of the one of the run before, whole or not at all. Returns 0, or
 * -1 with errno. */
int keep_run_record(const char *runtime, const char *run, const char *boot);
