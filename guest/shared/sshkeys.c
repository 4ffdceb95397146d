// SPDX-License-Identifier: Apache-2.0
#include "sshkeys.h"

#include "files.h"

#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

#define SSH_FOLDER "/etc/ssh"

static bool is_host_key(const char *name)
{
    static const char start[] = "ssh_host_";
    return strncmp(name, start, sizeof start - 1) == 0 && strstr(name, "_key") != NULL;
}

bool ssh_host_keys_remove(struct reason *why)
{
    DIR *entries = opendir(SSH_FOLDER);
    if (entries == NULL)
        return errno == ENOENT || refuse(why, "cannot list " SSH_FOLDER ": %s", strerror(errno));
    bool removed = true;
    for (const struct dirent *entry = readdir(entries); removed && entry != NULL; entry = readdir(entries)) {
        if (is_host_key(entry->d_name) && unlinkat(dirfd(entries), entry->d_name, 0) != 0)
            removed = refuse(why, "cannot remove " SSH_FOLDER "/%s: %s", entry->d_name, strerror(errno));
    }
    (void)closedir(entries);
    return removed;
}
