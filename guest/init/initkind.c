// SPDX-License-Identifier: Apache-2.0
#include "initkind.h"

#include "files.h"

#include <elf.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* What systemd is linked with wherever it lies under another name, as after a copy that followed the link. */
static const char library[] = "libsystemd-core";

enum { EXAMINED_MAX = 4 << 20 };

static bool is_linked_with_systemd(int fd)
{
    struct stat status;
    if (fstat(fd, &status) != 0 || status.st_size <= 0)
        return false;
    size_t size = status.st_size < EXAMINED_MAX ? (size_t)status.st_size : EXAMINED_MAX;
    void *content = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (content == MAP_FAILED)
        return false;
    bool found = memmem(content, size, library, sizeof library - 1) != NULL;
    (void)munmap(content, size);
    return found;
}

static bool is_elf(int fd)
{
    char magic[SELFMAG];
    return pread(fd, magic, sizeof magic, 0) == (ssize_t)sizeof magic && memcmp(magic, ELFMAG, SELFMAG) == 0;
}

static const char *name_of(const char *path)
{
    return strrchr(path, '/') + 1;
}

/* An init that is another one, and what nothing can come of. */
static bool leads_nowhere(const char *program)
{
    const char *name = name_of(program);
    bool is_init = strcmp(name, "init") == 0 || strcmp(name, "systemd") == 0;
    return is_init ||
           (access("/usr/lib/systemd/systemd", X_OK) != 0 && access("/lib/systemd/systemd", X_OK) != 0);
}

bool init_is_systemd(const char *program, struct reason *why)
{
    static char real[PATH_MAX];
    /* What cannot be found or read is told of when it is executed. */
    if (realpath(program, real) == NULL)
        return true;
    int fd = open(real, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    bool other = fd >= 0 && strcmp(name_of(real), "systemd") != 0 && is_elf(fd) && leads_nowhere(program) &&
                 !is_linked_with_systemd(fd);
    close_fd(&fd);
    if (!other)
        return true;
    bool link = strcmp(real, program) != 0;
    return refuse(why, "%s is %s, not systemd; use mode: exec to run it as a program, or another cmd",
                  program, link ? real : "another program");
}
