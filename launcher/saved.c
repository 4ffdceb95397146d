// SPDX-License-Identifier: Apache-2.0
#include "saved.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bootid.h"
#include "ports.h"
#include "say.h"

#define ARGUMENTS_MAX 64

/* The next field, up to the comma or the end. Returns what is behind it; NULL if it has no room. */
static const char *take_field(const char *text, char *field, size_t size)
{
    size_t length = strcspn(text, ",");
    if (length == 0 || length >= size)
        return NULL;
    memcpy(field, text, length);
    field[length] = '\0';
    return text[length] == ',' ? text + length + 1 : text + length;
}

int parse_saved(const char *value, struct saved *saved)
{
    char number[4];
    const char *rest = take_field(value, saved->state, sizeof(saved->state));
    rest = rest == NULL ? NULL : take_field(rest, saved->boot, sizeof(saved->boot));
    rest = rest == NULL ? NULL : take_field(rest, number, sizeof(number));
    char *end = number;
    long count = rest == NULL ? 0 : strtol(number, &end, 10);
    if (rest == NULL || *rest != '\0' || *end != '\0' || count < 1 || count > ARGUMENTS_MAX ||
        !is_id(saved->boot)) {
        say("--restore is not STATE,BOOT,COUNT");
        return -1;
    }
    saved->arguments = (size_t)count;
    return 0;
}

int open_saved(const struct saved *saved)
{
    int fd = open(saved->state, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    struct stat status;
    /* an empty one is the place in the root at which nothing was bound */
    if (fd < 0 ? errno == ENOENT : fstat(fd, &status) == 0 && status.st_size == 0) {
        if (fd >= 0)
            (void)close(fd);
        return 0;
    }
    if (fd < 0 || place_fd(fd, FD_STATE) < 0) {
        say("cannot read the saved state of the VM: %s", strerror(errno));
        return -1;
    }
    return 1;
}
