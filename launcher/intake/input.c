// SPDX-License-Identifier: Apache-2.0
#include "input.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "fail.h"

/* A socket has no more than some 200 KB at once; larger buffers miss the processor's caches. */
#define BUFFER_SIZE (512 * 1024)

static unsigned char buffer[BUFFER_SIZE];
static size_t first, end;
static int source;
static uint64_t bound, total;

_Static_assert(BUFFER_SIZE >= 2 * INPUT_LARGEST, "what is asked for fits behind what is there");

void input_init(int fd, uint64_t most)
{
    source = fd;
    bound = most;
    total = 0;
    first = end = 0;
}

size_t input_available(void)
{
    return end - first;
}

bool input_fill(size_t size)
{
    memmove(buffer, buffer + first, end - first);
    end -= first;
    first = 0;
    while (end < size) {
        ssize_t count = read(source, buffer + end, sizeof(buffer) - end);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0)
            fail(STATUS_FAILED, "cannot read the stream: %s", strerror(errno));
        if (count == 0)
            return false;
        end += (size_t)count;
        total += (uint64_t)count;
        if (total > bound)
            fail(STATUS_TOO_LARGE, "the stream has more than %" PRIu64 " bytes", bound);
    }
    return true;
}

const unsigned char *input_take(size_t size)
{
    const unsigned char *taken = buffer + first;
    first += size;
    return taken;
}
