// SPDX-License-Identifier: Apache-2.0
#include "sysctls.h"

#include "files.h"
#include "records.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#define FOLDER "/proc/sys/"
enum { NAME_MAX_SIZE = 256 };

/* The path below /proc/sys of a name whose first separator is a dot has the other one in the place of each:
 * net.ipv4.conf.eth0/1.forwarding is net/ipv4/conf/eth0.1/forwarding. */
static bool find_path(const char *value, char path[NAME_MAX_SIZE])
{
    size_t length = strcspn(value, "=");
    if (value[length] != '=' || length == 0 || length >= NAME_MAX_SIZE)
        return false;
    size_t first = strcspn(value, "./");
    bool swapped = first < length && value[first] == '.';
    for (size_t i = 0; i < length; i++) {
        char byte = value[i];
        if (swapped && (byte == '.' || byte == '/'))
            byte = byte == '.' ? '/' : '.';
        bool begins = i == 0 || path[i - 1] == '/';
        if (begins && (byte == '/' || byte == '.'))
            return false; /* Neither out of the folder nor by another name. */
        path[i] = byte;
    }
    path[length] = '\0';
    return path[length - 1] != '/';
}

bool sysctl_check(const char *value, struct reason *why)
{
    char path[NAME_MAX_SIZE];
    return find_path(value, path) ||
           refuse(why, "config disk: sysctl=%.100s: expected NAME=VALUE, such as net.core.somaxconn=1024",
                  value);
}

bool sysctls_set(const char *records, size_t size, struct reason *why)
{
    char path[sizeof FOLDER + NAME_MAX_SIZE] = FOLDER;
    size_t offset = 0;
    struct record record;
    while (records_next(records, size, &offset, &record)) {
        if (!record_is(&record, "sysctl") || !find_path(record.value, path + sizeof FOLDER - 1))
            continue;
        const char *value = strchr(record.value, '=') + 1;
        if (!file_write(path, 0, value))
            return refuse(why, "cannot set sysctl %.200s: %s", record.value,
                          errno == ENOENT ? "the guest's kernel has no such parameter" : strerror(errno));
    }
    return true;
}
