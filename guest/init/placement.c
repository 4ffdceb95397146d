// SPDX-License-Identifier: Apache-2.0
#include "placement.h"

#include "bytes.h"
#include "devices.h"
#include "diskbody.h"
#include "fields.h"
#include "files.h"
#include "filesystem.h"
#include "identity.h"
#include "inroot.h"
#include "volumes.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { ENTRY_SIZE = 8, BODY_MAX = 16 * 1024 * 1024, MODE_DIGITS = 4 };

/* A file as its disk has it. */
struct entry {
    const char *path; /* or the name of a secret */
    const char *owner;
    mode_t mode;
    const char *content;
    size_t size;
};

typedef bool put_entry(void *of, const struct entry *entry, struct reason *why);

static bool parse_mode(const char *text, mode_t *mode)
{
    size_t digits = strspn(text, "01234567");
    if (digits == 0 || digits > MODE_DIGITS || text[digits] != '\0')
        return false;
    *mode = (mode_t)strtoul(text, NULL, 8);
    return true;
}

static bool take_field(struct entry *entry, const struct field *field, struct reason *why)
{
    if (strcmp(field->key, "path") == 0 || strcmp(field->key, "name") == 0)
        entry->path = field->value;
    else if (strcmp(field->key, "owner") == 0)
        entry->owner = field->value;
    else if (strcmp(field->key, "mode") == 0)
        return parse_mode(field->value, &entry->mode) ||
               refuse(why, "file: mode=%s: expected octal digits", field->value);
    return true;
}

static bool take_fields(char *fields, struct entry *entry, struct reason *why)
{
    struct field field;
    enum fields_step step;
    while ((step = fields_next(&fields, &field)) == FIELDS_ONE) {
        if (!take_field(entry, &field, why))
            return false;
    }
    return step != FIELDS_BROKEN || refuse(why, "file: its fields cannot be read");
}

bool secret_parse(char *value, struct secret *secret, struct reason *why)
{
    struct entry entry = {.mode = 0400};
    if (!take_fields(value, &entry, why))
        return false;
    *secret = (struct secret){.name = entry.path, .owner = entry.owner, .mode = entry.mode};
    if (entry.path == NULL || *entry.path == '\0' || *entry.path == '.' || strchr(entry.path, '/') != NULL)
        return refuse(why, "config disk: secret: it needs a name that a file can have");
    return true;
}

/* --- the body --- */

static bool next_entry(char **body, size_t *left, struct entry *entry, struct reason *why)
{
    *entry = (struct entry){.mode = 0644};
    if (*left < ENTRY_SIZE)
        return refuse(why, "files disk: it ends too early");
    size_t fields = get_le32(*body);
    entry->size = get_le32(*body + 4);
    *left -= ENTRY_SIZE;
    if (fields == 0 || fields > *left || entry->size > *left - fields)
        return refuse(why, "files disk: it ends too early");
    char *text = *body + ENTRY_SIZE;
    if (memchr(text, '\0', fields) != text + fields - 1)
        return refuse(why, "files disk: its fields have no end");
    entry->content = text + fields;
    *body = text + fields + entry->size;
    *left -= fields + entry->size;
    return take_fields(text, entry, why);
}

static bool walk(char *body, size_t size, uint32_t count, put_entry *put, void *of, struct reason *why)
{
    for (; count > 0; count--) {
        struct entry entry;
        if (!next_entry(&body, &size, &entry, why) || !put(of, &entry, why))
            return false;
    }
    return size == 0 || refuse(why, "files disk: there is more on it than it says");
}

static bool write_entry(int folder, const char *name, const struct entry *entry, const char *shown,
                        struct reason *why)
{
    struct identity who;
    struct reason unknown;
    if (!identity_find(entry->owner, &who, &unknown))
        return refuse(why, "file %s: %.200s", shown, unknown.words);
    const struct content content = {
        .bytes = entry->content, .size = entry->size, .mode = entry->mode, .uid = who.uid, .gid = who.gid};
    return file_put(folder, name, &content) ||
           refuse(why, "file %s: cannot write it: %s", shown, strerror(errno));
}

