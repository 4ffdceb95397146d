// SPDX-License-Identifier: Apache-2.0
#include "volumes.h"

#include "atonce.h"
#include "devices.h"
#include "files.h"
#include "filesystem.h"
#include "firstuse.h"
#include "growth.h"
#include "inroot.h"
#include "tmpfs.h"
#include "trees.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

/* Of overlays: a folder for each on the VM's disk, which root_mount has mounted there. */
#define LAYERS "/disk/volumes"
enum { SERIAL_ROOM = 64 };

/* What failed ends the boot, or is said and left out. */
static bool give_up(struct volume *volume, struct report *report, struct reason *why)
{
    close_fd(&volume->filesystem);
    if (volume->required)
        return false;
    report_warning(report, why->words);
    return true;
}

/* The layer's folders on the VM's disk; they stay from boot to boot. Its root begins as the volume's. */
static bool make_layer(const struct volume *volume, const char *layer, const char *upper, const char *work)
{
    struct stat top;
    if (!folder_make(layer, 0700) || !folder_make(work, 0700) || fstat(volume->filesystem, &top) != 0)
        return false;
    if (mkdir(upper, top.st_mode & 07777) != 0)
        return errno == EEXIST;
    return chown(upper, top.st_uid, top.st_gid) == 0 && chmod(upper, top.st_mode & 07777) == 0;
}

/* An overlay's lower folder needs a place in the initrd, but only until it is mounted. */
static int mount_layer(const struct volume *volume, const char *lower, const char *upper, const char *work)
{
    int folder = folder_make(lower, 0700) ? open(lower, O_PATH | O_DIRECTORY | O_CLOEXEC) : -1;
    if (folder < 0)
        return -1;
    int layered = -1;
    if (filesystem_place(volume->filesystem, folder)) {
        layered = filesystem_overlay(lower, upper, work);
        int error = errno;
        (void)umount2(lower, MNT_DETACH);
        errno = error;
    }
    close_fd(&folder);
    return layered;
}

static bool add_layer(struct volume *volume, struct reason *why)
{
    char layer[sizeof LAYERS + SERIAL_ROOM];
    char lower[sizeof layer + sizeof "/lower"];
    char upper[sizeof lower];
    char work[sizeof lower];
    int length = snprintf(layer, sizeof layer, "%s/%s", LAYERS, volume->serial);
    if (length < 0 || (size_t)length >= sizeof layer)
        return refuse(why, "volume %s: its serial is too long", volume->path);
    (void)snprintf(lower, sizeof lower, "/volumes/%s", volume->serial);
    (void)snprintf(upper, sizeof upper, "%s/upper", layer);
    (void)snprintf(work, sizeof work, "%s/work", layer);
    int layered = make_layer(volume, layer, upper, work) ? mount_layer(volume, lower, upper, work) : -1;
    int error = errno;
    close_fd(&volume->filesystem);
    volume->filesystem = layered;
    return layered >= 0 ||
           refuse(why, "volume %s: cannot put a writable layer over it: %s", volume->path, strerror(error));
}

/* What mounting a volume comes to, in a thread of its own. */
struct attempt {
    struct volume *volume;
    char device[DEVICE_PATH_SIZE];
    struct reason ungrown; /* empty if it has its size */
    struct reason why;
};

static void grow_volume(struct attempt *attempt)
{
    const struct volume *volume = attempt->volume;
    if (!volume->readonly && strcmp(volume->type, "ext4") == 0 &&
        !growth_do(volume->filesystem, attempt->device))
        (void)refuse(&attempt->ungrown, "volume %s: it cannot grow to its new size: %s", volume->path,
                     strerror(errno));
}

static int mount_volume(const struct volume *volume, const char *device)
{
    uint64_t blocks = volume->readonly ? 0 : growth_blocks(device);
    int filesystem = filesystem_mount(volume->type, device, volume->readonly);
    if (filesystem < 0 || volume->readonly || growth_blocks(device) == blocks)
        return filesystem;
    close_fd(&filesystem);
    return filesystem_mount(volume->type, device, volume->readonly);
}

static void *mount_one(void *item)
{
    struct attempt *attempt = item;
    struct volume *volume = attempt->volume;
    if (volume->serial == NULL) {
        volume->filesystem = tmpfs_open(volume);
        if (volume->filesystem < 0)
            (void)refuse(&attempt->why, "tmpfs %s: cannot mount it with these options: %s", volume->path,
                         strerror(errno));
        return NULL;
    }
    if (attempt->device[0] == '\0')
        return NULL;
    volume->filesystem = mount_volume(volume, attempt->device);
    if (volume->filesystem >= 0)
        grow_volume(attempt);
    else
        (void)refuse(&attempt->why, "volume %s: cannot mount %s (%s) as %s: %s", volume->path, volume->serial,
                     attempt->device, volume->type, strerror(errno));
    return NULL;
}

