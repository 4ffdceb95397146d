// SPDX-License-Identifier: Apache-2.0
#include "reason.h"

#include <stdarg.h>
#include <stdio.h>

bool refuse(struct reason *why, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    if (vsnprintf(why->words, sizeof why->words, format, arguments) < 0)
        why->words[0] = '\0';
    va_end(arguments);
    return false;
}
