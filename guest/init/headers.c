// SPDX-License-Identifier: Apache-2.0
/* Whether headers belong to a kernel is told by the kernel's build id: of two kernels with one release it
 * tells which is which. The headers disk has it in a file, and so have the folders that were made from it. */
#include "headers.h"

#include "bytes.h"
#include "clock.h"
#include "devices.h"
#include "files.h"
#include "trees.h"

#include <dirent.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#define SOURCES "/usr/src"
#define MODULES "/lib/modules"
#define HEADERS_PREFIX "linux-headers-"
#define STAMP ".hypeman-build-id"
#define DISK_MODULES ".hypeman-modules"

enum { NOTES_MAX = 65536, PATH_SIZE = 256 };

/* Of erofs' superblock (fs/erofs/erofs_fs.h): where it stands and what is looked at. */
enum {
    SUPER_AT = 1024,
    SUPER_SIZE = 128,
    SUPER_BLOCK_BITS_AT = 12,
    SUPER_BLOCKS_AT = 36,
};

static const uint32_t super_magic = 0xe0f5e1e2;

struct place {
    char id[HEADERS_ID_SIZE]; /* the running kernel's build id, in hex */
    char headers[PATH_SIZE];  /* /usr/src/linux-headers-RELEASE */
    char modules[PATH_SIZE];  /* /lib/modules/RELEASE */
};

/* Their last parts. */
static const char *headers_name(const struct place *place)
{
    return place->headers + sizeof SOURCES;
}

static const char *modules_name(const struct place *place)
{
    return place->modules + sizeof MODULES;
}

/* --- which kernel this is --- */

static void format_id(const uint8_t *bytes, size_t size, char id[HEADERS_ID_SIZE])
{
    for (size_t i = 0; i < size && 2 * i + 2 < HEADERS_ID_SIZE; i++)
        (void)snprintf(id + 2 * i, 3, "%02x", bytes[i]);
}

static size_t aligned(size_t size)
{
    return (size + 3) & ~(size_t)3;
}

/* Notes stand one after the other: three numbers, a name, a descriptor. */
bool headers_find_id(const uint8_t *notes, size_t size, char id[HEADERS_ID_SIZE])
{
    enum { NOTE_HEADER = 12 };
    size_t at = 0;
    while (size - at >= NOTE_HEADER) {
        size_t name_size = get_le32(notes + at);
        size_t id_size = get_le32(notes + at + 4);
        uint32_t type = get_le32(notes + at + 8);
        at += NOTE_HEADER;
        if (name_size > size - at || aligned(name_size) > size - at)
            return false;
        const uint8_t *name = notes + at;
        at += aligned(name_size);
        if (id_size > size - at)
            return false;
        if (type == NT_GNU_BUILD_ID && name_size == 4 && memcmp(name, "GNU", 4) == 0 && id_size > 0) {
            format_id(notes + at, id_size, id);
            return true;
        }
        at += aligned(id_size) < size - at ? aligned(id_size) : size - at;
    }
    return false;
}

static bool find_place(struct place *place, struct reason *why)
{
    static uint8_t notes[NOTES_MAX];
    struct utsname system;
    ssize_t size = file_read("/sys/kernel/notes", (char *)notes, sizeof notes);
    if (size < 0 || !headers_find_id(notes, (size_t)size, place->id))
        return refuse(why, "cannot learn this kernel's build id from /sys/kernel/notes");
    if (uname(&system) != 0 || strchr(system.release, '/') != NULL)
        return refuse(why, "cannot learn this kernel's release");
    (void)snprintf(place->headers, sizeof place->headers, SOURCES "/" HEADERS_PREFIX "%s", system.release);
    (void)snprintf(place->modules, sizeof place->modules, MODULES "/%s", system.release);
    return true;
}

/* --- what is there --- */

static bool has_stamp(const char *folder, const char *id)
{
    char path[PATH_SIZE + sizeof STAMP + 8];
    char text[HEADERS_ID_SIZE + 1];
    (void)snprintf(path, sizeof path, "%s/%s", folder, STAMP);
    if (file_read(path, text, sizeof text) < 0)
        return false;
    text[strcspn(text, "\n")] = '\0';
    return strcmp(text, id) == 0;
}

static bool headers_right(const struct place *place)
{
    /* What every build of a module needs first. */
    static const char *const needed[] = {"Makefile", ".config", "Module.symvers", "scripts/mod/modpost"};
    for (size_t i = 0; i < sizeof needed / sizeof needed[0]; i++) {
        char path[PATH_SIZE + 64];
        (void)snprintf(path, sizeof path, "%s/%s", place->headers, needed[i]);
        if (access(path, F_OK) != 0)
            return false;
    }
    return has_stamp(place->headers, place->id);
}

static bool modules_right(const struct place *place)
{
    char build[PATH_SIZE + 8];
    (void)snprintf(build, sizeof build, "%s/build", place->modules);
    return has_stamp(place->modules, place->id) && has_stamp(build, place->id);
}

/* --- what does not belong here --- */

static void warn(const char *folder, const char *name)
{
    char line[2 * PATH_SIZE + NAME_MAX];
    (void)snprintf(line, sizeof line, "<4>hypeman-init: warning: kernel headers: cannot remove %s/%s: %s\n",
                   folder, name, strerror(errno));
    (void)file_write("/dev/kmsg", 0, line);
}

