// SPDX-License-Identifier: Apache-2.0
#include "unitfiles.h"

#include "files.h"
#include "readiness.h"
#include "settings.h"
#include "sshkeys.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define UNITS "/run/systemd/system"
#define AGENT_UNIT "hypeman-agent.service"
#define HEADERS_UNIT "hypeman-kernel-headers.service"
#define SSH_KEYS_UNIT "hypeman-ssh-host-keys.service"
#define READY_UNIT "hypeman-ready.service"
#define EMERGENCY_UNIT "hypeman-emergency.service"
/* Behind what an image has with a lower number. */
#define MANAGER_FOLDER "/run/systemd/system.conf.d"
#define MANAGER_FILE MANAGER_FOLDER "/90-hypeman.conf"
#define ENVIRONMENT RUN_FOLDER "/environment"

enum { READY_ORDER_MAX = 2 * NAME_MAX + 64 };

/* The agent waits for nothing, not even the journal (hence the kernel's log), and nothing waits for it. What
 * it executes is in groups below its own: its end is theirs, but not the other way round. */
static const char agent_unit[] = "[Unit]\n"
                                 "Description=Hypeman guest agent\n"
                                 "DefaultDependencies=no\n"
                                 "IgnoreOnIsolate=yes\n"
                                 "Conflicts=shutdown.target\n"
                                 "Before=shutdown.target\n"
                                 "\n"
                                 "[Service]\n"
                                 "Type=notify\n"
                                 "ExecStart=" TOOLS_FOLDER "/hypeman-agent\n"
                                 "EnvironmentFile=" ENVIRONMENT "\n"
                                 "Restart=on-failure\n"
                                 "RestartSec=1\n"
                                 "TimeoutStopSec=5\n"
                                 "OOMPolicy=continue\n"
                                 "TasksMax=infinity\n"
                                 "Delegate=pids\n"
                                 "StandardOutput=null\n"
                                 "StandardError=file:/dev/kmsg\n";

static const char headers_unit[] = "[Unit]\n"
                                   "Description=Kernel headers for building modules\n"
                                   "DefaultDependencies=no\n"
                                   "After=local-fs.target\n"
                                   "Conflicts=shutdown.target\n"
                                   "Before=shutdown.target\n"
                                   "\n"
                                   "[Service]\n"
                                   "Type=oneshot\n"
                                   "RemainAfterExit=yes\n"
                                   "ExecStart=" TOOLS_FOLDER "/hypeman-init headers\n"
                                   "Nice=19\n"
                                   "IOSchedulingClass=idle\n"
                                   "CPUSchedulingPolicy=idle\n";

/* Debian's server does not start without any. */
static const char ssh_keys_unit[] = "[Unit]\n"
                                    "Description=New SSH host keys of a fork\n"
                                    "DefaultDependencies=no\n"
                                    "ConditionPathExists=" SSH_KEYGEN "\n"
                                    "After=local-fs.target systemd-remount-fs.service\n"
                                    "Before=ssh.service sshd.service ssh.socket sshd.socket shutdown.target\n"
                                    "Conflicts=shutdown.target\n"
                                    "\n"
                                    "[Service]\n"
                                    "Type=oneshot\n"
                                    "RemainAfterExit=yes\n"
                                    "ExecStart=" SSH_KEYGEN " -A\n";

/* Beside the boot, which does not wait for it, from as early on as the console is there. */
static const char ready_unit[] = "[Unit]\n"
                                 "Description=Readiness check of the VM\n"
                                 "DefaultDependencies=no\n"
                                 "IgnoreOnIsolate=yes\n"
                                 "Conflicts=shutdown.target\n"
                                 "Before=shutdown.target\n"
                                 "%s"
                                 "\n"
                                 "[Service]\n"
                                 "Type=%s\n"
                                 "ExecStart=" TOOLS_FOLDER "/hypeman-init ready\n"
                                 "EnvironmentFile=-" ENVIRONMENT "\n"
                                 "Restart=%s\n"
                                 "RestartSec=1\n"
                                 "OOMScoreAdjust=-1000\n"
                                 "StandardOutput=null\n"
                                 "StandardError=file:/dev/kmsg\n";

