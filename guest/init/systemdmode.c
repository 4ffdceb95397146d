// SPDX-License-Identifier: Apache-2.0
#include "systemdmode.h"

#include "announce.h"
#include "bootid.h"
#include "clock.h"
#include "environment.h"
#include "files.h"
#include "initkind.h"
#include "keeper.h"
#include "machineid.h"
#include "root.h"
#include "spawn.h"
#include "unitfiles.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

#define LAST_STAGE_FOLDER "/run/initramfs"

/* --- binaries --- */

static bool same_content(int fd, const struct stat *wanted, const char *path)
{
    struct stat status;
    int old = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    bool same = old >= 0 && fstat(old, &status) == 0 && status.st_size == wanted->st_size &&
                (status.st_mode & 07777) == 0755;
    size_t size = (size_t)wanted->st_size;
    if (same) {
        void *ours = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
        void *theirs = mmap(NULL, size, PROT_READ, MAP_PRIVATE, old, 0);
        same = ours != MAP_FAILED && theirs != MAP_FAILED && memcmp(ours, theirs, size) == 0;
        if (ours != MAP_FAILED)
            (void)munmap(ours, size);
        if (theirs != MAP_FAILED)
            (void)munmap(theirs, size);
    }
    close_fd(&old);
    return same;
}

static bool copy_content(int from, int to, off_t size)
{
    off_t offset = 0;
    while (offset < size) {
        ssize_t sent = sendfile(to, from, &offset, (size_t)(size - offset));
        if (sent == 0)
            errno = EIO;
        if (sent <= 0 && errno != EINTR)
            return false;
    }
    return true;
}

/* A program of the initrd into the image, whole or not at all, and only if it is not there already. */
static bool install(int fd, const char *folder, const char *name, struct reason *why)
{
    char path[128];
    char temporary[136];
    struct stat status;
    (void)snprintf(path, sizeof path, "%s/%s", folder, name);
    (void)snprintf(temporary, sizeof temporary, "%s.new", path);
    if (!folder_make(folder, 0755) || fstat(fd, &status) != 0)
        return refuse(why, "cannot make the folder %s: %s", folder, strerror(errno));
    if (same_content(fd, &status, path))
        return true;
    int copy = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0755);
    bool made = copy >= 0 && fchmod(copy, 0755) == 0 && copy_content(fd, copy, status.st_size) &&
                rename(temporary, path) == 0;
    if (!made)
        (void)refuse(why, "cannot write %s: %s", path, strerror(errno));
    close_fd(&copy);
    return made;
}

static bool install_init(int init, struct reason *why)
{
    /* systemd makes /run/initramfs its root at the end: nothing of the image is needed there. */
    return install(init, TOOLS_FOLDER, "hypeman-init", why) &&
           install(init, LAST_STAGE_FOLDER, "shutdown", why);
}

static bool install_agent(const struct systemd_mode *mode, struct reason *why)
{
    if (mode->agent->binary < 0)
        return refuse(why, "the guest agent cannot be started: %s", mode->agent->no_binary.words);
    int agent = openat(mode->initrd, "hypeman-agent", O_RDONLY | O_CLOEXEC);
    bool installed = agent >= 0 && install(agent, TOOLS_FOLDER, "hypeman-agent", why);
    if (agent < 0)
        (void)refuse(why, "the guest agent cannot be started: %s", strerror(errno));
    close_fd(&agent);
    return installed;
}

static bool prepare(const struct systemd_mode *mode, struct reason *why)
{
    pid_t keeper = 0;
    int init = openat(mode->initrd, "init", O_RDONLY | O_CLOEXEC);
    if (init < 0)
        return refuse(why, "cannot open hypeman-init in the initrd: %s", strerror(errno));
    bool prepared = folder_make(RUN_FOLDER, 0755) || refuse(why, "cannot make " RUN_FOLDER);
    prepared = prepared && install_init(init, why) && (!mode->config->agent || install_agent(mode, why)) &&
               keeper_start(init, mode->initrd, mode->ports->stop, &keeper, why) &&
               unit_files_write(mode->config, keeper, why);
    close_fd(&init);
    return prepared;
}

/* --- the image's init --- */

static struct outcome refused(int code, const char *program, const char *cause)
{
    struct outcome outcome = {.code = code};
    (void)refuse(&outcome.why, "program %s cannot be executed: %s", program, cause);
    return outcome;
}

/* As the kernel starts an init: with the console, and no protection from the OOM killer that its children
 * would inherit. */
