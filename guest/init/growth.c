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

/* 0 if it is none of ext4. */
static uint64_t count_blocks(const unsigned char superblock[SUPERBLOCK_SIZE])
{
    if ((number_at(superblock, MAGIC) & 0xFFFF) != EXT4_MAGIC ||
        number_at(superblock, LOG_BLOCK_SIZE) > LOG_BLOCK_MAX)
        return 0;
    bool wide = (number_at(superblock, INCOMPAT) & HAS_64BIT) != 0;
    uint64_t high = wide ? number_at(superblock, BLOCKS_HIGH) : 0;
    return number_at(superblock, BLOCKS_LOW) | high << 32;
}

uint64_t growth_wanted(const unsigned char superblock[SUPERBLOCK_SIZE], uint64_t bytes)
{
    uint64_t blocks = count_blocks(superblock);
    uint64_t room = blocks == 0 ? 0 : bytes / (1024U << number_at(superblock, LOG_BLOCK_SIZE));
    return room > blocks ? room : 0;
}

/* A mount has just read that block: after it, this costs no request. */
static bool read_superblock(int fd, unsigned char superblock[SUPERBLOCK_SIZE])
{
    return pread(fd, superblock, SUPERBLOCK_SIZE, SUPERBLOCK_AT) == SUPERBLOCK_SIZE;
}

uint64_t growth_blocks(const char *device)
{
    unsigned char superblock[SUPERBLOCK_SIZE];
    int fd = open(device, O_RDONLY | O_CLOEXEC);
    uint64_t blocks = fd >= 0 && read_superblock(fd, superblock) ? count_blocks(superblock) : 0;
    close_fd(&fd);
    return blocks;
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
    int fd = open(device, O_RDONLY | O_CLOEXEC);
    bool known =
        fd >= 0 && syscall(SYS_ioctl, fd, BLKGETSIZE64, &bytes) == 0 && read_superblock(fd, superblock);
    int error = errno;
    close_fd(&fd);
    errno = error;
    uint64_t blocks = known ? growth_wanted(superblock, bytes) : 0;
    return known && (blocks == 0 || grow(folder, blocks));
}
