// SPDX-License-Identifier: Apache-2.0
#include "inroot.h"

#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static int open_folder(int root, const char *path)
{
    const struct open_how how = {.flags = O_PATH | O_DIRECTORY | O_CLOEXEC,
                                 .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS};
    return (int)syscall(SYS_openat2, root, path, &how, sizeof how);
}

/* Make the last part of a path whose other parts are there. */
static bool make_last(int root, char *path)
{
    char *slash = strrchr(path, '/');
    const char *name = slash == NULL ? path : slash + 1;
    if (slash != NULL)
        *slash = '\0';
    int parent = open_folder(root, slash == NULL || slash == path ? "/" : path);
    bool made = parent >= 0 && (mkdirat(parent, name, 0755) == 0 || errno == EEXIST);
    int error = errno;
    if (slash != NULL)
        *slash = '/';
    close_fd(&parent);
    errno = error;
    return made;
}

int folder_in_root(int root, const char *path)
{
    char partial[PATH_MAX];
    int folder = open_folder(root, path);
    if (folder >= 0 || errno != ENOENT)
        return folder;
    size_t length = strlen(path);
    if (length == 0 || length >= sizeof partial) {
        errno = length == 0 ? ENOENT : ENAMETOOLONG;
        return -1;
    }
    memcpy(partial, path, length + 1);
    for (char *at = partial + 1;; at++) {
        bool last = *at == '\0';
        if (!last && *at != '/')
            continue;
        *at = '\0';
        if (at[-1] != '/' && (folder = open_folder(root, partial)) < 0 &&
            (errno != ENOENT || !make_last(root, partial)))
            return -1;
        close_fd(&folder);
        if (last)
            return open_folder(root, path);
        *at = '/';
    }
}

bool folder_is_in_root(int root, const char *path)
{
    int folder = open_folder(root, path);
    bool found = folder >= 0;
    close_fd(&folder);
    return found;
}

static bool write_all(int fd, const char *bytes, size_t left)
{
    while (left > 0) {
        ssize_t written = write(fd, bytes, left);
        if (written < 0 && errno == EINTR)
            continue;
        if (written < 0)
            return false;
        bytes += written;
        left -= (size_t)written;
    }
    return true;
}

bool file_put(int folder, const char *name, const struct content *content)
{
    char fresh[NAME_MAX + 1];
    if (snprintf(fresh, sizeof fresh, ".%s.hypeman", name) >= (int)sizeof fresh) {
        errno = ENAMETOOLONG;
        return false;
    }
    if (unlinkat(folder, fresh, 0) != 0 && errno != ENOENT)
        return false;
    int fd = openat(folder, fresh, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return false;
    /* the mode at the end: a change of owner takes set-user-ID from it */
    bool written = write_all(fd, content->bytes, content->size) &&
                   fchown(fd, content->uid, content->gid) == 0 && fchmod(fd, content->mode) == 0;
    int error = errno;
    /* Have it written, and not wait for that: else a guest that loses its power within seconds has an empty
     * file where the name is on the disk before the text (ext4's delayed allocation). sync_file_range(2) is
     * not passed on by an overlay; this is, and begins to write. */
    if (written)
        (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    close_fd(&fd);
    if (written && renameat(folder, fresh, folder, name) == 0)
        return true;
    if (written)
        error = errno;
    (void)unlinkat(folder, fresh, 0);
    errno = error;
    return false;
}

bool file_replace(int folder, const char *name, const char *text)
{
    const struct content content = {.bytes = text, .size = strlen(text), .mode = 0644};
    return file_put(folder, name, &content);
}
