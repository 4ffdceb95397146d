// SPDX-License-Identifier: Apache-2.0
#include "records.h"

#include <string.h>

static bool key_valid(const char *key, size_t length)
{
    if (length == 0 || key[0] < 'a' || key[0] > 'z')
        return false;
    for (size_t i = 0; i < length; i++) {
        char c = key[i];
        if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_'))
            return false;
    }
    return true;
}

bool records_valid(const char *buffer, size_t size)
{
    size_t offset = 0;
    while (offset < size) {
        const char *start = buffer + offset;
        const char *end = memchr(start, '\0', size - offset);
        if (end == NULL)
            return false;
        const char *equals = memchr(start, '=', (size_t)(end - start));
        if (equals == NULL || !key_valid(start, (size_t)(equals - start)))
            return false;
        offset += (size_t)(end - start) + 1;
    }
    return true;
}

bool records_next(const char *buffer, size_t size, size_t *offset, struct record *record)
{
    if (*offset >= size)
        return false;
    const char *start = buffer + *offset;
    size_t length = strlen(start);
    record->key = start;
    record->key_length = strcspn(start, "=");
    record->value = start + record->key_length + 1;
    *offset += length + 1;
    return true;
}

bool record_is(const struct record *record, const char *key)
{
    return strlen(key) == record->key_length && memcmp(record->key, key, record->key_length) == 0;
}

size_t records_count(const char *buffer, size_t size, const char *key)
{
    size_t count = 0;
    size_t offset = 0;
    struct record record;
    while (records_next(buffer, size, &offset, &record))
        count += record_is(&record, key) ? 1 : 0;
    return count;
}

bool records_put(char *buffer, size_t capacity, size_t *used, const char *key, const char *value)
{
    size_t key_length = strlen(key);
    size_t value_length = strlen(value);
    size_t room = capacity - *used;
    if (key_length >= room || value_length >= room || key_length + value_length + 2 > room)
        return false;
    char *at = buffer + *used;
    memcpy(at, key, key_length);
    at[key_length] = '=';
    memcpy(at + key_length + 1, value, value_length + 1);
    *used += key_length + value_length + 2;
    return true;
}

bool parse_number(const char *text, unsigned long max, unsigned long *number)
{
    if (*text == '\0')
        return false;
    unsigned long value = 0;
    for (; *text != '\0'; text++) {
        if (*text < '0' || *text > '9')
            return false;
        unsigned long digit = (unsigned long)(*text - '0');
        if (value > (max - digit) / 10 || digit > max)
            return false;
        value = value * 10 + digit;
    }
    *number = value;
    return true;
}
