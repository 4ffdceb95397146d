// SPDX-License-Identifier: Apache-2.0
#include "headersworker.h"

#include "announce.h"
#include "bootid.h"
#include "clock.h"
#include "files.h"
#include "headers.h"
#include "inroot.h"
#include "ownproc.h"
#include "runfolder.h"
#include "sentinel.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/ioprio.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { NICEST = 19 };

_Static_assert(sizeof(struct headers_news) <= PIPE_BUF, "the pipe takes it whole");

void headers_status(enum headers_state state, const char *why)
{
    static const char *const words[] = {"pending", "running", "ready", "failed"};
    char text[REASON_MAX + 16];
    (void)snprintf(text, sizeof text, "%s\n%s%s", words[state], why == NULL ? "" : why,
                   why == NULL ? "" : "\n");
    int folder = folder_make(RUN_FOLDER, 0755) ? open(RUN_FOLDER, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (folder >= 0)
        (void)file_replace(folder, "kernel-headers.status", text); /* The sentinels say it, too. */
    close_fd(&folder);
}

/* Behind everything else that wants a processor or the disk; and first to go when there is no memory. */
static void step_back(void)
{
    const struct sched_param none = {.sched_priority = 0};
    (void)setpriority(PRIO_PROCESS, 0, NICEST);
    (void)syscall(SYS_sched_setscheduler, 0, SCHED_IDLE, &none); /* musl's own refuses. */
    (void)syscall(SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IOPRIO_PRIO_VALUE(IOPRIO_CLASS_IDLE, 0));
    (void)file_write_at(own_proc(), "self/oom_score_adj", 0, "1000");
}

static void tell_init(int pipe_fd, const struct headers_news *news)
{
    ssize_t written;
    do
        written = write(pipe_fd, news, sizeof *news);
    while (written < 0 && errno == EINTR);
}

static _Noreturn void work(bool (*setup)(struct reason *why), int pipe_fd)
{
    struct headers_news news = {.state = HEADERS_RUNNING};
    struct sigaction standard = {.sa_handler = SIG_DFL};
    /* A crash here is not init's own, which would be the machine's end. */
    for (int number = 1; number < NSIG; number++)
        (void)sigaction(number, &standard, NULL);
    step_back();
    tell_init(pipe_fd, &news);
    news.state = setup(&news.why) ? HEADERS_READY : HEADERS_FAILED;
    tell_init(pipe_fd, &news);
    _exit(news.state == HEADERS_FAILED);
}

pid_t headers_worker_start(bool (*setup)(struct reason *why), int *news, struct reason *why)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) {
        (void)refuse(why, "cannot make a pipe for its worker: %s", strerror(errno));
        return -1;
    }
    pid_t pid = fork();
    if (pid == 0)
        work(setup, ends[1]);
    if (pid < 0)
        (void)refuse(why, "cannot fork its worker: %s", strerror(errno));
    close_fd(&ends[1]);
    if (pid < 0)
        close_fd(&ends[0]);
    *news = ends[0];
    return pid;
}

/* --- as a program of its own --- */

int headers_worker_main(void)
{
    char line[SENTINEL_LINE_MAX] = "";
    char boot[BOOT_ID_LENGTH + 1];
    struct reason why = {""};
    if (!boot_id_current(boot)) {
        (void)dprintf(STDERR_FILENO, "hypeman-init: the kernel command line has no hypeman.boot=\n");
        return EXIT_FAILURE;
    }
    step_back();
    announce(line, sentinel_headers_start(line, clock_realtime(), boot));
    headers_status(HEADERS_RUNNING, NULL);
    bool ready = headers_setup(&why);
    boot_id_renew(AT_FDCWD, boot);
    announce(line, ready ? sentinel_headers_ready(line, clock_realtime(), boot)
                         : sentinel_headers_failed(line, clock_realtime(), why.words, boot));
    headers_status(ready ? HEADERS_READY : HEADERS_FAILED, ready ? NULL : why.words);
    if (!ready)
        (void)dprintf(STDERR_FILENO, "hypeman-init: kernel headers: %s\n", why.words);
    return ready ? EXIT_SUCCESS : EXIT_FAILURE;
}
