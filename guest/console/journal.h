// SPDX-License-Identifier: Apache-2.0
/*
 * The way of a VM's lines into the journal: journald's native protocol (systemd's Native Journal Protocol),
 * which keeps lines as they are. Its streams, such as standard output of a service, drop empty lines and
 * trailing blanks.
 *
 * An entry of a line has MESSAGE, or for a stage of the boot HYPEMAN_STAGE in its place, which journalctl
 * does not show. Every 16th, from the first, has HYPEMAN_LINE: the number of the line in this run, from 1. An
 * entry that says that lines are missing has HYPEMAN_DROPPED, their number. The last one of a run has no
 * text, and the number of the line that would be next. Markers have priority debug, and what tells of missing
 * lines has priority warning: journald's own limit counts these apart from other lines, and so keeps them.
 */
#pragma once

#include "queue.h"

#include <stdbool.h>

struct journal {
    /* -1: by the stream that standard output is */
    int link;
    const char *socket;
    const char *name;
    /* the line that the stream is in, without its end; 0: none */
    uint64_t open;
    /* bytes of the next entries that are in the stream already */
    size_t written;
    bool broken;
};

/* `socket`: journald's, NULL for none. `name`: SYSLOG_IDENTIFIER of what is sent. */
void journal_open(struct journal *journal, const char *socket, const char *name);

/* What to wait for until something can be sent: POLLOUT. */
int journal_descriptor(const struct journal *journal);

/* Send what goes without waiting, and drop it from the queue. When nothing takes anything any more, all. */
void journal_send(struct journal *journal, struct queue *queue);

/* Send what has no effect; once it is received (`journal_is_received`), journald is done with all before it.
   It reads from /proc whose unit the sender is, so that must not end sooner. False: it cannot be sent without
   waiting. */
bool journal_send_fence(struct journal *journal);
bool journal_is_received(const struct journal *journal);
