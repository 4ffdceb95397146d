/* SPDX-License-Identifier: Apache-2.0 */
/* Kernel parameters: records NAME=VALUE, with names as in sysctl.d(5). */
#ifndef HYPEMAN_SYSCTLS_H
#define HYPEMAN_SYSCTLS_H

#include "reason.h"

#include <stdbool.h>
#include <stddef.h>

/* Can the record's value be one? */
bool sysctl_check(const char *value, struct reason *why);

/* Set all that are in the records, which were checked. Stops at the first that the kernel refuses, with
 * words. */
bool sysctls_set(const char *records, size_t size, struct reason *why);

#endif
