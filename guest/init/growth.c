// SPDX-License-Identifier: Apache-2.0
#include "growth.h"

#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Linux, fs/ext4/ext4.h: not in the headers for programs of every kernel that we are built with. C libraries
 * do not agree on whether ioctl takes such a number. */
#define EXT4_RESIZE _IOW('f', 16, uint64_t)

/* Fields of the superblock (kernel, Documentation/filesystems/ext4). */
enum {
    BLOCKS_LOW = 0x4,
    LOG_BLOCK_SIZE = 0x18,
    MAGIC = 0x38,
    INCOMPAT = 0x60,
    BLOCKS_HIGH = 0x150,
    EXT4_MAGIC = 0xEF53,
    HAS_64BIT = 0x80,
    LOG_BLOCK_MAX = 6,
};

static uint32_t number_at(const unsigned char *superblock, int at)
{
    const unsigned char *bytes = superblock + at;
    return (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

uint64_t growth_wanted(const unsigned char superblock[SUPERBLOCK_SIZE], uint64_t bytes)
{
    uint32_t log_block = number_at(superblock, LOG_BLOCK_SIZE);
    if ((number_at(superblock, MAGIC) & 0xFFFF) != EXT4_MAGIC || log_block > LOG_BLOCK_MAX)
        return 0;
    bool wide = (number_at(superblock, INCOMPAT) & HAS_64BIT) != 0;
    uint64_t high = wide ? number_at(superblock, BLOCKS_HIGH) : 0;
    uint64_t room = bytes / (1024U << log_block);
    return room > (number_at(superblock, BLOCKS_LOW) | high << 32) ? room : 0;
}

static bool grow(int folder, uint64_t blocks)
{
    /* What a mount gave may be an fd that names the folder and no more. */
    int root = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool done = root >= 0 && syscall(SYS_ioctl, root, EXT4_RESIZE, &blocks) == 0;
    close_fd(&root);
    return done;
}

bool growth_do(int folder, const char *device)
{
    unsigned char superblock[SUPERBLOCK_SIZE];
    uint64_t bytes = 0;
    /* The mount has just read that block: it costs no request. */
    int fd = open(device, O_RDONLY | O_CLOEXEC);
    bool known = fd >= 0 && syscall(SYS_ioctl, fd, BLKGETSIZE64, &bytes) == 0 &&
                 pread(fd, superblock, sizeof superblock, SUPERBLOCK_AT) == (ssize_t)sizeof superblock;
    int error = errno;
    close_fd(&fd);
    errno = error;
    uint64_t blocks = known ? growth_wanted(superblock, bytes) : 0;
    return known && (blocks == 0 || grow(folder, blocks));
}
