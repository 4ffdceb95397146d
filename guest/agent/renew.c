// SPDX-License-Identifier: Apache-2.0
#include "renew.h"

#include "bootid.h"
#include "environment.h"
#include "files.h"
#include "groups.h"
#include "hostsfile.h"
#include "machineid.h"
#include "runfolder.h"
#include "spawn.h"
#include "sshkeys.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/mount.h> /* Not beside <sys/mount.h>: some C libraries have the same names there. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#define KERNELS_BOOT_ID "/proc/sys/kernel/random/boot_id"
#define SHOWN_BOOT_ID RUN_FOLDER "/boot_id"

/* --- names --- */

/* One that says something else is the image's own business. */
static bool set_hostname_file(const char *former, const char *name, struct reason *why)
{
    char text[HOST_NAME_MAX + 2] = "";
    if (file_read("/etc/hostname", text, sizeof text) < 0 && errno != ENOENT)
        return refuse(why, "cannot read /etc/hostname: %s", strerror(errno));
    text[strcspn(text, " \t\r\n")] = '\0';
    if (text[0] != '\0' && strcmp(text, former) != 0)
        return true;
    (void)snprintf(text, sizeof text, "%s\n", name);
    return file_write("/etc/hostname", O_CREAT | O_TRUNC, text) ||
           refuse(why, "cannot write /etc/hostname: %s", strerror(errno));
}

static bool set_names(const struct thaw *thaw, struct reason *why)
{
    char former[HOST_NAME_MAX + 1] = "";
    if (gethostname(former, sizeof former) != 0)
        return refuse(why, "cannot learn the host name: %s", strerror(errno));
    const char *name = thaw->hostname == NULL ? former : thaw->hostname;
    if (!set_hostname_file(former, name, why) || !hosts_set(name, former, &thaw->hosts, why))
        return false;
    return sethostname(name, strlen(name)) == 0 ||
           refuse(why, "cannot set the host name \"%s\": %s", name, strerror(errno));
}

/* --- services --- */

/* A command that nobody waits for. */
static void run_script(char *script)
{
    static char shell[] = "/bin/sh";
    static char option[] = "-c";
    static char path[] = "PATH=" DEFAULT_PATH;
    char *const argv[] = {shell, option, script, NULL};
    static char *const environment[] = {path, NULL};
    struct reason ignored = {""};
    struct spawned spawned;
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    struct group group = group_make();
    const struct enclosure enclosure = {.beside = -1, .cgroup = group.fd};
    const struct spawn spawn = {.argv = argv,
                                .environment = environment,
                                .folder = "/",
                                .stdio = {null, null, null},
                                .ready_fd = -1,
                                .binary = -1,
                                .oom_score_adj = "0",
                                .enclosure = &enclosure};
    if (null >= 0 && spawn_start(&spawn, &spawned, &ignored))
        close_fd(&spawned.verdict);
    group_release(&group);
    close_fd(&null);
}

void renew_services(const struct thaw *thaw)
{
    static char journal[] = "exec systemctl try-restart systemd-journald.service";
    static char ssh[] = SSH_KEYGEN " -A && exec systemctl try-restart ssh.service sshd.service";
    if (getenv("NOTIFY_SOCKET") == NULL)
        return;
    if (thaw->boot != NULL || thaw->machine_id != NULL)
        run_script(journal);
    if (thaw->reset_ssh_host_keys && access(SSH_KEYGEN, X_OK) == 0)
        run_script(ssh);
}

/* --- files --- */

static bool has_names(const struct thaw *thaw)
{
    return thaw->hostname != NULL || thaw->hosts.count > 0;
}

static bool has_resolver(const struct thaw *thaw)
{
    return thaw->network.dns_count + thaw->network.search_count > 0;
}

static bool change_files(const struct thaw *thaw, struct reason *why)
{
    return (!has_names(thaw) || set_names(thaw, why)) &&
           (thaw->machine_id == NULL || machine_id_set(thaw->machine_id, why)) &&
           (!has_resolver(thaw) || network_write_resolver(&thaw->network, "/", why)) &&
           (!thaw->reset_ssh_host_keys || ssh_host_keys_remove(why));
}

static bool set_readonly(bool readonly)
{
    struct mount_attr change = {.attr_set = readonly ? MOUNT_ATTR_RDONLY : 0,
                                .attr_clr = readonly ? 0 : MOUNT_ATTR_RDONLY};
    return syscall(SYS_mount_setattr, AT_FDCWD, "/", 0, &change, sizeof change) == 0;
}

/* A root that is read-only (`read_only` of the config disk) is not for that moment, in which all is frozen.
 */
static bool change_root(const struct thaw *thaw, struct reason *why)
{
    struct statvfs status;
    if (!has_names(thaw) && thaw->machine_id == NULL && !has_resolver(thaw) && !thaw->reset_ssh_host_keys)
        return true;
    bool readonly = statvfs("/", &status) == 0 && (status.f_flag & ST_RDONLY) != 0;
    if (readonly && !set_readonly(false))
        return refuse(why, "cannot make the root file system writable: %s", strerror(errno));
    bool changed = change_files(thaw, why);
    if (readonly && !set_readonly(true))
        return refuse(why, "cannot make the root file system read-only again: %s", strerror(errno));
    return changed;
}

/* --- boot id --- */

static bool write_shown(const char *boot)
{
    char text[64];
    int length = snprintf(text, sizeof text, "%.8s-%.4s-%.4s-%.4s-%.12s\n", boot, boot + 8, boot + 12,
                          boot + 16, boot + 20);
    int fd = open(SHOWN_BOOT_ID, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0444);
    /* Of the same length each time: nobody reads a half. */
    bool written = fd >= 0 && pwrite(fd, text, (size_t)length, 0) == length;
    close_fd(&fd);
    return written;
}

static bool is_shown(void)
{
    struct stat ours;
    struct stat theirs;
    return stat(SHOWN_BOOT_ID, &ours) == 0 && stat(KERNELS_BOOT_ID, &theirs) == 0 &&
           ours.st_dev == theirs.st_dev && ours.st_ino == theirs.st_ino;
}

/* In the place of the kernel's, which cannot be changed, as containers have it. */
static bool show_boot_id(void)
{
    struct mount_attr readonly = {.attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV |
                                              MOUNT_ATTR_NOEXEC};
    if (is_shown())
        return true;
    int tree = (int)syscall(SYS_open_tree, AT_FDCWD, SHOWN_BOOT_ID, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
    bool shown = tree >= 0 &&
                 syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH, &readonly, sizeof readonly) == 0 &&
                 syscall(SYS_move_mount, tree, "", AT_FDCWD, KERNELS_BOOT_ID, MOVE_MOUNT_F_EMPTY_PATH) == 0;
    int error = errno;
    close_fd(&tree);
    errno = error;
    return shown;
}

static bool set_boot_id(const char *boot, struct reason *why)
{
    if (!folder_make(RUN_FOLDER, 0755) || !write_shown(boot) || !show_boot_id())
        return refuse(why, "cannot set " KERNELS_BOOT_ID ": %s", strerror(errno));
    return boot_id_write(boot, why);
}

bool renew_identity(const struct thaw *thaw, struct reason *why)
{
    return change_root(thaw, why) && (thaw->network.count == 0 || network_readdress(&thaw->network, why)) &&
           (thaw->boot == NULL || set_boot_id(thaw->boot, why));
}
