// SPDX-License-Identifier: Apache-2.0
#include "clock.h"

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
