// SPDX-License-Identifier: Apache-2.0
#include "state.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "fail.h"

static const char WHAT[] = "the state";

static unsigned char buffer[65536];
static size_t used;
static int file;
static uint64_t bound, left;

void state_init(int fd, uint64_t most)
{
    file = fd;
    bound = left = most;
    used = 0;
}

static void write_out(void)
{
    size_t done = 0;
    while (done < used) {
        ssize_t written = write(file, buffer + done, used - done);
        if (written < 0 && errno != EINTR)
            fail_to_write(WHAT);
        if (written > 0)
            done += (size_t)written;
    }
    used = 0;
}

void state_put(const void *bytes, size_t size)
{
    const unsigned char *from = bytes;
    if (size > left)
        fail(STATUS_TOO_LARGE, "the state of the devices has more than %" PRIu64 " bytes", bound);
    left -= size;
    while (size > 0) {
        size_t part = sizeof(buffer) - used < size ? sizeof(buffer) - used : size;
        memcpy(buffer + used, from, part);
        used += part;
        from += part;
        size -= part;
        if (used == sizeof(buffer))
            write_out();
    }
}

void state_flush(void)
{
    write_out();
    /* file systems give space to a file as late as they can: only what has it is in the journal's next commit
     */
    (void)sync_file_range(file, 0, 0, SYNC_FILE_RANGE_WRITE);
}

void state_finish(void)
{
    if (fsync(file) < 0)
        fail_to_write(WHAT);
}
