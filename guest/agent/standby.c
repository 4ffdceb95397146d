// SPDX-License-Identifier: Apache-2.0
#include "standby.h"

#include "clock.h"
#include "files.h"
#include "freezer.h"
#include "inside.h"
#include "renew.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SYNC_STACK = 16 << 10 };

static int sync_in_memory(void *unused)
{
    (void)unused;
    /* of its own: one that is held up must not keep the port to the host from the next agent */
    (void)syscall(SYS_close_range, 0, ~0U, 0);
    sync();
    return 0;
}

static bool await_end(int process, int64_t deadline)
{
    struct pollfd end = {.fd = process, .events = POLLIN};
    int count;
    do
        count = poll(&end, 1, deadline_timeout(deadline));
    while (count < 0 && errno == EINTR);
    return count == 1;
}

/* A file system whose server is frozen, or is elsewhere and does not answer, may hold it up for ever: so it
 * is another process that waits. It has the memory of this one: to copy that, and to release the copy, takes
 * longer than to sync. */
static bool sync_all(void)
{
    static _Alignas(16) unsigned char stack[SYNC_STACK];
    static int held_up = -1; /* it may still use the stack */
    int64_t deadline = clock_ms() + SYNC_MS;
    if (held_up >= 0 && !await_end(held_up, deadline))
        return false;
    close_fd(&held_up);
    int process = -1;
    int flags = CLONE_VM | CLONE_FS | CLONE_PIDFD | SIGCHLD;
    pid_t pid = clone(sync_in_memory, stack + sizeof stack, flags, NULL, &process);
    if (pid < 0)
        return false;
    if (!await_end(process, deadline)) {
        held_up = process;
        return false;
    }
    (void)waitpid(pid, NULL, 0);
    close_fd(&process);
    return true;
}

bool standby_freeze(pid_t keeper, struct reason *words)
{
    struct enclosure program;
    if (!inside_find(&program, words) || !freezer_freeze(keeper, words))
        return false;
    if (sync_all())
        (void)refuse(words, "the guest is frozen");
    else
        (void)refuse(words, "the guest is frozen; its file systems have not written all within %d s",
                     SYNC_MS / 1000);
    return true;
}

bool standby_thaw(const struct thaw *thaw, struct reason *why)
{
    if (clock_set(&thaw->clock) != 0)
        return refuse(why, "cannot set the clock: %s", strerror(errno));
    if (!entropy_add(thaw->entropy, why) || !renew_identity(thaw, why) || !freezer_thaw(why))
        return false;
    renew_services(thaw);
    return true;
}
