// SPDX-License-Identifier: Apache-2.0
#include "health.h"

#include "clock.h"
#include "frame.h"
#include "records.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { DAY_MS = 86400000, COUNT_MAX = 1000, REPORT_SIZE = REASON_MAX + 128 };

_Static_assert(FRAME_HEADER_SIZE + REPORT_SIZE <= PIPE_BUF, "the pipe takes it whole");

static const char *const words[] = {
    [HEALTH_STARTING] = "starting", [HEALTH_HEALTHY] = "healthy", [HEALTH_UNHEALTHY] = "unhealthy"};

/* --- the order --- */

static bool take_number(const struct record *record, unsigned long least, unsigned long max,
                        unsigned long *number, struct reason *why)
{
    return (parse_number(record->value, max, number) && *number >= least) ||
           refuse(why, "%.*s=%.40s: expected a number from %lu to %lu", (int)record->key_length, record->key,
                  record->value, least, max);
}

static bool take_record(struct health_order *order, const struct record *record, char *value,
                        const char **user, struct reason *why)
{
    unsigned long number = 0;
    if (record_is(record, "check"))
        return check_parse(value, &order->check, why);
    if (record_is(record, "cwd"))
        order->place.folder = value;
    else if (record_is(record, "user"))
        *user = value;
    else if (record_is(record, "failures") || record_is(record, "successes")) {
        if (!take_number(record, 1, COUNT_MAX, &number, why))
            return false;
        *(record_is(record, "failures") ? &order->failures : &order->successes) = (unsigned)number;
    } else if (record_is(record, "start") || record_is(record, "confirm")) {
        if (!take_number(record, 0, DAY_MS, &number, why))
            return false;
        *(record_is(record, "start") ? &order->start_ms : &order->confirm_ms) = (int64_t)number;
    }
    return settings_check(record, why);
}

static bool find_place(struct health_order *order, const char *user, struct reason *why)
{
    if (!identity_find(user, &order->who, why))
        return false;
    order->environment = environment_build(order->given, order->who.home, NULL, &order->store);
    order->place.environment = order->environment;
    order->place.who = &order->who;
    return order->environment != NULL || refuse(why, "no memory");
}

bool health_parse(char *records, size_t size, struct health_order *order, struct reason *why)
{
    const char *user = NULL;
    bool loopback = false;
    size_t offset = 0;
    size_t envs = 0;
    struct record record;
    *order = (struct health_order){.failures = 1, .successes = 1, .confirm_ms = DAY_MS};
    order->place = (struct probe_place){.folder = "/", .settings = {records, size}};
    order->enclosure = (struct enclosure){.beside = -1, .cgroup = -1};
    order->given = calloc(records_count(records, size, "env") + 1, sizeof(char *));
    if (order->given == NULL)
        return refuse(why, "no memory");
    while (records_next(records, size, &offset, &record)) {
        char *value = records + (record.value - records);
        if (record_is(&record, "env") && environment_valid(value))
            order->given[envs++] = value;
        else if (record_is(&record, "loopback"))
            loopback = value[0] == '1';
        else if (!take_record(order, &record, value, &user, why))
            return false;
    }
    order->check.loopback = loopback;
    if (order->check.kind == CHECK_NONE || check_comes_first(&order->check))
        return refuse(why, "HEALTH without a check that can be repeated");
    return find_place(order, user, why);
}

/* --- what comes of it --- */

struct health health_begin(const struct health_order *order, int64_t now)
{
    return (struct health){.order = order, .began = now, .told_at = INT64_MIN / 2};
}

static void take_failure(struct health *health, int64_t now)
{
    health->successes = 0;
    if (health->status == HEALTH_STARTING && now - health->began < health->order->start_ms)
        return;
    if (health->failures < COUNT_MAX)
        health->failures++;
    if (health->failures >= health->order->failures)
        health->status = HEALTH_UNHEALTHY;
}

bool health_take(struct health *health, const struct reason *why, int64_t now)
{
    if (why != NULL) {
        health->error = *why;
        take_failure(health, now);
    } else {
        health->failures = 0;
        if (health->successes < COUNT_MAX)
            health->successes++;
        if (health->successes >= health->order->successes)
            health->status = HEALTH_HEALTHY;
    }
    bool counts = health->failures > 0 && health->failures <= health->order->failures;
    bool recovers = why == NULL && health->successes <= health->order->successes;
    if (!counts && !recovers && health->status == health->told_status &&
        strcmp(health->error.words, health->told_error.words) == 0 &&
        now - health->told_at < health->order->confirm_ms)
        return false;
    health->told_status = health->status;
    health->told_error = health->error;
    health->told_at = now;
    return true;
}

/* --- the process --- */

static bool report(const struct health *health, bool passed, int to)
{
    char item[FRAME_HEADER_SIZE + REPORT_SIZE];
    char *payload = item + FRAME_HEADER_SIZE;
    char number[16];
    size_t used = 0;
    ssize_t written;
    (void)records_put(payload, REPORT_SIZE, &used, "status", words[health->status]);
    (void)records_put(payload, REPORT_SIZE, &used, "passed", passed ? "1" : "0");
    (void)snprintf(number, sizeof number, "%u", health->failures);
    (void)records_put(payload, REPORT_SIZE, &used, "failures", number);
    (void)snprintf(number, sizeof number, "%u", health->successes);
    (void)records_put(payload, REPORT_SIZE, &used, "successes", number);
    if (health->error.words[0] != '\0')
        (void)records_put(payload, REPORT_SIZE, &used, "error", health->error.words);
    frame_header_put((uint8_t *)item, (struct frame_header){.length = (uint32_t)used, .type = FRAME_HEALTH});
    do /* In one piece, which becomes one frame. */
        written = write(to, item, FRAME_HEADER_SIZE + used);
    while (written < 0 && errno == EINTR);
    return written > 0;
}

/* The host is away: what the check has executed goes with it. */
static _Noreturn void leave(const struct probe *probe)
{
    if (probe->check->kind == CHECK_EXEC && probe->fd >= 0) {
        (void)kill(-probe->pid, SIGKILL);
        (void)kill(probe->pid, SIGKILL);
    }
    _exit(EXIT_SUCCESS);
}

static bool attempt(struct probe *probe, int from)
{
    enum probe_state state = probe_begin(probe);
    while (state == PROBE_PENDING) {
        struct pollfd waited[] = {{.fd = probe->fd, .events = probe->events}, {.fd = from}};
        int count = poll(waited, 2, deadline_timeout(probe->deadline));
        if (count > 0 && waited[1].revents != 0)
            leave(probe);
        bool ready = count > 0 && waited[0].revents != 0;
        if (ready || deadline_timeout(probe->deadline) == 0)
            state = probe_step(probe, ready);
    }
    return state == PROBE_PASSED;
}

void health_run(const struct health_order *order, int from, int to)
{
    static struct probe probe;
    struct reason why = {""};
    struct health health = health_begin(order, clock_ms());
    (void)probe_open(&probe, &order->check, &order->place, &why); /* Fails for others only. */
    for (;;) {
        bool passed = attempt(&probe, from);
        if (health_take(&health, passed ? NULL : &probe.why, clock_ms()) && !report(&health, passed, to))
            leave(&probe);
        struct pollfd host = {.fd = from};
        if (poll(&host, 1, order->check.interval_ms) > 0)
            leave(&probe);
    }
}
