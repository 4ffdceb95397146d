// SPDX-License-Identifier: Apache-2.0
#include "warmstart.h"

#include "bootid.h"
#include "bytes.h"
#include "clock.h"
#include "devices.h"
#include "entropy.h"
#include "files.h"
#include "records.h"
#include "runfolder.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

#define TEMPLATE_WORD "hypeman.template"
#define MAGIC "HYPESTA1"

enum {
    LINE_SIZE = 4097,
    TELL_AGAIN_MS = 50, /* a host that does not listen yet misses it */
    HEADER_SIZE = 12,
};

/* In sectors, a size that no disk of a VM has: hypemand/vmm/template.py. */
static const char placeholder[] = "2147483649\n";

/* Of the network device of a template: hypemand/vmm/template.py. */
static const char template_mac[] = "52:54:00:00:00:00";

static bool is_template(void)
{
    char line[LINE_SIZE];
    char *next = NULL;
    if (file_read("/proc/cmdline", line, sizeof line) < 0)
        return false;
    for (char *word = strtok_r(line, " \n", &next); word != NULL; word = strtok_r(NULL, " \n", &next)) {
        if (strcmp(word, TEMPLATE_WORD) == 0)
            return true;
    }
    return false;
}

/* --- disks --- */

/* Has the kernel seen of each disk that it is another one? */
static bool has_disks(void)
{
    DIR *entries = opendir("/sys/block");
    const struct dirent *entry;
    bool all = entries != NULL;
    while (all && (entry = readdir(entries)) != NULL) {
        char path[DEVICE_PATH_SIZE + NAME_MAX];
        char size[32];
        if (strncmp(entry->d_name, "vd", 2) != 0)
            continue;
        (void)snprintf(path, sizeof path, "/sys/block/%s/size", entry->d_name);
        all = file_read(path, size, sizeof size) > 0 && strcmp(size, placeholder) != 0;
    }
    if (entries != NULL)
        (void)closedir(entries);
    return all;
}

static void tell_host(void)
{
    static const char line[] = "HYPEMAN-TEMPLATE\n";
    char path[DEVICE_PATH_SIZE];
    int port =
        find_port("org.hypeman.report", path) ? open(path, O_WRONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY) : -1;
    (void)!write(port, line, sizeof line - 1);
    close_fd(&port);
}

/* Until it goes on as another VM: the host saves it as soon as it hears of it. */
static void await_disks(int events)
{
    bool told = true;
    while (!has_disks()) {
        struct pollfd poll_for = {.fd = events, .events = POLLIN};
        if (told)
            tell_host();
        told = poll(&poll_for, 1, told ? TELL_AGAIN_MS : -1) == 0;
        device_events_drain(events);
    }
}

static bool protect(const char *serial, struct reason *why)
{
    static const int on = 1;
    char path[DEVICE_PATH_SIZE];
    if (!find_block(serial, path))
        return true;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    bool done = fd >= 0 && syscall(SYS_ioctl, fd, BLKROSET, &on) == 0;
    if (!done)
        (void)refuse(why, "cannot make the disk %s read-only: %s", serial, strerror(errno));
    close_fd(&fd);
    return done;
}

bool warm_start_adapt(const struct warm_start *start, struct config *config, struct reason *why)
{
    static const char *const always[] = {"hypeman-config", "hypeman-image"};
    bool done = true;
    if (!start->warm)
        return true;
    for (size_t i = 0; done && i < sizeof always / sizeof always[0]; i++)
        done = protect(always[i], why);
    if (done && config->headers)
        done = protect("hypeman-headers", why);
    if (done && config->files)
        done = protect("hypeman-files", why);
    if (done && config->secrets.count > 0)
        done = protect("hypeman-secrets", why);
    for (size_t i = 0; done && i < config->volumes.count; i++) {
        const struct volume *volume = &config->volumes.all[i];
        if (volume->readonly && volume->serial != NULL)
            done = protect(volume->serial, why);
    }
    for (size_t i = 0; i < config->network.count; i++)
        config->network.interfaces[i].old_mac = template_mac;
    return done;
}

