// SPDX-License-Identifier: Apache-2.0
#include "settings.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>

enum { UMASK_MAX = 0777 };

static bool umask_check(const char *value, struct reason *why)
{
    unsigned long number;
    return parse_number(value, UMASK_MAX, &number) ||
           refuse(why, "umask=%.40s: expected a number from 0 to %d", value, UMASK_MAX);
}

static bool umask_apply(const char *value)
{
    unsigned long number;
    if (parse_number(value, UMASK_MAX, &number))
        (void)umask((mode_t)number); /* Gives the old one, and never fails. */
    return true;
}

/* The names are Docker's, the words systemd's. */
static const struct {
    const char *name;
    const char *word;
    int resource;
} limits[] = {
    {"nofile", "NOFILE", RLIMIT_NOFILE},
    {"nproc", "NPROC", RLIMIT_NPROC},
    {"memlock", "MEMLOCK", RLIMIT_MEMLOCK},
    {"core", "CORE", RLIMIT_CORE},
};

enum { LIMITS = sizeof limits / sizeof limits[0], LIMIT_TEXT_MAX = 20 };

static bool parse_limit(const char *text, size_t length, rlim_t *limit)
{
    char word[LIMIT_TEXT_MAX + 1];
    unsigned long number;
    if (length > LIMIT_TEXT_MAX)
        return false;
    memcpy(word, text, length);
    word[length] = '\0';
    if (strcmp(word, "unlimited") == 0) {
        *limit = RLIM_INFINITY;
        return true;
    }
    if (!parse_number(word, LONG_MAX, &number))
        return false;
    *limit = number;
    return true;
}

/* NAME=SOFT:HARD; gives the row of `limits`, or LIMITS. */
static size_t parse_ulimit(const char *value, struct rlimit *limit)
{
    size_t name = strcspn(value, "=");
    size_t row = 0;
    while (row < LIMITS && (strlen(limits[row].name) != name || memcmp(limits[row].name, value, name) != 0))
        row++;
    if (row == LIMITS || value[name] == '\0')
        return LIMITS;
    const char *soft = value + name + 1;
    size_t length = strcspn(soft, ":");
    if (soft[length] == '\0' || !parse_limit(soft, length, &limit->rlim_cur) ||
        !parse_limit(soft + length + 1, strlen(soft + length + 1), &limit->rlim_max) ||
        limit->rlim_cur > limit->rlim_max)
        return LIMITS;
    return row;
}

static bool ulimit_check(const char *value, struct reason *why)
{
    struct rlimit limit;
    return parse_ulimit(value, &limit) < LIMITS ||
           refuse(why, "ulimit=%.60s: expected NAME=SOFT:HARD, soft not above hard", value);
}

static bool ulimit_apply(const char *value)
{
    struct rlimit limit;
    size_t row = parse_ulimit(value, &limit);
    return row == LIMITS || setrlimit(limits[row].resource, &limit) == 0;
}

static void format_limit(rlim_t limit, char text[LIMIT_TEXT_MAX + 1])
{
    if (limit == RLIM_INFINITY)
        (void)snprintf(text, LIMIT_TEXT_MAX + 1, "infinity");
    else
        (void)snprintf(text, LIMIT_TEXT_MAX + 1, "%llu", (unsigned long long)limit);
}

static void ulimit_line(const char *value, char *text, size_t size)
{
    struct rlimit limit;
    char soft[LIMIT_TEXT_MAX + 1];
    char hard[LIMIT_TEXT_MAX + 1];
    size_t row = parse_ulimit(value, &limit);
    if (row == LIMITS)
        return;
    format_limit(limit.rlim_cur, soft);
    format_limit(limit.rlim_max, hard);
    (void)snprintf(text, size, "DefaultLimit%s=%s:%s\n", limits[row].word, soft, hard);
}

enum { MASK_DIGITS = 16 };

static bool capabilities_check(const char *value, struct reason *why)
{
    size_t length = strlen(value);
    return (length > 0 && length <= MASK_DIGITS && strspn(value, "0123456789abcdef") == length) ||
           refuse(why, "capabilities=%.40s: expected a mask in hexadecimal", value);
}

/* The bounding set is what a program of root has from its start, and what a file can give it at most
 * (capabilities(7)). What the caller itself may is left to the exec. */
static bool capabilities_apply(const char *value)
{
    unsigned long long kept = strtoull(value, NULL, 16);
    for (int number = 0; prctl(PR_CAPBSET_READ, number) >= 0; number++) {
        if ((kept >> number & 1) == 0 && prctl(PR_CAPBSET_DROP, number) != 0)
            return false;
    }
    return true;
}

/* What the kernel gives to PID 1 was chosen long ago; systemd and Docker give 524288. Only in its place: who
 * has another one was given it, as by an image's systemd. */
static void raise_files(void)
{
    enum { KERNELS_OWN = 4096, USUAL = 524288 };
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) != 0 || files.rlim_max != KERNELS_OWN)
        return;
    files.rlim_max = USUAL;
    (void)setrlimit(RLIMIT_NOFILE, &files); /* Who may not goes on with what there is. */
}

/* `apply` gets what `check` has found right; false with errno. `line`, or NULL, appends a line to the text,
 * whose size is the value's and MANAGER_LINE_MAX. */
static const struct {
    const char *key;
    bool (*check)(const char *value, struct reason *why);
    bool (*apply)(const char *value);
    void (*line)(const char *value, char *text, size_t size);
} rows[] = {
    {"umask", umask_check, umask_apply, NULL},
    {"ulimit", ulimit_check, ulimit_apply, ulimit_line},
    {"capabilities", capabilities_check, capabilities_apply, NULL},
};

enum { ROWS = sizeof rows / sizeof rows[0], MANAGER_LINE_MAX = 64 };

static size_t find_row(const struct record *record)
{
    size_t row = 0;
    while (row < ROWS && !record_is(record, rows[row].key))
        row++;
    return row;
}

bool settings_check(const struct record *record, struct reason *why)
{
    size_t row = find_row(record);
    return row == ROWS || rows[row].check(record->value, why);
}

bool settings_apply(const struct settings *settings, struct record *failed)
{
    size_t offset = 0;
    raise_files();
    while (records_next(settings->records, settings->size, &offset, failed)) {
        size_t row = find_row(failed);
        if (row < ROWS && !rows[row].apply(failed->value))
            return false;
    }
    return true;
}

char *settings_manager_lines(const struct settings *settings)
{
    size_t size = 1;
    size_t offset = 0;
    struct record record;
    while (records_next(settings->records, settings->size, &offset, &record)) {
        if (find_row(&record) < ROWS)
            size += strlen(record.value) + MANAGER_LINE_MAX;
    }
    char *text = calloc(size, 1);
    offset = 0;
    while (text != NULL && records_next(settings->records, settings->size, &offset, &record)) {
        size_t row = find_row(&record);
        size_t used = strlen(text);
        if (row < ROWS && rows[row].line != NULL)
            rows[row].line(record.value, text + used, size - used);
    }
    return text;
}
