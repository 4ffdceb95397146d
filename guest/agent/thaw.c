// SPDX-License-Identifier: Apache-2.0
#include "thaw.h"

#include "bootid.h"
#include "clock.h"
#include "machineid.h"
#include "records.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

static bool parse_clock(const char *value, struct timespec *clock, struct reason *why)
{
    return clock_parse(value, clock) ||
           refuse(why, "clock=%.40s: expected nanoseconds since the epoch", value);
}

static bool parse_entropy(const char *value, uint8_t bytes[ENTROPY_SIZE], struct reason *why)
{
    return entropy_parse(value, bytes) || refuse(why, "entropy: expected %d hex digits", 2 * ENTROPY_SIZE);
}

static bool take_identity(struct thaw *thaw, const struct record *record, char *value, struct reason *why)
{
    if (record_is(record, "boot")) {
        thaw->boot = value;
        return boot_id_valid(value) || refuse(why, "boot=%.40s: expected 32 hex digits", value);
    }
    if (record_is(record, "hostname")) {
        thaw->hostname = value;
        return (host_name_valid(value) && strlen(value) <= HOST_NAME_MAX) ||
               refuse(why, "hostname=%.70s: expected a host name of at most %d characters", value,
                      HOST_NAME_MAX);
    }
    if (record_is(record, "machine_id")) {
        thaw->machine_id = value;
        return machine_id_valid(value) || refuse(why, "machine_id=%.40s: expected 32 hex digits", value);
    }
    if (record_is(record, "net"))
        return network_add_interface(&thaw->network, value, why);
    if (record_is(record, "dns"))
        return network_add_dns(&thaw->network, value, why);
    if (record_is(record, "search"))
        return network_add_search(&thaw->network, value, why);
    if (record_is(record, "host"))
        return host_parse(value, &thaw->hosts.all[thaw->hosts.count++], why);
    if (record_is(record, "reset")) {
        thaw->reset_ssh_host_keys = true;
        return strcmp(value, "ssh-host-keys") == 0 ||
               refuse(why, "reset=%.40s is not known to this agent; it knows ssh-host-keys", value);
    }
    return true;
}

static bool take_records(char *records, size_t size, struct thaw *thaw, struct reason *why)
{
    bool has_clock = false;
    bool has_entropy = false;
    bool taken = true;
    size_t offset = 0;
    struct record record;
    while (taken && records_next(records, size, &offset, &record)) {
        char *value = records + (record.value - records);
        if (record_is(&record, "clock"))
            taken = has_clock = parse_clock(value, &thaw->clock, why);
        else if (record_is(&record, "entropy"))
            taken = has_entropy = parse_entropy(value, thaw->entropy, why);
        else
            taken = take_identity(thaw, &record, value, why);
    }
    return taken && ((has_clock && has_entropy) || refuse(why, "it needs clock and entropy"));
}

bool thaw_parse(char *records, size_t size, struct thaw *thaw, struct reason *why)
{
    struct reason what = {""};
    *thaw = (struct thaw){0};
    thaw->hosts.all = calloc(records_count(records, size, "host") + 1, sizeof(struct host));
    bool taken =
        thaw->hosts.all == NULL ? refuse(&what, "no memory") : take_records(records, size, thaw, &what);
    if (!taken)
        thaw_free(thaw);
    return taken || refuse(why, "THAW: %.480s", what.words);
}

void thaw_free(struct thaw *thaw)
{
    free(thaw->hosts.all);
    thaw->hosts = (struct hosts){0};
}
