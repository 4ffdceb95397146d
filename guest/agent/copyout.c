// SPDX-License-Identifier: Apache-2.0
/* Out of the guest: parents first, each folder and file opened by its name in the folder above, so that what
 * is renamed meanwhile leads nowhere else. What goes wrong in one place is said at the end and stops nothing
 * else.
 */
#include "copy.h"

#include "files.h"
#include "items.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/vfs.h>
#include <unistd.h>

enum { CHUNK = FRAME_PAYLOAD_MAX };

/* File systems by which the kernel gives its state, and that no program keeps data in (statfs(2)). The one of
 * /dev is a tmpfs by its number: what is in it are devices, which are no part of a copy anyway.
 */
static const unsigned long API_FILE_SYSTEMS[] = {
    0x9FA0,     /* proc */
    0x62656572, /* sysfs */
    0x63677270, /* cgroup2 */
    0x27E0EB,   /* cgroup */
    0x64626720, /* debugfs */
    0x74726163, /* tracefs */
    0x73636673, /* securityfs */
    0x62656570, /* configfs */
    0xCAFE4A11, /* bpf */
    0x6165676C, /* pstore */
    0xDE5E81E4, /* efivarfs */
    0x42494E4D, /* binfmt_misc */
    0x65735543, /* fusectl */
    0xF97CFF8C, /* selinuxfs */
    0x19800202, /* mqueue */
    0x1CD1,     /* devpts */
    0x67596969, /* rpc_pipefs */
    0x6E667364, /* nfsd */
};

struct out {
    int to;
    bool follow;
    bool gone; /* nobody reads any more */
    uint64_t bytes;
    size_t faults;
    struct reason first;
    size_t length;
    char path[ITEM_PATH_SIZE]; /* of the entry at hand, below the root */
    char target[ITEM_PATH_SIZE];
};

/* The folders that one is in, to know when a link leads back to one of them. */
struct level {
    const struct level *above;
    dev_t device;
    ino_t inode;
};

static void fault(struct out *out, const char *what, const char *cause)
{
    if (out->faults++ == 0)
        (void)refuse(&out->first, "cannot %s %.400s: %s", what, out->length > 0 ? out->path : "it", cause);
}

static void put_entry(struct out *out, const struct stat *status, const char *target)
{
    struct item_entry entry = {.path = out->path, .target = target, .status = *status};
    out->gone = out->gone || !item_put_entry(out->to, &entry);
}

static void put_hole(struct out *out, off_t size)
{
    if (size > 0)
        out->gone = out->gone || !item_put_hole(out->to, (uint64_t)size);
}

/* Zeros for what was there when the entry was sent, and is no more. */
static void put_zeros(struct out *out, size_t size)
{
    static const char zeros[4096];
    while (size > 0 && !out->gone) {
        size_t now = size < sizeof zeros ? size : sizeof zeros;
        ssize_t written = write(out->to, zeros, now);
        out->gone = written < 0 && errno != EINTR;
        size -= written > 0 ? (size_t)written : 0;
    }
}

/* False if the file does not have these bytes any more. */
static bool put_data(struct out *out, int file, off_t size)
{
    bool whole = true;
    while (size > 0 && whole && !out->gone) {
        size_t now = size < CHUNK ? (size_t)size : CHUNK;
        uint8_t header[FRAME_HEADER_SIZE];
        frame_header_put(header, (struct frame_header){.length = (uint32_t)now, .type = FRAME_DATA});
        out->gone = write(out->to, header, sizeof header) != (ssize_t)sizeof header;
        size_t moved = out->gone ? now : item_move(file, out->to, now);
        if (moved < now) {
            out->gone = errno == EPIPE;
            fault(out, "read", errno != 0 ? strerror(errno) : "it has become shorter meanwhile");
            put_zeros(out, now - moved);
            whole = false;
        }
        out->bytes += moved;
        size -= (off_t)now;
    }
    put_hole(out, size);
    return whole;
}

static void put_contents(struct out *out, int file, const struct stat *status)
{
    bool sparse = status->st_blocks < status->st_size / 512;
    off_t at = 0;
    while (at < status->st_size && !out->gone) {
        off_t data = sparse ? lseek(file, at, SEEK_DATA) : at;
        if (data < 0)
            data = errno == ENXIO ? status->st_size : at;
        off_t hole = sparse && data < status->st_size ? lseek(file, data, SEEK_HOLE) : status->st_size;
        if (hole < 0 || hole > status->st_size)
            hole = status->st_size;
        if (data > hole)
            data = hole;
        put_hole(out, data - at);
        if (data < hole && lseek(file, data, SEEK_SET) == data && !put_data(out, file, hole - data)) {
            put_hole(out, status->st_size - hole);
            return;
        }
        at = hole;
    }
}

/* As those of /proc are: empty by what the kernel says, and not by what it gives. */
static bool hides_its_size(int file)
{
    char byte;
    struct stat status;
    return read(file, &byte, 1) == 1 && fstat(file, &status) == 0 && status.st_size == 0;
}

