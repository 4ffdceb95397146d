// SPDX-License-Identifier: Apache-2.0
#include "root.h"

#include "devices.h"
#include "files.h"
#include "growth.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mount.h>
#include <unistd.h>

#define IMAGE "/image"
#define DISK "/disk"

/* A disk that the root is made of. */
struct part {
    const char *serial;
    const char *target;
    const char *type;
    unsigned long flags;
    const char *options;
    char device[DEVICE_PATH_SIZE];
};

static bool find_part(struct part *part, int64_t deadline, struct reason *why)
{
    return wait_for_device(find_block, part->serial, part->device, deadline) ||
           refuse(why, "no block device with the serial %s came up", part->serial);
}

static bool mount_once(const struct part *part)
{
    return mount(part->device, part->target, part->type, part->flags, part->options) == 0;
}

static bool mount_counted(const struct part *part)
{
    if (strcmp(part->type, "ext4") != 0)
        return mount_once(part);
    uint64_t blocks = growth_blocks(part->device);
    return mount_once(part) &&
           (growth_blocks(part->device) == blocks || (umount2(part->target, 0) == 0 && mount_once(part)));
}

static bool mount_part(const struct part *part, struct reason *why)
{
    if (!folder_make(part->target, 0755))
        return refuse(why, "cannot make the folder %s: %s", part->target, strerror(errno));
    return mount_counted(part) || refuse(why, "cannot mount %s (%s) as %s: %s", part->serial, part->device,
                                         part->type, strerror(errno));
}

static bool mount_overlay(struct reason *why)
{
    /* The upper folder's mode becomes the mode of /. */
    if (!folder_make(DISK "/upper", 0755) || !folder_make(DISK "/work", 0700) || !folder_make(ROOT, 0755))
        return refuse(why, "cannot make the overlay's folders on hypeman-disk: %s", strerror(errno));
    if (mount("overlay", ROOT, "overlay", 0,
              "lowerdir=" IMAGE ",upperdir=" DISK "/upper,workdir=" DISK "/work") != 0)
        return refuse(why, "cannot mount the overlay of image and disk: %s", strerror(errno));
    return true;
}

/* Without the room that it was to get, the VM is still one that works. */
static void grow_disk(const char *device, struct report *report)
{
    struct reason why = {.words = ""};
    int folder = open(DISK, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0 || !growth_do(folder, device)) {
        (void)refuse(&why, "the disk cannot grow to its new size: %s", strerror(errno));
        report_warning(report, why.words);
    }
    close_fd(&folder);
}

bool root_mount(struct report *report, int64_t deadline, struct reason *why)
{
    /* Zeroing the disk's unused inode tables would cost time now and space on the host for good; by discard
     * the host has back what is removed. */
    struct part parts[] = {
        {.serial = "hypeman-image", .target = IMAGE, .type = "erofs", .flags = MS_RDONLY},
        {.serial = "hypeman-disk",
         .target = DISK,
         .type = "ext4",
         .flags = MS_NOATIME,
         .options = "noinit_itable,discard"},
    };
    enum { COUNT = sizeof parts / sizeof parts[0] };
    for (size_t i = 0; i < COUNT; i++) {
        if (!find_part(&parts[i], deadline, why))
            return false;
    }
    /* In turn: under TCG a thread costs more than the waits that it would save. */
    for (size_t i = 0; i < COUNT; i++) {
        if (!mount_part(&parts[i], why))
            return false;
    }
    grow_disk(parts[COUNT - 1].device, report);
    return mount_overlay(why);
}

bool root_enter(int *initrd, struct reason *why)
{
    *initrd = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (*initrd < 0)
        return refuse(why, "cannot keep the initrd's root: %s", strerror(errno));
    /* pivot_root cannot leave the initrd; this is what can, and nested containers can pivot_root in it. */
    if (chdir(ROOT) != 0 || mount(".", "/", NULL, MS_MOVE, NULL) != 0 || chroot(".") != 0 || chdir("/") != 0)
        return refuse(why, "cannot switch to the new root: %s", strerror(errno));
    return true;
}

void root_leave(int initrd)
{
    /* A boot that failed before it entered its root is in the initrd still. */
    if ((initrd < 0 ? chdir("/") : fchdir(initrd)) == 0)
        (void)mount(NULL, "." DISK, NULL, MS_REMOUNT | MS_RDONLY | MS_NOATIME, NULL);
    sync();
}

void root_let_go(int initrd)
{
    if (fchdir(initrd) == 0) {
        (void)umount2("." IMAGE, MNT_DETACH);
        (void)umount2("." DISK, MNT_DETACH);
    }
    (void)!chdir("/"); /* It is the root: there is no reason why that could fail. */
}
