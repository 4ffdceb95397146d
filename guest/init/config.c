// SPDX-License-Identifier: Apache-2.0
#include "config.h"

#include "crc32.h"
#include "diskbody.h"
#include "environment.h"
#include "files.h"
#include "machineid.h"
#include "probe.h"
#include "records.h"
#include "settings.h"
#include "sysctls.h"
#include "tmpfs.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { RECORDS_MAX = 1048576, SIGNAL_MAX = 64 };

/* How often each key may stand there. Keys that are not listed are ignored. */
static const struct {
    const char *key;
    size_t least;
    size_t most;
} keys[] = {
    {"version", 1, 1},    {"name", 1, 1},        {"mode", 1, 1},         {"arg", 1, SIZE_MAX},
    {"env", 0, SIZE_MAX}, {"workdir", 0, 1},     {"user", 0, 1},         {"agent", 1, 1},
    {"headers", 1, 1},    {"stop_signal", 0, 1}, {"host", 0, HOSTS_MAX}, {"machine_id", 0, 1},
    {"ready", 0, 1},      {"init", 0, 1},        {"read_only", 0, 1},    {"files", 0, 1},
    {"stdin", 0, 1},      {"tty", 0, 1},         {"reset", 0, 1},        {"former_machine_id", 0, 16},
};

static bool check_counts(const struct config *config, struct reason *why)
{
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        size_t count = records_count(config->records, config->size, keys[i].key);
        if (count < keys[i].least)
            return refuse(why, "config disk: \"%s\" is missing", keys[i].key);
        if (count > keys[i].most)
            return refuse(why, "config disk: \"%s\" stands there %zu times; at most %zu is right",
                          keys[i].key, count, keys[i].most);
    }
    return true;
}

static bool parse_flag(const struct record *record, bool *flag, struct reason *why)
{
    *flag = strcmp(record->value, "1") == 0;
    if (!*flag && strcmp(record->value, "0") != 0)
        return refuse(why, "config disk: %.*s=%s: expected 0 or 1", (int)record->key_length, record->key,
                      record->value);
    return true;
}

static bool parse_mode(const char *value, enum mode *mode, struct reason *why)
{
    if (strcmp(value, "exec") == 0)
        *mode = MODE_EXEC;
    else if (strcmp(value, "systemd") == 0)
        *mode = MODE_SYSTEMD;
    else
        return refuse(why, "config disk: mode=%s: expected exec or systemd", value);
    return true;
}

static bool parse_stop_signal(const char *value, int *number, struct reason *why)
{
    unsigned long parsed;
    if (!parse_number(value, SIGNAL_MAX, &parsed) || parsed == 0)
        return refuse(why, "config disk: stop_signal=%s: expected a number from 1 to %d", value, SIGNAL_MAX);
    *number = (int)parsed;
    return true;
}

/* What also others than a config disk say does not name it in its words. */
static bool of_disk(bool taken, const struct reason *what, struct reason *why)
{
    return taken || refuse(why, "config disk: %.480s", what->words);
}

static bool check_setting(const struct record *record, struct reason *why)
{
    struct reason what = {""};
    return of_disk(settings_check(record, &what), &what, why);
}

static bool take_ready(struct config *config, char *value, struct reason *why)
{
    config->ready_record = strdup(value);
    return config->ready_record == NULL ? refuse(why, "config disk: no memory for it")
                                        : check_parse(value, &config->ready, why);
}

/* What of the check hangs on other records. */
static void complete_ready(struct config *config, size_t envs)
{
    static char notify[] = "NOTIFY_SOCKET=" NOTIFY_PATH;
    config->ready.loopback = config->network.count == 0;
    if (config->ready.kind == CHECK_NOTIFY && config->mode == MODE_EXEC)
        config->environment[envs] = notify;
}

