// SPDX-License-Identifier: Apache-2.0
#include "copy.h"

#include "items.h"
#include "records.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

static bool parse_operation(const char *word, enum copy_operation *operation)
{
    static const char *const words[] = {[COPY_STAT] = "stat", [COPY_OUT] = "out", [COPY_IN] = "in"};
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        if (strcmp(word, words[i]) == 0) {
            *operation = (enum copy_operation)i;
            return true;
        }
    }
    return false;
}

bool copy_parse(const char *records, size_t size, struct copy_order *order, struct reason *why)
{
    bool known = false;
    size_t offset = 0;
    struct record record;
    *order = (struct copy_order){0};
    while (records_next(records, size, &offset, &record)) {
        if (record_is(&record, "path"))
            order->path = record.value;
        else if (record_is(&record, "follow"))
            order->follow = strcmp(record.value, "1") == 0;
        else if (record_is(&record, "operation"))
            known = parse_operation(record.value, &order->operation);
    }
    if (!known)
        return refuse(why, "FILES without an operation that this agent knows");
    return (order->path != NULL && order->path[0] == '/') || refuse(why, "FILES without an absolute path");
}

bool copy_stat(const struct copy_order *order, int to)
{
    char target[ITEM_PATH_SIZE];
    struct item_entry entry = {.path = order->path};
    if (fstatat(AT_FDCWD, order->path, &entry.status, order->follow ? 0 : AT_SYMLINK_NOFOLLOW) != 0) {
        struct reason why = {""};
        bool missing = errno == ENOENT || errno == ENOTDIR;
        (void)refuse(&why, "cannot look at %.400s: %s", order->path, strerror(errno));
        return item_put_end(to, missing ? "missing" : "failed", why.words, 0);
    }
    if (S_ISLNK(entry.status.st_mode)) {
        ssize_t length = readlink(order->path, target, sizeof target - 1);
        target[length < 0 ? 0 : length] = '\0';
        entry.target = target;
    }
    return item_put_entry(to, &entry) && item_put_end(to, "ok", NULL, 0);
}

/* A tree has one open folder a level. */
static void allow_files(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return;
    limit.rlim_cur = limit.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &limit); /* Without it a very deep tree is refused in words. */
}

bool copy_run(const struct copy_order *order, int from, int to)
{
    allow_files();
    switch (order->operation) {
    case COPY_STAT:
        return copy_stat(order, to);
    case COPY_OUT:
        return copy_out(order, to);
    case COPY_IN:
        return copy_in(order, from, to);
    }
    return false;
}
