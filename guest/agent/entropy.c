// SPDX-License-Identifier: Apache-2.0
#include "entropy.h"

#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <string.h>
#include <sys/ioctl.h>

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
