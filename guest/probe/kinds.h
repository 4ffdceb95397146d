/* SPDX-License-Identifier: Apache-2.0 */
/* The kinds of checks: an attempt of each, step by step; for probe.c and tests. */
#ifndef HYPEMAN_KINDS_H
#define HYPEMAN_KINDS_H

#include "check.h"
#include "pattern.h"
#include "runfolder.h"
#include "spawn.h"

#include <netinet/in.h>

#define NOTIFY_PATH RUN_FOLDER "/notify"

enum { PROBE_ANSWER_MAX = 256 }; /* bytes of an HTTP answer that are looked at */

enum probe_state { PROBE_PENDING, PROBE_PASSED, PROBE_FAILED };

/* How a command is executed. */
struct probe_place {
    char *const *environment;
    const char *folder;
    const struct identity *who;
    struct settings settings;
    const struct enclosure *enclosure; /* NULL: the caller's own */
};

/* A socket's address; the family of the first decides. */
union address {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
};

/* What an attempt waits for: `events` of `fd` (-1: nothing), or `deadline`. `why`: how it failed, or how far
 * it has come. The rest is the kinds' own. */
struct probe {
    const struct check *check;
    const struct probe_place *place;
    int fd;
    short events;
    int64_t deadline;
    struct reason why;
    bool cheap; /* the attempt that failed has cost next to nothing, and nobody has noticed it */

    int step;
    pid_t pid;
    int verdict;
    struct spawn spawn;
    char answer[PROBE_ANSWER_MAX + 1];
    size_t answered;
    int console;   /* where what is read goes on to */
    size_t prefix; /* bytes of the line that are those of a sentinel so far */
    bool skipping; /* this line is one */
    struct pattern pattern;
    struct matcher matcher;
};

/* Who listens on a port, as the kernel has it (sock_diag(7)). FAILED with the reason, or PASSED and an
 * address by which it can be reached from here. */
enum probe_state tcp_find(uint16_t port, bool loopback, union address *address, struct reason *why);

enum probe_state http_begin(struct probe *probe);
enum probe_state http_step(struct probe *probe, bool ready);

/* The status of an answer whose first bytes these are: 0 if they are not enough, -1 if they are none. */
int http_status(const char *answer, size_t size);

enum probe_state command_begin(struct probe *probe);
enum probe_state command_step(struct probe *probe, bool ready);

bool notify_open(struct probe *probe, const char *path, struct reason *why);
enum probe_state notify_step(struct probe *probe, bool ready);

/* A datagram of sd_notify(3). True: READY=1 is in it. A STATUS= becomes the reason. */
bool notify_parse(const char *datagram, size_t size, struct reason *why);

bool console_open(struct probe *probe, struct reason *why);
enum probe_state console_step(struct probe *probe, bool ready);
void console_close(struct probe *probe);

/* Bytes of the console. True once a line has matched that is no sentinel. */
bool console_feed(struct probe *probe, const char *bytes, size_t size);

/* The console is written to directly again, by an fd of /dev/console. */
void console_restore(int console);

#endif
