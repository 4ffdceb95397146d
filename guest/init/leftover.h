/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HYPEMAN_LEFTOVER_H
#define HYPEMAN_LEFTOVER_H

#include <stddef.h>

/* What still runs beside PID 1 and the caller, for a message: "; still there: cron.service, sh, …", the names
 * of control groups (units, with systemd), or of processes that are in none. Nothing is there: says so. */
void leftover_words(char *words, size_t capacity);

#endif
