// SPDX-License-Identifier: Apache-2.0
#include "bootid.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#define PATH_SIZE 256

bool is_id(const char *text)
{
    return text != NULL && strlen(text) == ID_LENGTH && strspn(text, "0123456789abcdef") == ID_LENGTH;
}

int make_boot_id(char boot[ID_LENGTH + 1])
{
    static const char digits[] = "0123456789abcdef";
    uint8_t bytes[ID_LENGTH / 2];
    /* so few bytes come whole, or not at all (getrandom(2)) */
    if (getrandom(bytes, sizeof(bytes), 0) != (ssize_t)sizeof(bytes))
        return -1;
    for (size_t i = 0; i < sizeof(bytes); i++) {
        boot[2 * i] = digits[bytes[i] >> 4];
        boot[2 * i + 1] = digits[bytes[i] & 0xf];
    }
    boot[ID_LENGTH] = '\0';
    return 0;
}

static int write_record(const char *path, const char *record, size_t length)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return -1;
    ssize_t written = write(fd, record, length);
    int error = written < 0 ? errno : ENOSPC;
    if (close(fd) == 0 && written == (ssize_t)length)
        return 0;
    errno = error;
    return -1;
}

int keep_run_record(const char *runtime, const char *run, const char *boot)
{
    char path[PATH_SIZE];
    char whole[PATH_SIZE];
    char record[2 * ID_LENGTH + 3];
    int length = snprintf(record, sizeof(record), "%s %s\n", run, boot);
    int path_length = snprintf(path, sizeof(path), "%s/run.new", runtime);
    if (length < 0 || (size_t)length >= sizeof(record) || path_length < 0 || path_length >= PATH_SIZE) {
        errno = ENAMETOOLONG;
        return -1;
    }
    (void)snprintf(whole, sizeof(whole), "%s/run", runtime);
    if (write_record(path, record, (size_t)length) < 0)
        return -1;
    return rename(path, whole);
}
