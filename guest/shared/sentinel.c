// SPDX-License-Identifier: Apache-2.0
#include "sentinel.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { TIMESTAMP_SIZE = 48, QUOTED_SIZE = 2 * SENTINEL_MESSAGE_MAX + 3 };

__attribute__((format(printf, 2, 3))) static size_t format_line(char *line, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line, SENTINEL_LINE_MAX, format, arguments);
    va_end(arguments);
    if (length < 0)
        length = 0;
    if (length >= SENTINEL_LINE_MAX)
        length = SENTINEL_LINE_MAX - 1;
    return (size_t)length;
}

static void format_timestamp(char *text, struct timespec now)
{
    struct tm utc;
    if (gmtime_r(&now.tv_sec, &utc) == NULL)
        memset(&utc, 0, sizeof utc);
    size_t length = strftime(text, TIMESTAMP_SIZE, "%Y-%m-%dT%H:%M:%S", &utc);
    (void)snprintf(text + length, TIMESTAMP_SIZE - length, ".%09ldZ", now.tv_nsec);
}

/* Where to cut a text of more than max bytes without leaving half a UTF-8 character. */
static size_t cut_length(const char *text, size_t max)
{
    size_t length = strnlen(text, max + 1);
    if (length <= max)
        return length;
    length = max;
    while (length > 0 && ((unsigned char)text[length] & 0xc0) == 0x80)
        length--;
    return length;
}

static void format_quoted(char *quoted, const char *message)
{
    size_t length = cut_length(message, SENTINEL_MESSAGE_MAX);
    char *at = quoted;
    *at++ = '"';
    for (size_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)message[i];
        if (c == '"' || c == '\\')
            *at++ = '\\';
        *at++ = c < 0x20 || c == 0x7f ? '?' : (char)c;
    }
    *at++ = '"';
    *at = '\0';
}

size_t sentinel_program_start(char *line, struct timespec now, const char *mode, const char *boot)
{
    char ts[TIMESTAMP_SIZE];
    format_timestamp(ts, now);
    return format_line(line, "HYPEMAN-PROGRAM-START ts=%s mode=%s boot=%s\n", ts, mode, boot);
}

size_t sentinel_agent_ready(char *line, struct timespec now, const char *boot)
{
    char ts[TIMESTAMP_SIZE];
    format_timestamp(ts, now);
    return format_line(line, "HYPEMAN-AGENT-READY ts=%s boot=%s\n", ts, boot);
}

size_t sentinel_ready(char *line, struct timespec now, const char *boot)
{
    char ts[TIMESTAMP_SIZE];
    format_timestamp(ts, now);
    return format_line(line, "HYPEMAN-READY ts=%s boot=%s\n", ts, boot);
}

size_t sentinel_waiting(char *line, struct timespec now, const char *reason, const char *boot)
{
    char ts[TIMESTAMP_SIZE];
    char quoted[QUOTED_SIZE];
    format_timestamp(ts, now);
    format_quoted(quoted, reason);
    return format_line(line, "HYPEMAN-WAITING ts=%s boot=%s reason=%s\n", ts, boot, quoted);
}

size_t sentinel_headers_start(char *line, struct timespec now, const char *boot)
{
    char ts[TIMESTAMP_SIZE];
    format_timestamp(ts, now);
    return format_line(line, "HYPEMAN-HEADERS-START ts=%s boot=%s\n", ts, boot);
}

size_t sentinel_headers_ready(char *line, struct timespec now, const char *boot)
{
    char ts[TIMESTAMP_SIZE];
    format_timestamp(ts, now);
    return format_line(line, "HYPEMAN-HEADERS-READY ts=%s boot=%s\n", ts, boot);
}

size_t sentinel_headers_failed(char *line, struct timespec now, const char *error, const char *boot)
{
    char ts[TIMESTAMP_SIZE];
    char quoted[QUOTED_SIZE];
    format_timestamp(ts, now);
    format_quoted(quoted, error);
    return format_line(line, "HYPEMAN-HEADERS-FAILED ts=%s boot=%s error=%s\n", ts, boot, quoted);
}

size_t sentinel_emergency(char *line, struct timespec now, const char *state, const char *boot)
{
    char ts[TIMESTAMP_SIZE];
    format_timestamp(ts, now);
    return format_line(line, "HYPEMAN-EMERGENCY ts=%s state=%s boot=%s\n", ts, state, boot);
}

size_t sentinel_exit(char *line, int code, const char *message, const char *boot)
{
    char quoted[QUOTED_SIZE];
    format_quoted(quoted, message);
    return format_line(line, "HYPEMAN-EXIT code=%d message=%s boot=%s\n", code & 0xff, quoted, boot);
}

size_t sentinel_stage(char *line, const char *name, struct timespec start, struct timespec end,
                      const char *boot)
{
    return format_line(line, "HYPEMAN-STAGE name=%s start=%lld.%06ld end=%lld.%06ld boot=%s\n", name,
                       (long long)start.tv_sec, start.tv_nsec / 1000, (long long)end.tv_sec,
                       end.tv_nsec / 1000, boot);
}
