// SPDX-License-Identifier: Apache-2.0
/* The program of a guest: how fast is /srv, past the guest's page cache? Prints `IO KIND VALUE` lines.
 *
 * Each kind takes about a second, and begins when what a start occupies the host with is over: else it would
 * be measured who else wants the host's CPUs in some hundred milliseconds. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { MIB = 1048576, FILE_MIB = 256, SMALL = 4096, SMALL_COUNT = 10000, WRITES = 3, READS = 8, SETTLE = 2 };

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

static void sequential(int fd, char *buffer, int writes)
{
    double start = now();
    int total = (writes ? WRITES : READS) * FILE_MIB;
    for (int i = 0; i < total; i++) {
        off_t at = (off_t)(i % FILE_MIB) * MIB;
        if ((writes ? pwrite(fd, buffer, MIB, at) : pread(fd, buffer, MIB, at)) != MIB)
            fail("sequential");
    }
    if (writes && fdatasync(fd) != 0)
        fail("fdatasync");
    printf("IO seq_%s %.1f\n", writes ? "write" : "read", total / (now() - start));
}

static void random_small(int fd, char *buffer, int writes)
{
    uint32_t state = 12345;
    double start = now();
    for (int i = 0; i < SMALL_COUNT; i++) {
        state = state * 1664525U + 1013904223U;
        off_t at = (off_t)((state >> 8) % (FILE_MIB * (MIB / SMALL))) * SMALL;
        if ((writes ? pwrite(fd, buffer, SMALL, at) : pread(fd, buffer, SMALL, at)) != SMALL)
            fail("random");
    }
    if (writes && fdatasync(fd) != 0)
        fail("fdatasync");
    printf("IO rand_%s %.1f\n", writes ? "write" : "read", SMALL_COUNT / (now() - start));
}

int main(void)
{
    void *buffer;
    if (posix_memalign(&buffer, SMALL, MIB) != 0)
        fail("memory");
    memset(buffer, 'x', MIB);
    int fd = open("/srv/io", O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0600);
    if (fd < 0)
        fail("/srv/io");
    setvbuf(stdout, NULL, _IOLBF, 0);
    sleep(SETTLE);
    puts("IO begin");
    sequential(fd, buffer, 1);
    sequential(fd, buffer, 0);
    random_small(fd, buffer, 0);
    random_small(fd, buffer, 1);
    puts("IO done");
    for (;;)
        pause();
}
