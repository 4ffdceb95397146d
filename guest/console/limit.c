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

void console_init(struct console *console, int64_t burst, int64_t per_hour, int64_t now_ms, console_sink sink,
                  void *to)
{
    memset(console, 0, offsetof(struct console, buffer));
    console->all = (struct bucket){burst, per_hour, burst, now_ms};
    console->reserve =
        (struct bucket){RESERVE_BURST, (int64_t)RESERVE_PER_SECOND * 3600, RESERVE_BURST, now_ms};
    console->sink = sink;
    console->to = to;
}

char *console_room(struct console *console, size_t *length)
{
    *length = sizeof console->buffer - console->held;
    return console->buffer + console->held;
}

static bool flush(struct console *console)
{
    size_t length = console->pending_length;
    console->pending_length = 0;
    return length == 0 || console->sink(console->to, console->pending, length);
}

static bool put(struct console *console, const char *data, size_t length)
{
    if (console->pending_length > 0 && console->pending + console->pending_length == data) {
        console->pending_length += length;
        return true;
    }
    bool fine = flush(console);
    console->pending = data;
    console->pending_length = length;
    return fine;
}

static bool put_words(struct console *console, const char *words, size_t length)
{
    return flush(console) && console->sink(console->to, words, length);
}

/* One line says what is missing, before what is there again. */
static bool tell_dropped(struct console *console)
{
    char line[160];
    int length =
        snprintf(line, sizeof line,
                 "hypeman-console: %" PRIu64 " lines (%" PRIu64 " bytes) were not kept: they were more than "
                 "this VM's journal limit\n",
                 console->dropped_lines, console->dropped_bytes);
    console->dropped_lines = console->dropped_bytes = 0;
    console->dropping = false;
    return put_words(console, line, (size_t)length);
}

static bool is_sentinel(const char *line, size_t length)
{
    static const char mark[] = "HYPEMAN-";
    return length > sizeof mark && memcmp(line, mark, sizeof mark - 1) == 0;
}

static void drop(struct console *console, size_t length, bool begins)
{
    console->dropping = true;
    console->passes = false;
    console->dropped_lines += begins;
    console->dropped_bytes += length;
}

/* A line, or so much of it as has come: `whole` if its end is there. */
static bool judge(struct console *console, const char *line, size_t length, bool whole)
{
    int64_t cost = (int64_t)length;
    bool begins = !console->continues;
    console->continues = !whole;
    if (!begins && !console->passes) {
        drop(console, length, false);
        return true;
    }
    if (begins) {
        cost += LINE_COST;
        if (console->dropping && console->all.tokens >= console->all.burst / RESUME_SHARE &&
            !tell_dropped(console))
            return false;
    }
    console->passes = !console->dropping && spend(&console->all, cost);
    if (!console->passes && begins && is_sentinel(line, length))
        console->passes = spend(&console->reserve, cost);
    if (console->passes)
        return put(console, line, length);
    drop(console, length, begins);
    return begins || put_words(console, "\n", 1);
}

/* The end of a line as journald sees it, after which another entry begins. */
static size_t find_end(const char *data, size_t length)
{
    for (size_t at = 0; at < length; at++)
        if (data[at] == '\n' || data[at] == '\0')
            return at + 1;
    return 0;
}

bool console_take(struct console *console, size_t length, int64_t now_ms)
{
    fill(&console->all, now_ms);
    fill(&console->reserve, now_ms);
    size_t seen = console->held, at = 0;
    size_t held = console->held + length;
    for (;;) {
        size_t end = find_end(console->buffer + seen, held - seen);
        if (end == 0)
            break;
        if (!judge(console, console->buffer + at, seen + end - at, true))
            return false;
        at = seen = seen + end;
    }
    if (at == 0 && held == sizeof console->buffer) {
        if (!judge(console, console->buffer, held, false))
            return false;
        at = held;
    }
    if (!flush(console))
        return false;
    if (at > 0)
        memmove(console->buffer, console->buffer + at, held - at);
    console->held = held - at;
    return true;
}

bool console_end(struct console *console, int64_t now_ms)
{
    fill(&console->all, now_ms);
    fill(&console->reserve, now_ms);
    bool fine = console->held == 0 || judge(console, console->buffer, console->held, true);
    console->held = 0;
    return fine && flush(console) && (console->dropped_bytes == 0 || tell_dropped(console));
}
