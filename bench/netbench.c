// SPDX-License-Identifier: Apache-2.0
/* The program of a guest: sends to ADDRESS PORT over TCP for SECONDS, again and again until it can. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { PIECE = 131072, ATTEMPTS = 300, PAUSE_US = 100000 };

static double now(void)
{
    struct timespec at;
    (void)clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + (double)at.tv_nsec / 1e9;
}

static int connect_to(const char *address, uint16_t port)
{
    struct sockaddr_in peer = {.sin_family = AF_INET, .sin_port = htons(port)};
    if (inet_pton(AF_INET, address, &peer.sin_addr) != 1)
        return -1;
    for (int i = 0; i < ATTEMPTS; i++) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd >= 0 && connect(fd, (struct sockaddr *)&peer, sizeof(peer)) == 0)
            return fd;
        if (fd >= 0)
            (void)close(fd);
        (void)usleep(PAUSE_US);
    }
    return -1;
}

int main(int argc, char **argv)
{
    static char piece[PIECE];
    if (argc != 4)
        return 2;
    int fd = connect_to(argv[1], (uint16_t)atoi(argv[2]));
    if (fd < 0) {
        perror("connect");
        return 1;
    }
    memset(piece, 'x', sizeof(piece));
    double end = now() + atof(argv[3]);
    while (now() < end && write(fd, piece, sizeof(piece)) > 0)
        ;
    (void)close(fd);
    for (;;)
        (void)pause();
}
