// SPDX-License-Identifier: Apache-2.0
/* What a test in C says of what is not so; it ends with 1 if `failures` is not 0. */
#pragma once

#include <stdio.h>
#include <string.h>

static int failures;

#define EXPECT(condition)                                                                                    \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            (void)fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);                    \
            failures++;                                                                                      \
        }                                                                                                    \
    } while (0)

static void expect_text(const char *got, const char *wanted, int line)
{
    if (strcmp(got, wanted) == 0)
        return;
    (void)fprintf(stderr, "%s:%d: \"%s\" instead of \"%s\"\n", __FILE__, line, got, wanted);
    failures++;
}
#define EXPECT_TEXT(got, wanted) expect_text(got, wanted, __LINE__)
