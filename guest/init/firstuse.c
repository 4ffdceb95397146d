// SPDX-License-Identifier: Apache-2.0
#include "firstuse.h"

#include "files.h"
#include "trees.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Of every new ext4, from mke2fs(8). The copy is made in it, so that a program never sees half of one. */
#define LOST_AND_FOUND "lost+found"
#define COPYING ".hypeman-copying"
#define COPIED ".hypeman-copied" /* complete, and on the disk */

static int open_folder(int parent, const char *name)
{
    return openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

/* Has the folder nothing but, perhaps, what has this name? If it cannot be read, it is not known to be empty.
 */
static bool holds_only(int parent, const char *folder, const char *name)
{
    int fd = open_folder(parent, folder);
    DIR *entries = fd < 0 ? NULL : fdopendir(fd);
    if (entries == NULL) {
        close_fd(&fd);
        return false;
    }
    bool only = true;
    const struct dirent *entry;
    while (only && (errno = 0, entry = readdir(entries)) != NULL)
        only = strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0 ||
               strcmp(entry->d_name, name) == 0;
    only = only && errno == 0;
    (void)closedir(entries);
    return only;
}

static bool remove_lost_and_found(int volume)
{
    return unlinkat(volume, LOST_AND_FOUND, AT_REMOVEDIR) == 0;
}

static bool remove_if_there(int folder, const char *name)
{
    struct stat status;
    return fstat(folder, &status) == 0 && (tree_remove(folder, name, status.st_dev) || errno == ENOENT);
}

/* One entry of what was copied to its place; true with *moved false if there was none left. */
static bool move_one(int volume, int copied, bool *moved)
{
    char name[sizeof((struct dirent *)NULL)->d_name];
    DIR *entries = fdopendir(open_folder(copied, "."));
    if (entries == NULL)
        return false;
    *moved = false;
    const struct dirent *entry;
    while (!*moved && (errno = 0, entry = readdir(entries)) != NULL) {
        *moved = strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
        (void)snprintf(name, sizeof name, "%s", entry->d_name);
    }
    int error = *moved ? 0 : errno;
    (void)closedir(entries);
    errno = error;
    if (error != 0 || !*moved)
        return error == 0;
    /* An image made from an ext4's root may have one itself. */
    if (strcmp(name, LOST_AND_FOUND) == 0)
        return remove_if_there(copied, name);
    return renameat(copied, name, volume, name) == 0;
}

static bool complete(int volume, int lost_and_found)
{
    int copied = open_folder(lost_and_found, COPIED);
    bool moved = true;
    bool done = copied >= 0;
    while (done && moved)
        done = move_one(volume, copied, &moved);
    done = done && folder_resemble(volume, copied) && unlinkat(lost_and_found, COPIED, AT_REMOVEDIR) == 0 &&
           remove_lost_and_found(volume);
    int error = errno;
    close_fd(&copied);
    errno = error;
    return done;
}

static bool copy(int lost_and_found, int folder)
{
    if (!remove_if_there(lost_and_found, COPYING) || mkdirat(lost_and_found, COPYING, 0700) != 0)
        return false;
    int copying = open_folder(lost_and_found, COPYING);
    bool copied = copying >= 0 && tree_copy(folder, copying) && folder_resemble(copying, folder) &&
                  syncfs(copying) == 0 && renameat(lost_and_found, COPYING, lost_and_found, COPIED) == 0;
    int error = errno;
    close_fd(&copying);
    errno = error;
    return copied;
}

static bool begin(int volume, int lost_and_found, int folder)
{
    struct stat status;
    if (fstatat(lost_and_found, COPIED, &status, AT_SYMLINK_NOFOLLOW) == 0)
        return complete(volume, lost_and_found);
    if (!holds_only(volume, ".", LOST_AND_FOUND) || !holds_only(volume, LOST_AND_FOUND, COPYING))
        return true;
    if (holds_only(folder, ".", LOST_AND_FOUND))
        return remove_if_there(lost_and_found, COPYING) && folder_resemble(volume, folder) &&
               remove_lost_and_found(volume);
    return copy(lost_and_found, folder) && complete(volume, lost_and_found);
}

bool first_use(int volume, int folder)
{
    int lost_and_found = open_folder(volume, LOST_AND_FOUND);
    if (lost_and_found < 0)
        return errno == ENOENT || errno == ENOTDIR || errno == ELOOP;
    bool done = begin(volume, lost_and_found, folder);
    int error = errno;
    close_fd(&lost_and_found);
    errno = error;
    return done;
}
