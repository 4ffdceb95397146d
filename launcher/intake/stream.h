// SPDX-License-Identifier: Apache-2.0
/* QEMU's migration stream, of 7.2 to 10: docs/devel/migration of QEMU, and what migration/ram.c and savevm.c
 * write.
 *
 * All numbers are big-endian. A header, the machine's name, and sections:
 *   1 NUMBER NAME INSTANCE VERSION CONTENT FOOTER      the first of what is sent in several
 *   2 or 3 NUMBER CONTENT FOOTER                       the next, and the last of that
 *   4 NUMBER NAME INSTANCE VERSION CONTENT ...         a device: from the first of these on, nothing is
 * looked at 8 COMMAND SIZE CONTENT The content of `ram` is a list of numbers of 64 bits: their lower 12 bits
 * are flags, the others the offset of a page in its block; the block's name and the page follow. */
#pragma once

#include <stdint.h>

/** Take the stream apart (input.h): the pages of the block of this name, which has `size` bytes, go to the
 * memory (memory.h), all else to the state (state.h). Fails where the stream is another one. */
void stream_split(const char *block, uint64_t size);
