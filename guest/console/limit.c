// SPDX-License-Identifier: Apache-2.0
#include "limit.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { MS_PER_HOUR = 3600 * 1000, RESUME_SHARE = 16 };

static void fill(struct bucket *bucket, int64_t now_ms)
{
    int64_t passed = now_ms - bucket->filled_ms;
    if (passed <= 0)
        return;
    /* longer than it takes to fill the whole of it: no product gets large */
    int64_t longest = bucket->burst / (bucket->per_hour / 3600 + 1) * 1000 * 2 + 1000;
    if (passed > longest) {
        bucket->tokens = bucket->burst;
        bucket->filled_ms = now_ms;
        return;
    }
    int64_t gained = passed * bucket->per_hour / MS_PER_HOUR;
    if (gained == 0)
        return; /* that time counts the next time */
    bucket->filled_ms = now_ms;
    bucket->tokens += gained;
    if (bucket->tokens > bucket->burst)
        bucket->tokens = bucket->burst;
}

static bool spend(struct bucket *bucket, int64_t cost)
{
    if (bucket->tokens < cost)
        return false;
    bucket->tokens -= cost;
    return true;
}

void console_init(struct console *console, struct queue *queue, int64_t burst, int64_t per_hour,
                  int64_t now_ms)
{
    memset(console, 0, offsetof(struct console, buffer));
    console->all = (struct bucket){burst, per_hour, burst, now_ms};
    console->reserve =
        (struct bucket){RESERVE_BURST, (int64_t)RESERVE_PER_SECOND * 3600, RESERVE_BURST, now_ms};
    console->queue = queue;
}

char *console_room(struct console *console, size_t *length)
{
    *length = sizeof console->buffer - console->held;
    return console->buffer + console->held;
}

/* One line says what is missing, before what is there again. */
static void tell_dropped(struct console *console)
{
    char text[200];
    int length = snprintf(text, sizeof text,
                          "hypeman-console: %" PRIu64 " lines (%" PRIu64 " bytes) were not kept: %s",
                          console->dropped_lines, console->dropped_bytes,
                          console->late ? "they came faster than the journal takes them"
                                        : "they were more than this VM's journal limit");
    const struct entry notice = {NOTICE, console->dropped_lines, text, (size_t)length};
    if (!queue_put(console->queue, &notice, 0))
        return; /* what is in its way is told as well, later */
    console->dropped_lines = console->dropped_bytes = 0;
    console->dropping = console->late = false;
}

static bool is_sentinel(const char *line, size_t length)
{
    static const char mark[] = "HYPEMAN-";
    return length > sizeof mark && memcmp(line, mark, sizeof mark - 1) == 0;
}

static bool may_resume(const struct console *console)
{
    return console->all.tokens >= console->all.burst / RESUME_SHARE &&
           queue_room(console->queue) >= QUEUE_SIZE / 2;
}

/* Is what begins here within the limits, and put? */
static bool keep(struct console *console, const struct entry *entry, bool begins)
{
    int64_t cost = (int64_t)entry->length + 1 + (begins ? LINE_COST : 0);
    size_t spare = QUEUE_RESERVE;
    bool passes = !console->dropping && spend(&console->all, cost);
    if (begins && is_sentinel(entry->text, entry->length)) {
        passes = passes || spend(&console->reserve, cost);
        spare = 0;
    }
    if (!passes)
        return false;
    if (queue_put(console->queue, entry, spare))
        return true;
    console->late = true;
    return false;
}

/* A line, or so much of it as has come: `ends` if its end is there, which is not counted in `length`. */
static void judge(struct console *console, const char *line, size_t length, bool ends)
{
    bool begins = !console->continues;
    console->continues = !ends;
    if (begins) {
        console->lines++;
        console->passes = true;
        if (console->dropping && may_resume(console))
            tell_dropped(console);
    }
    const struct entry entry = {ends ? LINE : PIECE, console->lines, line, length};
    bool passed = console->passes;
    console->passes = passed && keep(console, &entry, begins);
    if (console->passes)
        return;
    console->dropping = true;
    console->dropped_lines += passed; /* one that is cut counts as well, once */
    console->dropped_bytes += length + ends;
}

void console_take(struct console *console, size_t length, int64_t now_ms)
{
    fill(&console->all, now_ms);
    fill(&console->reserve, now_ms);
    char *buffer = console->buffer;
    size_t seen = console->held, at = 0;
    size_t held = console->held + length;
    for (;;) {
        const char *end = memchr(buffer + seen, '\n', held - seen);
        if (end == NULL)
            break;
        judge(console, buffer + at, (size_t)(end - buffer) - at, true);
        at = seen = (size_t)(end - buffer) + 1;
    }
    if (at == 0 && held == sizeof console->buffer) {
        judge(console, buffer, held, false);
        at = held;
    }
    if (at > 0)
        memmove(buffer, buffer + at, held - at);
    console->held = held - at;
}

void console_end(struct console *console, int64_t now_ms)
{
    fill(&console->all, now_ms);
    fill(&console->reserve, now_ms);
    if (console->held > 0)
        judge(console, console->buffer, console->held, false);
    console->held = 0;
    if (console->dropped_bytes > 0)
        tell_dropped(console);
    const struct entry end = {END, console->lines + 1, NULL, 0};
    (void)queue_put(console->queue, &end, 0);
}

void console_give_up(struct console *console)
{
    struct entry entry;
    for (; queue_first(console->queue, &entry); queue_drop(console->queue)) {
        bool was_told = entry.kind == NOTICE;
        console->dropped_lines += was_told ? entry.number : entry.kind == LINE;
        console->dropped_bytes += entry.kind == LINE || entry.kind == PIECE ? entry.length + 1 : 0;
    }
    console->late = true;
    if (console->dropped_lines + console->dropped_bytes > 0)
        tell_dropped(console);
}
