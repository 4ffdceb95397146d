// SPDX-License-Identifier: Apache-2.0
#include "execmode.h"

#include "admission.h"
#include "clock.h"
#include "enclosed.h"
#include "environment.h"
#include "files.h"
#include "headersworker.h"
#include "kernellog.h"
#include "ownproc.h"
#include "programio.h"
#include "programnews.h"
#include "readiness.h"
#include "spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mount.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    EXIT_KILLED = EXIT_SIGNAL_BASE + SIGKILL,
    LAST_WORDS_MS = 500, /* from the end of the agent's pipe to news of its death */
    KILLED_MS = 5000,    /* from SIGKILL to the program's end */
    OUTPUT_MS = 2000,    /* from the program's end to that of its output, which the agent passes on */
};

enum phase {
    PHASE_GATE,     /* the agent runs, its byte has not come */
    PHASE_STARTING, /* the program is forked, its exec has not been seen */
    PHASE_RUNNING,
    PHASE_DONE,
};

enum source {
    SOURCE_SIGNALS,
    SOURCE_GATE,
    SOURCE_VERDICT,
    SOURCE_STOP,
    SOURCE_EVENTS,
    SOURCE_HEADERS,
    SOURCE_READY,
    SOURCES
};

struct run {
    const struct exec_mode *mode;
    enum phase phase;
    struct outcome outcome;
    int fds[SOURCES];
    bool stop_watched;
    int agent_socket; /* the gate's, once the agent is through it: it is told of the program there */
    struct program_io io;
    struct enclosed enclosed;
    struct spawn spawn; /* the program's; what it points to stands below */
    struct identity who;
    char **environment;
    struct environment_store store;
    pid_t program;
    bool agent_ended;
    int agent_status;
    bool gate_closed; /* the agent closed its pipe without a byte; its death may tell why */
    bool stop_requested;
    bool killed;    /* with SIGKILL, after the grace */
    int stands_for; /* it was killed with SIGKILL in place of this signal, or 0 */
    unsigned grace;
    int64_t deadline;
    int kernel_log;
    struct stop_line stop_line;
    pid_t checker;
    pid_t headers;
    bool headers_settled; /* they are ready or have failed, and it was said */
};

__attribute__((format(printf, 3, 4))) static void finish(struct run *run, int code, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    if (vsnprintf(run->outcome.why.words, sizeof run->outcome.why.words, format, arguments) < 0)
        run->outcome.why.words[0] = '\0';
    va_end(arguments);
    run->outcome.code = code;
    run->phase = PHASE_DONE;
}

static void forget(struct run *run, enum source source)
{
    close_fd(&run->fds[source]); /* Its last fd: epoll forgets it, too. */
}

static bool watch(struct run *run, int epoll, enum source source, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.u32 = source};
    if (run->fds[source] < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, run->fds[source], &event) == 0)
        return true;
    finish(run, EXIT_GUEST_FAILED, "cannot wait for events: %s", strerror(errno));
    return false;
}

/* --- the program --- */

static void send_signal(const struct run *run, int number)
{
    (void)kill(run->program, number); /* It is our child and not reaped: kill can only succeed. */
}

/* As PID 1 it would wait for the end of its grace, though nothing in it has an ear for the signal. */
static void stop_program(struct run *run)
{
    int number = run->mode->config->stop_signal;
    if (run->enclosed.reaper < 0 && enclosed_holds_back(run->program, number)) {
        run->stands_for = number;
        number = SIGKILL;
    }
    send_signal(run, number);
}

/* Before the host learns that the program runs: what it has executed from then on joins the namespace. */
static void tell_agent(struct run *run)
{
    const struct program_news news = {.first =
                                          run->enclosed.reaper < 0 ? run->program : run->enclosed.reaper};
    bool has_output = run->io.ends.output >= 0;
    (void)program_news_send(run->agent_socket, &news, &run->io.ends);
    program_ends_close(&run->io.ends);
    if (!has_output)
        close_fd(&run->agent_socket);
}

/* What the program has written is on the console, and who is attached knows of its end, before the host does.
 */
static void end_output(struct run *run)
{
    const struct program_news news = {.ended = true, .code = run->outcome.code, .message = run->outcome.why};
    struct pollfd answer = {.fd = run->agent_socket, .events = POLLIN};
    if (run->agent_socket >= 0 && program_news_send(run->agent_socket, &news, &PROGRAM_ENDS_NONE))
        (void)poll(&answer, 1, OUTPUT_MS);
    close_fd(&run->agent_socket);
}