static bool take_record(struct config *config, const struct record *record, size_t *args, size_t *envs,
                        struct reason *why)
{
    /* The records are ours to write to, and argv's type wants that. */
    char *value = config->records + (record->value - config->records);
    struct reason what = {""};
    if (record_is(record, "version"))
        return strcmp(value, "1") == 0 ||
               refuse(why, "config disk: version %s is not known to this guest; it knows 1", value);
    if (record_is(record, "name"))
        config->name = value;
    else if (record_is(record, "mode"))
        return parse_mode(value, &config->mode, why);
    else if (record_is(record, "arg"))
        config->argv[(*args)++] = value;
    else if (record_is(record, "env")) {
        if (!environment_valid(value))
            return refuse(why, "config disk: env=%s: expected KEY=value", value);
        config->environment[(*envs)++] = value;
    } else if (record_is(record, "workdir")) {
        config->folder = value;
        return *value == '/' || refuse(why, "config disk: workdir=%s: expected an absolute path", value);
    } else if (record_is(record, "user"))
        config->user = value;
    else if (record_is(record, "stop_signal"))
        return parse_stop_signal(value, &config->stop_signal, why);
    else if (record_is(record, "machine_id")) {
        config->machine_id = value;
        return machine_id_valid(value) ||
               refuse(why, "config disk: machine_id=%s: expected 32 hex digits", value);
    } else if (record_is(record, "former_machine_id"))
        return machine_id_valid(value) ||
               refuse(why, "config disk: former_machine_id=%s: expected 32 hex digits", value);
    else if (record_is(record, "reset")) {
        config->reset_ssh_host_keys = true;
        return strcmp(value, "ssh-host-keys") == 0 ||
               refuse(why, "config disk: reset=%s is not known to this guest; it knows ssh-host-keys", value);
    } else if (record_is(record, "agent"))
        return parse_flag(record, &config->agent, why);
    else if (record_is(record, "headers"))
        return parse_flag(record, &config->headers, why);
    else if (record_is(record, "init"))
        return parse_flag(record, &config->reaper, why);
    else if (record_is(record, "read_only"))
        return parse_flag(record, &config->readonly_root, why);
    else if (record_is(record, "stdin"))
        return parse_flag(record, &config->input, why);
    else if (record_is(record, "tty"))
        return parse_flag(record, &config->terminal, why);
    else if (record_is(record, "files"))
        return parse_flag(record, &config->files, why);
    else if (record_is(record, "secret"))
        return secret_parse(value, &config->secrets.all[config->secrets.count++], why);
    else if (record_is(record, "sysctl"))
        return sysctl_check(value, why);
    else if (record_is(record, "tmpfs"))
        return tmpfs_parse(value, &config->volumes.all[config->volumes.count++], why);
    else if (record_is(record, "volume"))
        return volume_parse(value, &config->volumes.all[config->volumes.count++], why);
    else if (record_is(record, "net"))
        return of_disk(network_add_interface(&config->network, value, &what), &what, why);
    else if (record_is(record, "dns"))
        return of_disk(network_add_dns(&config->network, value, &what), &what, why);
    else if (record_is(record, "search"))
        return of_disk(network_add_search(&config->network, value, &what), &what, why);
    else if (record_is(record, "host"))
        return of_disk(host_parse(value, &config->hosts.all[config->hosts.count++], &what), &what, why);
    else if (record_is(record, "ready"))
        return take_ready(config, value, why);
    return check_setting(record, why);
}

bool config_parse(char *records, size_t size, struct config *config, struct reason *why)
{
    *config = (struct config){
        .records = records, .size = size, .mode = MODE_EXEC, .folder = "/", .stop_signal = SIGTERM};
    if (!records_valid(records, size))
        return refuse(why, "config disk: its records cannot be read");
    if (!check_counts(config, why))
        return false;
    config->argv = calloc(records_count(records, size, "arg") + 1, sizeof(char *));
    config->environment = calloc(records_count(records, size, "env") + 2, sizeof(char *));
    config->volumes.all =
        calloc(records_count(records, size, "volume") + records_count(records, size, "tmpfs") + 1,
               sizeof(struct volume));
    config->secrets.all = calloc(records_count(records, size, "secret") + 1, sizeof(struct secret));
    config->hosts.all = calloc(records_count(records, size, "host") + 1, sizeof(struct host));
    if (config->argv == NULL || config->environment == NULL || config->volumes.all == NULL ||
        config->hosts.all == NULL || config->secrets.all == NULL)
        return refuse(why, "config disk: no memory for it");
    size_t offset = 0;
    size_t args = 0;
    size_t envs = 0;
    struct record record;
    while (records_next(records, size, &offset, &record)) {
        if (!take_record(config, &record, &args, &envs, why))
            return false;
    }
    complete_ready(config, envs);
    if ((config->input || config->terminal) && !config->agent)
        return refuse(why, "config disk: stdin and tty need the agent");
    return volumes_sort(&config->volumes, why);
}

static char *read_records(int fd, size_t *size, struct reason *why)
{
    static const struct disk_form form = {"config disk", "its records ", "HYPECFG1", RECORDS_MAX};
    uint32_t checksum;
    char *records = disk_body_read(fd, &form, size, &checksum, why);
    if (records != NULL && crc32_ieee(records, *size) != checksum) {
        (void)refuse(why, "config disk: its checksum is wrong");
        free(records);
        return NULL;
    }
    return records;
}

bool config_read(const char *path, struct config *config, struct reason *why)
{
    *config = (struct config){0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return refuse(why, "config disk: cannot open %s: %s", path, strerror(errno));
    size_t size = 0;
    char *records = read_records(fd, &size, why);
    close_fd(&fd);
    return records != NULL && config_parse(records, size, config, why);
}

void config_free(struct config *config)
{
    free(config->argv);
    free(config->environment);
    free(config->volumes.all);
    free(config->hosts.all);
    free(config->secrets.all);
    free(config->ready_record);
    free(config->records);
    *config = (struct config){0};
}
