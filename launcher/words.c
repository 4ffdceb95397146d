// SPDX-License-Identifier: Apache-2.0
#include "words.h"

#include <stdio.h>

const char *compose_words(char *line, const char *words, const char *boot)
{
    int length = snprintf(line, WORDS_SIZE, "%s hypeman.boot=%s", words, boot);
    if (length < 0 || length >= WORDS_SIZE)
        return "the kernel command line is too long";
    return NULL;
}
