// SPDX-License-Identifier: Apache-2.0
#include "standby.h"

#include "clock.h"
#include "files.h"
#include "freezer.h"
#include "inside.h"
#include "renew.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* A file system whose server is frozen, or is elsewhere and does not answer, may hold it up for ever: so it
 * is another process that waits. */
static bool sync_all(void)
{
    pid_t pid = fork();
    if (pid == 0) {
        (void)syscall(SYS_close_range, 0, ~0U, 0);
        sync();
        _exit(0);
    }
    int pidfd = pid < 0 ? -1 : (int)syscall(SYS_pidfd_open, pid, 0);
    struct pollfd end = {.fd = pidfd, .events = POLLIN};
    int64_t deadline = clock_ms() + SYNC_MS;
    int count;
    do
        count = poll(&end, 1, deadline_timeout(deadline));
    while (count < 0 && errno == EINTR);
    bool ended = pidfd >= 0 && count == 1;
    if (ended)
        (void)waitpid(pid, NULL, 0);
    close_fd(&pidfd);
    return ended;
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
