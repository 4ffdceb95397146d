/* SPDX-License-Identifier: Apache-2.0 */
/* What the host asks of this boot: the config disk of docs/protocol.md. */
#ifndef HYPEMAN_CONFIG_H
#define HYPEMAN_CONFIG_H

#include "check.h"
#include "hosts.h"
#include "network.h"
#include "placement.h"
#include "reason.h"
#include "volumes.h"

#include <stdbool.h>
#include <stddef.h>

enum mode { MODE_EXEC, MODE_SYSTEMD };

struct config {
    char *records; /* owns every string below */
    size_t size;
    const char *name;
    enum mode mode;
    char **argv;        /* at least one, NULL-ended */
    char **environment; /* NULL-ended */
    const char *folder;
    const char *user;         /* or NULL */
    const char *machine_id;   /* or NULL */
    bool reset_ssh_host_keys; /* of a disk that was another VM's */
    bool new_ssh_host_keys;   /* were they? */
    int stop_signal;
    bool agent;
    bool headers;
    struct check ready;
    char *ready_record; /* what it was read from, as it was; owned */
    bool reaper;        /* PID 1 of the program's namespace, in the program's place */
    bool readonly_root; /* of exec mode */
    bool input;         /* the program's stdin is open to those who attach; of exec mode */
    bool terminal;      /* it has a terminal; of exec mode */
    struct volumes volumes;
    struct network network;
    struct hosts hosts;
    bool files; /* is there a disk with files? */
    struct secrets secrets;
};

/* Take the records (an allocation, which the config then owns) apart. False with a reason if they are not
 * whole, a key is missing, stands there too often, or has a value that it cannot have. */
bool config_parse(char *records, size_t size, struct config *config, struct reason *why);

/* Read, verify and take apart a config disk (or a file like one). */
bool config_read(const char *path, struct config *config, struct reason *why);

void config_free(struct config *config);

#endif
