// SPDX-License-Identifier: Apache-2.0
#include "agentprocess.h"

#include "admission.h"
#include "devices.h"
#include "environment.h"
#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

void agent_find(struct agent_process *agent, const char *path)
{
    agent->binary = open(path, O_PATH | O_CLOEXEC);
    if (agent->binary < 0)
        (void)refuse(&agent->no_binary, "cannot open its binary: %s", strerror(errno));
}

bool agent_start(struct agent_process *agent)
{
    static char name[] = "hypeman-agent";
    static char path[] = "PATH=" DEFAULT_PATH;
    static char home[] = "HOME=/";
    static char ready[] = "HYPEMAN_AGENT_READY_FD=3";
    static char *const argv[] = {name, NULL};
    static char *const environment[] = {path, home, ready, NULL};
    int gate[2];
    if (agent->pid > 0)
        return true;
    if (agent->binary < 0)
        return false;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, gate) != 0)
        return refuse(&agent->no_binary, "%s", strerror(errno));
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    int log = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
    agent->spawn = (struct spawn){.argv = argv,
                                  .environment = environment,
                                  .folder = "/",
                                  .stdio = {null, null, log >= 0 ? log : null},
                                  .ready_fd = gate[1],
                                  .binary = agent->binary};
    struct spawned spawned;
    bool started = spawn_start(&agent->spawn, &spawned, &agent->no_binary);
    close_fd(&null);
    close_fd(&log);
    close_fd(&gate[1]);
    if (!started) {
        close_fd(&gate[0]);
        return false;
    }
    agent->pid = spawned.pid;
    agent->verdict = spawned.verdict;
    agent->socket = gate[0];
    return true;
}

void agent_await(const struct agent_process *agent)
{
    struct pollfd poll_for = {.fd = agent->socket, .events = POLLIN};
    char byte;
    if (agent->pid > 0 && poll(&poll_for, 1, DEVICE_WAIT_MS) > 0)
        (void)!read(agent->socket, &byte, sizeof byte);
}

void agent_admit(const struct agent_process *agent)
{
    int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (root >= 0)
        admission_give(agent->socket, root);
    close_fd(&root);
}

void agent_dismiss(struct agent_process *agent)
{
    if (agent->pid > 0) {
        (void)kill(agent->pid, SIGKILL);
        (void)waitpid(agent->pid, NULL, 0);
    }
    agent->pid = 0;
    close_fd(&agent->socket);
    close_fd(&agent->verdict);
}
