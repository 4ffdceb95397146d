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

#endif
