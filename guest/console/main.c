// SPDX-License-Identifier: Apache-2.0
/*
 * hypeman-console RUNTIME_DIR BURST PER_HOUR [--journal SOCKET NAME SECONDS] [--trial] PROGRAM...: runs
 * PROGRAM in its own place, with a pipe for standard output and standard error, and beside it a process that
 * passes on what comes there, within limits: to journald's SOCKET with NAME as the identifier, else to
 * standard output. At the end that takes SECONDS at most.
 *
 * journald limits how many lines a unit may write, not how long they are: 10,000 lines of 48 KiB in 30 s are
 * half a gigabyte. What a guest prints is bounded here, before it is the journal's. The program never waits
 * for that, since what is too much is read and dropped; and its own words, which may be those of a guest that
 * has taken it over, go the same way.
 *
 * RUNTIME_DIR/console.end is a named pipe that the process holds until it has passed on everything: who reads
 * the journal for the end of a run waits for that.
 *
 * With --trial PROGRAM may become a VMM whose guest goes on from a template (launcher/warm.h). Then it is
 * this process that stays in its place, and PROGRAM runs beside it (candidate.h). With the guest's sign of
 * life (trial.h) they change roles. If there is none, or PROGRAM ends before it, all of this is started
 * again, without --trial: the launcher finds RUNTIME_DIR/stalled then, and has the VM boot.
 *
 * SIGTERM, which systemd sends when the program has ended, bounds that (deadline.h): a journald that does not
 * read must not keep a unit from ending.
 */
#include "candidate.h"
#include "deadline.h"
#include "journal.h"
#include "limit.h"
#include "queue.h"
#include "trial.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    /* of a pipe, what the kernel lets anybody have: so long the program does not notice that this is not
       scheduled */
    PIPE_BYTES = 1024 * 1024,
    LEAST_BURST = 1024 * 1024,
    LOOK_AGAIN_MS = 2,
    FIRST_ARGUMENT = 4,
    JOURNAL_WORDS = 4,
};

struct settings {
    const char *folder;
    int64_t burst;
    int64_t per_hour;
    /* NULL: standard output */
    const char *socket;
    const char *name;
    int64_t end_seconds;
    bool trial;
    char **program;
    char **words; /* all of them */
};

static struct console console;
static struct queue queue;
static struct journal journal;
static volatile sig_atomic_t ending;
/* Signals for the VMM that go to the unit's main process */
static const int passed_on[] = {SIGHUP, SIGINT, SIGQUIT, SIGUSR1, SIGUSR2, SIGTERM};
static const struct candidate *on_trial;
/* it was sent one by which a VMM ends */
static volatile sig_atomic_t asked;

static void end_soon(int number)
{
    (void)number;
    ending = 1;
}

static void pass_signal_on(int number)
{
    int error = errno;
    candidate_signal(on_trial, number);
    asked = asked || (number != SIGUSR1 && number != SIGUSR2);
    ending = ending || number == SIGTERM;
    errno = error;
}

/* Signals come while this waits and at no other time, so none is missed. `longest`: ms, -1: without end. */
static void await(struct pollfd *polled, nfds_t count, int64_t longest)
{
    sigset_t none;
    sigemptyset(&none);
    longest = deadline_left(longest);
    const struct timespec time = {longest / 1000, longest % 1000 * 1000000};
    if (ppoll(polled, count, longest < 0 ? NULL : &time, &none) < 0)
        for (nfds_t i = 0; i < count; i++)
            polled[i].revents = 0;
    if (ending)
        deadline_set();
}

static void tell_no_main(void)
{
    fprintf(stderr, "hypeman-console: the VMM is not the unit's main process: %s\n", strerror(errno));
}

/* A sign of life ends its trial. */
static void take(const char *bytes, size_t length, struct candidate *candidate)
{
    bool was_on = trial_is_on();
    trial_take(bytes, length);
    if (was_on && !trial_is_on() && !candidate_present(candidate))
        tell_no_main();
}

/* Read what there is, and pass on what goes, until the program has ended: others may hold the pipe longer.
   `candidate`: what is on trial, if anything is. True: its guest does not go on, and another one is to be
   started. */
