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

struct mount_entry {
    const char *type;
    const char *target;
    unsigned long flags;
    const char *options;
    bool needed; /* or only mounted if the kernel has it */
    bool inits;  /* left to an image's own init, which has options of its own for it */
};

static const struct mount_entry early_mounts[] = {
    {"proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL, true, false},
    {"sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL, true, false},
    {"devtmpfs", "/dev", MS_NOSUID, "mode=0755", true, false},
};

static const struct mount_entry root_mounts[] = {
    {"proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL, true, false},
    {"sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL, true, false},
    {"devtmpfs", "/dev", MS_NOSUID, "mode=0755", true, false},
    {"devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "mode=0620,gid=5,ptmxmode=0666", true, true},
    {"tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV, "mode=1777", true, true},
    {"cgroup2", "/sys/fs/cgroup", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL, false, true},
};

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

static bool mount_all(const struct mount_entry *entries, size_t count, bool inits, struct reason *why)
{
    for (const struct mount_entry *entry = entries; entry < entries + count; entry++) {
        if (entry->inits && !inits)
            continue;
        bool made = folder_make(entry->target, 0755);
        if (made && mount(entry->type, entry->target, entry->type, entry->flags, entry->options) == 0)
            continue;
        if (entry->needed)
            return refuse(why, "cannot %s %s: %s", made ? "mount" : "make the folder", entry->target,
                          strerror(errno));
    }
    return true;
}

bool mounts_early(struct reason *why)
{
    return mount_all(early_mounts, sizeof early_mounts / sizeof early_mounts[0], true, why);
}

void mounts_early_leave(void)
{
    /* Best effort: one that stays is out of sight under the new root. */
    for (size_t i = sizeof early_mounts / sizeof early_mounts[0]; i > 0; i--)
        (void)umount2(early_mounts[i - 1].target, MNT_DETACH);
}

bool mounts_run(const char *root, bool content, struct report *report, struct reason *why)
{
    struct reason incomplete = {""};
    int top = open(root, O_PATH | O_DIRECTORY | O_CLOEXEC);
    int folder = top < 0 ? -1 : folder_in_root(top, "/run");
    int tmpfs =
        folder < 0 ? -1 : filesystem_tmpfs("mode=0755", (struct mount_limits){.nosuid = true, .nodev = true});
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
    if (!mount_all(root_mounts, sizeof root_mounts / sizeof root_mounts[0], !has_init, why))
        return false;
    for (size_t i = 0; i < sizeof device_links / sizeof device_links[0]; i++) {
        if (symlink(device_links[i].target, device_links[i].link) != 0 && errno != EEXIST)
            return refuse(why, "cannot make the link %s: %s", device_links[i].link, strerror(errno));
    }
    return true;
}
