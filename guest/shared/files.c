// SPDX-License-Identifier: Apache-2.0
#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static ssize_t read_up_to(int fd, char *buffer, size_t capacity)
{
    size_t used = 0;
    while (used < capacity) {
        ssize_t got = read(fd, buffer + used, capacity - used);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -1;
        if (got == 0)
            break;
        used += (size_t)got;
    }
    return (ssize_t)used;
}

ssize_t file_read(const char *path, char *buffer, size_t capacity)
{
    return file_read_at(AT_FDCWD, path, buffer, capacity);
}

ssize_t file_read_at(int folder, const char *path, char *buffer, size_t capacity)
{
    int fd = openat(folder, path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    if (fd < 0)
        return -1;
    ssize_t length = read_up_to(fd, buffer, capacity - 1);
    int error = errno;
    close_fd(&fd);
    errno = error;
    if (length >= 0)
        buffer[length] = '\0';
    return length;
}

char *file_load(const char *path, size_t max)
{
    struct stat status;
    if (stat(path, &status) != 0)
        return NULL;
    if (!S_ISREG(status.st_mode)) {
        errno = EINVAL;
        return NULL;
    }
    if (status.st_size < 0 || (size_t)status.st_size > max) {
        errno = EFBIG;
        return NULL;
    }
    size_t capacity = (size_t)status.st_size + 1;
    char *text = malloc(capacity);
    if (text == NULL)
        return NULL;
    if (file_read(path, text, capacity) < 0) {
        int error = errno;
        free(text);
        errno = error;
        return NULL;
    }
    return text;
}

bool file_write(const char *path, int flags, const char *text)
{
    return file_write_at(AT_FDCWD, path, flags, text);
}

bool file_write_at(int folder, const char *path, int flags, const char *text)
{
    int fd = openat(folder, path, O_WRONLY | O_CLOEXEC | O_NOCTTY | flags, 0644);
    if (fd < 0)
        return false;
    size_t length = strlen(text);
    ssize_t written;
    do
        written = write(fd, text, length);
    while (written < 0 && errno == EINTR);
    int error = written < 0 ? errno : EIO;
    close_fd(&fd);
    errno = error;
    return written == (ssize_t)length;
}

bool file_read_exactly(int fd, void *buffer, size_t size, off_t offset)
{
    char *at = buffer;
    while (size > 0) {
        ssize_t got = pread(fd, at, size, offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got == 0)
            errno = ENODATA;
        if (got <= 0)
            return false;
        at += got;
        offset += got;
        size -= (size_t)got;
    }
    return true;
}

bool folder_make(const char *path, mode_t mode)
{
    char partial[PATH_MAX];
    size_t length = strlen(path);
    if (length >= sizeof partial) {
        errno = ENAMETOOLONG;
        return false;
    }
    memcpy(partial, path, length + 1);
    for (char *at = partial + 1; length > 0 && *at != '\0'; at++) {
        if (*at != '/')
            continue;
        *at = '\0';
        if (mkdir(partial, mode) != 0 && errno != EEXIST)
            return false;
        *at = '/';
    }
    if (mkdir(partial, mode) == 0)
        return true;
    struct stat status;
    if (errno != EEXIST || stat(partial, &status) != 0)
        return false;
    errno = ENOTDIR;
    return S_ISDIR(status.st_mode);
}

void close_fd(int *fd)
{
    if (*fd >= 0)
        (void)close(*fd); /* Linux frees the number whatever close returns. */
    *fd = -1;
}