static bool follow(int from, int program, struct candidate *candidate)
{
    int64_t look = clock_ms() + TRIAL_LOOK_MS;
    while (!deadline_is_over()) {
        bool waits = !queue_is_empty(&queue);
        struct pollfd polled[] = {{from, POLLIN, 0},
                                  {waits ? journal_descriptor(&journal) : -1, POLLOUT, 0},
                                  {program, POLLIN, 0},
                                  {candidate == NULL ? -1 : candidate->manager, POLLOUT, 0}};
        int64_t left = look - clock_ms();
        await(polled, sizeof polled / sizeof *polled, !trial_is_on() ? -1 : left < 0 ? 0 : left);
        if (polled[3].revents && !polled[2].revents && !candidate_promote(candidate))
            tell_no_main();
        if (polled[0].revents & (POLLIN | POLLHUP)) {
            size_t room;
            char *buffer = console_room(&console, &room);
            ssize_t got = read(from, buffer, room);
            if (got == 0)
                break;
            if (got > 0) {
                take(buffer, (size_t)got, candidate);
                console_take(&console, (size_t)got, clock_ms());
            }
        } else if (polled[2].revents) {
            break;
        } else if (trial_is_on() && !asked && clock_ms() >= look) {
            if (trial_is_lost() && trial_note_loss() == 0)
                return true;
            look = clock_ms() + TRIAL_LOOK_MS;
        }
        journal_send(&journal, &queue);
    }
    return trial_is_warm() && !asked && trial_note_loss() == 0;
}

/* Pass on what waits, for as long as journald goes on to take it. */
static void drain(void)
{
    for (;;) {
        size_t room = queue_room(&queue);
        journal_send(&journal, &queue);
        if (queue_is_empty(&queue) || deadline_is_over())
            return;
        if (queue_room(&queue) != room)
            deadline_extend();
        struct pollfd polled = {journal_descriptor(&journal), POLLOUT, 0};
        await(&polled, 1, -1);
    }
}

/* No event tells when journald has received a datagram. */
static void await_receipt(void)
{
    bool sent = false;
    deadline_set();
    while (!deadline_is_over()) {
        sent = sent || journal_send_fence(&journal);
        if (sent && journal_is_received(&journal))
            return;
        await(NULL, 0, LOOK_AGAIN_MS);
    }
}

/* True: all is to be started again. */
static bool pass_on(int from, int program, struct candidate *candidate, const struct settings *settings)
{
    console_init(&console, &queue, settings->burst, settings->per_hour, clock_ms());
    bool again = follow(from, program, candidate);
    if (again)
        candidate_kill(candidate);
    console_end(&console, clock_ms());
    drain();
    if (!queue_is_empty(&queue)) {
        console_give_up(&console);
        deadline_grant_last_words();
        drain();
    }
    await_receipt();
    return again;
}

static bool parse_positive(const char *text, int64_t *number)
{
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    *number = value;
    return errno == 0 && *end == '\0' && end != text && value > 0 && value <= INT_MAX * 1024LL;
}

/* Held by the process beside the program alone. -1, and nobody waits, where there is none. */
static int open_mark(const char *folder)
{
    char path[PATH_MAX];
    if (snprintf(path, sizeof path, "%s/console.end", folder) >= (int)sizeof path)
        return -1;
    if (mkfifo(path, S_IRUSR | S_IWUSR) != 0 && errno != EEXIST)
        return -1;
    return open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
}

static int fail(const char *what)
{
    fprintf(stderr, "hypeman-console: %s: %s\n", what, strerror(errno));
    return EXIT_FAILURE;
}

/* False: they are wrong. */
static bool parse_words(char **words, int count, struct settings *settings)
{
    if (count <= FIRST_ARGUMENT || !parse_positive(words[2], &settings->burst) ||
        !parse_positive(words[3], &settings->per_hour) || settings->burst < LEAST_BURST)
        return false;
    *settings = (struct settings){
        .folder = words[1],
        .burst = settings->burst,
        .per_hour = settings->per_hour,
        .program = words + FIRST_ARGUMENT,
        .words = words,
    };
    if (strcmp(words[FIRST_ARGUMENT], "--journal") == 0) {
        if (count <= FIRST_ARGUMENT + JOURNAL_WORDS ||
            !parse_positive(words[FIRST_ARGUMENT + 3], &settings->end_seconds))
            return false;
        settings->socket = words[FIRST_ARGUMENT + 1];
        settings->name = words[FIRST_ARGUMENT + 2];
        settings->program += JOURNAL_WORDS;
    }
    settings->trial = strcmp(*settings->program, "--trial") == 0;
    settings->program += settings->trial ? 1 : 0;
    return *settings->program != NULL;
}

