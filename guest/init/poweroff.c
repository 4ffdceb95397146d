// SPDX-License-Identifier: Apache-2.0
#include "poweroff.h"

#include "bootid.h"
#include "clock.h"
#include "root.h"
#include "sentinel.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/klog.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

enum {
    REAP_MS = 2000,
    DRAIN_S = 2,
    CONSOLE_OFF = 6, /* syslog(2): the kernel writes to its log alone */
    CONSOLE_ON = 7,  /* as it was before */
};

/* Asked to power off with nothing that can, the kernel halts instead and never comes back; a reset, on the
 * other hand, ends the VMM, which runs with -no-reboot. */
static bool has_acpi;
static char crash_line[SENTINEL_LINE_MAX];
static size_t crash_line_size;
static char *crash_boot; /* where the boot id is in it */

void power_off_prepare(void)
{
    has_acpi = access("/sys/firmware/acpi", F_OK) == 0;
}

_Noreturn void restart_machine(void)
{
    (void)reboot(RB_AUTOBOOT);
    for (;;)
        (void)pause();
}

_Noreturn void turn_off(void)
{
    if (has_acpi)
        (void)reboot(RB_POWER_OFF);
    restart_machine();
}

static void reap_all(const sigset_t *child)
{
    int64_t deadline = clock_ms() + REAP_MS;
    for (;;) {
        pid_t pid = waitpid(-1, NULL, WNOHANG);
        if (pid > 0 || (pid < 0 && errno == EINTR))
            continue;
        int left = deadline_timeout(deadline);
        if (pid < 0 || left == 0)
            return;
        struct timespec timeout = {.tv_sec = left / 1000, .tv_nsec = (long)(left % 1000) * 1000000};
        (void)sigtimedwait(child, NULL, &timeout);
    }
}

void kill_the_rest(void)
{
    sigset_t child;
    (void)sigemptyset(&child);
    (void)sigaddset(&child, SIGCHLD);
    (void)sigprocmask(SIG_BLOCK, &child, NULL);
    /* erofs calls it an error when who reads is killed; that would be the last word of a good end. */
    (void)klogctl(CONSOLE_OFF, NULL, 0);
    (void)kill(-1, SIGKILL);
    reap_all(&child);
    (void)klogctl(CONSOLE_ON, NULL, 0);
}

static void wake(int number)
{
    (void)number;
}

void drain_console(int console)
{
    struct sigaction interrupt = {.sa_handler = wake}; /* No SA_RESTART: it ends the wait. */
    sigset_t alarm_only;
    (void)sigemptyset(&alarm_only);
    (void)sigaddset(&alarm_only, SIGALRM);
    (void)sigaction(SIGALRM, &interrupt, NULL);
    (void)sigprocmask(SIG_UNBLOCK, &alarm_only, NULL);
    (void)alarm(DRAIN_S);
    (void)tcdrain(console);
    (void)alarm(0);
}

_Noreturn void power_off(int console, int initrd, struct volumes *volumes)
{
    kill_the_rest();
    volumes_leave(volumes);
    root_leave(initrd);
    drain_console(console);
    turn_off();
}

static void on_crash(int number)
{
    (void)number;
    char boot[BOOT_ID_LENGTH + 1];
    memcpy(boot, crash_boot, BOOT_ID_LENGTH);
    boot_id_renew(AT_FDCWD, boot);
    memcpy(crash_boot, boot, BOOT_ID_LENGTH);
    int console = open("/dev/console", O_WRONLY | O_NOCTTY);
    (void)!write(console, crash_line, crash_line_size);
    sync();
    turn_off();
}

void crash_handlers_install(const char *boot)
{
    static const int fatal[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGSYS};
    crash_line_size = sentinel_exit(crash_line, 125, "hypeman-init itself has crashed", boot);
    crash_boot = strstr(crash_line, boot);
    struct sigaction action = {.sa_handler = on_crash};
    for (size_t i = 0; i < sizeof fatal / sizeof fatal[0]; i++)
        (void)sigaction(fatal[i], &action, NULL);
}