static bool locate(struct attempt *attempt, int64_t deadline)
{
    const struct volume *volume = attempt->volume;
    if (volume->serial == NULL || wait_for_device(find_block, volume->serial, attempt->device, deadline))
        return true;
    attempt->device[0] = '\0';
    return refuse(&attempt->why, "volume %s: no block device with the serial %s came up", volume->path,
                  volume->serial);
}

static bool conclude(struct attempt *attempt, struct report *report)
{
    struct volume *volume = attempt->volume;
    if (attempt->ungrown.words[0] != '\0')
        report_warning(report, attempt->ungrown.words);
    return (volume->filesystem >= 0 && (!volume->overlay || add_layer(volume, &attempt->why))) ||
           give_up(volume, report, &attempt->why);
}

/* Stops at the first volume that the boot needs and that is not there. */
static bool locate_all(struct attempt *attempts, struct volumes *volumes, int64_t deadline,
                       struct reason *why)
{
    for (size_t i = 0; i < volumes->count; i++) {
        struct attempt *attempt = &attempts[i];
        attempt->volume = &volumes->all[i];
        if (!locate(attempt, deadline) && attempt->volume->required) {
            *why = attempt->why;
            return false;
        }
    }
    return true;
}

static bool conclude_all(struct attempt *attempts, size_t count, struct report *report, struct reason *why)
{
    for (size_t i = 0; i < count; i++) {
        if (!conclude(&attempts[i], report)) {
            *why = attempts[i].why;
            return false;
        }
    }
    return true;
}

/* What a writable one begins with: a new volume has what the image has in its place, a tmpfs the owner and
 * mode of a folder there, unless it was given others. */
static bool begin(const struct volume *volume, int folder, bool found)
{
    if (volume->serial != NULL)
        return volume->readonly || first_use(volume->filesystem, folder);
    return !found || tmpfs_has_mode(volume) || folder_resemble(volume->filesystem, folder);
}

static bool place_one(struct volume *volume, const char *root, struct reason *why)
{
    /* Opened anew for each: one before may have been mounted on it. */
    int top = open(root, O_PATH | O_DIRECTORY | O_CLOEXEC);
    bool found = top >= 0 && folder_is_in_root(top, volume->path);
    int folder = top < 0 ? -1 : folder_in_root(top, volume->path);
    bool filled = folder >= 0 && begin(volume, folder, found);
    bool placed = filled && filesystem_place(volume->filesystem, folder);
    if (!placed)
        (void)refuse(why, "volume %s: cannot %s: %s", volume->path,
                     folder < 0 ? "make its folder"
                     : filled   ? "mount it there"
                                : "copy what the image has there to the new volume",
                     strerror(errno));
    close_fd(&folder);
    close_fd(&top);
    return placed;
}

bool volumes_mount(struct volumes *volumes, struct report *report, int64_t deadline, struct reason *why)
{
    struct attempt *attempts = calloc(volumes->count + 1, sizeof *attempts);
    if (attempts == NULL)
        return refuse(why, "volumes: no memory to mount them");
    bool done = locate_all(attempts, volumes, deadline, why);
    if (done) {
        /* A mount waits for its disk ten times, and once for what it has written. */
        at_once(mount_one, attempts, sizeof *attempts, volumes->count);
        done = conclude_all(attempts, volumes->count, report, why);
    }
    free(attempts);
    return done;
}

bool volumes_place(struct volumes *volumes, struct report *report, const char *path, struct reason *why)
{
    for (size_t i = 0; i < volumes->count; i++) {
        struct volume *volume = &volumes->all[i];
        if (volume->filesystem >= 0 && !place_one(volume, path, why) && !give_up(volume, report, why))
            return false;
    }
    return true;
}

void volumes_leave(struct volumes *volumes)
{
    for (size_t i = volumes->count; i > 0; i--) {
        struct volume *volume = &volumes->all[i - 1];
        /* The program may have unmounted it: then closing it is what makes it clean. */
        if (volume->filesystem >= 0 && !volume->readonly && fchdir(volume->filesystem) == 0)
            (void)mount(NULL, ".", NULL, MS_REMOUNT | MS_RDONLY, NULL);
        (void)chdir("/");
        close_fd(&volume->filesystem);
    }
}
