// SPDX-License-Identifier: Apache-2.0
#include "mounts.h"

#include "files.h"
#include "filesystem.h"
#include "inroot.h"
#include "trees.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <string.h>
#include <sys/mount.h>
#include <unistd.h>

static const struct {
    const char *type;
    const char *target;
    unsigned long flags;
    const char *options;
} early_mounts[] = {
    {"proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL},
    {"sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL},
    {"devtmpfs", "/dev", MS_NOSUID, "mode=0755"},
};

/* Those of the image's root, in this order. */
static const struct {
    const char *type; /* NULL: the initrd's, which moves */
    const char *target;
    const char *options;
    struct mount_limits limits;
    bool needed; /* or only mounted if the kernel has it */
    bool inits;  /* left to an image's own init, which has options of its own for it */
    bool unique; /* its file system has an id at random, which is none for a template */
} root_mounts[] = {
    {.target = "/proc", .needed = true},
    {.target = "/sys", .needed = true},
    {.target = "/dev", .needed = true},
    {.type = "devpts",
     .target = "/dev/pts",
     .options = "mode=0620,gid=5,ptmxmode=0666",
     .limits = {.nosuid = true, .noexec = true},
     .needed = true,
     .inits = true},
    {.type = "tmpfs",
     .target = "/dev/shm",
     .options = "mode=1777",
     .limits = {.nosuid = true, .nodev = true},
     .needed = true,
     .inits = true,
     .unique = true},
    {.type = "cgroup2",
     .target = "/sys/fs/cgroup",
     .options = "",
     .limits = {.nosuid = true, .nodev = true, .noexec = true},
     .inits = true},
};

enum { ROOT_MOUNTS = sizeof root_mounts / sizeof root_mounts[0] };

/* Their roots: those that are there before the image's root is, or -1. */
static int ahead[ROOT_MOUNTS] = {-1, -1, -1, -1, -1, -1};

/* devtmpfs has no links; programs and shells rely on these. */
static const struct {
    const char *target;
    const char *link;
} device_links[] = {
    {"/proc/self/fd", "/dev/fd"},
    {"/proc/self/fd/0", "/dev/stdin"},
    {"/proc/self/fd/1", "/dev/stdout"},
    {"/proc/self/fd/2", "/dev/stderr"},
};

bool mounts_early(struct reason *why)
{
    for (size_t i = 0; i < sizeof early_mounts / sizeof early_mounts[0]; i++) {
        const char *type = early_mounts[i].type, *target = early_mounts[i].target;
        bool made = folder_make(target, 0755);
        if (!made || mount(type, target, type, early_mounts[i].flags, early_mounts[i].options) != 0)
            return refuse(why, "cannot %s %s: %s", made ? "mount" : "make the folder", target,
                          strerror(errno));
    }
    return true;
}

static int make(size_t i)
{
    return root_mounts[i].type == NULL
               ? open(root_mounts[i].target, O_PATH | O_DIRECTORY | O_CLOEXEC)
               : filesystem_nodev(root_mounts[i].type, root_mounts[i].options, root_mounts[i].limits);
}

bool mounts_ahead(struct reason *why)
{
    for (size_t i = 0; i < ROOT_MOUNTS; i++) {
        if (!root_mounts[i].unique)
            ahead[i] = make(i);
    }
    for (size_t i = 0; i < sizeof device_links / sizeof device_links[0]; i++) {
        if (symlink(device_links[i].target, device_links[i].link) != 0 && errno != EEXIST)
            return refuse(why, "cannot make the link %s: %s", device_links[i].link, strerror(errno));
    }
    return true;
}

bool mounts_run(const char *root, bool content, struct report *report, struct reason *why)
{
    struct reason incomplete = {""};
    int top = open(root, O_PATH | O_DIRECTORY | O_CLOEXEC);
    int folder = top < 0 ? -1 : folder_in_root(top, "/run");
    int tmpfs = folder < 0 ? -1
                           : filesystem_nodev("tmpfs", "mode=0755",
                                              (struct mount_limits){.nosuid = true, .nodev = true});
    if (tmpfs >= 0 && content && (!tree_copy(folder, tmpfs) || !folder_resemble(tmpfs, folder))) {
        (void)refuse(&incomplete, "/run: not all that the image has there could be copied: %s",
                     strerror(errno));
        report_warning(report, incomplete.words);
    }
    bool placed = tmpfs >= 0 && filesystem_place(tmpfs, folder);
    if (!placed)
        (void)refuse(why, "cannot %s /run: %s", folder < 0 ? "make the folder" : "mount", strerror(errno));
    close_fd(&tmpfs);
    close_fd(&folder);
    close_fd(&top);
    return placed;
}

bool mounts_root(bool has_init, struct reason *why)
{
    bool placed = true;
    for (size_t i = 0; placed && i < ROOT_MOUNTS; i++) {
        const char *target = root_mounts[i].target;
        if (has_init && root_mounts[i].inits)
            continue;
        bool made = folder_make(target, 0755);
        if (ahead[i] < 0 && root_mounts[i].unique)
            ahead[i] = make(i);
        placed = (made && filesystem_move(ahead[i], target)) || !root_mounts[i].needed ||
                 refuse(why, "cannot %s %s: %s", made ? "mount" : "make the folder", target, strerror(errno));
    }
    for (size_t i = 0; i < ROOT_MOUNTS; i++)
        close_fd(&ahead[i]);
    return placed;
}
