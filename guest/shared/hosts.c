// SPDX-License-Identifier: Apache-2.0
#include "hosts.h"

#include "fields.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { NAME_LENGTH_MAX = 253 };

/* --- what the host asks for --- */

bool host_name_valid(const char *name)
{
    size_t length = strlen(name);
    for (size_t i = 0; i < length; i++) {
        if (!isalnum((unsigned char)name[i]) && strchr("-._", name[i]) == NULL)
            return false;
    }
    return length > 0 && length <= NAME_LENGTH_MAX;
}

static bool address_valid(const char *address)
{
    unsigned char bytes[sizeof(struct in6_addr)];
    return inet_pton(strchr(address, ':') == NULL ? AF_INET : AF_INET6, address, bytes) == 1;
}

static bool take_field(struct host *host, const struct field *field, struct reason *why)
{
    if (strcmp(field->key, "address") == 0) {
        host->address = field->value;
        return address_valid(field->value) ||
               refuse(why, "host: address=%s: expected an address", field->value);
    }
    if (strcmp(field->key, "name") == 0) {
        if (host->name_count == HOST_NAMES_MAX)
            return refuse(why, "host: expected at most %d names", HOST_NAMES_MAX);
        host->names[host->name_count++] = field->value;
        return host_name_valid(field->value) ||
               refuse(why, "host: name=%s: expected a host name", field->value);
    }
    return true;
}

bool host_parse(char *value, struct host *host, struct reason *why)
{
    struct field field;
    enum fields_step step;
    while ((step = fields_next(&value, &field)) == FIELDS_ONE) {
        if (!take_field(host, &field, why))
            return false;
    }
    if (step == FIELDS_BROKEN)
        return refuse(why, "host: its fields cannot be read");
    return (host->address != NULL && host->name_count > 0) ||
           refuse(why, "host: it needs an address and a name");
}

static bool names_hosts(const struct hosts *hosts, const char *name)
{
    for (size_t i = 0; i < hosts->count; i++) {
        for (size_t j = 0; j < hosts->all[i].name_count; j++) {
            if (strcasecmp(hosts->all[i].names[j], name) == 0)
                return true;
        }
    }
    return false;
}

/* --- the text --- */

struct text {
    char *bytes;
    size_t used;
};

static void add(struct text *text, const char *bytes, size_t length)
{
    memcpy(text->bytes + text->used, bytes, length);
    text->used += length;
    text->bytes[text->used] = '\0';
}

static void add_word(struct text *text, const char *word)
{
    add(text, word, strlen(word));
}

static size_t block_size(const struct hosts *hosts)
{
    size_t size = sizeof HOSTS_BEGIN "\n" HOSTS_END "\n";
    for (size_t i = 0; i < hosts->count; i++) {
        size += strlen(hosts->all[i].address) + 1;
        for (size_t j = 0; j < hosts->all[i].name_count; j++)
            size += strlen(hosts->all[i].names[j]) + 1;
    }
    return size;
}

static void add_block(struct text *text, const struct hosts *hosts)
{
    if (hosts->count == 0)
        return;
    add_word(text, HOSTS_BEGIN "\n");
    for (size_t i = 0; i < hosts->count; i++) {
        add_word(text, hosts->all[i].address);
        for (size_t j = 0; j < hosts->all[i].name_count; j++) {
            add_word(text, j == 0 ? "\t" : " ");
            add_word(text, hosts->all[i].names[j]);
        }
        add_word(text, "\n");
    }
    add_word(text, HOSTS_END "\n");
}

/* Does a line of the text, comments aside, have this name? */
static bool names_line(const char *text, const char *name)
{
    while (*text != '\0') {
        const char *end = text + strcspn(text, "\n#");
        while (text < end) {
            size_t length = strcspn(text, " \t\r\n#");
            if (length == strlen(name) && strncasecmp(text, name, length) == 0)
                return true;
            text += length;
            text += strspn(text, " \t\r");
        }
        text = end + strcspn(end, "\n");
        text += *text == '\n' ? 1 : 0;
    }
    return false;
}

/* Is it the line `start` and then `rest`? */
static bool line_is(const char *line, size_t length, const char *start, const char *rest)
{
    size_t split = strlen(start);
    return length == split + strlen(rest) && memcmp(line, start, split) == 0 &&
           memcmp(line + split, rest, length - split) == 0;
}

static bool is_of(const char *line, size_t length, const char *start, const char *name)
{
    return name != NULL && line_is(line, length, start, name);
}

/* What comes behind the block that begins with this line; NULL if it has no end. */
static const char *skip_block(const char *line)
{
    while (*line != '\0') {
        size_t length = strcspn(line, "\n");
        const char *next = line + length + (line[length] == '\n' ? 1 : 0);
        if (line_is(line, length, HOSTS_END, ""))
            return next;
        line = next;
    }
    return NULL;
}

/* The lines that are there, with the new block in the place of the old one. `gone`: a name that has no
 * loopback address any more, which an earlier boot gave it; or NULL. */
static bool add_old(struct text *text, const char *old, const char *gone, const char *former,
                    const struct hosts *hosts)
{
    bool placed = false;
    while (*old != '\0') {
        size_t length = strcspn(old, "\n");
        const char *next = old + length + (old[length] == '\n' ? 1 : 0);
        if (line_is(old, length, HOSTS_BEGIN, "")) {
            const char *behind = skip_block(next);
            if (!placed)
                add_block(text, hosts);
            placed = true;
            old = behind == NULL ? next : behind;
            continue;
        }
        if (is_of(old, length, "127.0.0.1\tlocalhost ", gone) ||
            is_of(old, length, "127.0.0.1\tlocalhost ", former))
            add_word(text, "127.0.0.1\tlocalhost\n");
        else if (!is_of(old, length, "127.0.1.1\t", gone) && !is_of(old, length, "127.0.1.1\t", former))
            add(text, old, (size_t)(next - old));
        old = next;
    }
    return placed;
}

char *hosts_derive(const char *old, const char *name, const char *former, const struct hosts *hosts)
{
    static const char loopback[] = "127.0.0.1\tlocalhost";
    static const char loopback6[] = "::1\tlocalhost ip6-localhost\n";
    bool known = names_hosts(hosts, name);
    struct text text = {.bytes = malloc(strlen(old) + block_size(hosts) + 2 * strlen(name) + 128)};
    if (text.bytes == NULL)
        return NULL;
    text.bytes[0] = '\0';
    if (former != NULL && strcmp(former, name) == 0)
        former = NULL;
    /* An address that the host knows comes in the place of the loopback address. */
    bool placed = add_old(&text, old, known ? name : NULL, former, hosts);
    if (*old == '\0') {
        add_word(&text, loopback);
        add_word(&text, known ? "" : " ");
        add_word(&text, known ? "" : name);
        add_word(&text, "\n");
        add_word(&text, loopback6);
    }
    bool nameless = !known && !names_line(text.bytes, name);
    bool broken = text.used > 0 && text.bytes[text.used - 1] != '\n';
    if (broken && (nameless || (!placed && hosts->count > 0)))
        add_word(&text, "\n");
    if (nameless) {
        add_word(&text, "127.0.1.1\t");
        add_word(&text, name);
        add_word(&text, "\n");
    }
    if (!placed)
        add_block(&text, hosts);
    return text.bytes;
}
