// SPDX-License-Identifier: Apache-2.0
#include "trees.h"

#include "files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

enum { DEPTH_MAX = 64, COPY_AT_ONCE = 1 << 20, ATTRIBUTES_SIZE = 65536 };

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

/* --- trees --- */

/* A file with more than one name, and the first of them that was copied. */
struct known_file {
    dev_t device;
    ino_t number;
    char *path;
};

struct copying {
    int top;       /* where it goes */
    char *buffers; /* of the names of attributes, and behind these of a value */
    struct known_file *files;
    size_t file_count;
    size_t path_length;
    char path[PATH_MAX]; /* of what is being copied, below `top` */
};

/* What a file system has no place for is left out, as by cp. */
static bool copy_attributes(int from, int to, char *buffers)
{
    char *value = buffers + ATTRIBUTES_SIZE;
    ssize_t size = flistxattr(from, buffers, ATTRIBUTES_SIZE);
    if (size < 0)
        return errno == ENOTSUP;
    for (const char *name = buffers; name < buffers + size; name += strlen(name) + 1) {
        ssize_t length = fgetxattr(from, name, value, ATTRIBUTES_SIZE);
        if (length < 0 && errno == ENODATA)
            continue;
        if (length < 0 || (fsetxattr(to, name, value, (size_t)length, 0) != 0 && errno != ENOTSUP))
            return false;
    }
    return true;
}

/* Of files and folders. A new owner takes set-user-ID and capabilities away: mode and attributes come after.
 */
static bool resemble(int to, int from, const struct stat *status, char *buffers)
{
    const struct timespec times[2] = {status->st_atim, status->st_mtim};
    return fchown(to, status->st_uid, status->st_gid) == 0 && fchmod(to, status->st_mode & 07777) == 0 &&
           copy_attributes(from, to, buffers) && futimens(to, times) == 0;
}

static bool link_known(const struct copying *copying, int folder, const char *name, const struct stat *status,
                       bool *linked)
{
    for (size_t i = 0; i < copying->file_count; i++) {
        const struct known_file *file = &copying->files[i];
        if (file->number != status->st_ino || file->device != status->st_dev)
            continue;
        *linked = true;
        return linkat(copying->top, file->path, folder, name, 0) == 0;
    }
    return true;
}

static bool remember(struct copying *copying, const struct stat *status)
{
    struct known_file *more = reallocarray(copying->files, copying->file_count + 1, sizeof *copying->files);
    if (more == NULL)
        return false;
    copying->files = more;
    char *path = strdup(copying->path);
    if (path != NULL)
        more[copying->file_count++] =
            (struct known_file){.device = status->st_dev, .number = status->st_ino, .path = path};
    return path != NULL;
}