/* Stopped only by leaving emergency mode, hence no word of shutdown.target. */
static const char emergency_unit[] = "[Unit]\n"
                                     "Description=Tell the host of emergency mode\n"
                                     "DefaultDependencies=no\n"
                                     "\n"
                                     "[Service]\n"
                                     "Type=oneshot\n"
                                     "RemainAfterExit=yes\n"
                                     "ExecStart=" TOOLS_FOLDER "/hypeman-init emergency entered\n"
                                     "ExecStop=" TOOLS_FOLDER "/hypeman-init emergency left\n";

/* --- what the image has --- */

/* Where an image or its administrator may have a unit of the same name; ours would hide some of them and be
 * hidden by others. */
static bool find_own_unit(const char *name, char path[PATH_MAX])
{
    static const char *const folders[] = {"/etc/systemd/system.control", "/etc/systemd/system",
                                          "/usr/local/lib/systemd/system", "/usr/lib/systemd/system",
                                          "/lib/systemd/system"};
    struct stat status;
    for (size_t i = 0; i < sizeof folders / sizeof folders[0]; i++) {
        int length = snprintf(path, PATH_MAX, "%s/%s", folders[i], name);
        if (length > 0 && length < PATH_MAX && lstat(path, &status) == 0)
            return true;
    }
    return false;
}

/* systemd.unit(5): a link to /dev/null, or an empty file. */
static bool is_masked(const char *path)
{
    char target[PATH_MAX];
    struct stat status;
    ssize_t length = readlink(path, target, sizeof target - 1);
    if (length >= 0)
        target[length] = '\0';
    return (length >= 0 && strcmp(target, "/dev/null") == 0) ||
           (stat(path, &status) == 0 && S_ISREG(status.st_mode) && status.st_size == 0);
}

static bool check_agent_unit(struct reason *why)
{
    char path[PATH_MAX];
    if (!find_own_unit(AGENT_UNIT, path))
        return true;
    if (is_masked(path))
        return refuse(why,
                      "the guest agent cannot be started: the image has masked " AGENT_UNIT
                      " (%s); unmask it, or set guest_agent: false",
                      path);
    return refuse(why,
                  "the guest agent cannot be started: the image has a " AGENT_UNIT
                  " of its own (%s); remove it, or set guest_agent: false",
                  path);
}

/* --- what we write --- */

static bool write_unit(const char *name, const char *text, struct reason *why)
{
    char path[PATH_MAX];
    (void)snprintf(path, sizeof path, UNITS "/%s", name);
    return file_write(path, O_CREAT | O_TRUNC, text) ||
           refuse(why, "cannot write %s: %s", path, strerror(errno));
}

static bool make_link(const char *target, const char *path, struct reason *why)
{
    return symlink(target, path) == 0 || errno == EEXIST ||
           refuse(why, "cannot make the link %s: %s", path, strerror(errno));
}

static bool want(const char *target, const char *name, struct reason *why)
{
    char path[PATH_MAX];
    char unit[PATH_MAX];
    (void)snprintf(path, sizeof path, UNITS "/%s.wants", target);
    if (!folder_make(path, 0755))
        return refuse(why, "cannot make the folder %s: %s", path, strerror(errno));
    (void)snprintf(path, sizeof path, UNITS "/%s.wants/%s", target, name);
    (void)snprintf(unit, sizeof unit, "../%s", name);
    return make_link(unit, path, why);
}

