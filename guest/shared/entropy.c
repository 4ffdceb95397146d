// SPDX-License-Identifier: Apache-2.0
#include "entropy.h"

#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

bool entropy_parse(const char *text, uint8_t bytes[ENTROPY_SIZE])
{
    enum { DIGITS = 2 * ENTROPY_SIZE };
    if (strlen(text) != DIGITS || strspn(text, "0123456789abcdef") != DIGITS)
        return false;
    for (size_t i = 0; i < ENTROPY_SIZE; i++) {
        const char byte[] = {text[2 * i], text[2 * i + 1], '\0'};
        bytes[i] = (uint8_t)strtoul(byte, NULL, 16);
    }
    return true;
}

bool entropy_add(const uint8_t bytes[ENTROPY_SIZE], struct reason *why)
{
    struct { /* rand_pool_info, whose size its type does not say */
        int bits;
        int size;
        uint8_t bytes[ENTROPY_SIZE];
    } pool = {.bits = ENTROPY_SIZE * 8, .size = ENTROPY_SIZE};
    memcpy(pool.bytes, bytes, ENTROPY_SIZE);
    int device = open("/dev/urandom", O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    bool added = device >= 0 && ioctl(device, RNDADDENTROPY, &pool) == 0 && ioctl(device, RNDRESEEDCRNG) == 0;
    if (!added)
        (void)refuse(why, "cannot add entropy to /dev/urandom: %s", strerror(errno));
    close_fd(&device);
    return added;
}
