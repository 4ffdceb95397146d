// SPDX-License-Identifier: Apache-2.0
/* intake USER BLOCK SIZE STATE_SIZE MEMORY_FD STATE_FD
 *
 * Reads what QEMU writes when it is migrated, from standard input, and takes it apart while it comes: the
 * pages of the guest's memory, which is the RAM block BLOCK of SIZE bytes, go into the sparse file of one
 * descriptor, all else into that of the other, which has at most STATE_SIZE bytes then. So QEMU can map the
 * memory of a guest that is restored, rather than read it.
 *
 * Who wrote the stream may be a VMM that its guest has taken over. So this is a process of its own, of the
 * user with the id USER and without rights (filter.h), and takes no memory but what it begins with. Exit
 * status: fail.h. With 0, both files are on the disk. */
#include "fail.h"

#include <errno.h>
#include <grp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "filter.h"
#include "input.h"
#include "memory.h"
#include "state.h"
#include "stream.h"

/* A guest that runs while it is saved changes pages that have been sent; no more often than this. */
#define MOST_ROUNDS 4
#define MOST_BESIDE (64ULL * 1024 * 1024)
#define LARGEST_SIZE (1ULL << 44)

enum argument { USER = 1, BLOCK, SIZE, STATE_SIZE, MEMORY_FD, STATE_FD, ARGUMENTS };

_Noreturn void fail(enum status status, const char *format, ...)
{
    char line[512] = "intake: ";
    size_t used = strlen(line);
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(line + used, sizeof(line) - used - 1, format, arguments);
    va_end(arguments);
    used = strlen(line);
    line[used++] = '\n';
    /* there is nowhere to report its failure */
    if (write(STDERR_FILENO, line, used) < 0)
        _exit(status);
    _exit(status);
}

static uint64_t parse(const char *text, uint64_t most)
{
    char *rest;
    errno = 0;
    unsigned long long number = strtoull(text, &rest, 10);
    if (errno != 0 || text[0] < '0' || text[0] > '9' || *rest != '\0' || number > most)
        fail(STATUS_FAILED, "%s is no number up to %llu", text, (unsigned long long)most);
    return number;
}

/* Not the caller's to do: a big process that is to begin one of another user copies itself for that. */
static void become(uid_t user)
{
    if (geteuid() == user)
        return;
    if (setgroups(0, NULL) < 0 || setresgid(user, user, user) < 0 || setresuid(user, user, user) < 0)
        fail(STATUS_FAILED, "cannot become the user %u: %s", user, strerror(errno));
}

int main(int argc, char **argv)
{
    if (argc != ARGUMENTS)
        fail(STATUS_FAILED, "usage: intake USER BLOCK SIZE STATE_SIZE MEMORY_FD STATE_FD");
    become((uid_t)parse(argv[USER], UINT32_MAX - 1));
    uint64_t size = parse(argv[SIZE], LARGEST_SIZE);
    if (size == 0 || size % PAGE_SIZE != 0)
        fail(STATUS_FAILED, "%s bytes are no whole pages", argv[SIZE]);
    input_init(STDIN_FILENO, MOST_ROUNDS * size + MOST_BESIDE);
    memory_init((int)parse(argv[MEMORY_FD], INT32_MAX), size);
    state_init((int)parse(argv[STATE_FD], INT32_MAX), parse(argv[STATE_SIZE], LARGEST_SIZE));
    if (install_filter() < 0)
        fail(STATUS_FAILED, "cannot install the system call filter: %s", strerror(errno));
    stream_split(argv[BLOCK], size);
    state_flush();
    memory_finish();
    state_finish();
    _exit(STATUS_DONE);
}
