// SPDX-License-Identifier: Apache-2.0
/* Any bytes as the items of a copy into the guest, in a root of its own in which a link that leads out of the
 * target is planted. Nothing may come to be outside of the target, and no half file stay. */
#include "copy.h"
#include "spawn.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* In memory: a run makes and removes many files. */

static char root[] = "/dev/shm/hypeman-fuzz-XXXXXX";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int __wrap_kill(pid_t pid, int number);
int __wrap_sigqueue(pid_t pid, int number, const union sigval value);
pid_t __wrap_fork(void);
bool __wrap_spawn_start(const struct spawn *spawn, struct spawned *spawned, struct reason *why);

/* None of these is called by a copy. */
int __wrap_kill(pid_t pid, int number)
{
    (void)pid;
    (void)number;
    abort();
}

int __wrap_sigqueue(pid_t pid, int number, const union sigval value)
{
    (void)pid;
    (void)number;
    (void)value;
    abort();
}

pid_t __wrap_fork(void)
{
    abort();
}

bool __wrap_spawn_start(const struct spawn *spawn, struct spawned *spawned, struct reason *why)
{
    (void)spawn;
    (void)spawned;
    (void)why;
    abort();
}

/* A finding must not look like a host without memory, tasks or space. */
#define demand(holds)                                                                                        \
    do {                                                                                                     \
        if (!(holds)) {                                                                                      \
            (void)fprintf(stderr, "line %d: %s (%s)\n", __LINE__, #holds, strerror(errno));                  \
            abort();                                                                                         \
        }                                                                                                    \
    } while (0)

/* Remove all below a folder; how many entries it had, and how many of them were half files. */
static int empty(int folder, const char *name, int *half)
{
    int count = 0;
    int fd = openat(folder, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
    if (fd < 0)
        return 0;
    (void)fchmod(fd, 0700);
    DIR *listing = fdopendir(fd);
    demand(listing != NULL);
    for (const struct dirent *entry = readdir(listing); entry != NULL; entry = readdir(listing)) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        count++;
        *half += strncmp(entry->d_name, ".hypeman-", 9) == 0 ? 1 : 0;
        (void)empty(fd, entry->d_name, half);
        demand(unlinkat(fd, entry->d_name, 0) == 0 || unlinkat(fd, entry->d_name, AT_REMOVEDIR) == 0);
    }
    (void)closedir(listing);
    return count;
}

struct input {
    const uint8_t *data;
    size_t size;
};

/* In a thread with a root of its own: the fuzzer keeps its own for its files. */
static void *run(void *argument)
{
    static const struct copy_order order = {.operation = COPY_IN, .path = "/target"};
    const struct input *input = argument;
    int in[2];
    int out[2];
    int half = 0;
    demand(unshare(CLONE_FS) == 0 && chroot(root) == 0 && chdir("/") == 0);
    demand(mkdir("/outside", 0700) == 0 && mkdir("/target", 0700) == 0 &&
           symlink("/outside", "/target/out") == 0);
    demand(pipe(in) == 0 && pipe(out) == 0);
    demand(write(in[1], input->data, input->size) == (ssize_t)input->size);
    (void)close(in[1]);
    demand(copy_in(&order, in[0], out[1]));
    (void)close(in[0]);
    (void)close(out[0]);
    (void)close(out[1]);
    demand(empty(AT_FDCWD, "/outside", &half) == 0);
    (void)empty(AT_FDCWD, "/target", &half);
    demand(half == 0);
    demand(rmdir("/target") == 0 && rmdir("/outside") == 0);
    demand(empty(AT_FDCWD, "/", &half) == 0);
    return NULL;
}

static void remove_root(void)
{
    (void)rmdir(root);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static bool made = false; /* its name may end in an X then, too */
    struct input input = {data, size};
    pthread_t thread;
    if (!made)
        demand(mkdtemp(root) != NULL && atexit(remove_root) == 0);
    made = true;
    demand(pthread_create(&thread, NULL, run, &input) == 0 && pthread_join(thread, NULL) == 0);
    return 0;
}