static void put_file(struct out *out, int folder, const char *name)
{
    struct stat status;
    int nofollow = out->follow ? 0 : O_NOFOLLOW;
    int file = openat(folder, name, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC | nofollow);
    if (file < 0) {
        fault(out, "open", strerror(errno));
    } else if (fstat(file, &status) != 0 || !S_ISREG(status.st_mode)) {
        fault(out, "open", "it has changed meanwhile");
    } else {
        put_entry(out, &status, NULL);
        put_contents(out, file, &status);
        if (status.st_size == 0 && hides_its_size(file))
            fault(out, "copy", "it does not say how long it is; execute cat instead");
    }
    close_fd(&file);
}

static void put_symlink(struct out *out, int folder, const char *name, const struct stat *status)
{
    ssize_t length = readlinkat(folder, name, out->target, sizeof out->target - 1);
    if (length < 0) {
        fault(out, "read", strerror(errno));
        return;
    }
    out->target[length] = '\0';
    put_entry(out, status, out->target);
}

static void put_any(struct out *out, int folder, const char *name, const struct level *above);

static void put_child(struct out *out, int folder, const char *name, const struct level *level)
{
    size_t length = out->length;
    size_t slash = length > 0 ? 1 : 0;
    size_t name_length = strlen(name);
    if (length + slash + name_length >= sizeof out->path) {
        fault(out, "copy what is in", "its path is too long");
        return;
    }
    if (slash > 0)
        out->path[length] = '/';
    memcpy(out->path + length + slash, name, name_length + 1);
    out->length = length + slash + name_length;
    put_any(out, folder, name, level);
    out->length = length;
    out->path[length] = '\0';
}

static bool is_above(const struct level *level, const struct stat *status)
{
    for (; level != NULL; level = level->above) {
        if (level->device == status->st_dev && level->inode == status->st_ino)
            return true;
    }
    return false;
}

/* Of a copy of more than that: of a path in one of them, all is copied. */
static bool is_api_mount(int folder, const struct stat *status, const struct level *above)
{
    struct statfs system;
    if (above == NULL || above->device == status->st_dev || fstatfs(folder, &system) != 0)
        return false;
    for (size_t i = 0; i < sizeof API_FILE_SYSTEMS / sizeof *API_FILE_SYSTEMS; i++) {
        if ((unsigned long)system.f_type == API_FILE_SYSTEMS[i])
            return true;
    }
    return false;
}

static void put_folder(struct out *out, int folder, const char *name, const struct level *above)
{
    struct stat status;
    int nofollow = out->follow ? 0 : O_NOFOLLOW;
    int opened = openat(folder, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | nofollow);
    if (opened < 0 || fstat(opened, &status) != 0) {
        fault(out, "open", strerror(errno));
        close_fd(&opened);
        return;
    }
    DIR *listing = is_above(above, &status) ? NULL : fdopendir(opened);
    if (listing == NULL) {
        fault(out, "enter", is_above(above, &status) ? "a link leads back to it" : strerror(errno));
        close_fd(&opened);
        return;
    }
    const struct level level = {.above = above, .device = status.st_dev, .inode = status.st_ino};
    put_entry(out, &status, NULL);
    bool left_out = is_api_mount(opened, &status, above);
    while (!out->gone && !left_out) {
        errno = 0;
        const struct dirent *entry = readdir(listing);
        if (entry == NULL) {
            if (errno != 0)
                fault(out, "list", strerror(errno));
            break;
        }
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            put_child(out, opened, entry->d_name, &level);
    }
    (void)closedir(listing);
}

/* What has gone between its listing and now is no fault: it need not have been there. */
static void put_any(struct out *out, int folder, const char *name, const struct level *above)
{
    struct stat status;
    bool there = fstatat(folder, name, &status, out->follow ? 0 : AT_SYMLINK_NOFOLLOW) == 0;
    if (!there && out->follow) /* A link that leads nowhere is copied as what it is. */
        there = fstatat(folder, name, &status, AT_SYMLINK_NOFOLLOW) == 0;
    if (!there) {
        if (errno != ENOENT)
            fault(out, "look at", strerror(errno));
    } else if (S_ISREG(status.st_mode)) {
        put_file(out, folder, name);
    } else if (S_ISDIR(status.st_mode)) {
        put_folder(out, folder, name, above);
    } else if (S_ISLNK(status.st_mode)) {
        put_symlink(out, folder, name, &status);
    } else {
        put_entry(out, &status, NULL);
    }
}

bool copy_out(const struct copy_order *order, int to)
{
    static struct out out;
    struct stat status;
    out = (struct out){.to = to, .follow = order->follow};
    if (fstatat(AT_FDCWD, order->path, &status, AT_SYMLINK_NOFOLLOW) != 0) {
        bool missing = errno == ENOENT || errno == ENOTDIR;
        (void)refuse(&out.first, "cannot look at %.400s: %s", order->path, strerror(errno));
        return item_put_end(to, missing ? "missing" : "failed", out.first.words, 0);
    }
    put_any(&out, AT_FDCWD, order->path, NULL);
    if (out.gone)
        return false;
    struct reason why = out.first;
    if (out.faults > 1)
        (void)refuse(&why, "%.440s; and %zu more of what was to be copied", out.first.words, out.faults - 1);
    return item_put_end(to, out.faults > 0 ? "failed" : "ok", out.faults > 0 ? why.words : NULL, out.bytes);
}
