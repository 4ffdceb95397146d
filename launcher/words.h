// SPDX-License-Identifier: Apache-2.0
/* The guest kernel's command line. */
#pragma once

#include <stddef.h>

/** The kernel's limit on x86, with the NUL (COMMAND_LINE_SIZE). */
#define WORDS_SIZE 2048

/** Write `words` and the boot id into `line`, of WORDS_SIZE. Returns NULL, or what is wrong. */
const char *compose_words(char *line, const char *words, const char *boot);
