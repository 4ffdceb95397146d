// SPDX-License-Identifier: Apache-2.0
#include "identity.h"

#include "files.h"
#include "records.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { NAME_SIZE = 64, DATABASE_MAX = 1 << 20, ID_MAX = INT32_MAX };

/* Part of a line; not ended by a NUL. */
struct span {
    const char *at;
    size_t length;
};

static bool span_is(struct span span, const char *text)
{
    return strlen(text) == span.length && memcmp(span.at, text, span.length) == 0;
}

static bool span_number(struct span span, unsigned long *number)
{
    char digits[16];
    if (span.length >= sizeof digits)
        return false;
    memcpy(digits, span.at, span.length);
    digits[span.length] = '\0';
    return parse_number(digits, ID_MAX, number);
}

/* Cut the first part, up to the separator, off the rest. */
static struct span take(struct span *rest, char separator)
{
    const char *end = memchr(rest->at, separator, rest->length);
    struct span part = {rest->at, end == NULL ? rest->length : (size_t)(end - rest->at)};
    size_t taken = part.length + (end == NULL ? 0 : 1);
    rest->at += taken;
    rest->length -= taken;
    return part;
}

struct account {
    struct span name;
    unsigned long uid;
    unsigned long gid;
    struct span home;
};

/* The line of passwd with this name, or, if the name is NULL, this uid. */
static bool find_account(const char *passwd, const char *name, unsigned long uid, struct account *account)
{
    struct span rest = {passwd, strlen(passwd)};
    while (rest.length > 0) {
        struct span line = take(&rest, '\n');
        account->name = take(&line, ':');
        (void)take(&line, ':');
        struct span uid_text = take(&line, ':');
        struct span gid_text = take(&line, ':');
        (void)take(&line, ':');
        account->home = take(&line, ':');
        if (!span_number(uid_text, &account->uid) || !span_number(gid_text, &account->gid))
            continue;
        if (name != NULL ? span_is(account->name, name) : account->uid == uid)
            return true;
    }
    return false;
}

static bool find_group(const char *group, const char *name, unsigned long *gid)
{
    struct span rest = {group, strlen(group)};
    while (rest.length > 0) {
        struct span line = take(&rest, '\n');
        struct span listed = take(&line, ':');
        (void)take(&line, ':');
        if (span_is(listed, name) && span_number(take(&line, ':'), gid))
            return true;
    }
    return false;
}

static bool lists_member(struct span members, struct span name)
{
    while (members.length > 0) {
        struct span member = take(&members, ',');
        if (member.length == name.length && memcmp(member.at, name.at, name.length) == 0)
            return true;
    }
    return false;
}

static void add_memberships(const char *group, struct span name, struct identity *who)
{
    struct span rest = {group, strlen(group)};
    while (rest.length > 0 && who->group_count < IDENTITY_GROUPS_MAX) {
        struct span line = take(&rest, '\n');
        (void)take(&line, ':');
        (void)take(&line, ':');
        unsigned long gid;
        if (span_number(take(&line, ':'), &gid) && gid != who->gid && lists_member(line, name))
            who->groups[who->group_count++] = (gid_t)gid;
    }
}

static void take_account(const struct account *account, struct identity *who)
{
    who->uid = (uid_t)account->uid;
    who->gid = (gid_t)account->gid;
    if (account->home.length > 0 && account->home.length <= IDENTITY_HOME_MAX) {
        memcpy(who->home, account->home.at, account->home.length);
        who->home[account->home.length] = '\0';
    }
}

bool identity_parse(const char *spec, const char *passwd, const char *group, struct identity *who,
                    struct reason *why)
{
    *who = (struct identity){.home = "/"};
    char user[NAME_SIZE] = "0";
    const char *group_name = NULL;
    if (spec != NULL && *spec != '\0') {
        size_t length = strcspn(spec, ":");
        if (length == 0 || length >= sizeof user)
            return refuse(why, "user \"%s\": expected user, uid, user:group or uid:gid", spec);
        memcpy(user, spec, length);
        user[length] = '\0';
        group_name = spec[length] == ':' ? spec + length + 1 : NULL;
    }
    struct account account;
    unsigned long number = 0;
    bool numeric = parse_number(user, ID_MAX, &number);
    bool listed =
        find_account(passwd, user, 0, &account) || (numeric && find_account(passwd, NULL, number, &account));
    if (listed)
        take_account(&account, who);
    else if (numeric)
        who->uid = (uid_t)number;
    else
        return refuse(why, "user \"%s\" is not in the image's /etc/passwd", user);
    if (group_name == NULL) {
        if (listed)
            add_memberships(group, account.name, who);
        return true;
    }
    if (!find_group(group, group_name, &number) && !parse_number(group_name, ID_MAX, &number))
        return refuse(why, "group \"%s\" is not in the image's /etc/group", group_name);
    who->gid = (gid_t)number;
    return true;
}

bool identity_find(const char *spec, struct identity *who, struct reason *why)
{
    char *passwd = file_load("/etc/passwd", DATABASE_MAX);
    char *group = file_load("/etc/group", DATABASE_MAX);
    bool found = identity_parse(spec, passwd == NULL ? "" : passwd, group == NULL ? "" : group, who, why);
    free(passwd);
    free(group);
    return found;
}
