// SPDX-License-Identifier: Apache-2.0
#include "newowner.h"

#include "files.h"
#include "machineid.h"
#include "records.h"
#include "sshkeys.h"

#include <fcntl.h>

static bool is_of_another(const struct config *config, int upper)
{
    size_t offset = 0;
    struct record record;
    while (records_next(config->records, config->size, &offset, &record)) {
        if (record_is(&record, "former_machine_id") && machine_id_is(upper, record.value))
            return true;
    }
    return false;
}

bool new_owner(struct config *config, int initrd, struct reason *why)
{
    if (config->machine_id == NULL || records_count(config->records, config->size, "former_machine_id") == 0)
        return true;
    int upper = openat(initrd, "disk/upper", O_PATH | O_DIRECTORY | O_CLOEXEC);
    bool renews = upper >= 0 && is_of_another(config, upper);
    close_fd(&upper);
    if (!renews)
        return true;
    /* The keys first: with its own machine id it is not looked at again. */
    config->new_ssh_host_keys = config->reset_ssh_host_keys;
    return (!config->reset_ssh_host_keys || ssh_host_keys_remove(why)) &&
           machine_id_set(config->machine_id, why);
}