static bool put_file(void *of, const struct entry *entry, struct reason *why)
{
    const int *root = of;
    char parent[PATH_MAX];
    if (entry->path == NULL || !volume_path_valid(entry->path) || strlen(entry->path) >= sizeof parent ||
        strcmp(entry->path, "/") == 0)
        return refuse(why, "files disk: a file has no path that one can have");
    memcpy(parent, entry->path, strlen(entry->path) + 1);
    char *name = strrchr(parent, '/');
    *name++ = '\0';
    int folder = folder_in_root(*root, *parent == '\0' ? "/" : parent);
    if (folder < 0)
        return refuse(why, "file %s: cannot make its folder: %s", entry->path, strerror(errno));
    bool written = write_entry(folder, name, entry, entry->path, why);
    close_fd(&folder);
    return written;
}

bool files_write(char *body, size_t size, uint32_t count, struct reason *why)
{
    int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (root < 0)
        return refuse(why, "files: cannot open the root: %s", strerror(errno));
    bool written = walk(body, size, count, put_file, &root, why);
    close_fd(&root);
    return written;
}

/* --- secrets --- */

struct vault {
    const struct secrets *secrets;
    int folder;
    size_t written;
};

static bool put_secret(void *of, const struct entry *entry, struct reason *why)
{
    struct vault *vault = of;
    for (size_t i = 0; entry->path != NULL && i < vault->secrets->count; i++) {
        const struct secret *secret = &vault->secrets->all[i];
        if (strcmp(secret->name, entry->path) != 0)
            continue;
        struct entry known = *entry;
        known.mode = secret->mode;
        known.owner = secret->owner;
        vault->written++;
        return write_entry(vault->folder, secret->name, &known, secret->name, why);
    }
    return true;
}

bool secrets_write(char *body, size_t size, uint32_t count, const struct secrets *secrets, int folder,
                   struct reason *why)
{
    struct vault vault = {.secrets = secrets, .folder = folder};
    if (!walk(body, size, count, put_secret, &vault, why))
        return false;
    return vault.written == secrets->count ||
           refuse(why, "secrets: %zu of %zu are on the disk", vault.written, secrets->count);
}

/* A tmpfs at SECRETS: an fd of its root, or -1 with errno. */
static int mount_vault(void)
{
    const struct mount_limits limits = {.nosuid = true, .nodev = true, .noexec = true};
    int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    int folder = root < 0 ? -1 : folder_in_root(root, SECRETS);
    int filesystem = folder < 0 ? -1 : filesystem_nodev("tmpfs", "mode=0755,size=4m", limits);
    if (filesystem >= 0 && !filesystem_place(filesystem, folder)) {
        int error = errno;
        close_fd(&filesystem);
        errno = error;
    }
    close_fd(&folder);
    close_fd(&root);
    return filesystem;
}

/* --- the disks --- */

static char *load(const char *serial, int64_t deadline, size_t *size, uint32_t *count, struct reason *why)
{
    char path[DEVICE_PATH_SIZE];
    if (!wait_for_device(find_block, serial, path, deadline)) {
        (void)refuse(why, "no block device with the serial %s came up", serial);
        return NULL;
    }
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        (void)refuse(why, "files disk: cannot open %s: %s", path, strerror(errno));
        return NULL;
    }
    static const struct disk_form form = {"files disk", "", "HYPEFIL1", BODY_MAX};
    char *body = disk_body_read(fd, &form, size, count, why);
    close_fd(&fd);
    return body;
}

bool files_place(int64_t deadline, struct reason *why)
{
    size_t size = 0;
    uint32_t count = 0;
    char *body = load("hypeman-files", deadline, &size, &count, why);
    bool placed = body != NULL && files_write(body, size, count, why);
    free(body);
    return placed;
}

bool secrets_place(const struct secrets *secrets, int64_t deadline, struct reason *why)
{
    size_t size = 0;
    uint32_t count = 0;
    int folder = mount_vault();
    if (folder < 0)
        return refuse(why, "secrets: cannot mount %s: %s", SECRETS, strerror(errno));
    char *body = load("hypeman-secrets", deadline, &size, &count, why);
    bool placed = body != NULL && secrets_write(body, size, count, secrets, folder, why);
    if (body != NULL)
        explicit_bzero(body, size);
    free(body);
    close_fd(&folder);
    return placed;
}
