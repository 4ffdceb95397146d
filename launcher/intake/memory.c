// SPDX-License-Identifier: Apache-2.0
#include "memory.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "fail.h"

#define UNSENT (16ULL * 1024 * 1024)

static const char WHAT[] = "the memory";
static const unsigned char ZEROS[PAGE_SIZE];

static int file;
/* A run of adjacent pages that are yet to be written: `pages` has them, or they are zeros. */
static enum kind { NOTHING, DATA, HOLE } kind;
static uint64_t start, next;
static struct iovec pages[IOV_MAX];
static int count;
/* the end of the last page with data: nothing behind it was ever written */
static uint64_t high;
/* bytes that were written since the kernel was last told to have what there is on the disk */
static uint64_t unsent;

void memory_init(int fd, uint64_t size)
{
    file = fd;
    kind = NOTHING;
    high = 0;
    unsent = 0;
    if (ftruncate(file, 0) < 0 || ftruncate(file, (off_t)size) < 0)
        fail_to_write(WHAT);
}

static bool is_zero(const unsigned char *page)
{
    return page[0] == 0 && memcmp(page, page + 1, PAGE_SIZE - 1) == 0;
}

/* Add a page to the run, or begin another. */
static void extend(enum kind wanted, uint64_t offset)
{
    if (kind != wanted || offset != next || (kind == DATA && count == IOV_MAX)) {
        memory_flush();
        kind = wanted;
        start = offset;
        count = 0;
    }
    next = offset + PAGE_SIZE;
}

void memory_put(uint64_t offset, const unsigned char *page)
{
    if (is_zero(page)) {
        memory_clear(offset);
        return;
    }
    extend(DATA, offset);
    pages[count++] = (struct iovec){.iov_base = (void *)page, .iov_len = PAGE_SIZE};
    if (next > high)
        high = next;
}

void memory_clear(uint64_t offset)
{
    if (offset < high)
        extend(HOLE, offset);
}

static void write_pages(void)
{
    struct iovec *part = pages;
    while (count > 0) {
        ssize_t written = pwritev(file, part, count, (off_t)start);
        if (written < 0 && errno == EINTR)
            continue;
        if (written < 0)
            fail_to_write(WHAT);
        start += (uint64_t)written;
        unsent += (uint64_t)written;
        for (; count > 0 && (size_t)written >= part->iov_len; part++, count--)
            written -= (ssize_t)part->iov_len;
        if (count > 0) {
            part->iov_base = (char *)part->iov_base + written;
            part->iov_len -= (size_t)written;
        }
    }
}

static void write_zeros(void)
{
    while (start < next) {
        size_t size = PAGE_SIZE - start % PAGE_SIZE;
        ssize_t written = pwrite(file, ZEROS, size, (off_t)start);
        if (written < 0 && errno != EINTR)
            fail_to_write(WHAT);
        if (written > 0)
            start += (uint64_t)written;
    }
}

static void punch_hole(void)
{
    int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    while (fallocate(file, mode, (off_t)start, (off_t)(next - start)) < 0) {
        if (errno == EOPNOTSUPP) {
            write_zeros();
            return;
        }
        if (errno != EINTR)
            fail_to_write(WHAT);
    }
}

void memory_flush(void)
{
    if (kind == DATA)
        write_pages();
    if (unsent >= UNSENT) {
        /* begun, not waited for: less is left for the end, while the guest stands still. It may be refused.
         */
        (void)sync_file_range(file, 0, 0, SYNC_FILE_RANGE_WRITE);
        unsent = 0;
    }
    if (kind == HOLE)
        punch_hole();
    kind = NOTHING;
}

void memory_finish(void)
{
    memory_flush();
    if (fsync(file) < 0)
        fail_to_write(WHAT);
}
