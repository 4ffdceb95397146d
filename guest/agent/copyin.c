// SPDX-License-Identifier: Apache-2.0
/* Into the guest. Every entry is put into a folder that was opened below the copy's root without following
 * any link, under a name of its own, and takes its place once it is whole. So a link that is there, or is put
 * there meanwhile, leads nowhere; and a copy that ends early leaves no half file.
 */
#include "copy.h"

#include "bytes.h"
#include "files.h"
#include "items.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { FOLDERS_MAX = 1 << 20, PERMISSIONS = 07777, RACES_MAX = 64, TEMPORARY_SIZE = 32 };

/* A folder whose mode, owner and time are set when all is in it. */
struct later {
    char *path;
    struct stat status;
};

struct in {
    int from;
    int above; /* the folder that `path` is in */
    char base[NAME_MAX + 1];
    int root; /* `path` once it is known to be a folder, or -1 */
    bool begun;

    int folder; /* where the entry at hand goes */
    bool folder_is_kept;
    char folder_path[ITEM_PATH_SIZE];

    int file; /* the file at hand, or -1 */
    char name[NAME_MAX + 1];
    char temporary[TEMPORARY_SIZE];
    struct stat status;
    off_t left; /* of its size */
    bool hole_last;

    uint64_t bytes;
    struct later *folders;
    size_t folder_count;
    size_t folder_capacity;
    const char *at; /* path of the entry at hand, for words */
    char at_store[ITEM_PATH_SIZE];
};

static bool failed(const struct in *in, struct reason *why, const char *what)
{
    int error = errno;
    return refuse(why, "cannot %s %.380s: %s", what, in->at[0] != '\0' ? in->at : in->base, strerror(error));
}

/* --- where entries go --- */

static bool path_valid(const char *path)
{
    for (;;) {
        size_t length = strcspn(path, "/");
        if (length == 0 || length > NAME_MAX || (length == 1 && path[0] == '.') ||
            (length == 2 && path[0] == '.' && path[1] == '.'))
            return false;
        if (path[length] == '\0')
            return true;
        path += length + 1;
    }
}

static int open_beneath(int root, const char *path, uint64_t flags)
{
    struct open_how how = {.flags = flags | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW,
                           .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS};
    for (int i = 0; i < RACES_MAX; i++) {
        int fd = (int)syscall(SYS_openat2, root, path, &how, sizeof how);
        if (fd >= 0 || errno != EAGAIN)
            return fd;
    }
    return -1;
}

/* Open a folder below the root, making what is missing. */
static int make_beneath(const struct in *in, char *path)
{
    int fd = open_beneath(in->root, path, O_PATH);
    if (fd >= 0 || errno != ENOENT)
        return fd;
    for (char *slash = strchr(path, '/');; slash = strchr(slash + 1, '/')) {
        if (slash != NULL)
            *slash = '\0';
        fd = open_beneath(in->root, path, O_PATH);
        if (fd < 0 && errno == ENOENT) {
            char *last = strrchr(path, '/');
            if (last != NULL)
                *last = '\0';
            int parent = last != NULL ? open_beneath(in->root, path, O_PATH) : dup(in->root);
            if (last != NULL)
                *last = '/';
            if (parent >= 0 &&
                (mkdirat(parent, last != NULL ? last + 1 : path, 0755) == 0 || errno == EEXIST))
                fd = open_beneath(in->root, path, O_PATH);
            int error = errno;
            close_fd(&parent);
            errno = error;
        }
        if (slash != NULL)
            *slash = '/';
        if (fd < 0 || slash == NULL)
            return fd;
        close_fd(&fd);
    }
}

static void leave_folder(struct in *in)
{
    if (!in->folder_is_kept)
        close_fd(&in->folder);
    in->folder = -1;
    in->folder_is_kept = false;
}

/* The folder for the entry of this path, and its name there. The one before is often the same. */
static bool enter_folder(struct in *in, const char *path, struct reason *why)
{
    const char *slash = strrchr(path, '/');
    const char *name = slash == NULL ? path : slash + 1;
    size_t length = slash == NULL ? 0 : (size_t)(slash - path);
    memcpy(in->name, name, strlen(name) + 1);
    if (in->folder >= 0 && !in->folder_is_kept && strlen(in->folder_path) == length &&
        memcmp(in->folder_path, path, length) == 0)
        return true;
    leave_folder(in);
    memcpy(in->folder_path, path, length);
    in->folder_path[length] = '\0';
    in->folder = length == 0 ? dup(in->root) : make_beneath(in, in->folder_path);
    return in->folder >= 0 || failed(in, why, "enter the folder of");
}

