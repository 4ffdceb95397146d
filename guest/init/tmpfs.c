// SPDX-License-Identifier: Apache-2.0
#include "tmpfs.h"

#include "filesystem.h"

#include <stddef.h>
#include <string.h>

enum { OPTIONS_MAX = 256 };

/* As Docker's are without options. */
static const struct mount_limits by_default = {.nosuid = true, .nodev = true, .noexec = true};

static const struct {
    const char *word;
    size_t limit; /* where in struct mount_limits */
    bool value;
} flags[] = {
    {"ro", offsetof(struct mount_limits, readonly), true},
    {"rw", offsetof(struct mount_limits, readonly), false},
    {"nosuid", offsetof(struct mount_limits, nosuid), true},
    {"suid", offsetof(struct mount_limits, nosuid), false},
    {"nodev", offsetof(struct mount_limits, nodev), true},
    {"dev", offsetof(struct mount_limits, nodev), false},
    {"noexec", offsetof(struct mount_limits, noexec), true},
    {"exec", offsetof(struct mount_limits, noexec), false},
};

/* tmpfs(5); the kernel judges the values. */
static const char *const keys[] = {"size=", "nr_blocks=", "nr_inodes=", "mode=", "uid=", "gid="};

static bool take_flag(const char *word, struct mount_limits *limits)
{
    for (size_t i = 0; i < sizeof flags / sizeof flags[0]; i++) {
        if (strcmp(word, flags[i].word) == 0) {
            *(bool *)((char *)limits + flags[i].limit) = flags[i].value;
            return true;
        }
    }
    return false;
}

static bool is_key(const char *word)
{
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        if (strncmp(word, keys[i], strlen(keys[i])) == 0)
            return true;
    }
    return false;
}

/* Sort the options into limits of the mount and what the file system itself is told, joined by commas again;
 * false with the first word that is neither. Both texts have OPTIONS_MAX bytes. */
static bool sort_options(const char *text, struct mount_limits *limits, char *own, char *word)
{
    *limits = by_default;
    size_t used = 0;
    while (*text != '\0') {
        size_t length = strcspn(text, ",");
        memcpy(word, text, length);
        word[length] = '\0';
        text += length + (text[length] == ',');
        if (take_flag(word, limits))
            continue;
        if (!is_key(word))
            return false;
        if (used > 0)
            own[used++] = ',';
        memcpy(own + used, word, length); /* No longer than the text. */
        used += length;
    }
    own[used] = '\0';
    return true;
}

bool tmpfs_parse(char *value, struct volume *volume, struct reason *why)
{
    char own[OPTIONS_MAX];
    char word[OPTIONS_MAX];
    struct mount_limits limits;
    char *colon = strchr(value, ':');
    *volume =
        (struct volume){.type = "tmpfs", .required = true, .filesystem = -1, .path = value, .options = ""};
    if (colon != NULL) {
        *colon = '\0';
        volume->options = colon + 1;
    }
    if (!volume_path_valid(value))
        return refuse(why, "config disk: tmpfs=%.200s: expected an absolute path without . and ..", value);
    if (strlen(volume->options) >= OPTIONS_MAX)
        return refuse(why, "config disk: tmpfs: the options of %.200s are too long", value);
    return sort_options(volume->options, &limits, own, word) ||
           refuse(why, "config disk: tmpfs=%.200s: \"%.60s\" is not an option that it can have", value, word);
}

int tmpfs_open(const struct volume *volume)
{
    char own[OPTIONS_MAX];
    char word[OPTIONS_MAX];
    struct mount_limits limits;
    (void)sort_options(volume->options, &limits, own, word); /* It was right when it was parsed. */
    return filesystem_nodev("tmpfs", own, limits);
}

bool tmpfs_has_mode(const struct volume *volume)
{
    return strstr(volume->options, "mode=") != NULL || strstr(volume->options, "uid=") != NULL ||
           strstr(volume->options, "gid=") != NULL;
}
