// SPDX-License-Identifier: Apache-2.0
#include "deadline.h"

#include <time.h>

enum {
    /* in all, at least */
    LEAST_MS = 4000,
    /* Of the whole, so long without a line that is taken: a journald that writes its files to a slow disk
       takes none for seconds. */
    SHARE = 3,
    /* of that, and of what there is in all, for what tells how much was not passed on */
    LAST_WORDS_MS = 500,
};

/* 0: none yet */
static int64_t deadline, last;
static int64_t longest_ms = LEAST_MS;

int64_t clock_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

void deadline_open(int64_t longest)
{
    longest_ms = longest < LEAST_MS ? LEAST_MS : longest;
}

static int64_t patience_ms(void)
{
    int64_t share = longest_ms / SHARE;
    return (share < LEAST_MS ? LEAST_MS : share) - LAST_WORDS_MS;
}

void deadline_set(void)
{
    if (deadline != 0)
        return;
    int64_t now = clock_ms();
    deadline = now + patience_ms();
    last = now + longest_ms - LAST_WORDS_MS;
}

void deadline_extend(void)
{
    if (deadline == 0 || deadline_is_over())
        return;
    int64_t later = clock_ms() + patience_ms();
    deadline = later < last ? later : last;
}

void deadline_grant_last_words(void)
{
    deadline += LAST_WORDS_MS;
}

bool deadline_is_over(void)
{
    return deadline != 0 && clock_ms() >= deadline;
}

int64_t deadline_left(int64_t longest)
{
    if (deadline == 0)
        return longest;
    int64_t left = deadline - clock_ms();
    left = left < 0 ? 0 : left;
    return longest < 0 || left < longest ? left : longest;
}
