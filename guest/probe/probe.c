// SPDX-License-Identifier: Apache-2.0
#include "probe.h"

#include "clock.h"
#include "files.h"

#include <errno.h>
#include <poll.h>
#include <string.h>

/* The time to the next attempt is a part of the time that has passed, so that it adds little to that: a 128th
 * where an attempt costs next to nothing, an 8th where it has a program do something. */
enum { CHEAP_PART = 128, CHEAP_LEAST_MS = 2, DEAR_PART = 8, DEAR_LEAST_MS = 50 };

bool probe_open(struct probe *probe, const struct check *check, const struct probe_place *place,
                struct reason *why)
{
    *probe = (struct probe){
        .check = check, .place = place, .fd = -1, .deadline = NO_DEADLINE, .verdict = -1, .console = -1};
    if (check->kind == CHECK_NOTIFY)
        return (folder_make(RUN_FOLDER, 0755) ||
                refuse(why, "cannot make the folder " RUN_FOLDER ": %s", strerror(errno))) &&
               notify_open(probe, NOTIFY_PATH, why);
    if (check->kind == CHECK_LOG)
        return console_open(probe, why);
    return true;
}

enum probe_state probe_begin(struct probe *probe)
{
    union address address;
    probe->cheap = false;
    switch (probe->check->kind) {
    case CHECK_TCP:
        probe->cheap = true;
        return tcp_find(probe->check->port, probe->check->loopback, &address, &probe->why);
    case CHECK_HTTP:
        return http_begin(probe);
    case CHECK_EXEC:
        return command_begin(probe);
    case CHECK_NOTIFY:
    case CHECK_LOG:
    case CHECK_NONE:
        break;
    }
    return PROBE_PENDING;
}

enum probe_state probe_step(struct probe *probe, bool ready)
{
    switch (probe->check->kind) {
    case CHECK_HTTP:
        return http_step(probe, ready);
    case CHECK_EXEC:
        return command_step(probe, ready);
    case CHECK_NOTIFY:
        return notify_step(probe, ready);
    case CHECK_LOG:
        return console_step(probe, ready);
    case CHECK_TCP:
    case CHECK_NONE:
        break;
    }
    return PROBE_FAILED;
}

enum probe_state probe_wait(struct probe *probe, void (*told)(void *, const struct reason *), void *context)
{
    enum probe_state state = probe_begin(probe);
    struct reason before = probe->why;
    while (state == PROBE_PENDING) {
        struct pollfd wanted = {.fd = probe->fd, .events = probe->events};
        int count = poll(&wanted, 1, deadline_timeout(probe->deadline));
        if (count < 0 && errno != EINTR)
            (void)refuse(&probe->why, "cannot wait for events: %s", strerror(errno));
        bool expired = deadline_timeout(probe->deadline) == 0;
        if (count > 0 || expired)
            state = probe_step(probe, count > 0);
        if (state == PROBE_PENDING && strcmp(before.words, probe->why.words) != 0) {
            before = probe->why;
            told(context, &probe->why);
        }
    }
    return state;
}

int probe_pause(const struct probe *probe, int64_t elapsed_ms)
{
    int64_t pause = elapsed_ms / (probe->cheap ? CHEAP_PART : DEAR_PART);
    int64_t least = probe->cheap ? CHEAP_LEAST_MS : DEAR_LEAST_MS;
    pause = pause < least ? least : pause;
    return pause < probe->check->interval_ms ? (int)pause : probe->check->interval_ms;
}

void probe_close(struct probe *probe)
{
    if (probe->check->kind == CHECK_LOG)
        console_close(probe);
    while (probe->check->kind == CHECK_NOTIFY && probe->fd >= 0) {
        struct pollfd wanted = {.fd = probe->fd, .events = POLLIN};
        if (poll(&wanted, 1, -1) > 0)
            (void)notify_step(probe, true);
    }
    close_fd(&probe->fd);
}
