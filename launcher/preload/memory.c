// SPDX-License-Identifier: Apache-2.0
/* Loaded by LD_PRELOAD into a QEMU whose guest goes on from a file of its memory, which $HYPEMAN_MEMORY names
 * and which QEMU maps privately.
 *
 * Where that file has holes, as a guest has never used those pages, zero pages of no file are mapped in their
 * place. Reading a page of a hole has the kernel make one of the page cache: QEMU reads all pages when the
 * guest is saved again, which would take as long as the memory is large, and as much of the host's memory.
 *
 * Before 8.2 QEMU opens such a file to write, even if it is others' as well so that it may not: it gets a
 * descriptor to read with, which is all that a private mapping needs. */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* What glibc's headers make of open64 without a mode, where they check that it needs none. */
int __open64_2(const char *path, int flags); // NOLINT(bugprone-reserved-identifier)

enum {
    PAGE = 4096,
    /* A process has 65,530 mappings at most, and each of these may make two. */
    HOLES_MAX = 8192,
    LEAST_HOLE = 64 * PAGE
};

/* The descriptor of the memory, until that is mapped. */
static int memory_fd = -1;

static int open_path(const char *path, int flags, mode_t mode)
{
    const char *memory = getenv("HYPEMAN_MEMORY");
    int fd = (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    if (memory == NULL || strcmp(path, memory) != 0)
        return fd;
    if (fd < 0 && (errno == EACCES || errno == EROFS) && (flags & O_ACCMODE) == O_RDWR)
        fd = (int)syscall(SYS_openat, AT_FDCWD, path, (flags & ~O_ACCMODE) | O_RDONLY, mode);
    memory_fd = fd;
    return fd;
}

int open64(const char *path, int flags, ...)
{
    mode_t mode = 0;
    if ((flags & (O_CREAT | __O_TMPFILE)) != 0) {
        va_list arguments;
        va_start(arguments, flags);
        mode = va_arg(arguments, mode_t);
        va_end(arguments);
    }
    return open_path(path, flags, mode);
}

int __open64_2(const char *path, int flags) // NOLINT(bugprone-reserved-identifier)
{
    return open_path(path, flags, 0);
}

static void *map(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
    // NOLINTNEXTLINE(performance-no-int-to-ptr)
    return (void *)syscall(SYS_mmap, address, length, protection, flags, fd, offset);
}

static off_t round_up(off_t offset)
{
    return (offset + PAGE - 1) / PAGE * PAGE;
}

/* Where the bytes of the file from `offset` on are mapped. False where a hole could not be: the file shows
 * through there, and has zeros as well. */
static bool map_holes(char *mapped, size_t length, int protection, int fd, off_t offset)
{
    off_t end = offset + (off_t)length;
    off_t at = offset;
    for (int count = 0; count < HOLES_MAX && at < end; count++) {
        off_t hole = lseek(fd, at, SEEK_HOLE);
        if (hole < 0 || hole >= end)
            return hole >= 0;
        off_t data = lseek(fd, hole, SEEK_DATA);
        /* ENXIO: there is no more */
        off_t stop = data < 0 || data > end ? end : data / PAGE * PAGE;
        if (data < 0 && errno != ENXIO)
            return false;
        hole = round_up(hole);
        at = data < 0 ? end : data;
        if (stop - hole < LEAST_HOLE)
            continue;
        if (map(mapped + (hole - offset), (size_t)(stop - hole), protection,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
            return false;
    }
    return at >= end;
}

void *mmap64(void *address, size_t length, int protection, int flags, int fd, off64_t offset)
{
    void *mapped = map(address, length, protection, flags, fd, offset);
    if (fd < 0 || fd != memory_fd || mapped == MAP_FAILED || (flags & MAP_TYPE) != MAP_PRIVATE)
        return mapped;
    int error = errno;
    memory_fd = -1;
    (void)map_holes(mapped, length, protection, fd, offset);
    errno = error;
    return mapped;
}

void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
    return mmap64(address, length, protection, flags, fd, offset);
}
