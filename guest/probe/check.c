// SPDX-License-Identifier: Apache-2.0
#include "check.h"

#include "fields.h"
#include "pattern.h"
#include "records.h"

#include <string.h>

enum { INTERVAL_MAX_MS = 86400000, INTERVAL_MS = 1000, STATUS_MAX = 999, PORT_MAX = 65535 };

static const char *const kinds[] = {
    [CHECK_TCP] = "tcp",       [CHECK_HTTP] = "http", [CHECK_EXEC] = "exec",
    [CHECK_NOTIFY] = "notify", [CHECK_LOG] = "log",
};

static bool take_kind(struct check *check, const char *word, struct reason *why)
{
    for (size_t i = CHECK_TCP; i < sizeof kinds / sizeof kinds[0]; i++) {
        if (strcmp(kinds[i], word) == 0) {
            check->kind = (enum check_kind)i;
            return true;
        }
    }
    return refuse(why, "config disk: ready: check=%.40s is not known to this guest", word);
}

static bool take_number(const struct field *field, unsigned long max, int *number, struct reason *why)
{
    unsigned long parsed;
    if (!parse_number(field->value, max, &parsed) || parsed == 0)
        return refuse(why, "config disk: ready: %s=%.40s: expected a number from 1 to %lu", field->key,
                      field->value, max);
    *number = (int)parsed;
    return true;
}

static bool take_argument(struct check *check, char *word, struct reason *why)
{
    size_t count = 0;
    while (check->argv[count] != NULL)
        count++;
    if (count == CHECK_ARGUMENTS_MAX)
        return refuse(why, "config disk: ready: more than %d words", CHECK_ARGUMENTS_MAX);
    check->argv[count] = word;
    return true;
}

static bool take_field(struct check *check, const struct field *field, struct reason *why)
{
    int port = 0;
    if (strcmp(field->key, "check") == 0)
        return take_kind(check, field->value, why);
    if (strcmp(field->key, "interval") == 0)
        return take_number(field, INTERVAL_MAX_MS, &check->interval_ms, why);
    if (strcmp(field->key, "timeout") == 0)
        return take_number(field, INTERVAL_MAX_MS, &check->timeout_ms, why);
    if (strcmp(field->key, "status") == 0)
        return take_number(field, STATUS_MAX, &check->status, why);
    if (strcmp(field->key, "arg") == 0)
        return take_argument(check, field->value, why);
    if (strcmp(field->key, "port") == 0) {
        if (!take_number(field, PORT_MAX, &port, why))
            return false;
        check->port = (uint16_t)port;
    } else if (strcmp(field->key, "path") == 0) {
        check->path = field->value;
    } else if (strcmp(field->key, "unit") == 0) {
        check->unit = field->value;
    } else if (strcmp(field->key, "pattern") == 0) {
        check->pattern = field->value;
    }
    return true;
}

static bool is_printable(const char *text)
{
    for (; *text != '\0'; text++) {
        if (*text <= ' ' || *text > '~')
            return false;
    }
    return true;
}

/* Has it what its kind needs? */
static bool check_whole(const struct check *check, struct reason *why)
{
    static struct pattern pattern;
    switch (check->kind) {
    case CHECK_TCP:
        return check->port != 0 || refuse(why, "config disk: ready: tcp has no port");
    case CHECK_HTTP:
        return (check->port != 0 && check->path != NULL && check->path[0] == '/' &&
                strlen(check->path) <= CHECK_PATH_MAX && is_printable(check->path)) ||
               refuse(why, "config disk: ready: http has no port, or no path that can be asked for");
    case CHECK_EXEC:
        return check->argv[0] != NULL || refuse(why, "config disk: ready: exec has no command");
    case CHECK_LOG:
        return check->pattern == NULL ? refuse(why, "config disk: ready: log has no pattern")
                                      : pattern_compile(&pattern, check->pattern, why);
    case CHECK_NOTIFY:
        return true;
    case CHECK_NONE:
        break;
    }
    return refuse(why, "config disk: ready: there is no check");
}

bool check_parse(char *value, struct check *check, struct reason *why)
{
    struct field field;
    enum fields_step step;
    *check = (struct check){.interval_ms = INTERVAL_MS};
    while ((step = fields_next(&value, &field)) == FIELDS_ONE) {
        if (!take_field(check, &field, why))
            return false;
    }
    if (step == FIELDS_BROKEN)
        return refuse(why, "config disk: ready: it cannot be read");
    return check_whole(check, why);
}

bool check_comes_first(const struct check *check)
{
    return check->kind == CHECK_NOTIFY || check->kind == CHECK_LOG;
}

int check_timeout(const struct check *check)
{
    if (check->timeout_ms > 0)
        return check->timeout_ms;
    return check->interval_ms > CHECK_ATTEMPT_MS ? check->interval_ms : CHECK_ATTEMPT_MS;
}