static bool copy_regular(struct copying *copying, int from, int to, const char *name)
{
    struct stat status;
    bool linked = false;
    int source = openat(from, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    bool copied = source >= 0 && fstat(source, &status) == 0 &&
                  (status.st_nlink == 1 || link_known(copying, to, name, &status, &linked));
    int target =
        !copied || linked ? -1 : openat(to, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (copied && !linked)
        copied = target >= 0 && copy_bytes(source, target) &&
                 resemble(target, source, &status, copying->buffers) &&
                 (status.st_nlink == 1 || remember(copying, &status));
    int error = errno;
    close_fd(&target);
    close_fd(&source);
    errno = error;
    return copied;
}

static bool copy_link(int from, int to, const char *name, const struct stat *status)
{
    char target[PATH_MAX];
    const struct timespec times[2] = {status->st_atim, status->st_mtim};
    ssize_t length = readlinkat(from, name, target, sizeof target - 1);
    if (length < 0)
        return false;
    target[length] = '\0';
    return symlinkat(target, to, name) == 0 &&
           fchownat(to, name, status->st_uid, status->st_gid, AT_SYMLINK_NOFOLLOW) == 0 &&
           utimensat(to, name, times, AT_SYMLINK_NOFOLLOW) == 0;
}

/* Devices, pipes and sockets. */
static bool copy_node(int to, const char *name, const struct stat *status)
{
    const struct timespec times[2] = {status->st_atim, status->st_mtim};
    return mknodat(to, name, (status->st_mode & S_IFMT) | 0600, status->st_rdev) == 0 &&
           fchownat(to, name, status->st_uid, status->st_gid, AT_SYMLINK_NOFOLLOW) == 0 &&
           fchmodat(to, name, status->st_mode & 07777, 0) == 0 &&
           utimensat(to, name, times, AT_SYMLINK_NOFOLLOW) == 0;
}

static bool copy_entries(struct copying *copying, int from, int to, dev_t device, unsigned depth);

static bool copy_folder(struct copying *copying, int from, int to, const char *name, dev_t device,
                        unsigned depth)
{
    struct stat status;
    int source = openat(from, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    int target = source < 0 || mkdirat(to, name, 0700) != 0
                     ? -1
                     : openat(to, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    bool copied = target >= 0 && fstat(source, &status) == 0 &&
                  (status.st_dev != device || copy_entries(copying, source, target, device, depth + 1)) &&
                  resemble(target, source, &status, copying->buffers);
    int error = errno;
    close_fd(&target);
    close_fd(&source);
    errno = error;
    return copied;
}

static bool copy_entry(struct copying *copying, int from, int to, const char *name, dev_t device,
                       unsigned depth)
{
    struct stat status;
    if (fstatat(from, name, &status, AT_SYMLINK_NOFOLLOW) != 0)
        return false;
    if (S_ISREG(status.st_mode))
        return copy_regular(copying, from, to, name);
    if (S_ISDIR(status.st_mode))
        return copy_folder(copying, from, to, name, device, depth);
    if (S_ISLNK(status.st_mode))
        return copy_link(from, to, name, &status);
    return copy_node(to, name, &status);
}

static bool copy_entries(struct copying *copying, int from, int to, dev_t device, unsigned depth)
{
    DIR *entries =
        depth > DEPTH_MAX ? NULL : open_entries(openat(from, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (depth > DEPTH_MAX)
        errno = ELOOP;
    if (entries == NULL)
        return false;
    size_t length = copying->path_length;
    bool copied = true;
    const struct dirent *entry;
    while (copied && (errno = 0, entry = readdir(entries)) != NULL) {
        if (is_dots(entry->d_name))
            continue;
        int added = snprintf(copying->path + length, sizeof copying->path - length, "%s%s",
                             length > 0 ? "/" : "", entry->d_name);
        copying->path_length = length + (size_t)added;
        if (copying->path_length >= sizeof copying->path) {
            errno = ENAMETOOLONG;
            copied = false;
        } else {
            copied = copy_entry(copying, from, to, entry->d_name, device, depth);
        }
    }
    int error = errno;
    copying->path_length = length;
    copying->path[length] = '\0';
    (void)closedir(entries);
    errno = error;
    return copied && error == 0;
}

bool tree_copy(int from, int to)
{
    struct stat status;
    struct copying copying = {.top = to, .buffers = malloc(2 * (size_t)ATTRIBUTES_SIZE)};
    bool copied = copying.buffers != NULL && fstat(from, &status) == 0 &&
                  copy_entries(&copying, from, to, status.st_dev, 0);
    int error = errno;
    for (size_t i = 0; i < copying.file_count; i++)
        free(copying.files[i].path);
    free(copying.files);
    free(copying.buffers);
    errno = error;
    return copied;
}

bool folder_resemble(int to, int from)
{
    struct stat status;
    char *buffers = malloc(2 * (size_t)ATTRIBUTES_SIZE);
    int source = openat(from, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int target = openat(to, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool done = buffers != NULL && source >= 0 && target >= 0 && fstat(source, &status) == 0 &&
                resemble(target, source, &status, buffers);
    int error = errno;
    close_fd(&target);
    close_fd(&source);
    free(buffers);
    errno = error;
    return done;
}
