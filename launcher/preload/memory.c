// SPDX-License-Identifier: Apache-2.0
/* Loaded into QEMU before 8.2, by LD_PRELOAD: it maps a file with a guest's memory privately, but opens it to
 * write. Of the file that $HYPEMAN_MEMORY names, which other VMs have as well, it gets a descriptor to read
 * with, which is all that a private mapping needs. */
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* What glibc's headers make of open64 without a mode, where they check that it needs none. */
int __open64_2(const char *path, int flags); // NOLINT(bugprone-reserved-identifier)

static int open_path(const char *path, int flags, mode_t mode)
{
    const char *memory = getenv("HYPEMAN_MEMORY");
    if (memory != NULL && (flags & O_ACCMODE) == O_RDWR && strcmp(path, memory) == 0)
        flags = (flags & ~O_ACCMODE) | O_RDONLY;
    return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
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
