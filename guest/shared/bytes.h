/* SPDX-License-Identifier: Apache-2.0 */
/* Little-endian numbers at any address. */
#ifndef HYPEMAN_BYTES_H
#define HYPEMAN_BYTES_H

#include <stdint.h>

static inline uint32_t get_le32(const void *at)
{
    const uint8_t *b = at;
    return (uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}

static inline void put_le32(void *at, uint32_t value)
{
    uint8_t *b = at;
    for (int i = 0; i < 4; i++)
        b[i] = (uint8_t)(value >> (8 * i));
}

static inline uint64_t get_le64(const void *at)
{
    const uint8_t *b = at;
    return (uint64_t)get_le32(b) | (uint64_t)get_le32(b + 4) << 32;
}

static inline void put_le64(void *at, uint64_t value)
{
    uint8_t *b = at;
    put_le32(b, (uint32_t)value);
    put_le32(b + 4, (uint32_t)(value >> 32));
}

#endif
