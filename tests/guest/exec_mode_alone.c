// SPDX-License-Identifier: Apache-2.0
/* Exec mode as PID 1 of a namespace: stdout is the console, fd 0 the stop port, and an exit the power off.
 * Usage: exec-mode CONFIG-DISK AGENT */
#include "clock.h"
#include "execmode.h"
#include "records.h"
#include "spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Headers that are ready once the program looks: it makes /run/ready or /run/failed. */
static bool wait_for_program(struct reason *why)
{
    for (int64_t deadline = clock_ms() + 10000; clock_ms() < deadline;) {
        if (access("/run/ready", F_OK) == 0)
            return true;
        if (access("/run/failed", F_OK) == 0)
            return refuse(why, "as wanted");
    }
    return refuse(why, "the program made neither /run/ready nor /run/failed");
}

int main(int count, char **arguments)
{
    static struct report report = {.console = STDOUT_FILENO, .boot = "0123456789abcdef0123456789abcdef"};
    struct ports ports = PORTS_NONE;
    struct agent_process agent = AGENT_PROCESS_NONE;
    struct config config;
    struct outcome outcome = {.code = EXIT_GUEST_FAILED};
    if (count != 3)
        return 2;
    sigset_t signals = exec_mode_signals();
    (void)sigprocmask(SIG_SETMASK, &signals, NULL);
    ports.stop = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 10);
    (void)fcntl(ports.stop, F_SETFL, O_NONBLOCK);
    report.port = &ports.report;
    if (config_read(arguments[1], &config, &outcome.why)) {
        struct exec_mode mode = {.config = &config,
                                 .report = &report,
                                 .ports = &ports,
                                 .headers = wait_for_program,
                                 .agent = &agent};
        agent_find(&agent, arguments[2]);
        outcome = exec_mode_run(&mode);
    }
    report_exit(&report, outcome.code, outcome.why.words);
    config_free(&config);
    return 0;
}
