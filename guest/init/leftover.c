// SPDX-License-Identifier: Apache-2.0
#include "leftover.h"

#include "files.h"

#include <dirent.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

enum { NAMES_MAX = 6, NAME_SIZE = 64, PATH_SIZE = 64 };

struct names {
    char all[NAMES_MAX][NAME_SIZE];
    size_t count;
    bool more;
};

static void add_name(struct names *names, const char *name)
{
    for (size_t i = 0; i < names->count; i++) {
        if (strncmp(names->all[i], name, NAME_SIZE - 1) == 0)
            return;
    }
    if (names->count == NAMES_MAX)
        names->more = true;
    else
        (void)snprintf(names->all[names->count++], NAME_SIZE, "%.*s", NAME_SIZE - 1, name);
}

/* Neither a thread of the kernel nor dead. */
static bool is_program(pid_t pid)
{
    char path[PATH_SIZE];
    char target[1];
    (void)snprintf(path, sizeof path, "/proc/%d/exe", (int)pid);
    return readlink(path, target, sizeof target) > 0;
}

static bool read_of(pid_t pid, const char *file, char *text, size_t capacity)
{
    char path[PATH_SIZE];
    (void)snprintf(path, sizeof path, "/proc/%d/%s", (int)pid, file);
    if (file_read(path, text, capacity) <= 0)
        return false;
    text[strcspn(text, "\n")] = '\0';
    return true;
}

static void add_process(struct names *names, pid_t pid)
{
    char group[4096];
    char name[NAME_SIZE];
    const char *last = read_of(pid, "cgroup", group, sizeof group) ? strrchr(group, '/') : NULL;
    if (last != NULL && last[1] != '\0')
        add_name(names, last + 1);
    else if (read_of(pid, "comm", name, sizeof name))
        add_name(names, name);
}

void leftover_words(char *words, size_t capacity)
{
    struct names names = {.count = 0};
    DIR *processes = opendir("/proc");
    const struct dirent *entry;
    while (processes != NULL && (entry = readdir(processes)) != NULL) {
        pid_t pid = (pid_t)strtol(entry->d_name, NULL, 10); /* 0 for what is no number */
        if (pid > 1 && pid != getpid() && is_program(pid))
            add_process(&names, pid);
    }
    if (processes != NULL)
        (void)closedir(processes);
    size_t used = 0;
    for (size_t i = 0; i < names.count && used < capacity; i++) {
        int length = snprintf(words + used, capacity - used, "%s%s%s", i == 0 ? "; still there: " : ", ",
                              names.all[i], names.more && i + 1 == names.count ? ", …" : "");
        used += length > 0 ? (size_t)length : 0;
    }
    if (names.count == 0)
        (void)snprintf(words, capacity, "; nothing else was there any more");
}
