// SPDX-License-Identifier: Apache-2.0
#include "groups.h"

#include "detached.h"
#include "files.h"
#include "records.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { NAME_SIZE = 16 };

static const char *own;  /* the agent's own group, below the hierarchy; NULL: there is none */
static const char *name; /* of the folder of all groups in it, */
static int all = -1;     /* which is made with the first of them */
static unsigned last;    /* the number that was given last */
static bool any_left;    /* one could not be removed when it was released */

/* The line of version 2 is "0::/PATH". */
static const char *find_path(char *text)
{
    char *found = strncmp(text, "0::/", 4) == 0 ? text : strstr(text, "\n0::/");
    if (found == NULL)
        return NULL;
    char *start = strchr(found, '/') + 1;
    start[strcspn(start, "\n")] = '\0';
    return *start == '\0' ? "." : start;
}

void groups_begin(const char *folder)
{
    static char text[PATH_MAX];
    name = folder;
    own = file_read("/proc/self/cgroup", text, sizeof text) < 0 ? NULL : find_path(text);
}

const char *groups_own(void)
{
    return own;
}

static bool open_all(void)
{
    int hierarchy = own == NULL ? -1 : mount_detached("cgroup2");
    int group = hierarchy < 0 ? -1 : openat(hierarchy, own, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (group >= 0 && (mkdirat(group, name, 0755) == 0 || errno == EEXIST))
        all = openat(group, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    close_fd(&group);
    close_fd(&hierarchy);
    return all >= 0;
}

/* Those with something in them stay: EBUSY. A group that was just made has its process before this can come
 * again. */
static void remove_empty(void)
{
    int folder = openat(all, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *entries = folder < 0 ? NULL : fdopendir(folder);
    if (entries == NULL) {
        close_fd(&folder);
        return;
    }
    any_left = false;
    for (const struct dirent *entry = readdir(entries); entry != NULL; entry = readdir(entries)) {
        unsigned long number;
        if (parse_number(entry->d_name, UINT_MAX, &number) && unlinkat(all, entry->d_name, AT_REMOVEDIR) != 0)
            any_left = true;
    }
    (void)closedir(entries);
}

struct group group_make(void)
{
    char number[NAME_SIZE];
    struct group group = GROUP_NONE;
    if (all < 0 && !open_all())
        return group;
    if (any_left)
        remove_empty();
    /* An agent before this one may have left some. */
    do
        (void)snprintf(number, sizeof number, "%u", ++last);
    while (mkdirat(all, number, 0755) != 0 && errno == EEXIST);
    group.number = last;
    group.fd = openat(all, number, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return group;
}

bool group_kill(const struct group *group)
{
    return group->fd >= 0 && file_write_at(group->fd, "cgroup.kill", 0, "1");
}

void group_release(struct group *group)
{
    char number[NAME_SIZE];
    if (group->fd < 0)
        return;
    (void)snprintf(number, sizeof number, "%u", group->number);
    if (unlinkat(all, number, AT_REMOVEDIR) != 0)
        any_left = true;
    close_fd(&group->fd);
}