static bool is_name(const char *text, size_t length)
{
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_";
    static const char known[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_0123456789";
    return length > 0 && strchr(letters, text[0]) != NULL && strspn(text, known) == length;
}

char *environment_file_line(const char *variable)
{
    size_t name = strcspn(variable, "=");
    char *line = calloc(2 * strlen(variable) + 4, 1);
    if (line == NULL || variable[name] == '\0' || !is_name(variable, name))
        return line;
    char *at = line;
    memcpy(at, variable, name + 1);
    at += name + 1;
    *at++ = '"';
    for (const char *from = variable + name + 1; *from != '\0'; from++) {
        if (strchr("\"\\`$", *from) != NULL)
            *at++ = '\\';
        *at++ = *from;
    }
    *at++ = '"';
    *at = '\n';
    return line;
}

static bool append_line(int fd, const char *line)
{
    size_t left = strlen(line);
    while (left > 0) {
        ssize_t written = write(fd, line, left);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return false;
        line += written;
        left -= (size_t)written;
    }
    return true;
}

/* The program's variables, and behind them, so that they cannot be covered, our own. */
static bool write_environment(const struct config *config, pid_t keeper, struct reason *why)
{
    char own[64];
    int fd = open(ENVIRONMENT, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    bool written = fd >= 0;
    for (char *const *variable = config->environment; written && *variable != NULL; variable++) {
        char *line = environment_file_line(*variable);
        written = line != NULL && append_line(fd, line);
        free(line);
    }
    (void)snprintf(own, sizeof own, "HYPEMAN_POWER_OFF_PID=%d\n", (int)keeper);
    written = written && append_line(fd, own);
    if (!written)
        (void)refuse(why, "cannot write " ENVIRONMENT ": %s", strerror(errno));
    close_fd(&fd);
    return written;
}

static bool write_agent(const struct config *config, pid_t keeper, struct reason *why)
{
    /* emergency.target wants nothing of sysinit.target. */
    return check_agent_unit(why) && write_environment(config, keeper, why) &&
           write_unit(AGENT_UNIT, agent_unit, why) && want("sysinit.target", AGENT_UNIT, why) &&
           want("emergency.target", AGENT_UNIT, why);
}

static bool write_headers(struct reason *why)
{
    char path[PATH_MAX];
    if (!find_own_unit(HEADERS_UNIT, path))
        return write_unit(HEADERS_UNIT, headers_unit, why) && want("sysinit.target", HEADERS_UNIT, why);
    char note[PATH_MAX + 128];
    (void)snprintf(note, sizeof note,
                   "<5>hypeman-init: no kernel headers: the image has its own or a masked %s\n", path);
    (void)file_write("/dev/kmsg", 0, note); /* Not worth a boot. */
    return true;
}

/* For a unit that is to be active it is started each time when that has become so: wanted by it, whoever
 * starts it, after it, and not at all if its start has failed. */
static bool write_ready(const struct config *config, pid_t keeper, struct reason *why)
{
    char text[sizeof ready_unit + READY_ORDER_MAX + 256];
    char order[READY_ORDER_MAX] = "";
    bool follows = config->ready.kind == CHECK_NOTIFY;
    const char *unit = config->ready.unit != NULL ? config->ready.unit : "default.target";
    if (follows) {
        int length = snprintf(order, sizeof order, "After=%s\nRequisite=%s\n", unit, unit);
        if (length < 0 || (size_t)length >= sizeof order || strpbrk(unit, "/\n ") != NULL)
            return refuse(why, "the readiness check names a unit that cannot be: %.80s", unit);
    }
    (void)snprintf(text, sizeof text, ready_unit, order, follows ? "oneshot" : "simple",
                   follows ? "no" : "on-failure");
    return (config->agent || write_environment(config, keeper, why)) && readiness_write(config, why) &&
           write_unit(READY_UNIT, text, why) && want(follows ? unit : "sysinit.target", READY_UNIT, why);
}

/* What the definition says of processes, for the guest's services: the image's systemd reads it as it starts.
 */
static bool write_manager(const struct config *config, struct reason *why)
{
    const struct settings settings = {config->records, config->size};
    char *lines = settings_manager_lines(&settings);
    if (lines == NULL)
        return refuse(why, "no memory for " MANAGER_FILE);
    bool written = *lines == '\0' || (folder_make(MANAGER_FOLDER, 0755) &&
                                      file_write(MANAGER_FILE, O_CREAT | O_TRUNC, "[Manager]\n") &&
                                      file_write(MANAGER_FILE, O_APPEND, lines));
    if (!written)
        (void)refuse(why, "cannot write " MANAGER_FILE ": %s", strerror(errno));
    free(lines);
    return written;
}

bool unit_files_write(const struct config *config, pid_t keeper, struct reason *why)
{
    if (!folder_make(UNITS, 0755))
        return refuse(why, "cannot make the folder " UNITS ": %s", strerror(errno));
    if (config->agent && !write_agent(config, keeper, why))
        return false;
    if (config->headers && !write_headers(why))
        return false;
    if (config->new_ssh_host_keys &&
        !(write_unit(SSH_KEYS_UNIT, ssh_keys_unit, why) && want("multi-user.target", SSH_KEYS_UNIT, why)))
        return false;
    if (config->ready.kind != CHECK_NONE && !write_ready(config, keeper, why))
        return false;
    if (!write_manager(config, why))
        return false;
    /* Nobody can log in on the console, which is the host's journal; without udev a getty would hold up the
     * boot until its device has not come. */
    return write_unit(EMERGENCY_UNIT, emergency_unit, why) && want("emergency.target", EMERGENCY_UNIT, why) &&
           make_link("/dev/null", UNITS "/serial-getty@hvc0.service", why);
}
