// SPDX-License-Identifier: Apache-2.0
#include "items.h"

#include "bytes.h"
#include "records.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { PERMISSIONS = 07777, BUFFER_SIZE = 65536 };

static const struct {
    const char *word;
    mode_t type;
} kinds[] = {
    {"file", S_IFREG},    {"directory", S_IFDIR}, {"symlink", S_IFLNK},   {"fifo", S_IFIFO},
    {"socket", S_IFSOCK}, {"block", S_IFBLK},     {"character", S_IFCHR},
};

static bool write_all(int fd, const void *bytes, size_t size)
{
    const char *at = bytes;
    while (size > 0) {
        ssize_t written = write(fd, at, size);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return false;
        at += written;
        size -= (size_t)written;
    }
    return true;
}

bool item_put(int fd, uint8_t type, const void *payload, size_t size)
{
    uint8_t header[FRAME_HEADER_SIZE];
    frame_header_put(header, (struct frame_header){.length = (uint32_t)size, .type = type});
    return write_all(fd, header, sizeof header) && write_all(fd, payload, size);
}

static const char *kind_word(mode_t mode)
{
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        if ((mode & S_IFMT) == kinds[i].type)
            return kinds[i].word;
    }
    return "file";
}

/* Nanoseconds since the epoch. What is further away than they can say (the year 2262) becomes the last. */
static int64_t time_ns(struct timespec time)
{
    int64_t ns;
    if (__builtin_mul_overflow((int64_t)time.tv_sec, INT64_C(1000000000), &ns) ||
        __builtin_add_overflow(ns, (int64_t)time.tv_nsec, &ns))
        return time.tv_sec < 0 ? INT64_MIN : INT64_MAX;
    return ns;
}

bool item_put_entry(int fd, const struct item_entry *entry)
{
    static char records[2 * ITEM_PATH_SIZE + 512];
    const struct stat *status = &entry->status;
    char numbers[5][24];
    size_t used = 0;
    (void)snprintf(numbers[0], sizeof numbers[0], "%u", status->st_mode & PERMISSIONS);
    (void)snprintf(numbers[1], sizeof numbers[1], "%u", status->st_uid);
    (void)snprintf(numbers[2], sizeof numbers[2], "%u", status->st_gid);
    (void)snprintf(numbers[3], sizeof numbers[3], "%llu",
                   S_ISREG(status->st_mode) ? (unsigned long long)status->st_size : 0);
    (void)snprintf(numbers[4], sizeof numbers[4], "%lld", (long long)time_ns(status->st_mtim));
    bool fits =
        records_put(records, sizeof records, &used, "path", entry->path) &&
        records_put(records, sizeof records, &used, "kind", kind_word(status->st_mode)) &&
        records_put(records, sizeof records, &used, "mode", numbers[0]) &&
        records_put(records, sizeof records, &used, "uid", numbers[1]) &&
        records_put(records, sizeof records, &used, "gid", numbers[2]) &&
        records_put(records, sizeof records, &used, "size", numbers[3]) &&
        records_put(records, sizeof records, &used, "mtime", numbers[4]) &&
        (entry->target == NULL || records_put(records, sizeof records, &used, "target", entry->target));
    return fits && item_put(fd, FRAME_ENTRY, records, used);
}

bool item_put_hole(int fd, uint64_t size)
{
    uint8_t payload[8];
    put_le64(payload, size);
    return item_put(fd, FRAME_HOLE, payload, sizeof payload);
}

bool item_put_end(int fd, const char *code, const char *message, uint64_t bytes)
{
    char records[REASON_MAX + 128];
    char number[24];
    size_t used = 0;
    (void)snprintf(number, sizeof number, "%llu", (unsigned long long)bytes);
    (void)records_put(records, sizeof records, &used, "code", code);
    (void)records_put(records, sizeof records, &used, "bytes", number);
    if (message != NULL)
        (void)records_put(records, sizeof records, &used, "message", message);
    return item_put(fd, FRAME_END, records, used);
}

bool item_read(int fd, void *buffer, size_t size)
{
    char *at = buffer;
    while (size > 0) {
        ssize_t got = read(fd, at, size);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return false;
        at += got;
        size -= (size_t)got;
    }
    return true;
}

