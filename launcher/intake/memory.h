// SPDX-License-Identifier: Apache-2.0
/* The file with the guest's memory: a page at its offset, pages of zeros as holes. */
#pragma once

#include <stdint.h>

#define PAGE_SIZE 4096

/** Write to the file of this descriptor, which becomes one hole of `size` bytes. Offsets below are multiples
 * of PAGE_SIZE, and their pages are in the file: the caller has checked it. All fail where the file cannot be
 * written. */
void memory_init(int fd, uint64_t size);

/** A page, which stays valid until memory_flush(). */
void memory_put(uint64_t offset, const unsigned char *page);

/** A page of zeros. */
void memory_clear(uint64_t offset);

/** Write what was put. */
void memory_flush(void);

/** Write what was put, and have all of it on the disk. */
void memory_finish(void);
