// SPDX-License-Identifier: Apache-2.0
#include "readiness.h"

#include "announce.h"
#include "bootid.h"
#include "clock.h"
#include "environment.h"
#include "files.h"
#include "records.h"
#include "sentinel.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    WATCHES_MS = 5000, /* from the fork to a process that watches */
    LAST_WORDS_MS = 2000,
    SAY_AGAIN_MS = 1000, /* a reason changes as often as the program likes */
    FILE_MAX = 1048576,
};

extern char **environ;

/* Where a reason goes, and which one went there last. */
struct teller {
    void (*tell)(struct teller *, const struct ready_news *);
    int pipe_fd;
    char *boot;
    int64_t not_before;
    struct reason told;
};

_Static_assert(sizeof(struct ready_news) <= PIPE_BUF, "the pipe takes it whole");

static void tell_wait(void *context, const struct reason *why)
{
    struct teller *teller = context;
    if (strcmp(teller->told.words, why->words) == 0 || clock_ms() < teller->not_before)
        return;
    struct ready_news news = {.kind = READY_WAITS, .why = *why};
    teller->told = *why;
    teller->not_before = clock_ms() + SAY_AGAIN_MS;
    teller->tell(teller, &news);
}

/* Until it has passed; or, for the console, until that is the program's again since that has ended. */
static void watch(struct probe *probe, struct teller *teller)
{
    int64_t first = clock_ms();
    while (probe_wait(probe, tell_wait, teller) != PROBE_PASSED) {
        if (probe->check->kind == CHECK_LOG)
            return;
        tell_wait(teller, &probe->why);
        (void)poll(NULL, 0, probe_pause(probe, clock_ms() - first));
    }
    teller->tell(teller, &(struct ready_news){.kind = READY_PASSED});
}

/* --- beside the program --- */

static void tell_init(struct teller *teller, const struct ready_news *news)
{
    ssize_t written;
    do
        written = write(teller->pipe_fd, news, sizeof *news);
    while (written < 0 && errno == EINTR);
}

static _Noreturn void work(const struct config *config, const struct probe_place *place, int pipe_fd)
{
    static struct probe probe;
    struct teller teller = {.tell = tell_init, .pipe_fd = pipe_fd};
    struct reason why = {""};
    struct sigaction standard = {.sa_handler = SIG_DFL};
    /* A crash here is not init's own, which would be the machine's end. */
    for (int number = 1; number < NSIG; number++)
        (void)sigaction(number, &standard, NULL);
    if (!probe_open(&probe, &config->ready, place, &why)) {
        tell_init(&teller, &(struct ready_news){.kind = READY_WAITS, .why = why});
        _exit(EXIT_FAILURE);
    }
    tell_init(&teller, &(struct ready_news){.kind = READY_WATCHES});
    watch(&probe, &teller);
    close_fd(&teller.pipe_fd);
    probe_close(&probe);
    _exit(EXIT_SUCCESS);
}

pid_t readiness_start(const struct config *config, const struct probe_place *place, int *news,
                      struct reason *why)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) {
        (void)refuse(why, "cannot make a pipe: %s", strerror(errno));
        return -1;
    }
    pid_t pid = fork();
    if (pid == 0)
        work(config, place, ends[1]);
    if (pid < 0)
        (void)refuse(why, "cannot fork: %s", strerror(errno));
    close_fd(&ends[1]);
    if (pid < 0)
        close_fd(&ends[0]);
    *news = ends[0];
    struct pollfd watches = {.fd = ends[0], .events = POLLIN};
    if (pid > 0 && check_comes_first(&config->ready))
        (void)poll(&watches, 1, WATCHES_MS);
    return pid;
}

void readiness_end(const struct config *config, int console, int news)
{
    struct pollfd ended = {.fd = news};
    if (config->ready.kind != CHECK_LOG || news < 0)
        return;
    int64_t deadline = clock_ms() + LAST_WORDS_MS;
    console_restore(console);
    /* Its pipe is closed when it has passed on all that there was. */
    while (poll(&ended, 1, deadline_timeout(deadline)) < 0 && errno == EINTR)
        continue;
}