bool item_header(int fd, struct frame_header *header)
{
    uint8_t bytes[FRAME_HEADER_SIZE];
    if (!item_read(fd, bytes, sizeof bytes))
        return false;
    /* What cannot be a header has no type either: whoever looks at it refuses it. */
    if (!frame_header_get(bytes, header) || header->stream != 0 || header->channel != 0)
        *header = (struct frame_header){0};
    return true;
}

static bool parse_time(const char *text, struct timespec *time)
{
    unsigned long number;
    bool negative = *text == '-';
    if (!parse_number(text + (negative ? 1 : 0), LONG_MAX, &number))
        return false;
    int64_t ns = negative ? -(int64_t)number : (int64_t)number;
    int64_t seconds = ns / 1000000000;
    int64_t rest = ns % 1000000000;
    *time = (struct timespec){.tv_sec = seconds - (rest < 0 ? 1 : 0),
                              .tv_nsec = rest + (rest < 0 ? 1000000000 : 0)};
    return true;
}

static bool parse_owner(const char *text, uid_t *owner)
{
    unsigned long number;
    *owner = (uid_t)-1;
    if (strcmp(text, "-1") == 0)
        return true;
    if (!parse_number(text, UINT_MAX - 1, &number))
        return false;
    *owner = (uid_t)number;
    return true;
}

static bool parse_kind(const char *text, mode_t *mode)
{
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        if (strcmp(text, kinds[i].word) == 0) {
            *mode |= kinds[i].type;
            return true;
        }
    }
    return false;
}

static bool take_record(const struct record *record, struct item_entry *entry)
{
    struct stat *status = &entry->status;
    unsigned long number;
    if (record_is(record, "path"))
        entry->path = record->value;
    else if (record_is(record, "target"))
        entry->target = record->value;
    else if (record_is(record, "kind"))
        return parse_kind(record->value, &status->st_mode);
    else if (record_is(record, "uid"))
        return parse_owner(record->value, &status->st_uid);
    else if (record_is(record, "gid"))
        return parse_owner(record->value, &status->st_gid);
    else if (record_is(record, "mtime"))
        return parse_time(record->value, &status->st_mtim);
    else if (record_is(record, "mode") || record_is(record, "size")) {
        bool size = record_is(record, "size");
        if (!parse_number(record->value, size ? LONG_MAX : PERMISSIONS, &number))
            return false;
        if (size)
            status->st_size = (off_t)number;
        else
            status->st_mode |= (mode_t)number;
    }
    return true;
}

bool item_parse_entry(const char *records, size_t size, struct item_entry *entry, struct reason *why)
{
    static const char *const needed[] = {"path", "kind", "mode", "uid", "gid", "size", "mtime"};
    if (!records_valid(records, size))
        return refuse(why, "an ENTRY whose records cannot be read");
    for (size_t i = 0; i < sizeof needed / sizeof needed[0]; i++) {
        if (records_count(records, size, needed[i]) != 1)
            return refuse(why, "an ENTRY in which %s is not there once", needed[i]);
    }
    *entry = (struct item_entry){0};
    size_t offset = 0;
    struct record record;
    while (records_next(records, size, &offset, &record)) {
        if (!take_record(&record, entry))
            return refuse(why, "an ENTRY with %.*s=%.80s", (int)record.key_length, record.key, record.value);
    }
    return true;
}

/* For a filesystem that cannot splice. */
static ssize_t move_by_hand(int from, int to, size_t size)
{
    static char buffer[BUFFER_SIZE];
    ssize_t got;
    do
        got = read(from, buffer, size < sizeof buffer ? size : sizeof buffer);
    while (got < 0 && errno == EINTR);
    return got > 0 && !write_all(to, buffer, (size_t)got) ? -1 : got;
}

size_t item_move(int from, int to, size_t size)
{
    size_t moved = 0;
    errno = 0;
    while (moved < size) {
        ssize_t now = splice(from, NULL, to, NULL, size - moved, SPLICE_F_MOVE);
        if (now < 0 && errno == EINVAL)
            now = move_by_hand(from, to, size - moved);
        if (now < 0 && errno == EINTR)
            continue;
        if (now < 0)
            return moved;
        if (now == 0) {
            errno = 0;
            return moved;
        }
        moved += (size_t)now;
    }
    errno = 0;
    return moved;
}