static void program_started(struct run *run)
{
    forget(run, SOURCE_VERDICT);
    run->phase = PHASE_RUNNING;
    tell_agent(run);
    report_program_start(run->mode->report, "exec");
    report_stages(run->mode->report);
    if (run->stop_requested)
        stop_program(run);
}

/* --- the kernel headers --- */

static void headers_fail(struct run *run, const char *why)
{
    run->headers_settled = true;
    report_headers_failed(run->mode->report, why);
    headers_status(HEADERS_FAILED, why);
}

/* Only now: nothing of it may hold up what the host waits for. */
static void start_headers(struct run *run, int epoll)
{
    struct reason why = {""};
    if (!run->mode->config->headers)
        return;
    run->headers = headers_worker_start(run->mode->headers, &run->fds[SOURCE_HEADERS], &why);
    if (run->headers < 0) {
        headers_fail(run, why.words);
        return;
    }
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = SOURCE_HEADERS};
    /* If that cannot be, its news are read when it has ended. */
    (void)epoll_ctl(epoll, EPOLL_CTL_ADD, run->fds[SOURCE_HEADERS], &event);
}

static void on_headers(struct run *run)
{
    struct headers_news news;
    ssize_t got;
    while ((got = read(run->fds[SOURCE_HEADERS], &news, sizeof news)) == (ssize_t)sizeof news ||
           (got < 0 && errno == EINTR)) {
        if (got < 0)
            continue;
        if (news.state == HEADERS_FAILED) {
            headers_fail(run, news.why.words);
            continue;
        }
        if (news.state == HEADERS_RUNNING)
            report_headers_start(run->mode->report);
        else
            report_headers_ready(run->mode->report);
        headers_status(news.state, NULL);
        run->headers_settled = news.state == HEADERS_READY;
    }
    if (got == 0)
        forget(run, SOURCE_HEADERS);
}

/* Its last word, if it had time for one, is in the pipe. */
static void headers_ended(struct run *run, int status)
{
    struct reason words = {""};
    struct reason why = {""};
    if (run->fds[SOURCE_HEADERS] >= 0)
        on_headers(run);
    if (run->headers_settled)
        return;
    exit_words(status, &words);
    (void)refuse(&why, "its worker ended before it was done: %.200s", words.words);
    headers_fail(run, why.words);
}

/* --- the readiness check --- */

static void start_check(struct run *run)
{
    const struct config *config = run->mode->config;
    struct enclosure beside = enclosed_beside(&run->enclosed, run->program);
    const struct probe_place place = {.environment = run->environment,
                                      .folder = config->folder,
                                      .who = &run->who,
                                      .settings = {config->records, config->size},
                                      .enclosure = &beside};
    struct reason why = {""};
    run->checker = readiness_start(config, &place, &run->fds[SOURCE_READY], &why);
    if (run->checker < 0)
        report_waiting(run->mode->report, why.words);
    close_fd(&beside.beside);
}

static void on_ready(struct run *run)
{
    struct ready_news news;
    ssize_t got;
    while ((got = read(run->fds[SOURCE_READY], &news, sizeof news)) == (ssize_t)sizeof news ||
           (got < 0 && errno == EINTR)) {
        if (got > 0 && news.kind == READY_PASSED)
            report_ready(run->mode->report);
        else if (got > 0 && news.kind == READY_WAITS)
            report_waiting(run->mode->report, news.why.words);
    }
    if (got == 0)
        forget(run, SOURCE_READY);
}

/* The program runs: now what the check finds counts. */
static void follow_check(struct run *run, int epoll)
{
    if (run->mode->config->ready.kind == CHECK_NONE)
        return;
    if (run->checker == 0)
        start_check(run);
    (void)watch(run, epoll, SOURCE_READY, EPOLLIN);
}

/* Where it has not passed, it never will; and where it had the console, that is free again. */
static void check_ended(struct run *run, int status)
{
    struct reason words = {""};
    struct reason why = {""};
    if (run->fds[SOURCE_READY] >= 0)
        on_ready(run);
    readiness_end(run->mode->config, run->mode->report->console, run->fds[SOURCE_READY]);
    exit_words(status, &words);
    (void)refuse(&why, "the check itself has ended: %.200s", words.words);
    if (status != 0 && WIFSIGNALED(status))
        report_waiting(run->mode->report, why.words);
}

/* --- the program's start and end --- */

static void settle_program(struct run *run)
{
    int code;
    struct reason why = {""};
    switch (spawn_settle(run->fds[SOURCE_VERDICT], &run->spawn, &code, &why)) {
    case SPAWN_PENDING:
        break;
    case SPAWN_STARTED:
        program_started(run);
        break;
    case SPAWN_FAILED:
        finish(run, code, "%s", why.words);
        break;
    }
}

