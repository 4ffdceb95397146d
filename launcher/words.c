// SPDX-License-Identifier: Apache-2.0
#include "words.h"

#include <stdio.h>
#include <string.h>

const char *compose_words(char *line, const char *words, const char *boot)
{
    if (boot == NULL)
        return "there is no INVOCATION_ID: systemd starts this program";
    if (strlen(boot) != BOOT_ID_LENGTH || strspn(boot, "0123456789abcdef") != BOOT_ID_LENGTH)
        return "INVOCATION_ID is not 32 hex digits";
    int length = snprintf(line, WORDS_SIZE, "%s hypeman.boot=%s", words, boot);
    if (length < 0 || length >= WORDS_SIZE)
        return "the kernel's command line is too long";
    return NULL;
}
