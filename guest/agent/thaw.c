// SPDX-License-Identifier: Apache-2.0
#include "thaw.h"

#include "records.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

static bool parse_clock(const char *value, struct timespec *clock, struct reason *why)
{
    unsigned long ns;
    if (!parse_number(value, LONG_MAX, &ns))
        return refuse(why, "THAW: clock=%.40s: expected nanoseconds since the epoch", value);
    *clock = (struct timespec){.tv_sec = (time_t)(ns / 1000000000), .tv_nsec = (long)(ns % 1000000000)};
    return true;
}

static bool parse_entropy(const char *value, uint8_t bytes[ENTROPY_SIZE], struct reason *why)
{
    enum { DIGITS = 2 * ENTROPY_SIZE };
    if (strlen(value) != DIGITS || strspn(value, "0123456789abcdef") != DIGITS)
        return refuse(why, "THAW: entropy: expected %d hex digits", DIGITS);
    for (size_t i = 0; i < ENTROPY_SIZE; i++) {
        const char byte[] = {value[2 * i], value[2 * i + 1], '\0'};
        bytes[i] = (uint8_t)strtoul(byte, NULL, 16);
    }
    return true;
}

bool thaw_parse(char *records, size_t size, struct thaw *thaw, struct reason *why)
{
    bool has_clock = false;
    bool has_entropy = false;
    size_t offset = 0;
    struct record record;
    *thaw = (struct thaw){0};
    while (records_next(records, size, &offset, &record)) {
        const char *value = record.value;
        bool taken = true;
        if (record_is(&record, "clock"))
            taken = has_clock = parse_clock(value, &thaw->clock, why);
        else if (record_is(&record, "entropy"))
            taken = has_entropy = parse_entropy(value, thaw->entropy, why);
        else if (record_is(&record, "boot"))
            taken = refuse(why, "THAW: this agent cannot give a guest another identity yet");
        if (!taken)
            return false;
    }
    return (has_clock && has_entropy) || refuse(why, "THAW: it needs clock and entropy");
}
