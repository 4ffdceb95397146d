// SPDX-License-Identifier: Apache-2.0
#include "fields.h"

#include <stdbool.h>
#include <string.h>

static int hex_digit(char c)
{
    static const char digits[] = "0123456789abcdef0123456789ABCDEF";
    const char *at = c == '\0' ? NULL : strchr(digits, c);
    return at == NULL ? -1 : (int)((at - digits) % 16);
}

static bool decode(char *text)
{
    char *to = text;
    for (const char *from = text; *from != '\0'; from++) {
        if (*from != '%') {
            *to++ = *from;
            continue;
        }
        int high = hex_digit(from[1]);
        int low = high < 0 ? -1 : hex_digit(from[2]);
        if (low < 0 || high + low == 0)
            return false;
        *to++ = (char)(high * 16 + low);
        from += 2;
    }
    *to = '\0';
    return true;
}

enum fields_step fields_next(char **rest, struct field *field)
{
    if (*rest == NULL || **rest == '\0')
        return FIELDS_END;
    char *at = *rest;
    char *end = strchr(at, ',');
    if (end != NULL)
        *end++ = '\0';
    *rest = end;
    char *equals = strchr(at, '=');
    if (equals == NULL || equals == at)
        return FIELDS_BROKEN;
    *equals = '\0';
    field->key = at;
    field->value = equals + 1;
    return decode(field->value) ? FIELDS_ONE : FIELDS_BROKEN;
}
