// SPDX-License-Identifier: Apache-2.0
/* Mutated: a migration stream of a guest with little memory. Whatever it is, the files stay within their
 * bounds, and what is taken apart whole has all of its memory. */
#include "fail.h"
#include "input.h"
#include "memory.h"
#include "state.h"
#include "stream.h"

#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define SIZE (16 * PAGE_SIZE)
#define STATE_SIZE 16384
#define MOST (1024 * 1024)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static jmp_buf failed;

_Noreturn void fail(enum status status, const char *format, ...)
{
    (void)format;
    /* the files are good, so it is the stream */
    if (status != STATUS_BAD_STREAM && status != STATUS_TOO_LARGE && status != STATUS_CUT_SHORT)
        abort();
    longjmp(failed, 1);
}

static int make_file(void)
{
    int fd = memfd_create("fuzz", MFD_CLOEXEC);
    if (fd < 0)
        abort();
    return fd;
}

static off_t find_size(int fd)
{
    struct stat found;
    if (fstat(fd, &found) < 0)
        abort();
    return found.st_size;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int input = make_file();
    int memory = make_file();
    int state = make_file();
    if (write(input, data, size) != (ssize_t)size || lseek(input, 0, SEEK_SET) != 0)
        abort();
    if (setjmp(failed) == 0) {
        input_init(input, MOST);
        memory_init(memory, SIZE);
        state_init(state, STATE_SIZE);
        stream_split("microvm.ram", SIZE);
        state_flush();
        memory_finish();
        state_finish();
    }
    if (find_size(memory) != SIZE || find_size(state) > STATE_SIZE)
        abort();
    (void)close(input);
    (void)close(memory);
    (void)close(state);
    return 0;
}
