// SPDX-License-Identifier: Apache-2.0
#include "say.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

void say(const char *format, ...)
{
    char line[1024] = "launcher: ";
    size_t used = strlen(line);
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(line + used, sizeof(line) - used - 1, format, arguments);
    va_end(arguments);
    used = strlen(line);
    line[used++] = '\n';
    /* one write: a line that is cut would be two in the journal. There is nowhere to report its failure. */
    if (write(STDERR_FILENO, line, used) < 0)
        return;
}
