/* SPDX-License-Identifier: Apache-2.0 */
/* Records of docs/protocol.md: `key=value` and a NUL, any number of them. */
#ifndef HYPEMAN_RECORDS_H
#define HYPEMAN_RECORDS_H

#include <stdbool.h>
#include <stddef.h>

/* A record inside the buffer it was read from. The value ends with the record's own NUL: it is a C string. */
struct record {
    const char *key;
    size_t key_length;
    const char *value;
};

/* True if the whole buffer is records that can be read. Nothing else here may be called before it said so. */
bool records_valid(const char *buffer, size_t size);

/* The record at *offset, which moves behind it. False at the end. */
bool records_next(const char *buffer, size_t size, size_t *offset, struct record *record);

bool record_is(const struct record *record, const char *key);

/* How many records have this key. */
size_t records_count(const char *buffer, size_t size, const char *key);

/* Append a record at *used. False, and nothing appended, if there is no room. */
bool records_put(char *buffer, size_t capacity, size_t *used, const char *key, const char *value);

/* A whole decimal number from 0 to max, no sign, no blanks. */
bool parse_number(const char *text, unsigned long max, unsigned long *number);

#endif
