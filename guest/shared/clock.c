// SPDX-License-Identifier: Apache-2.0
#include "clock.h"

#include "records.h"

#include <limits.h>

static struct timespec read_clock(clockid_t clock)
{
    struct timespec now = {0};
    (void)clock_gettime(clock, &now); /* Fails for unknown clocks only. */
    return now;
}

int64_t clock_ms(void)
{
    struct timespec now = read_clock(CLOCK_MONOTONIC);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

struct timespec clock_boottime(void)
{
    return read_clock(CLOCK_BOOTTIME);
}

struct timespec clock_realtime(void)
{
    return read_clock(CLOCK_REALTIME);
}

bool clock_parse(const char *text, struct timespec *clock)
{
    unsigned long ns;
    if (!parse_number(text, LONG_MAX, &ns))
        return false;
    *clock = (struct timespec){.tv_sec = (time_t)(ns / 1000000000), .tv_nsec = (long)(ns % 1000000000)};
    return true;
}

int clock_set(const struct timespec *now)
{
    static const double as_good_as_right = 0.02;
    struct timespec mine = clock_realtime();
    double off = difftime(now->tv_sec, mine.tv_sec) + (double)(now->tv_nsec - mine.tv_nsec) / 1e9;
    if (off >= -as_good_as_right && off <= as_good_as_right)
        return 0;
    return clock_settime(CLOCK_REALTIME, now);
}

int deadline_timeout(int64_t deadline)
{
    if (deadline == NO_DEADLINE)
        return -1;
    int64_t left = deadline - clock_ms();
    if (left <= 0)
        return 0;
    /* One more: the clock was rounded down, and waking a moment early would spin. */
    return left >= INT_MAX ? INT_MAX : (int)left + 1;
}
