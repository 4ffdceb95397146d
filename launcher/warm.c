// SPDX-License-Identifier: Apache-2.0
#include "warm.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "ports.h"
#include "say.h"
#include "words.h"

#define ARGUMENTS_MAX 64
#define NS 1000000000LL
#define MAGIC "HYPESTA1"
#define HEADER_SIZE 12
#define BLOCK_SIZE 4096
#define ENTROPY_SIZE 64
#define FILES_MAX 8
#define FILE_SIZE 320

/* A number, with `end` behind it. */
static int take_number(const char **at, unsigned long long max, char end, unsigned long long *number)
{
    char *behind = NULL;
    if (**at < '0' || **at > '9')
        return -1;
    errno = 0;
    *number = strtoull(*at, &behind, 10);
    if (errno != 0 || *number > max || *behind != end)
        return -1;
    *at = behind + 1;
    return 0;
}

int parse_warm(const char *value, struct warm *warm)
{
    unsigned long long crc = 0;
    unsigned long long count = 0;
    size_t length = strcspn(value, ",");
    const char *at = value + length + 1;
    if (length == 0 || length >= sizeof(warm->state) || value[length] == '\0' ||
        take_number(&at, UINT32_MAX, ',', &crc) < 0 || take_number(&at, ARGUMENTS_MAX, ',', &count) < 0 ||
        count == 0) {
        say("--warm is not STATE,CRC,COUNT,FILE:SIZE:MTIME,...");
        return -1;
    }
    memcpy(warm->state, value, length);
    warm->state[length] = '\0';
    warm->crc = (unsigned long)crc;
    warm->arguments = (size_t)count;
    warm->files = at;
    return 0;
}

/* As zlib has it. */
static uint32_t add_crc(uint32_t crc, const uint8_t *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        crc ^= bytes[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (0xedb88320U & (0U - (crc & 1U)));
    }
    return crc;
}

