// SPDX-License-Identifier: Apache-2.0
#include "trees.h"

#include "files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

enum { DEPTH_MAX = 64, COPY_AT_ONCE = 1 << 20 };

static bool is_dots(const char *name)
{
    return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

/* The folder's entries, for reading; NULL with errno. Takes the fd. */
static DIR *open_entries(int folder)
{
    DIR *entries = folder < 0 ? NULL : fdopendir(folder);
    if (entries == NULL && folder >= 0) {
        int error = errno;
        close_fd(&folder);
        errno = error;
    }
    return entries;
}

static bool remove_at(int folder, const char *name, dev_t device, unsigned depth);

static bool remove_entries(int folder, const char *name, dev_t device, unsigned depth)
{
    DIR *entries = open_entries(openat(folder, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (entries == NULL)
        return false;
    int error = 0;
    const struct dirent *entry;
    while ((entry = readdir(entries)) != NULL) {
        if (!is_dots(entry->d_name) && !remove_at(dirfd(entries), entry->d_name, device, depth + 1) &&
            error == 0)
            error = errno;
    }
    (void)closedir(entries);
    errno = error;
    return error == 0;
}

static bool remove_at(int folder, const char *name, dev_t device, unsigned depth)
{
    struct stat status;
    if (fstatat(folder, name, &status, AT_SYMLINK_NOFOLLOW) != 0)
        return false;
    if (!S_ISDIR(status.st_mode))
        return unlinkat(folder, name, 0) == 0;
    if (status.st_dev != device || depth > DEPTH_MAX) {
        errno = status.st_dev != device ? EXDEV : ELOOP;
        return false;
    }
    return remove_entries(folder, name, device, depth) && unlinkat(folder, name, AT_REMOVEDIR) == 0;
}

bool tree_remove(int folder, const char *name, dev_t device)
{
    return remove_at(folder, name, device, 0);
}

static bool copy_bytes(int from, int to)
{
    ssize_t sent;
    do
        sent = sendfile(to, from, NULL, COPY_AT_ONCE);
    while (sent > 0 || (sent < 0 && errno == EINTR));
    return sent == 0;
}

static bool copy_file(int from_folder, int to_folder, const char *name, mode_t mode)
{
    int from = openat(from_folder, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    int to = from < 0 ? -1
                      : openat(to_folder, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC,
                               mode & (mode_t)07777);
    bool copied = to >= 0 && copy_bytes(from, to);
    int error = errno;
    close_fd(&to);
    close_fd(&from);
    errno = error;
    return copied;
}

bool files_copy(int from, int to)
{
    DIR *entries = open_entries(openat(from, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (entries == NULL)
        return false;
    bool copied = true;
    const struct dirent *entry;
    while (copied && (errno = 0, entry = readdir(entries)) != NULL) {
        struct stat status;
        copied = fstatat(from, entry->d_name, &status, AT_SYMLINK_NOFOLLOW) == 0 &&
                 (!S_ISREG(status.st_mode) || copy_file(from, to, entry->d_name, status.st_mode));
    }
    int error = errno;
    (void)closedir(entries);
    errno = error;
    return copied && error == 0;
}
