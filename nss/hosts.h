/* SPDX-License-Identifier: Apache-2.0 */
/* A file of names in the form of hosts(5): an address and its names on each line, '#' and what follows left
 * out. Read a line at a time, without an allocation: whatever asks for a name has this in it. */
#ifndef HYPEMAND_HOSTS_H
#define HYPEMAND_HOSTS_H

#include <stdbool.h>
#include <stddef.h>

enum {
    HOSTS_SIZE_MAX = 1 << 24, /* bytes of the file; what comes after them is not read */
    HOSTS_LINE_MAX = 4096,    /* bytes of a line with its end; longer ones are passed over */
    HOSTS_NAMES_MAX = 16,     /* names of a line; more are passed over */
    HOSTS_ADDRESS_MAX = 16,   /* bytes of an address */
};

struct hosts {
    int fd;
    size_t read;       /* bytes of the file so far */
    size_t start, end; /* of what is in the buffer */
    bool failed;       /* the file could not be read to its end */
    char buffer[HOSTS_LINE_MAX];
};

struct host_line {
    int family; /* AF_INET or AF_INET6 */
    unsigned char address[HOSTS_ADDRESS_MAX];
    const char *names[HOSTS_NAMES_MAX]; /* in the buffer of `hosts`: until the next line */
    size_t count;                       /* at least 1 */
};

/* False with errno if it cannot be opened, or is no regular file (EINVAL). */
bool hosts_open(struct hosts *hosts, const char *path);

/* The next line that has an address and a name; false when there is none, or with `failed` and errno. */
bool hosts_next(struct hosts *hosts, struct host_line *line);

void hosts_close(struct hosts *hosts);

/* Is it one of the line's names? Case makes no difference. */
bool host_line_names(const struct host_line *line, const char *name);

/* Bytes of an address of this family. */
size_t address_length(int family);

#endif
