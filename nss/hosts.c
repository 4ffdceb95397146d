// SPDX-License-Identifier: Apache-2.0
#include "hosts.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

static const char blanks[] = " \t\r\f\v";

bool hosts_open(struct hosts *hosts, const char *path)
{
    struct stat status;
    *hosts = (struct hosts){.fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK)};
    if (hosts->fd < 0)
        return false;
    bool known = fstat(hosts->fd, &status) == 0;
    if (known && S_ISREG(status.st_mode))
        return true;
    int error = known ? EINVAL : errno;
    hosts_close(hosts);
    errno = error;
    return false;
}

void hosts_close(struct hosts *hosts)
{
    if (hosts->fd >= 0)
        (void)close(hosts->fd);
    hosts->fd = -1;
}

/* More of the file behind what is in the buffer, where one byte is kept free. False at its end. */
static bool fill(struct hosts *hosts)
{
    memmove(hosts->buffer, hosts->buffer + hosts->start, hosts->end - hosts->start);
    hosts->end -= hosts->start;
    hosts->start = 0;
    size_t room = sizeof hosts->buffer - 1 - hosts->end;
    if (room > HOSTS_SIZE_MAX - hosts->read)
        room = HOSTS_SIZE_MAX - hosts->read;
    ssize_t got;
    do
        got = read(hosts->fd, hosts->buffer + hosts->end, room);
    while (got < 0 && errno == EINTR);
    hosts->failed = got < 0;
    if (got <= 0)
        return false;
    hosts->read += (size_t)got;
    hosts->end += (size_t)got;
    return true;
}

/* The text of the next line that is not too long, ended with a NUL; NULL when there is none. */
static char *next_text(struct hosts *hosts)
{
    bool cut = false; /* the beginning of this line was thrown away */
    for (;;) {
        char *text = hosts->buffer + hosts->start;
        char *newline = memchr(text, '\n', hosts->end - hosts->start);
        if (newline != NULL) {
            *newline = '\0';
            hosts->start = (size_t)(newline + 1 - hosts->buffer);
            if (!cut)
                return text;
            cut = false;
            continue;
        }
        if (hosts->end - hosts->start == sizeof hosts->buffer - 1) {
            hosts->start = hosts->end;
            cut = true;
        }
        if (fill(hosts))
            continue;
        if (hosts->failed || cut || hosts->end == 0 || hosts->read == HOSTS_SIZE_MAX)
            return NULL; /* or the last line is not whole */
        hosts->buffer[hosts->end] = '\0';
        hosts->end = 0;
        return hosts->buffer;
    }
}

/* Cut the next word off *rest; NULL when there is none. */
static const char *next_word(char **rest)
{
    char *word = *rest + strspn(*rest, blanks);
    size_t length = strcspn(word, blanks);
    if (length == 0)
        return NULL;
    *rest = word + length;
    if (**rest != '\0')
        *(*rest)++ = '\0';
    return word;
}

static bool parse_address(const char *word, struct host_line *line)
{
    line->family = strchr(word, ':') == NULL ? AF_INET : AF_INET6;
    return inet_pton(line->family, word, line->address) == 1;
}

static bool parse_line(char *text, struct host_line *line)
{
    text[strcspn(text, "#")] = '\0';
    const char *word = next_word(&text);
    if (word == NULL || !parse_address(word, line))
        return false;
    line->count = 0;
    while (line->count < HOSTS_NAMES_MAX && (word = next_word(&text)) != NULL)
        line->names[line->count++] = word;
    return line->count > 0;
}

bool hosts_next(struct hosts *hosts, struct host_line *line)
{
    char *text;
    while ((text = next_text(hosts)) != NULL) {
        if (parse_line(text, line))
            return true;
    }
    return false;
}

bool host_line_names(const struct host_line *line, const char *name)
{
    for (size_t i = 0; i < line->count; i++) {
        if (strcasecmp(line->names[i], name) == 0)
            return true;
    }
    return false;
}

size_t address_length(int family)
{
    return family == AF_INET ? sizeof(struct in_addr) : sizeof(struct in6_addr);
}