/* --- as a service --- */

static void tell_host(struct teller *teller, const struct ready_news *news)
{
    char line[SENTINEL_LINE_MAX] = "";
    boot_id_renew(AT_FDCWD, teller->boot);
    if (news->kind == READY_PASSED)
        announce(line, sentinel_ready(line, clock_realtime(), teller->boot));
    else
        announce(line, sentinel_waiting(line, clock_realtime(), news->why.words, teller->boot));
}

/* One of the config's records, as it stands there: fields_next has cut the one of `ready` to pieces. */
bool readiness_write(const struct config *config, struct reason *why)
{
    int fd = open(READY_FILE, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    bool written = fd >= 0;
    written = written && dprintf(fd, "ready=%s%c", config->ready_record, '\0') > 0 &&
              dprintf(fd, "workdir=%s%c", config->folder, '\0') > 0 &&
              dprintf(fd, "loopback=%d%c", config->ready.loopback, '\0') > 0 &&
              (config->user == NULL || dprintf(fd, "user=%s%c", config->user, '\0') > 0);
    if (!written)
        (void)refuse(why, "cannot write " READY_FILE ": %s", strerror(errno));
    close_fd(&fd);
    return written;
}

struct service {
    struct check check;
    struct identity who;
    struct environment_store store;
    struct probe_place place;
    const char *user;
    bool loopback;
};

static bool read_service(struct service *service, struct reason *why)
{
    struct stat status;
    struct record record;
    size_t offset = 0;
    char *text = file_load(READY_FILE, FILE_MAX);
    if (text == NULL || stat(READY_FILE, &status) != 0)
        return refuse(why, "cannot read " READY_FILE ": %s", strerror(errno));
    if (!records_valid(text, (size_t)status.st_size))
        return refuse(why, READY_FILE " cannot be read");
    while (records_next(text, (size_t)status.st_size, &offset, &record)) {
        if (record_is(&record, "ready") && !check_parse(text + (record.value - text), &service->check, why))
            return false;
        if (record_is(&record, "user"))
            service->user = record.value;
        if (record_is(&record, "workdir"))
            service->place.folder = record.value;
        if (record_is(&record, "loopback"))
            service->loopback = record.value[0] == '1';
    }
    service->check.loopback = service->loopback;
    return service->check.kind != CHECK_NONE || refuse(why, READY_FILE " has no check");
}

static bool prepare_service(struct service *service, struct probe *probe, struct reason *why)
{
    if (!identity_find(service->user, &service->who, why))
        return false;
    service->place.environment = environment_build(environ, service->who.home, NULL, &service->store);
    service->place.who = &service->who;
    return (service->place.environment != NULL || refuse(why, "no memory")) &&
           probe_open(probe, &service->check, &service->place, why);
}

int readiness_main(void)
{
    static struct service service = {.place = {.folder = "/"}};
    static struct probe probe;
    char boot[BOOT_ID_LENGTH + 1];
    struct reason why = {""};
    struct teller teller = {.tell = tell_host, .boot = boot};
    if (!boot_id_read(boot))
        return EXIT_FAILURE;
    bool read = read_service(&service, &why);
    if (read && service.check.kind == CHECK_NOTIFY) {
        /* systemd starts this when the unit is active. */
        tell_host(&teller, &(struct ready_news){.kind = READY_PASSED});
        return EXIT_SUCCESS;
    }
    if (!read || !prepare_service(&service, &probe, &why)) {
        tell_wait(&teller, &why);
        (void)dprintf(STDERR_FILENO, "hypeman-init: readiness check: %s\n", why.words);
        return EXIT_FAILURE;
    }
    watch(&probe, &teller);
    probe_close(&probe);
    return EXIT_SUCCESS;
}
