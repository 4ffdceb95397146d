/* SPDX-License-Identifier: Apache-2.0 */
/* The kernel's random numbers: two guests that go on from one saved state must not have the same ones. */
#ifndef HYPEMAN_ENTROPY_H
#define HYPEMAN_ENTROPY_H

#include "reason.h"

#include <stdint.h>

enum { ENTROPY_SIZE = 64 };

/* What the host says of them: hex digits, two for each byte. */
bool entropy_parse(const char *text, uint8_t bytes[ENTROPY_SIZE]);

/* Mix these bytes, which nobody else knows, into the kernel's random numbers (random(4)), so that all that it
 * gives out from now on hangs on them. */
bool entropy_add(const uint8_t bytes[ENTROPY_SIZE], struct reason *why);

#endif
