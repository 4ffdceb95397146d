// SPDX-License-Identifier: Apache-2.0
#include "deadline.h"

#include "journal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

enum {
    /* less than TimeoutStopSec=, which is 6 s at least: so the first extension is early enough */
    END_MS = 4000,
    /* of that, for what tells how much was not passed on */
    LAST_WORDS_MS = 500,
    /* in all, while journald takes lines: as long as systemd waits by default for any unit */
    LONGEST_MS = 90 * 1000,
    /* between two notifications */
    NOTIFY_MS = 1000,
    /* what systemd gives beyond the deadline: until the next notification, and for this to end */
    SPARE_MS = 2 * NOTIFY_MS,
};

/* 0: none yet */
static int64_t deadline, last, notified;
static int manager = -1;

int64_t clock_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

void deadline_open(void)
{
    const char *path = getenv("NOTIFY_SOCKET");
    if (path != NULL && path[0] == '/')
        manager = datagrams_open(path);
}

void deadline_set(void)
{
    if (deadline != 0)
        return;
    deadline = clock_ms() + END_MS - LAST_WORDS_MS;
    last = deadline + LONGEST_MS;
}

void deadline_extend(void)
{
    int64_t now = clock_ms();
    if (deadline == 0 || manager < 0 || now >= deadline || now - notified < NOTIFY_MS)
        return;
    char text[64];
    int length = snprintf(text, sizeof text, "EXTEND_TIMEOUT_USEC=%d", (END_MS + SPARE_MS) * 1000);
    if (send(manager, text, (size_t)length, MSG_NOSIGNAL) < 0)
        return;
    notified = now;
    int64_t later = now + END_MS - LAST_WORDS_MS;
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
