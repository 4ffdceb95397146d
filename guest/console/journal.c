// SPDX-License-Identifier: Apache-2.0
#include "journal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/sockios.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <syslog.h>
#include <unistd.h>

enum {
    /* of an entry, beside its text */
    FIELDS_MAX = 512,
    SEND_BUFFER = 512 * 1024,
    /* lines between two that have their numbers: a number for each would take journald a fifth longer */
    NUMBER_EVERY = 16,
};

static char buffer[ENTRY_MAX + FIELDS_MAX];

static int connect_to(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length = strlen(path);
    if (length >= sizeof address.sun_path)
        return -1;
    memcpy(address.sun_path, path, length);
    int link = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int size = SEND_BUFFER;
    if (link >= 0 && connect(link, (const struct sockaddr *)&address, sizeof address) == 0) {
        (void)setsockopt(link, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
        return link;
    }
    if (link >= 0)
        close(link);
    return -1;
}

void journal_open(struct journal *journal, const char *socket_path, const char *name)
{
    *journal = (struct journal){-1, socket_path, name, 0, 0, false};
    if (socket_path != NULL)
        journal->link = connect_to(socket_path);
    (void)!fcntl(STDOUT_FILENO, F_SETFL, fcntl(STDOUT_FILENO, F_GETFL) | O_NONBLOCK);
}

int journal_descriptor(const struct journal *journal)
{
    return journal->link >= 0 ? journal->link : STDOUT_FILENO;
}

static bool begins(const struct entry *entry, const char *mark)
{
    size_t length = strlen(mark);
    return entry->length > length && memcmp(entry->text, mark, length) == 0;
}

/* The fields of an entry, in the buffer: their length. */
static size_t format_fields(const struct entry *entry, const char *name)
{
    char *at = buffer;
    bool is_text = entry->kind == LINE || entry->kind == PIECE;
    /* A terminal's end of a line, as of a guest's systemd: journalctl would show it as binary data. */
    bool ends = entry->kind == LINE || (entry->kind == PIECE && entry->length < ENTRY_MAX);
    bool has_cr = ends && entry->length > 0 && entry->text[entry->length - 1] == '\r';
    int priority = !is_text ? LOG_WARNING : begins(entry, "HYPEMAN-") ? LOG_DEBUG : LOG_INFO;
    if (entry->kind != END) {
        at = stpcpy(at, begins(entry, "HYPEMAN-STAGE name=") ? "HYPEMAN_STAGE=" : "MESSAGE=");
        memcpy(at, entry->text, entry->length);
        at += entry->length - has_cr;
        *at++ = '\n';
    }
    if (has_cr)
        at = stpcpy(at, "HYPEMAN_CR=1\n");
    at += sprintf(at, "PRIORITY=%d\nSYSLOG_FACILITY=%d\nSYSLOG_IDENTIFIER=%.64s\n", priority, LOG_DAEMON >> 3,
                  name);
    if (!is_text || entry->number % NUMBER_EVERY == 1)
        at += sprintf(at, "HYPEMAN_%s=%" PRIu64 "\n", entry->kind == NOTICE ? "DROPPED" : "LINE",
                      entry->number);
    return (size_t)(at - buffer);
}

/* An entry is a datagram: systemd 257 takes only the first one of it. True: journald may take more at once.
 */
static bool send_entry(struct journal *journal, struct queue *queue)
{
    struct entry entry;
    if (!queue_first(queue, &entry))
        return false;
    if (send(journal->link, buffer, format_fields(&entry, journal->name), MSG_NOSIGNAL) >= 0) {
        queue_drop(queue);
        return true;
    }
    if (errno == EINTR)
        return true;
    if (errno == EAGAIN)
        return false;
    /* The socket may have been made anew. It is bound into the VMM's root: if that is not the new one, only
       the stream is left. */
    bool was_gone = errno == ECONNREFUSED || errno == ENOTCONN || errno == EPIPE;
    close(journal->link);
    journal->link = was_gone ? connect_to(journal->socket) : -1;
    return true;
}

/* The entry as a stream has it. */
static size_t format_text(const struct journal *journal, const struct entry *entry)
{
    char *at = buffer;
    if (journal->open != 0 && (entry->kind == NOTICE || journal->open != entry->number))
        *at++ = '\n';
    if (entry->length > 0)
        memcpy(at, entry->text, entry->length);
    at += entry->length;
    if (entry->kind == LINE || entry->kind == NOTICE)
        *at++ = '\n';
    return (size_t)(at - buffer);
}

static bool write_entry(struct journal *journal, struct queue *queue)
{
    struct entry entry;
    if (!queue_first(queue, &entry))
        return false;
    size_t length = entry.kind == END ? 0 : format_text(journal, &entry);
    while (journal->written < length) {
        ssize_t written = write(STDOUT_FILENO, buffer + journal->written, length - journal->written);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0) {
            journal->broken = errno != EAGAIN;
            return false;
        }
        journal->written += (size_t)written;
    }
    journal->written = 0;
    journal->open = entry.kind == PIECE ? entry.number : 0;
    queue_drop(queue);
    return true;
}

void journal_send(struct journal *journal, struct queue *queue)
{
    while (!queue_is_empty(queue) && !journal->broken)
        if (!(journal->link >= 0 ? send_entry(journal, queue) : write_entry(journal, queue)))
            break;
    while (journal->broken && !queue_is_empty(queue))
        queue_drop(queue);
}

bool journal_send_fence(struct journal *journal)
{
    return journal->link < 0 || send(journal->link, "", 0, MSG_NOSIGNAL) >= 0 || errno != EAGAIN;
}

bool journal_is_received(const struct journal *journal)
{
    int unread = 0;
    return journal->link < 0 || ioctl(journal->link, SIOCOUTQ, &unread) != 0 || unread == 0;
}
