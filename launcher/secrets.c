// SPDX-License-Identifier: Apache-2.0
#include "secrets.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ports.h"
#include "say.h"

#define MAGIC "HYPEFIL1"
#define SECTOR 512
#define NAME_SIZE 65
#define FIELDS "name="
#define PATH_SIZE 32
/* systemd has 1 MiB for all credentials of a unit */
#define CREDENTIAL_MAX (1024L * 1024L)

/* 0 or -1 with errno */
static int write_whole(int fd, const void *data, size_t size)
{
    const char *at = data;
    while (size > 0) {
        ssize_t written = write(fd, at, size);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return -1;
        at += written;
        size -= (size_t)written;
    }
    return 0;
}

/* Exactly `size` bytes. 0 or -1 with errno. */
static int copy(int from, int to, size_t size)
{
    char buffer[4096];
    while (size > 0) {
        ssize_t got = read(from, buffer, size < sizeof(buffer) ? size : sizeof(buffer));
        if (got < 0 && errno == EINTR)
            continue;
        if (got == 0)
            errno = ENODATA;
        if (got <= 0 || write_whole(to, buffer, (size_t)got) < 0)
            return -1;
        size -= (size_t)got;
    }
    return 0;
}

/* Lengths of fields and content, the fields with their NUL, the content. */
static int add_credential(int folder, const char *name, int disk)
{
    int fd = openat(folder, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return -1;
    struct stat status;
    int result = fstat(fd, &status);
    if (result == 0 && (!S_ISREG(status.st_mode) || status.st_size > CREDENTIAL_MAX)) {
        errno = EFBIG;
        result = -1;
    }
    if (result == 0) {
        const uint32_t lengths[2] = {(uint32_t)(sizeof(FIELDS) + strlen(name)), (uint32_t)status.st_size};
        result = write_whole(disk, lengths, sizeof(lengths)) < 0 ||
                         write_whole(disk, FIELDS, sizeof(FIELDS) - 1) < 0 ||
                         write_whole(disk, name, strlen(name) + 1) < 0 ||
                         copy(fd, disk, (size_t)status.st_size) < 0
                     ? -1
                     : 0;
    }
    int error = errno;
    (void)close(fd);
    errno = error;
    return result;
}

/* All of them, behind the room for the header. Returns how many, or -1; it has said why. */
static int add_all(int folder, const char *names, int disk)
{
    int count = 0;
    for (const char *at = names;; at++) {
        char name[NAME_SIZE];
        size_t length = strcspn(at, ",");
        if (length == 0 || length >= sizeof(name)) {
            say("the names of the secrets cannot be read");
            return -1;
        }
        memcpy(name, at, length);
        name[length] = '\0';
        if (add_credential(folder, name, disk) < 0) {
            say("cannot read the secret %s: %s", name, strerror(errno));
            return -1;
        }
        count++;
        at += length;
        if (*at == '\0')
            return count;
    }
}

/* The header, and whole sectors. 0 or -1 with errno. */
static int finish(int disk, int count)
{
    struct {
        char magic[sizeof(MAGIC) - 1];
        uint32_t length;
        uint32_t count;
    } header = {.count = (uint32_t)count};
    off_t end = lseek(disk, 0, SEEK_END);
    if (end < 0)
        return -1;
    memcpy(header.magic, MAGIC, sizeof(header.magic));
    header.length = (uint32_t)end - (uint32_t)sizeof(header);
    if (pwrite(disk, &header, sizeof(header), 0) != (ssize_t)sizeof(header))
        return -1;
    return ftruncate(disk, (end + SECTOR - 1) / SECTOR * SECTOR);
}

/* The same memory, to be read only: what the VMM is given, and what it can open as a disk to be read. */
static int place(int disk)
{
    char path[PATH_SIZE];
    (void)snprintf(path, sizeof(path), "/proc/self/fd/%d", disk);
    int readable = open(path, O_RDONLY | O_CLOEXEC);
    return readable < 0 ? -1 : place_fd(readable, FD_SECRETS);
}

int make_secrets(const char *names)
{
    const char *path = getenv("CREDENTIALS_DIRECTORY");
    int folder = path == NULL ? -1 : open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0) {
        say("there are no credentials: %s",
            path == NULL ? "CREDENTIALS_DIRECTORY is not set" : strerror(errno));
        return -1;
    }
    int disk = memfd_create("secrets", MFD_CLOEXEC);
    /* magic, length and count */
    int result = disk < 0 ? -1 : (int)lseek(disk, 16, SEEK_SET);
    int count = result < 0 ? -1 : add_all(folder, names, disk);
    if (result < 0 || (count > 0 && (finish(disk, count) < 0 || place(disk) < 0))) {
        say("cannot make the disk with secrets: %s", strerror(errno));
        count = -1;
    }
    (void)close(disk);
    (void)close(folder);
    return count < 0 ? -1 : 0;
}