/* --- the start block --- */

bool start_block_parse(struct warm_start *start, char boot[BOOT_ID_LENGTH + 1], struct timespec *clock,
                       uint8_t *entropy, struct reason *why)
{
    char *records = start->block + HEADER_SIZE;
    size_t size = get_le32((const uint8_t *)start->block + sizeof MAGIC - 1);
    bool has_clock = false;
    bool has_entropy = false;
    size_t offset = 0;
    struct record record;
    if (memcmp(start->block, MAGIC, sizeof MAGIC - 1) != 0 || size > START_BLOCK_SIZE - HEADER_SIZE ||
        !records_valid(records, size))
        return refuse(why, "config disk: it does not end with what a warm start needs");
    while (records_next(records, size, &offset, &record)) {
        if (record_is(&record, "clock"))
            has_clock = clock_parse(record.value, clock);
        else if (record_is(&record, "entropy"))
            has_entropy = entropy_parse(record.value, entropy);
        else if (record_is(&record, "words"))
            start->words = record.value;
    }
    return (has_clock && has_entropy && start->words != NULL && boot_id_parse(start->words, boot)) ||
           refuse(why, "config disk: a warm start needs clock, entropy, and words with a boot id");
}

static bool read_block(struct warm_start *start, struct reason *why)
{
    char path[DEVICE_PATH_SIZE];
    if (!find_block("hypeman-config", path))
        return refuse(why, "no block device with the serial hypeman-config came up");
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    off_t end = fd < 0 ? -1 : lseek(fd, 0, SEEK_END);
    bool read = end >= START_BLOCK_SIZE &&
                file_read_exactly(fd, start->block, START_BLOCK_SIZE, end - START_BLOCK_SIZE);
    if (!read)
        (void)refuse(why, "config disk: cannot read %s: %s", path, strerror(errno));
    close_fd(&fd);
    return read;
}

/* Random numbers first: what comes after it may use them. */
static bool take_identity(struct warm_start *start, struct report *report, struct reason *why)
{
    struct timespec clock;
    uint8_t entropy[ENTROPY_SIZE];
    if (!read_block(start, why) || !start_block_parse(start, report->boot, &clock, entropy, why) ||
        !entropy_add(entropy, why))
        return false;
    return clock_set(&clock) == 0 || refuse(why, "cannot set the clock: %s", strerror(errno));
}

bool freeze_point(struct warm_start *start, struct report *report, struct agent_process *agent, int *events,
                  struct reason *why)
{
    start->warm = is_template();
    if (!start->warm)
        return boot_id_read(report->boot) ||
               refuse(why, "the kernel command line has no hypeman.boot= of 32 hex digits");
    *events = device_events_open();
    if (*events < 0)
        return refuse(why, "cannot wait for disks: %s", strerror(errno));
    report_console(report);
    (void)agent_start(agent);
    agent_await(agent);
    await_disks(*events);
    report_thaw(report);
    if (!take_identity(start, report, why))
        return false;
    report_thawed(report);
    return true;
}

bool warm_start_show(const struct warm_start *start, struct reason *why)
{
    char text[LINE_SIZE];
    if (!start->warm) {
        (void)unlink(SHOWN_WORDS); /* An image may have it. */
        return true;
    }
    (void)snprintf(text, sizeof text, "%s\n", start->words);
    if (!folder_make(RUN_FOLDER, 0755) || !file_write(SHOWN_WORDS, O_CREAT | O_TRUNC, text) ||
        mount(SHOWN_WORDS, "/proc/cmdline", NULL, MS_BIND, NULL) != 0)
        return refuse(why, "cannot show the words of this start in /proc/cmdline: %s", strerror(errno));
    return true;
}
