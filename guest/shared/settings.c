// SPDX-License-Identifier: Apache-2.0
#include "settings.h"

#include <stdlib.h>
#include <string.h>
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

/* `apply` gets what `check` has found right; false with errno. `line`, or NULL, appends a line to the text,
 * whose size is the value's and MANAGER_LINE_MAX. */
static const struct {
    const char *key;
    bool (*check)(const char *value, struct reason *why);
    bool (*apply)(const char *value);
    void (*line)(const char *value, char *text, size_t size);
} rows[] = {
    {"umask", umask_check, umask_apply, NULL},
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
