// SPDX-License-Identifier: Apache-2.0
#include "report.h"

#include "bootid.h"
#include "clock.h"
#include "devices.h"
#include "files.h"
#include "reason.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

/* hvc0 becomes the console some moments after its driver is there, and no event tells of it. */
enum { CONSOLE_LOOK_AGAIN_MS = 5 };

static void set_raw(int console)
{
    struct termios settings;
    if (tcgetattr(console, &settings) != 0)
        return; /* Not a tty: nothing is added to lines there. */
    settings.c_iflag &= ~(tcflag_t)(IXON | IXOFF | ICRNL);
    settings.c_oflag &= ~(tcflag_t)OPOST;
    settings.c_lflag &= ~(tcflag_t)(ECHO | ECHONL | ICANON | ISIG | IEXTEN);
    (void)tcsetattr(console, TCSANOW, &settings);
}

void report_console(struct report *report)
{
    int64_t deadline = clock_ms() + DEVICE_WAIT_MS;
    if (report->console >= 0)
        return;
    while ((report->console = open("/dev/console", O_WRONLY | O_NOCTTY | O_CLOEXEC)) < 0) {
        if (clock_ms() >= deadline)
            return;
        (void)poll(NULL, 0, CONSOLE_LOOK_AGAIN_MS);
    }
    set_raw(report->console);
}

static void write_whole(int fd, const char *text, size_t size)
{
    while (size > 0) {
        ssize_t written = write(fd, text, size);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return; /* Nobody to tell it to. */
        text += written;
        size -= (size_t)written;
    }
}

static void say(struct report *report, const char *text, size_t size)
{
    report_console(report);
    write_whole(report->console, text, size);
    if (*report->port >= 0) {
        (void)!write(*report->port, text, size); /* Non-blocking: a host that does not listen misses it. */
    } else if (size <= UNSENT_SIZE - report->unsent_size) {
        memcpy(report->unsent + report->unsent_size, text, size);
        report->unsent_size += size;
    }
}

void report_flush(struct report *report)
{
    if (*report->port < 0 || report->unsent_size == 0)
        return;
    (void)!write(*report->port, report->unsent, report->unsent_size);
    report->unsent_size = 0;
}

void report_stage(struct report *report, const char *name)
{
    struct timespec now = clock_boottime();
    if (report->stage_open)
        report->stages[report->stage_count - 1].end = now;
    report->stage_open = report->stage_count < STAGES_MAX;
    if (report->stage_open)
        report->stages[report->stage_count++] = (struct stage){name, now, now};
}

void report_stage_end(struct report *report)
{
    if (report->stage_open)
        report->stages[report->stage_count - 1].end = clock_boottime();
    report->stage_open = false;
}

void report_stage_beside(struct report *report, struct stage stage)
{
    report_stage_end(report);
    if (report->stage_count < STAGES_MAX)
        report->stages[report->stage_count++] = stage;
}

static struct timespec since(struct timespec origin, struct timespec moment)
{
    struct timespec passed = {moment.tv_sec - origin.tv_sec, moment.tv_nsec - origin.tv_nsec};
    if (passed.tv_nsec < 0)
        passed = (struct timespec){passed.tv_sec - 1, passed.tv_nsec + 1000000000};
    return passed;
}

static void say_stages(struct report *report)
{
    char text[STAGES_MAX * 128 + SENTINEL_LINE_MAX];
    size_t used = 0;
    for (size_t i = 0; i < report->stage_count && used + SENTINEL_LINE_MAX <= sizeof text; i++) {
        const struct stage *stage = &report->stages[i];
        used += sentinel_stage(text + used, stage->name, since(report->origin, stage->start),
                               since(report->origin, stage->end), report->boot);
    }
    say(report, text, used);
}

void report_stages(struct report *report)
{
    say_stages(report);
    report->stage_count = 0;
    report->stage_open = false;
}

void report_program_start(struct report *report, const char *mode)
{
    char line[SENTINEL_LINE_MAX] = "";
    report_stage_end(report);
    say(report, line, sentinel_program_start(line, clock_realtime(), mode, report->boot));
}

void report_thaw(struct report *report)
{
    report->stage_count = 0;
    report->stage_open = false;
    report->origin = clock_boottime();
    report_stage(report, "thaw");
}

void report_thawed(struct report *report)
{
    report_stage_end(report);
    say_stages(report);
}

void report_agent_ready(struct report *report)
{
    char line[SENTINEL_LINE_MAX] = "";
    say(report, line, sentinel_agent_ready(line, clock_realtime(), report->boot));
}

/* The VM may have become another since it has booted. */
static const char *current_boot(struct report *report)
{
    boot_id_renew(AT_FDCWD, report->boot);
    return report->boot;
}

void report_ready(struct report *report)
{
    char line[SENTINEL_LINE_MAX] = "";
    say(report, line, sentinel_ready(line, clock_realtime(), current_boot(report)));
}

void report_waiting(struct report *report, const char *reason)
{
    char line[SENTINEL_LINE_MAX] = "";
    say(report, line, sentinel_waiting(line, clock_realtime(), reason, current_boot(report)));
}

void report_headers_start(struct report *report)
{
    char line[SENTINEL_LINE_MAX] = "";
    say(report, line, sentinel_headers_start(line, clock_realtime(), current_boot(report)));
}

void report_headers_ready(struct report *report)
{
    char line[SENTINEL_LINE_MAX] = "";
    say(report, line, sentinel_headers_ready(line, clock_realtime(), current_boot(report)));
}

void report_headers_failed(struct report *report, const char *error)
{
    char line[SENTINEL_LINE_MAX] = "";
    say(report, line, sentinel_headers_failed(line, clock_realtime(), error, current_boot(report)));
}

void report_warning(struct report *report, const char *words)
{
    static const char begin[] = "<4>hypeman-init: warning: ";
    char line[sizeof begin + REASON_MAX + 2];
    int length = snprintf(line, sizeof line, "%s%s\n", begin, words);
    (void)file_write("/dev/kmsg", 0, line);
    report_console(report);
    if (length > 0)
        write_whole(report->console, line + 3, (size_t)length - 3);
}

void report_exit(struct report *report, int code, const char *message)
{
    char line[SENTINEL_LINE_MAX] = "";
    if (report->stage_count > 0)
        report_stages(report);
    say(report, line, sentinel_exit(line, code, message, current_boot(report)));
}