/* Remove from a folder what begins with the prefix and is not `keep`, as far as it is the image's or the VM's
 * disk's: what a volume brings along stays. */
static void remove_others(const char *folder, const char *prefix, const char *keep)
{
    struct stat root;
    DIR *entries = opendir(folder);
    if (entries == NULL)
        return; /* Nothing there. */
    const struct dirent *entry;
    while (stat("/", &root) == 0 && (entry = readdir(entries)) != NULL) {
        const char *name = entry->d_name;
        struct stat status;
        if (name[0] == '.' || strncmp(name, prefix, strlen(prefix)) != 0 || strcmp(name, keep) == 0)
            continue;
        if (fstatat(dirfd(entries), name, &status, AT_SYMLINK_NOFOLLOW) == 0 && !S_ISREG(status.st_mode) &&
            !tree_remove(dirfd(entries), name, root.st_dev))
            warn(folder, name);
    }
    (void)closedir(entries);
}

/* A folder that is empty: what is there is another build's. */
static bool make_empty(const char *parent, const char *path, const char *name, struct reason *why)
{
    struct stat root;
    int folder = folder_make(parent, 0755) ? open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    bool made = folder >= 0 && stat("/", &root) == 0 &&
                (tree_remove(folder, name, root.st_dev) || errno == ENOENT) &&
                mkdirat(folder, name, 0755) == 0;
    if (!made)
        (void)refuse(why, "cannot make %s anew: %s", path, strerror(errno));
    close_fd(&folder);
    return made;
}

/* --- the disk --- */

/* A disk that was cut short mounts all the same, and fails only when somebody reads what is not there. */
static bool check_disk(const char *device, struct reason *why)
{
    uint8_t super[SUPER_SIZE];
    int fd = open(device, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return refuse(why, "cannot open the headers disk %s: %s", device, strerror(errno));
    bool read_it = pread(fd, super, sizeof super, SUPER_AT) == sizeof super;
    off_t size = lseek(fd, 0, SEEK_END);
    close_fd(&fd);
    if (!read_it || get_le32(super) != super_magic)
        return refuse(why, "the headers disk %s is damaged: there is no erofs on it", device);
    uint64_t wanted = (uint64_t)get_le32(super + SUPER_BLOCKS_AT) << (super[SUPER_BLOCK_BITS_AT] & 31);
    return (size >= 0 && (uint64_t)size >= wanted) ||
           refuse(why, "the headers disk %s is damaged: %lld bytes of %llu are there", device,
                  (long long)size, (unsigned long long)wanted);
}

static bool mount_disk(const struct place *place, struct reason *why)
{
    char device[DEVICE_PATH_SIZE];
    if (!wait_for_device(find_block, "hypeman-headers", device, clock_ms() + DEVICE_WAIT_MS))
        return refuse(why, "no block device with the serial hypeman-headers came up");
    if (!check_disk(device, why) || !make_empty(SOURCES, place->headers, headers_name(place), why))
        return false;
    if (mount(device, place->headers, "erofs", MS_RDONLY | MS_NODEV | MS_NOSUID, NULL) != 0)
        return refuse(why, "cannot mount the headers disk %s: %s", device, strerror(errno));
    if (headers_right(place))
        return true;
    (void)umount2(place->headers, MNT_DETACH);
    return refuse(why, "the headers disk %s is damaged, or of another kernel than the one with build id %s",
                  device, place->id);
}

/* --- /lib/modules/RELEASE --- */

static bool fill_modules(const struct place *place, int modules, struct reason *why)
{
    char source[PATH_SIZE + sizeof DISK_MODULES];
    char stamp[PATH_SIZE + sizeof STAMP];
    char id[HEADERS_ID_SIZE + 1];
    (void)snprintf(source, sizeof source, "%s/%s", place->headers, DISK_MODULES);
    (void)snprintf(stamp, sizeof stamp, "%s/%s", place->modules, STAMP);
    (void)snprintf(id, sizeof id, "%s\n", place->id);
    int from = open(source, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool filled = from >= 0 && tree_copy(from, modules) && symlinkat(place->headers, modules, "build") == 0 &&
                  file_write(stamp, O_CREAT | O_EXCL, id);
    if (!filled)
        (void)refuse(why, "cannot fill %s: %s", place->modules, strerror(errno));
    close_fd(&from);
    return filled;
}

static bool make_modules(const struct place *place, struct reason *why)
{
    if (!make_empty(MODULES, place->modules, modules_name(place), why))
        return false;
    int modules = open(place->modules, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool made = modules >= 0 || refuse(why, "cannot open %s: %s", place->modules, strerror(errno));
    made = made && fill_modules(place, modules, why);
    close_fd(&modules);
    return made;
}

bool headers_setup(struct reason *why)
{
    struct place place = {.id = ""};
    if (!find_place(&place, why))
        return false;
    bool headers = headers_right(&place);
    if (headers && modules_right(&place))
        return true;
    if ((!headers && !mount_disk(&place, why)) || (!modules_right(&place) && !make_modules(&place, why)))
        return false;
    remove_others(SOURCES, HEADERS_PREFIX, headers_name(&place));
    remove_others(MODULES, "", modules_name(&place));
    return true;
}