/* Where `path` itself is: links on the way there are those of who named it. */
static bool open_above(struct in *in, const char *path, struct reason *why)
{
    char folder[ITEM_PATH_SIZE];
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/')
        length--;
    size_t start = length;
    while (start > 0 && path[start - 1] != '/')
        start--;
    if (length >= sizeof folder || length - start > NAME_MAX)
        return refuse(why, "cannot copy to %.400s: the path is too long", path);
    memcpy(in->base, path + start, length - start);
    in->base[length - start] = '\0';
    if (in->base[0] == '\0')
        memcpy(in->base, ".", 2);
    memcpy(folder, path, start);
    folder[start] = '\0';
    while (start > 1 && folder[start - 1] == '/')
        folder[--start] = '\0';
    if (folder_make(folder, 0755))
        in->above = open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
    return in->above >= 0 || refuse(why, "cannot enter %.400s: %s", folder, strerror(errno));
}

/* --- what takes its place when it is whole --- */

static bool name_temporary(struct in *in, struct reason *why)
{
    uint64_t number;
    if (getrandom(&number, sizeof number, 0) != (ssize_t)sizeof number)
        return failed(in, why, "make a name beside");
    (void)snprintf(in->temporary, sizeof in->temporary, ".hypeman-%016llx", (unsigned long long)number);
    return true;
}

static void drop_temporary(struct in *in)
{
    close_fd(&in->file);
    if (in->temporary[0] != '\0')
        (void)unlinkat(in->folder, in->temporary, 0);
    in->temporary[0] = '\0';
}

static uid_t owner(uid_t asked)
{
    return asked == (uid_t)-1 ? 0 : asked;
}

static void file_times(const struct stat *status, struct timespec times[2])
{
    times[0] = (struct timespec){.tv_nsec = UTIME_OMIT};
    times[1] = status->st_mtim;
}

/* Owner before mode: a change of owner takes set-user-id away. */
static bool set_all(int fd, const struct stat *status)
{
    struct timespec times[2];
    file_times(status, times);
    return fchown(fd, owner(status->st_uid), owner(status->st_gid)) == 0 &&
           fchmod(fd, status->st_mode & PERMISSIONS) == 0 && futimens(fd, times) == 0;
}

static bool take_place(struct in *in, struct reason *why)
{
    if (renameat(in->folder, in->temporary, in->folder, in->name) != 0)
        return failed(in, why, "put in its place");
    in->temporary[0] = '\0';
    return true;
}

static bool end_file(struct in *in, struct reason *why)
{
    if (in->file < 0)
        return true;
    if (in->left != 0)
        return refuse(why, "the contents of %.400s are shorter than its size", in->at);
    if ((in->hole_last && ftruncate(in->file, in->status.st_size) != 0) || !set_all(in->file, &in->status))
        return failed(in, why, "finish");
    /* The last word on what could not be written comes with close on some filesystems. */
    int file = in->file;
    in->file = -1;
    if (close(file) != 0)
        return failed(in, why, "write");
    return take_place(in, why);
}