/* As systemd has started this, but without a trial. */
static _Noreturn void start_again(const struct settings *settings)
{
    sigset_t none;
    char **at = settings->program;
    signal(SIGPIPE, SIG_DFL);
    for (size_t i = 0; i < sizeof passed_on / sizeof *passed_on; i++)
        signal(passed_on[i], SIG_DFL);
    (void)!fcntl(STDOUT_FILENO, F_SETFL, fcntl(STDOUT_FILENO, F_GETFL) & ~O_NONBLOCK);
    /* one that has come meanwhile ends this */
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    do
        at[-1] = at[0]; /* over --trial */
    while (*at++ != NULL);
    execv(settings->words[0], settings->words);
    _exit(EXIT_FAILURE);
}

static void prepare(int from, const struct settings *settings)
{
    (void)!fcntl(from, F_SETFL, O_NONBLOCK);
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_NAME, "hypeman-console");
    /* the program has the same user: once it is taken over, it must not write to the memory of this */
    prctl(PR_SET_DUMPABLE, 0);
    journal_open(&journal, settings->socket, settings->name);
    deadline_open(settings->end_seconds * 1000);
}

/* This goes when the program has gone and what it said is passed on, or with the unit: systemd ends all of a
   program that failed at once, perhaps before this has run at all. */
static void hold_signals(void)
{
    const struct sigaction soon = {.sa_handler = end_soon};
    sigset_t term;
    sigemptyset(&term);
    sigaddset(&term, SIGTERM);
    sigaction(SIGTERM, &soon, NULL);
    sigprocmask(SIG_BLOCK, &term, NULL);
}

/* No child of the program's: it would not expect one, and machinectl's signals go to the one that it has. */
static bool start_beside(const int ends[2], int program, const struct settings *settings)
{
    pid_t between = fork();
    if (between == 0) {
        hold_signals();
        pid_t beside = fork();
        if (beside == 0) {
            close(ends[1]);
            prepare(ends[0], settings);
            (void)pass_on(ends[0], program, NULL, settings);
        }
        _exit(beside < 0 ? EXIT_FAILURE : EXIT_SUCCESS);
    }
    int status = EXIT_FAILURE;
    while (between > 0 && waitpid(between, &status, 0) < 0)
        if (errno != EINTR)
            return false;
    return between > 0 && status == 0;
}

/* Its end is that of this, unless it takes the place of this. */
static int run_trial(const int ends[2], const struct settings *settings)
{
    static struct candidate candidate;
    sigset_t held;
    sigemptyset(&held);
    for (size_t i = 0; i < sizeof passed_on / sizeof *passed_on; i++)
        sigaddset(&held, passed_on[i]);
    sigprocmask(SIG_BLOCK, &held, NULL);
    if (!candidate_start(&candidate, settings->program, ends[1]))
        return fail("cannot make a process");
    on_trial = &candidate;
    const struct sigaction pass = {.sa_handler = pass_signal_on};
    for (size_t i = 0; i < sizeof passed_on / sizeof *passed_on; i++)
        sigaction(passed_on[i], &pass, NULL);
    close(ends[1]);
    prepare(ends[0], settings);
    trial_begin(candidate.pid, settings->folder, getenv("INVOCATION_ID"));
    if (pass_on(ends[0], candidate.descriptor, &candidate, settings))
        start_again(settings);
    candidate_follow(&candidate);
}

int main(int count, char **words)
{
    struct settings settings;
    if (!parse_words(words, count, &settings)) {
        fprintf(stderr,
                "usage: hypeman-console RUNTIME_DIR BURST PER_HOUR [--journal SOCKET NAME SECONDS] [--trial] "
                "PROGRAM...\n");
        return EXIT_FAILURE;
    }
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0)
        return fail("cannot make a pipe");
    (void)!fcntl(ends[1], F_SETPIPE_SZ, PIPE_BYTES);
    int mark = open_mark(settings.folder);
    if (settings.trial)
        return run_trial(ends, &settings);
    int program = (int)syscall(SYS_pidfd_open, getpid(), 0);
    if (!start_beside(ends, program, &settings))
        return fail("cannot make a process");
    if (mark >= 0)
        close(mark);
    if (dup2(ends[1], STDOUT_FILENO) < 0 || dup2(ends[1], STDERR_FILENO) < 0)
        return fail("cannot use a pipe");
    execv(settings.program[0], settings.program);
    return fail(settings.program[0]);
}
