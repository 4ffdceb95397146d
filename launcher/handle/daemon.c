// SPDX-License-Identifier: Apache-2.0
#include "daemon.h"

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define API "/run/hypemand/api.sock"
/* HTTP/1.0: what is answered ends with the connection, and comes in one piece */
#define WATCH "GET /instances/%s/watch HTTP/1.0\r\nHost: localhost\r\n\r\n"
#define START                                                                                                \
    "POST /instances/%s/start HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\n"             \
    "Content-Length: 21\r\n\r\n{\"standby\":\"restore\"}"
#define DONE "200 "
#define EVENT "data: "

enum {
    REQUEST_SIZE = 512,
    /* of an event, which has the VM's definition: a file of that has 256 KiB at most */
    LINE_SIZE = 1024 * 1024,
    TEXT_SIZE = 400,
    VERSION_LENGTH = sizeof "HTTP/1.0 " - 1,
    STATUS_SIZE = 16,
};

static struct {
    int fd;
    size_t used;
    char line[LINE_SIZE];
} stream;

/* Ask; returns the connection, or -1. */
static int ask_daemon(const struct host *host, const char *format)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char request[REQUEST_SIZE];
    int length = snprintf(address.sun_path, sizeof(address.sun_path), "%s" API, host->root);
    if (length < 0 || (size_t)length >= sizeof(address.sun_path))
        return -1;
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    length = snprintf(request, sizeof(request), format, host->vm);
#pragma GCC diagnostic pop
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    if (connect(fd, (const struct sockaddr *)&address, sizeof(address)) == 0 &&
        send(fd, request, (size_t)length, MSG_NOSIGNAL) == length)
        return fd;
    (void)close(fd);
    return -1;
}

/* --- events --- */

/* The value of a text or another word of the event, as JSON has it. The first one: those that are asked for
 * come before what others could have written, but for the words of a status. */
static bool find_word(const char *event, const char *key, char *word, size_t size)
{
    char sought[64];
    (void)snprintf(sought, sizeof(sought), "\"%s\": ", key);
    const char *at = strstr(event, sought);
    size_t length = 0;
    if (at == NULL)
        return false;
    at += strlen(sought);
    if (*at == '"') {
        at++;
        while (at[length] != '\0' && at[length] != '"')
            length += at[length] == '\\' && at[length + 1] != '\0' ? 2 : 1;
    } else {
        length = strcspn(at, ",}");
    }
    if (length >= size)
        length = size - 1;
    memcpy(word, at, length);
    word[length] = '\0';
    return true;
}

static bool is_word(const char *event, const char *key, const char *wanted)
{
    char word[32];
    return find_word(event, key, word, sizeof(word)) && strcmp(word, wanted) == 0;
}

static void tell_status(const char *event)
{
    char text[TEXT_SIZE];
    char status[TEXT_SIZE + 16];
    if (!find_word(event, "status_text", text, sizeof(text)))
        return;
    (void)snprintf(status, sizeof(status), "STATUS=%s", text);
    notify(status);
}

/* The next event of the stream. NULL: there is none, since it has ended. What is not whole by then counts for
 * nothing. */
static const char *read_event(void)
{
    for (;;) {
        char *end = memchr(stream.line, '\n', stream.used);
        if (end != NULL) {
            static char event[LINE_SIZE];
            size_t length = (size_t)(end - stream.line);
            memcpy(event, stream.line, length);
            event[length] = '\0';
            stream.used -= length + 1;
            memmove(stream.line, end + 1, stream.used);
            if (strncmp(event, EVENT, strlen(EVENT)) == 0)
                return event;
            continue;
        }
        if (stream.used == sizeof(stream.line))
            return NULL;
        ssize_t got = read(stream.fd, stream.line + stream.used, sizeof(stream.line) - stream.used);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return NULL;
        stream.used += (size_t)got;
    }
}

static bool open_stream(const struct host *host)
{
    stream.used = 0;
    stream.fd = ask_daemon(host, WATCH);
    return stream.fd >= 0;
}

/* --- the start --- */

static bool is_done(int answer)
{
    char status[STATUS_SIZE] = "";
    ssize_t got;
    do
        got = recv(answer, status, sizeof(status) - 1, MSG_WAITALL);
    while (got < 0 && errno == EINTR);
    return got > VERSION_LENGTH && strncmp(status + VERSION_LENGTH, DONE, strlen(DONE)) == 0;
}

/* Until the daemon has answered: it may be pulling the image, which is shown. */
static bool await_answer(const struct host *host, int answer)
{
    bool shown = open_stream(host);
    for (;;) {
        struct pollfd polled[] = {{.fd = answer, .events = POLLIN},
                                  {.fd = shown ? stream.fd : -1, .events = POLLIN}};
        if (poll(polled, 2, -1) < 0 && errno != EINTR)
            break;
        if (polled[0].revents != 0)
            break;
        const char *event = polled[1].revents != 0 ? read_event() : "";
        if (event == NULL) {
            (void)close(stream.fd);
            shown = false;
        } else if (*event != '\0') {
            tell_status(event);
        }
    }
    if (shown)
        (void)close(stream.fd);
    return is_done(answer);
}

/* What an event says of a VM that was started: START_LOST, not yet anything. */
static enum start judge(const struct host *host, const char *event)
{
    static const char *const goes_on[] = {"Created", "Initializing", "Paused", "Shutdown", "Unknown"};
    char why[TEXT_SIZE] = "";
    if (is_word(event, "state", "Running"))
        return START_RUNNING;
    for (size_t i = 0; i < sizeof(goes_on) / sizeof(goes_on[0]); i++)
        if (is_word(event, "state", goes_on[i]))
            return START_LOST;
    if (is_word(event, "exit_code", "0") && !is_word(event, "exit_success", "false"))
        return START_ENDED;
    if (!find_word(event, "exit_message", why, sizeof(why)) || strcmp(why, "null") == 0)
        (void)find_word(event, "status_text", why, sizeof(why));
    say("%s did not start: %s; see: hypemanctl status %s", host->vm, why, host->vm);
    return START_FAILED;
}

enum start start_by_daemon(const struct host *host)
{
    int answer = ask_daemon(host, START);
    if (answer < 0)
        return START_REFUSED;
    bool done = await_answer(host, answer);
    (void)close(answer);
    if (!done)
        return START_REFUSED;
    enum start found = START_LOST;
    /* from now on: what was said before may be of the time before the start */
    if (!open_stream(host))
        return found;
    const char *event;
    while (found == START_LOST && (event = read_event()) != NULL) {
        found = judge(host, event);
        if (found == START_LOST)
            tell_status(event);
    }
    (void)close(stream.fd);
    return found;
}
