/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HYPEMAN_CRC32_H
#define HYPEMAN_CRC32_H

#include <stddef.h>
#include <stdint.h>

/* CRC-32 (IEEE 802.3), the same value as zlib's crc32(). */
uint32_t crc32_ieee(const void *data, size_t size);

#endif
