// SPDX-License-Identifier: Apache-2.0
/* Any bytes as what a program says to a readiness check, by the first of them: an HTTP answer, a
 * notification, a pattern and lines for it, or the check itself. A pattern takes no more steps for a byte
 * than it has. */
#include "probe.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A pattern up to the first newline; the rest are lines. */
static void match(const char *text, size_t size)
{
    static struct probe probe;
    struct reason why = {""};
    char *copy = strndup(text, size);
    if (copy == NULL)
        abort();
    char *lines = strchr(copy, '\n');
    if (lines != NULL)
        *lines++ = '\0';
    memset(&probe, 0, sizeof probe);
    if (!pattern_compile(&probe.pattern, copy, &why)) {
        if (why.words[0] == '\0')
            abort();
    } else if (lines != NULL) {
        matcher_start(&probe.matcher, &probe.pattern);
        for (size_t i = 0; lines[i] != '\0'; i++) {
            (void)console_feed(&probe, lines + i, 1);
            if (probe.matcher.state_count > probe.pattern.size)
                abort();
        }
    }
    free(copy);
}

static void parse(const char *text, size_t size)
{
    struct check check;
    struct reason why = {""};
    char *copy = strndup(text, size);
    if (copy == NULL)
        abort();
    if (!check_parse(copy, &check, &why) && why.words[0] == '\0')
        abort();
    free(copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct reason why = {""};
    if (size == 0)
        return 0;
    /* An allocation of its own: a byte too much is seen. */
    char *rest = malloc(size);
    if (rest == NULL)
        abort();
    memcpy(rest, data + 1, size - 1);
    switch (data[0]) {
    case 'h':
        if (http_status(rest, size - 1) > 999)
            abort();
        break;
    case 'n':
        (void)notify_parse(rest, size - 1, &why);
        break;
    case 'p':
        match(rest, size - 1);
        break;
    default:
        parse(rest, size - 1);
        break;
    }
    free(rest);
    return 0;
}