static bool begin_file(struct in *in, const struct item_entry *entry, struct reason *why)
{
    struct stat there;
    if (fstatat(in->folder, in->name, &there, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(there.st_mode)) {
        errno = EISDIR;
        return failed(in, why, "replace");
    }
    if (!name_temporary(in, why))
        return false;
    in->file = openat(in->folder, in->temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (in->file < 0) {
        in->temporary[0] = '\0';
        return failed(in, why, "make");
    }
    in->status = entry->status;
    in->left = entry->status.st_size;
    in->hole_last = false;
    return true;
}

/* A link or a fifo that was made under its temporary name; by an fd, whatever is put there meanwhile. */
static bool place_special(struct in *in, const struct stat *status, struct reason *why)
{
    struct timespec times[2];
    struct stat made;
    file_times(status, times);
    int fd = openat(in->folder, in->temporary, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    bool set = fd >= 0 && fstat(fd, &made) == 0 && (made.st_mode & S_IFMT) == (status->st_mode & S_IFMT) &&
               fchownat(fd, "", owner(status->st_uid), owner(status->st_gid), AT_EMPTY_PATH) == 0 &&
               utimensat(fd, "", times, AT_EMPTY_PATH) == 0;
    if (!set)
        (void)failed(in, why, "set the owner and the time of");
    close_fd(&fd);
    return set && take_place(in, why);
}

static bool make_symlink(struct in *in, const struct item_entry *entry, struct reason *why)
{
    if (entry->target == NULL || entry->target[0] == '\0')
        return refuse(why, "the symbolic link %.400s has no target", in->at);
    if (!name_temporary(in, why))
        return false;
    if (symlinkat(entry->target, in->folder, in->temporary) != 0) {
        in->temporary[0] = '\0';
        return failed(in, why, "make");
    }
    return place_special(in, &entry->status, why);
}

static bool make_fifo(struct in *in, const struct item_entry *entry, struct reason *why)
{
    if (!name_temporary(in, why))
        return false;
    if (mkfifoat(in->folder, in->temporary, entry->status.st_mode & PERMISSIONS) != 0) {
        in->temporary[0] = '\0';
        return failed(in, why, "make");
    }
    return place_special(in, &entry->status, why);
}

/* --- folders --- */

static bool add_later(struct in *in, const char *path, const struct stat *status, struct reason *why)
{
    if (in->folder_count == FOLDERS_MAX)
        return refuse(why, "more than %d folders in one copy", FOLDERS_MAX);
    if (in->folder_count == in->folder_capacity) {
        size_t capacity = in->folder_capacity == 0 ? 16 : 2 * in->folder_capacity;
        struct later *grown = realloc(in->folders, capacity * sizeof *grown);
        if (grown == NULL)
            return refuse(why, "no memory");
        in->folders = grown;
        in->folder_capacity = capacity;
    }
    char *copy = strdup(path);
    if (copy == NULL)
        return refuse(why, "no memory");
    in->folders[in->folder_count++] = (struct later){.path = copy, .status = *status};
    return true;
}

/* The last first: what is in a folder comes after it. */
static bool end_folders(struct in *in, struct reason *why)
{
    bool set = true;
    while (in->folder_count > 0) {
        struct later *later = &in->folders[--in->folder_count];
        in->at = later->path;
        int fd = open_beneath(in->root, later->path[0] != '\0' ? later->path : ".", O_RDONLY);
        if ((fd < 0 || !set_all(fd, &later->status)) && set)
            set = failed(in, why, "set mode, owner and time of");
        close_fd(&fd);
        in->at = "";
        free(later->path);
    }
    return set;
}

/* `path` as a folder: made, or the one that is there, which keeps what it has of its own. */
static bool begin_root(struct in *in, const struct stat *status, struct reason *why)
{
    bool made = mkdirat(in->above, in->base, status != NULL ? 0700 : 0755) == 0;
    if (!made && errno != EEXIST)
        return failed(in, why, "make the folder");
    in->root = openat(in->above, in->base, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (in->root < 0)
        return failed(in, why, "enter");
    return !made || status == NULL || add_later(in, "", status, why);
}

static bool make_folder(struct in *in, const struct stat *status, struct reason *why)
{
    struct stat there;
    if (mkdirat(in->folder, in->name, 0700) != 0) {
        if (errno != EEXIST || fstatat(in->folder, in->name, &there, AT_SYMLINK_NOFOLLOW) != 0)
            return failed(in, why, "make the folder");
        if (!S_ISDIR(there.st_mode)) {
            errno = ENOTDIR;
            return failed(in, why, S_ISLNK(there.st_mode) ? "go through the link" : "enter");
        }
    }
    return add_later(in, in->at, status, why);
}

/* --- items --- */

static bool place_entry(struct in *in, const struct item_entry *entry, struct reason *why)
{
    switch (entry->status.st_mode & S_IFMT) {
    case S_IFREG:
        return begin_file(in, entry, why);
    case S_IFDIR:
        return make_folder(in, &entry->status, why);
    case S_IFLNK:
        return make_symlink(in, entry, why);
    case S_IFIFO:
        return make_fifo(in, entry, why);
    default:
        return refuse(why, "%.400s is a device or a socket, which is not copied", in->at);
    }
}

/* `path` itself, as anything but a folder. */
static bool place_root(struct in *in, const struct item_entry *entry, struct reason *why)
{
    if (strcmp(in->base, ".") == 0 || strcmp(in->base, "..") == 0)
        return refuse(why, "the path is a folder, and cannot be replaced");
    in->folder = in->above;
    in->folder_is_kept = true;
    memcpy(in->name, in->base, sizeof in->base);
    return place_entry(in, entry, why);
}

static bool on_entry(struct in *in, const char *records, size_t size, struct reason *why)
{
    struct item_entry entry;
    if (!end_file(in, why) || !item_parse_entry(records, size, &entry, why))
        return false;
    if (strlen(entry.path) >= sizeof in->at_store)
        return refuse(why, "a path of more than %d bytes", ITEM_PATH_SIZE - 1);
    memcpy(in->at_store, entry.path, strlen(entry.path) + 1);
    in->at = in->at_store;
    bool first = !in->begun;
    bool is_root = entry.path[0] == '\0';
    in->begun = true;
    if (is_root && !first)
        return refuse(why, "an entry for the path itself, after others");
    if (is_root)
        return S_ISDIR(entry.status.st_mode) ? begin_root(in, &entry.status, why)
                                             : place_root(in, &entry, why);
    if (!path_valid(entry.path))
        return refuse(why, "%.400s is not a path that stays below where it is copied to", entry.path);
    if (in->root < 0 && (!first || !begin_root(in, NULL, why)))
        return first ? false : refuse(why, "%.400s cannot be in what is no folder", entry.path);
    return enter_folder(in, entry.path, why) && place_entry(in, &entry, why);
}

static bool on_data(struct in *in, size_t size, struct reason *why)
{
    if (in->file < 0 || (off_t)size > in->left)
        return refuse(why, "contents beyond the size of %.400s", in->at);
    size_t moved = item_move(in->from, in->file, size);
    in->bytes += moved;
    in->left -= (off_t)moved;
    in->hole_last = false;
    if (moved == size)
        return true;
    if (errno != 0)
        return failed(in, why, "write");
    return refuse(why, "the host is away");
}

static bool on_hole(struct in *in, uint64_t size, struct reason *why)
{
    if (in->file < 0 || size > (uint64_t)in->left)
        return refuse(why, "a hole beyond the size of %.400s", in->at);
    if (lseek(in->file, (off_t)size, SEEK_CUR) < 0)
        return failed(in, why, "write");
    in->left -= (off_t)size;
    in->hole_last = size > 0 || in->hole_last;
    return true;
}

enum turn { TURN_ON, TURN_WHOLE, TURN_FAILED };

static enum turn take_item(struct in *in, struct reason *why)
{
    static char payload[FRAME_PAYLOAD_MAX];
    struct frame_header header;
    if (!item_header(in->from, &header)) {
        (void)refuse(why, "the host is away");
        return TURN_FAILED;
    }
    if (header.type == FRAME_DATA)
        return on_data(in, header.length, why) ? TURN_ON : TURN_FAILED;
    if (!item_read(in->from, payload, header.length)) {
        (void)refuse(why, "the host is away");
        return TURN_FAILED;
    }
    if (header.type == FRAME_ENTRY)
        return on_entry(in, payload, header.length, why) ? TURN_ON : TURN_FAILED;
    if (header.type == FRAME_HOLE && header.length == 8)
        return on_hole(in, get_le64(payload), why) ? TURN_ON : TURN_FAILED;
    if (header.type == FRAME_END)
        return end_file(in, why) ? TURN_WHOLE : TURN_FAILED;
    (void)refuse(why, "an item that is none");
    return TURN_FAILED;
}

bool copy_in(const struct copy_order *order, int from, int to)
{
    static struct in in;
    struct reason why = {""};
    in = (struct in){.from = from, .above = -1, .root = -1, .folder = -1, .file = -1, .at = ""};
    (void)umask(0); /* Gives the old one, and never fails. */
    enum turn turn = open_above(&in, order->path, &why) ? TURN_ON : TURN_FAILED;
    while (turn == TURN_ON)
        turn = take_item(&in, &why);
    drop_temporary(&in);
    struct reason late = {""};
    bool set = end_folders(&in, &late);
    if (!set && turn == TURN_WHOLE) {
        why = late;
        turn = TURN_FAILED;
    }
    leave_folder(&in);
    close_fd(&in.root);
    close_fd(&in.above);
    free(in.folders);
    return item_put_end(to, turn == TURN_WHOLE ? "ok" : "failed", turn == TURN_WHOLE ? NULL : why.words,
                        in.bytes);
}
