/* SPDX-License-Identifier: Apache-2.0 */
/* Whom a process runs as, by /etc/passwd and /etc/group of the image. */
#ifndef HYPEMAN_IDENTITY_H
#define HYPEMAN_IDENTITY_H

#include "reason.h"

#include <stddef.h>
#include <sys/types.h>

enum { IDENTITY_GROUPS_MAX = 64, IDENTITY_HOME_MAX = 255 };

struct identity {
    uid_t uid;
    gid_t gid;
    size_t group_count;
    gid_t groups[IDENTITY_GROUPS_MAX];
    char home[IDENTITY_HOME_MAX + 1];
};

/* `user`, `uid`, `user:group` or `uid:gid` (NULL or empty: root), looked up in the texts of passwd and group.
 *
 * A number need not be listed: it then has group 0 and the home folder `/`. Supplementary groups are those
 * that list the user, unless a group is named: then there are none. False if a name is not listed. */
bool identity_parse(const char *spec, const char *passwd, const char *group, struct identity *who,
                    struct reason *why);

/* The same by the files under /etc. A missing file is an empty one. */
bool identity_find(const char *spec, struct identity *who, struct reason *why);

#endif