/* Of all that is in a file. 0 or -1 with errno. */
static int read_crc(int fd, uint32_t *crc)
{
    uint8_t buffer[4096];
    uint32_t sum = UINT32_MAX;
    for (off_t offset = 0;;) {
        ssize_t got = pread(fd, buffer, sizeof(buffer), offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -1;
        if (got == 0)
            break;
        sum = add_crc(sum, buffer, (size_t)got);
        offset += got;
    }
    *crc = ~sum;
    return 0;
}

/* Is the next of the files what it was? Returns what is behind it; NULL if it is not, and `path` is which. */
static const char *check_file(const char *file, char path[FILE_SIZE])
{
    unsigned long long size;
    unsigned long long mtime;
    struct stat status;
    size_t length = strcspn(file, ":");
    const char *at = file + length + 1;
    if (length >= FILE_SIZE || file[length] == '\0') {
        path[0] = '\0';
        return NULL;
    }
    memcpy(path, file, length);
    path[length] = '\0';
    if (take_number(&at, INT64_MAX, ':', &size) < 0)
        return NULL;
    const char *end = at + strcspn(at, ",");
    if (take_number(&at, INT64_MAX, *end, &mtime) < 0 || stat(path, &status) < 0 ||
        (unsigned long long)status.st_size != size ||
        (unsigned long long)(status.st_mtim.tv_sec * NS + status.st_mtim.tv_nsec) != mtime)
        return NULL;
    return *end == ',' ? end + 1 : end;
}

static int check_files(const char *files)
{
    char path[FILE_SIZE] = "";
    for (const char *file = files; *file != '\0';) {
        file = check_file(file, path);
        if (file == NULL) {
            say("the VM boots: the template for a warm start is of no use, since %s is another file than it "
                "was",
                path);
            return -1;
        }
    }
    return 0;
}

int open_template(const struct warm *warm)
{
    uint32_t crc = 0;
    struct stat status;
    int fd = open(warm->state, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    /* an empty one is the place in the root at which nothing was bound */
    if (fd < 0 ? errno == ENOENT : fstat(fd, &status) == 0 && status.st_size == 0) {
        if (fd >= 0)
            (void)close(fd);
        return 0;
    }
    if (fd < 0 || read_crc(fd, &crc) < 0) {
        say("the VM boots: the template for a warm start cannot be read: %s", strerror(errno));
    } else if (crc != warm->crc) {
        say("the VM boots: the template for a warm start is damaged");
    } else if (check_files(warm->files) == 0) {
        if (place_fd(fd, FD_STATE) == 0)
            return 1;
        say("the VM boots: the template for a warm start cannot be passed on: %s", strerror(errno));
    }
    if (fd >= 0)
        (void)close(fd);
    return 0;
}

/* key=value and a NUL, as the records of the configuration. */
static int put_record(char *block, size_t *used, const char *key, const char *value)
{
    int length = snprintf(block + *used, BLOCK_SIZE - *used, "%s=%s", key, value);
    if (length < 0 || (size_t)length >= BLOCK_SIZE - *used)
        return -1;
    *used += (size_t)length + 1;
    return 0;
}

static int compose_block(char block[BLOCK_SIZE], const char *line)
{
    uint8_t bytes[ENTROPY_SIZE];
    char digits[2 * ENTROPY_SIZE + 1];
    char number[24];
    struct timespec now;
    size_t used = HEADER_SIZE;
    if (getrandom(bytes, sizeof(bytes), 0) != (ssize_t)sizeof(bytes) ||
        clock_gettime(CLOCK_REALTIME, &now) < 0)
        return -1;
    for (size_t i = 0; i < sizeof(bytes); i++)
        (void)snprintf(digits + 2 * i, 3, "%02x", bytes[i]);
    (void)snprintf(number, sizeof(number), "%lld", (long long)now.tv_sec * NS + now.tv_nsec);
    memset(block, 0, BLOCK_SIZE);
    errno = E2BIG;
    if (put_record(block, &used, "clock", number) < 0 || put_record(block, &used, "entropy", digits) < 0 ||
        put_record(block, &used, "words", line) < 0)
        return -1;
    uint32_t length = (uint32_t)(used - HEADER_SIZE);
    memcpy(block, MAGIC, sizeof(MAGIC) - 1);
    memcpy(block + sizeof(MAGIC) - 1, &length, sizeof(length));
    return 0;
}

/* Where it belongs: behind the configuration, or in the place of the block of the start before. */
static off_t find_place(int fd)
{
    char magic[sizeof(MAGIC) - 1];
    off_t end = lseek(fd, 0, SEEK_END);
    if (end < 0)
        return -1;
    if (end >= BLOCK_SIZE && end % BLOCK_SIZE == 0 &&
        pread(fd, magic, sizeof(magic), end - BLOCK_SIZE) == (ssize_t)sizeof(magic) &&
        memcmp(magic, MAGIC, sizeof(magic)) == 0)
        return end - BLOCK_SIZE;
    return (end + BLOCK_SIZE - 1) / BLOCK_SIZE * BLOCK_SIZE;
}

/* What comes before the block, from the start of the one file to the other. 0 or -1 with errno. */
static int copy_config(int from, int to, off_t end)
{
    char buffer[BLOCK_SIZE];
    for (off_t at = 0; at < end;) {
        ssize_t got = pread(from, buffer, sizeof(buffer), at);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -1;
        if (got == 0)
            break; /* padding is left */
        if (pwrite(to, buffer, (size_t)got, at) != got)
            return -1;
        at += got;
    }
    return 0;
}

static int write_config(int from, int to, const char block[BLOCK_SIZE])
{
    off_t place = find_place(from);
    return place < 0 || copy_config(from, to, place) < 0 || pwrite(to, block, BLOCK_SIZE, place) != BLOCK_SIZE
               ? -1
               : 0;
}

static int compose_path(char path[FILE_SIZE], const char *runtime, const char *name)
{
    int length = snprintf(path, FILE_SIZE, "%s/%s", runtime, name);
    if (length >= 0 && length < FILE_SIZE)
        return 0;
    errno = ENAMETOOLONG;
    return -1;
}

static int remove_note(const char *path)
{
    return unlink(path) == 0 || errno == ENOENT ? 0 : -1;
}

int note_start(const char *runtime, const char *run, bool warm)
{
    char path[FILE_SIZE];
    if (compose_path(path, runtime, "warm") < 0)
        return -1;
    if (!warm)
        return remove_note(path);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return -1;
    ssize_t written = write(fd, run, strlen(run));
    return close(fd) == 0 && written == (ssize_t)strlen(run) ? 0 : -1;
}

bool has_stalled(const char *runtime)
{
    const char *run = getenv("INVOCATION_ID");
    char path[FILE_SIZE];
    char noted[64] = "";
    int fd = compose_path(path, runtime, "stalled") < 0 ? -1 : open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t got = read(fd, noted, sizeof(noted) - 1);
    (void)close(fd);
    if (got > 0 && run != NULL && strcmp(noted, run) == 0) {
        say("the VM boots: it has not continued from its template");
        return true;
    }
    (void)remove_note(path); /* of a run before */
    return false;
}

int write_start_block(const char *runtime, const char *line)
{
    char path[FILE_SIZE];
    char whole[FILE_SIZE];
    char block[BLOCK_SIZE];
    if (compose_path(path, runtime, "config.new") < 0 || compose_path(whole, runtime, "config.img") < 0 ||
        compose_block(block, line) < 0) {
        say("the VM boots: cannot write what a warm start needs: %s", strerror(errno));
        return -1;
    }
    (void)unlink(path); /* of a start that was cut off */
    int from = open(whole, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    int to = from < 0 ? -1 : open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0400);
    int result = to < 0 || write_config(from, to, block) < 0 || rename(path, whole) < 0 ? -1 : 0;
    if (result < 0)
        say("the VM boots: cannot write what a warm start needs to %s: %s", whole, strerror(errno));
    if (from >= 0)
        (void)close(from);
    if (to >= 0)
        (void)close(to);
    return result;
}