static bool prepare_program(struct run *run, struct reason *why)
{
    const struct config *config = run->mode->config;
    if (!identity_find(config->user, &run->who, why))
        return false;
    run->environment = environment_build(config->environment, run->who.home, config->name, &run->store);
    if (run->environment == NULL)
        return refuse(why, "no memory for the environment");
    if (!folder_make(config->folder, 0755))
        return refuse(why, "cannot make the working directory %s: %s", config->folder, strerror(errno));
    if (config->readonly_root && mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL) != 0)
        return refuse(why, "cannot make the root file system read-only: %s", strerror(errno));
    (void)own_proc();
    return program_io_open(&run->io, config, &run->who, run->mode->report->console, why) &&
           (!config->reaper || enclosed_begin_reaper(&run->enclosed, run->io.stdio[1], why));
}

static void start_program(struct run *run, int epoll)
{
    const struct config *config = run->mode->config;
    struct reason why = {""};
    report_stage(run->mode->report, "program");
    if (!prepare_program(run, &why)) {
        finish(run, EXIT_GUEST_FAILED, "%s", why.words);
        return;
    }
    run->spawn = (struct spawn){.argv = config->argv,
                                .environment = run->environment,
                                .folder = config->folder,
                                .who = &run->who,
                                .stdio = {run->io.stdio[0], run->io.stdio[1], run->io.stdio[2]},
                                .ready_fd = -1,
                                .binary = -1,
                                .oom_score_adj = "0",
                                .terminal = config->terminal,
                                .settings = {config->records, config->size},
                                .enclosure = &run->enclosed.enclosure};
    run->kernel_log = kernel_log_open();
    if (check_comes_first(&config->ready))
        start_check(run);
    struct spawned spawned;
    bool started = spawn_start(&run->spawn, &spawned, &why);
    program_io_forked(&run->io);
    if (!started) {
        finish(run, EXIT_GUEST_FAILED, "%s", why.words);
        return;
    }
    run->program = spawned.pid;
    run->fds[SOURCE_VERDICT] = spawned.verdict;
    run->phase = PHASE_STARTING;
    run->deadline = NO_DEADLINE;
    (void)watch(run, epoll, SOURCE_VERDICT, EPOLLIN);
}