static void become_plain(void)
{
    int console = open("/dev/console", O_RDWR | O_NOCTTY | O_CLOEXEC);
    for (int fd = 0; console >= 0 && fd <= STDERR_FILENO; fd++)
        (void)dup2(console, fd);
    close_fd(&console);
    (void)file_write("/proc/self/oom_score_adj", 0, "0");
}

/* The program's words, and for a VM without a machine id of its own that option of systemd(1), which leaves a
 * first boot one. NULL without memory. */
static char **derive_argv(const struct systemd_mode *mode, char *option, size_t size)
{
    char *const *argv = mode->config->argv;
    size_t count = 0;
    while (argv[count] != NULL)
        count++;
    char **derived = calloc(count + 2, sizeof *derived);
    if (derived == NULL)
        return NULL;
    memcpy(derived, argv, count * sizeof *derived);
    if (mode->config->machine_id == NULL)
        return derived;
    int upper = openat(mode->initrd, "disk/upper", O_PATH | O_DIRECTORY | O_CLOEXEC);
    int image = openat(mode->initrd, "image", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (!machine_id_is_own(upper, image)) {
        (void)snprintf(option, size, "--machine-id=%s", mode->config->machine_id);
        derived[count] = option;
    }
    int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (!machine_id_share(root, upper))
        report_warning(mode->report, "D-Bus keeps the machine id of the image");
    close_fd(&root);
    close_fd(&image);
    close_fd(&upper);
    return derived;
}

/* Comes back only with a refusal. */
static struct outcome execute_init(const struct systemd_mode *mode, char *const *argv,
                                   char *const *environment)
{
    const char *program = argv[0];
    struct stat status;
    if (stat(program, &status) != 0)
        return refused(EXIT_NOT_FOUND, program, strerror(errno));
    if (access(program, X_OK) != 0 || !S_ISREG(status.st_mode))
        return refused(EXIT_NOT_EXECUTABLE, program, strerror(S_ISREG(status.st_mode) ? errno : EISDIR));
    report_program_start(mode->report, "systemd");
    report_stages(mode->report);
    become_plain();
    root_let_go(mode->initrd);
    (void)execve(program, argv, environment);
    return refused(EXIT_NOT_EXECUTABLE, program, strerror(errno));
}

static struct outcome become_init(const struct systemd_mode *mode)
{
    char option[sizeof "--machine-id=" + MACHINE_ID_LENGTH];
    struct environment_store store;
    char **environment = environment_build(mode->config->environment, "/", NULL, &store);
    char **argv = environment == NULL ? NULL : derive_argv(mode, option, sizeof option);
    struct outcome outcome = argv == NULL
                                 ? refused(EXIT_GUEST_FAILED, mode->config->argv[0], strerror(ENOMEM))
                                 : execute_init(mode, argv, environment);
    free(argv);
    free(environment);
    return outcome;
}

struct outcome systemd_mode_run(const struct systemd_mode *mode)
{
    struct outcome outcome = {.code = EXIT_GUEST_FAILED};
    report_stage(mode->report, "inject");
    /* The image's init is to have no signal blocked; and as long as this one has, the keeper takes it for one
     * that listens. */
    sigset_t none;
    (void)sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    report_flush(mode->report);
    if (mode->config->argv[0][0] != '/') {
        (void)refuse(&outcome.why, "in mode systemd the program must be an absolute path, not %s",
                     mode->config->argv[0]);
        return outcome;
    }
    if (!init_is_systemd(mode->config->argv[0], &outcome.why))
        return outcome;
    /* Commands that are executed in the guest begin there. */
    if (!folder_make(mode->config->folder, 0755)) {
        (void)refuse(&outcome.why, "cannot make the working directory %s: %s", mode->config->folder,
                     strerror(errno));
        return outcome;
    }
    if (!prepare(mode, &outcome.why))
        return outcome;
    return become_init(mode);
}

/* --- as a command --- */

static int tell_emergency(const char *state)
{
    char boot[BOOT_ID_LENGTH + 1];
    char line[SENTINEL_LINE_MAX] = "";
    if (!boot_id_current(boot))
        return EXIT_FAILURE;
    announce(line, sentinel_emergency(line, clock_realtime(), state, boot));
    return EXIT_SUCCESS;
}

int systemd_tool_main(int argc, char **argv)
{
    const char *role = argc > 1 ? argv[1] : "";
    if (strcmp(role, "keeper") == 0)
        return keeper_main(argc > 2);
    if (strcmp(role, "emergency") == 0 && argc > 2 &&
        (strcmp(argv[2], "entered") == 0 || strcmp(argv[2], "left") == 0))
        return tell_emergency(argv[2]);
    (void)dprintf(STDERR_FILENO, "hypeman-init: not to be called by hand\n");
    return EXIT_FAILURE;
}
