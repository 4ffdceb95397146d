// SPDX-License-Identifier: Apache-2.0
/* A program of a guest: how fast is /srv, past the guest's page cache?
 *
 * `iobench prepare` makes the file that all work on. `iobench KIND`, with seq_write, seq_read, rand_write or
 * rand_read, works for an eighth of a second and prints MiB a second, or operations of 4 KiB a second; what was
 * written is on the disk by then. Without a word it waits for its end. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { MIB = 1048576, FILE_MIB = 256, SMALL = 4096 };
static const double SLICE = 0.125;

static double now(void)
{
    struct timespec at;
    (void)clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + (double)at.tv_nsec / 1e9;
}

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void transfer(int fd, char *buffer, size_t size, off_t at, int writes)
{
    if ((writes ? pwrite(fd, buffer, size, at) : pread(fd, buffer, size, at)) != (ssize_t)size)
        fail("transfer");
}

static void prepare(int fd, char *buffer)
{
    if (ftruncate(fd, 0) != 0)
        fail("ftruncate");
    for (int i = 0; i < FILE_MIB; i++)
        transfer(fd, buffer, MIB, (off_t)i * MIB, 1);
    if (fdatasync(fd) != 0)
        fail("fdatasync");
}

static void measure(int fd, char *buffer, int random, int writes)
{
    uint32_t state = (uint32_t)time(NULL);
    double start = now();
    long count = 0;
    while (now() - start < SLICE) {
        state = state * 1664525U + 1013904223U;
        if (random)
            transfer(fd, buffer, SMALL, (off_t)((state >> 8) % (FILE_MIB * (MIB / SMALL))) * SMALL, writes);
        else
            transfer(fd, buffer, MIB, (off_t)(count % FILE_MIB) * MIB, writes);
        count++;
    }
    if (writes && fdatasync(fd) != 0)
        fail("fdatasync");
    printf("%.1f\n", (double)count / (now() - start));
}

int main(int argc, char **argv)
{
    void *buffer;
    if (argc < 2) {
        for (;;)
            pause();
    }
    if (posix_memalign(&buffer, SMALL, MIB) != 0)
        fail("memory");
    memset(buffer, 'x', MIB);
    int fd = open("/srv/io", O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0600);
    if (fd < 0)
        fail("/srv/io");
    if (strcmp(argv[1], "prepare") == 0)
        prepare(fd, buffer);
    else
        measure(fd, buffer, strncmp(argv[1], "rand_", 5) == 0, strstr(argv[1], "_write") != NULL);
    return 0;
}