/* The program has ended: code and words, with what the kernel's log and the host's request add. */
static void program_ended(struct run *run, int status)
{
    struct oom_kills kills = {false, false};
    struct reason words = {""};
    char name[24];
    if (run->stands_for != 0 && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
        status = run->stands_for; /* wait(2): nothing else is in it */
    int code = exit_code(status);
    exit_words(status, &words);
    if (code == EXIT_KILLED && !run->killed)
        kills = kernel_log_oom_kills(run->kernel_log, run->program);
    if (kills.victim && WIFSIGNALED(status))
        (void)refuse(&words, "out of memory: the kernel killed the program");
    else if (kills.any)
        (void)refuse(&words, "out of memory: the kernel killed a process, and the program ended with code %d",
                     code);
    if (!run->stop_requested)
        finish(run, code, "%s", words.words);
    else if (run->killed)
        finish(run, code, "stopped on request: killed, since %s did not end it within %u s",
               signal_name(run->mode->config->stop_signal, name), run->grace);
    else
        finish(run, code, "stopped on request: %s", words.words);
    end_output(run);
}

/* --- the agent --- */

static void gate_refused(struct run *run, const char *why)
{
    finish(run, EXIT_GUEST_FAILED, "the guest agent is not ready: %s; the program was not started", why);
}

static void explain_agent_end(struct run *run)
{
    struct reason words = {""};
    exit_words(run->agent_status, &words);
    gate_refused(run, words.words);
}

static void start_agent(struct run *run, int epoll)
{
    struct agent_process *agent = run->mode->agent;
    report_stage(run->mode->report, "agent");
    if (!agent_start(agent)) {
        gate_refused(run, agent->no_binary.words);
        return;
    }
    agent_admit(agent);
    run->fds[SOURCE_GATE] = agent->socket;
    run->fds[SOURCE_VERDICT] = agent->verdict;
    agent->socket = agent->verdict = -1;
    (void)(watch(run, epoll, SOURCE_GATE, EPOLLIN) && watch(run, epoll, SOURCE_VERDICT, EPOLLIN));
}

static void settle_agent(struct run *run)
{
    int code;
    struct reason why = {""};
    enum spawn_state state = spawn_settle(run->fds[SOURCE_VERDICT], &run->mode->agent->spawn, &code, &why);
    if (state == SPAWN_PENDING)
        return;
    forget(run, SOURCE_VERDICT);
    if (state == SPAWN_FAILED)
        gate_refused(run, why.words);
}

static void on_gate(struct run *run, int epoll)
{
    char byte;
    ssize_t got;
    /* ECONNRESET: it has ended, and had not read all; what it had sent is behind that. */
    do
        got = read(run->fds[SOURCE_GATE], &byte, 1);
    while ((got < 0 && (errno == EINTR || errno == ECONNRESET)) || (got == 1 && byte == AGENT_WAITS));
    if (got < 0 && errno == EAGAIN)
        return;
    /* An exec that failed also closed the pipe, and says more. */
    if (got <= 0 && run->fds[SOURCE_VERDICT] >= 0)
        settle_agent(run);
    if (run->phase != PHASE_GATE)
        return;
    if (got == 1) {
        (void)epoll_ctl(epoll, EPOLL_CTL_DEL, run->fds[SOURCE_GATE], NULL);
        run->agent_socket = run->fds[SOURCE_GATE];
        run->fds[SOURCE_GATE] = -1;
        forget(run, SOURCE_VERDICT);
        report_agent_ready(run->mode->report);
        start_program(run, epoll);
        return;
    }
    forget(run, SOURCE_GATE);
    if (run->agent_ended) {
        explain_agent_end(run);
    } else {
        run->gate_closed = true;
        run->deadline = clock_ms() + LAST_WORDS_MS;
    }
}

/* --- what comes from outside --- */

static void stop_on_request(struct run *run, unsigned grace)
{
    if (run->phase == PHASE_GATE) {
        finish(run, 0, "stopped on request before the program started");
        return;
    }
    if (run->killed)
        return;
    int64_t deadline = clock_ms() + (int64_t)grace * 1000;
    if (!run->stop_requested || deadline < run->deadline) {
        run->deadline = deadline;
        run->grace = grace;
    }
    bool first = !run->stop_requested;
    run->stop_requested = true;
    if (first && run->phase == PHASE_RUNNING)
        stop_program(run);
}

static void on_deadline(struct run *run)
{
    if (run->phase == PHASE_GATE) {
        gate_refused(run, "it closed its ready pipe without a byte");
    } else if (!run->killed) {
        run->killed = true;
        run->deadline = clock_ms() + KILLED_MS;
        (void)kill(-run->program, SIGKILL);
        send_signal(run, SIGKILL);
    } else {
        finish(run, EXIT_KILLED, "stopped on request: the program does not end even when killed");
    }
}

static void on_child(struct run *run, pid_t pid, int status)
{
    if (pid == run->program) {
        /* Its exec's verdict was in the pipe before it could end. */
        if (run->phase == PHASE_STARTING)
            settle_program(run);
        if (run->phase != PHASE_DONE)
            program_ended(run, status);
    } else if (pid == run->checker) {
        check_ended(run, status);
    } else if (pid == run->headers) {
        headers_ended(run, status);
    } else if (pid == run->mode->agent->pid) {
        run->agent_ended = true;
        run->agent_status = status;
        if (run->phase == PHASE_GATE && run->gate_closed)
            explain_agent_end(run);
    }
}

static void reap(struct run *run)
{
    while (run->phase != PHASE_DONE) {
        int status;
        pid_t pid = waitpid(-1, &status, WNOHANG);
        if (pid < 0 && errno == EINTR)
            continue;
        if (pid <= 0)
            return;
        on_child(run, pid, status);
    }
}

static void on_signal(struct run *run, const struct signalfd_siginfo *info)
{
    int number = (int)info->ssi_signo;
    if (number == SIGCHLD)
        reap(run);
    else
        stop_on_request(run, info->ssi_code == SI_QUEUE && info->ssi_int >= 0 ? (unsigned)info->ssi_int
                                                                              : DEFAULT_GRACE_S);
}

static void on_signals(struct run *run)
{
    struct signalfd_siginfo info;
    while (run->phase != PHASE_DONE) {
        ssize_t got = read(run->fds[SOURCE_SIGNALS], &info, sizeof info);
        if (got == (ssize_t)sizeof info)
            on_signal(run, &info);
        else if (!(got < 0 && errno == EINTR))
            return;
    }
}

static void on_stop_port(struct run *run)
{
    char bytes[64];
    unsigned grace;
    for (;;) {
        ssize_t got = read(run->fds[SOURCE_STOP], bytes, sizeof bytes);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return; /* Read empty, or the host is away; the next edge tells. */
        for (ssize_t i = 0; i < got; i++) {
            if (stop_line_add(&run->stop_line, bytes[i], &grace) && run->phase != PHASE_DONE)
                stop_on_request(run, grace);
        }
    }
}

static void take_ports(struct run *run, int epoll)
{
    const struct ports *ports = run->mode->ports;
    report_flush(run->mode->report);
    run->fds[SOURCE_EVENTS] = ports->events;
    run->fds[SOURCE_STOP] = ports->stop;
    if (ports->stop < 0 || run->stop_watched)
        return;
    /* Level-triggered, a port whose host is away would be reported without end. */
    run->stop_watched = watch(run, epoll, SOURCE_STOP, EPOLLIN | EPOLLET);
    if (run->stop_watched)
        on_stop_port(run);
}

static void dispatch(struct run *run, int epoll, enum source source)
{
    if (run->phase == PHASE_DONE || run->fds[source] < 0)
        return; /* An event before this one in the same batch has closed it. */
    switch (source) {
    case SOURCE_SIGNALS:
        on_signals(run);
        break;
    case SOURCE_GATE:
        on_gate(run, epoll);
        break;
    case SOURCE_VERDICT:
        if (run->phase == PHASE_GATE)
            settle_agent(run);
        else
            settle_program(run);
        if (run->phase == PHASE_RUNNING) {
            follow_check(run, epoll);
            start_headers(run, epoll);
        }
        break;
    case SOURCE_READY:
        on_ready(run);
        break;
    case SOURCE_HEADERS:
        on_headers(run);
        break;
    case SOURCE_STOP:
        on_stop_port(run);
        break;
    case SOURCE_EVENTS:
        ports_event(run->mode->ports);
        take_ports(run, epoll);
        break;
    case SOURCES:
        break;
    }
}

static void loop(struct run *run, int epoll)
{
    while (run->phase != PHASE_DONE) {
        struct epoll_event events[SOURCES];
        int timeout = deadline_timeout(run->deadline);
        int count = epoll_wait(epoll, events, SOURCES, timeout);
        if (count < 0 && errno != EINTR)
            finish(run, EXIT_GUEST_FAILED, "cannot wait for events: %s", strerror(errno));
        for (int i = 0; i < count; i++)
            dispatch(run, epoll, (enum source)events[i].data.u32);
        if (run->phase != PHASE_DONE && deadline_timeout(run->deadline) == 0)
            on_deadline(run);
    }
}

sigset_t exec_mode_signals(void)
{
    sigset_t signals;
    (void)sigemptyset(&signals);
    (void)sigaddset(&signals, SIGCHLD);
    (void)sigaddset(&signals, SIGNAL_POWER_OFF);
    return signals;
}

struct outcome exec_mode_run(const struct exec_mode *mode)
{
    struct run run = {.mode = mode,
                      .phase = PHASE_GATE,
                      .deadline = NO_DEADLINE,
                      .kernel_log = -1,
                      .agent_socket = -1,
                      .io = PROGRAM_IO_NONE,
                      .enclosed = ENCLOSED_NONE,
                      .fds = {-1, -1, -1, -1, -1, -1, -1}};
    sigset_t signals = exec_mode_signals();
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    run.fds[SOURCE_SIGNALS] = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
    run.fds[SOURCE_EVENTS] = mode->ports->events;
    if (epoll < 0 || run.fds[SOURCE_SIGNALS] < 0)
        finish(&run, EXIT_GUEST_FAILED, "cannot set up waiting for events: %s", strerror(errno));
    else if (watch(&run, epoll, SOURCE_SIGNALS, EPOLLIN) && watch(&run, epoll, SOURCE_EVENTS, EPOLLIN))
        take_ports(&run, epoll);
    if (run.phase == PHASE_GATE && mode->config->agent)
        start_agent(&run, epoll);
    else if (run.phase == PHASE_GATE)
        start_program(&run, epoll);
    loop(&run, epoll);
    readiness_end(mode->config, mode->report->console, run.fds[SOURCE_READY]);
    if (run.fds[SOURCE_READY] >= 0)
        on_ready(&run);
    forget(&run, SOURCE_READY);
    forget(&run, SOURCE_SIGNALS);
    forget(&run, SOURCE_GATE);
    forget(&run, SOURCE_VERDICT);
    forget(&run, SOURCE_HEADERS);
    close_fd(&run.kernel_log);
    close_fd(&run.agent_socket);
    program_io_close(&run.io);
    enclosed_close(&run.enclosed);
    close_fd(&epoll);
    free(run.environment);
    return run.outcome;
}
