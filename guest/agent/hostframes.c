// SPDX-License-Identifier: Apache-2.0
#include "hostframes.h"

#include "bytes.h"
#include "clock.h"
#include "records.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { GRACE_MAX = 86400, SIGNAL_MAX = 64, RECORDS_SIZE = 256 };

void discard_streams(struct agent *agent, bool at_once)
{
    for (size_t i = 0; i < STREAMS_MAX; i++) {
        if (agent->streams[i].state != STREAM_FREE)
            stream_discard(&agent->streams[i], at_once);
    }
}

static void send_records(struct agent *agent, uint8_t type, const char *records, size_t size)
{
    outbox_put(&agent->out, (struct frame_header){.length = (uint32_t)size, .type = type}, records);
}

static void send_hello(struct agent *agent)
{
    static const char *const features[] = {"tty", "umask", "files", "clock", "health", "attach", "freeze"};
    char records[RECORDS_SIZE];
    size_t used = 0;
    (void)records_put(records, sizeof records, &used, "version", "1");
    (void)records_put(records, sizeof records, &used, "boot", agent->server->boot);
    (void)records_put(records, sizeof records, &used, "agent", AGENT_VERSION);
    for (size_t i = 0; i < sizeof features / sizeof features[0]; i++)
        (void)records_put(records, sizeof records, &used, "feature", features[i]);
    if (agent->frozen)
        (void)records_put(records, sizeof records, &used, "frozen", "1");
    send_records(agent, FRAME_HELLO, records, used);
}

void refuse_host(struct agent *agent, const char *code, const char *message)
{
    char records[RECORDS_SIZE];
    size_t used = 0;
    (void)records_put(records, sizeof records, &used, "code", code);
    (void)records_put(records, sizeof records, &used, "message", message);
    send_records(agent, FRAME_ERROR, records, used);
    discard_streams(agent, false);
    agent->refused = true;
}

/* Nothing of a connection before is left. */
static void begin_anew(struct agent *agent)
{
    discard_streams(agent, false);
    agent->out.start = 0;
    agent->out.end = 0;
    agent->greeted = false;
    agent->unanswered = false;
    agent->refused = false;
}

void disconnect_host(struct agent *agent)
{
    begin_anew(agent);
    inbox_drop(&agent->in);
    agent->connected = false;
    agent->broken = false;
    agent->leave_at = NO_DEADLINE;
}

static struct stream *find_stream(struct agent *agent, uint32_t id)
{
    for (size_t i = 0; i < STREAMS_MAX; i++) {
        enum stream_state state = agent->streams[i].state;
        if (state != STREAM_FREE && state != STREAM_LEAVING && agent->streams[i].id == id)
            return &agent->streams[i];
    }
    return NULL;
}

/* --- frames --- */

static const char *record_value(const char *records, size_t size, const char *key)
{
    size_t offset = 0;
    struct record record;
    while (records_next(records, size, &offset, &record)) {
        if (record_is(&record, key))
            return record.value;
    }
    return NULL;
}

static void on_hello(struct agent *agent, const char *records, size_t size)
{
    const char *version = record_value(records, size, "version");
    const char *boot = record_value(records, size, "boot");
    /* After another one: the host has left and come back faster than this end could see. */
    if (agent->greeted || agent->refused)
        begin_anew(agent);
    agent->unanswered = true;
    agent->news_by = clock_ms() + NEWS_MS;
    if (version == NULL || strcmp(version, "1") != 0)
        refuse_host(agent, "version", "this agent knows protocol version 1 only");
    else if (boot == NULL || strcmp(boot, agent->server->boot) != 0)
        refuse_host(agent, "boot", "HELLO names another boot than this one");
    else {
        agent->greeted = true;
        send_hello(agent);
    }
}

/* The stream of a request that opens one. */
static bool may_open(struct agent *agent, uint32_t id)
{
    if (id != 0 && find_stream(agent, id) == NULL)
        return true;
    refuse_host(agent, "stream", "a request on a stream that is in use, or on none");
    return false;
}

/* The end of a stream that has nothing but that. */
static void send_exit(struct agent *agent, uint32_t id, int code, const char *message)
{
    char records[RECORDS_SIZE];
    char number[16];
    size_t used = 0;
    (void)snprintf(number, sizeof number, "%d", code);
    (void)records_put(records, sizeof records, &used, "code", number);
    (void)records_put(records, sizeof records, &used, "message", message);
    outbox_put(&agent->out, (struct frame_header){.length = (uint32_t)used, .stream = id, .type = FRAME_EXIT},
               records);
}

/* EXEC, FILES, HEALTH or ATTACH. */
static void on_request(struct agent *agent, const struct frame_header *header, const char *records)
{
    if (!may_open(agent, header->stream))
        return;
    if (agent->frozen) {
        send_exit(agent, header->stream, EXIT_GUEST_FAILED,
                  "the guest is frozen: nothing runs in it until THAW");
        return;
    }
    for (uint32_t i = 0; i < STREAMS_MAX; i++) {
        if (agent->streams[i].state == STREAM_FREE) {
            stream_start(&agent->streams[i], header->stream, header->type, records, header->length,
                         (struct place){agent->epoll, i});
            return;
        }
    }
    send_exit(agent, header->stream, EXIT_GUEST_FAILED,
              "too many programs are executed at once; 64 is the limit");
}

static void on_clock(struct agent *agent, const struct frame_header *header, const uint8_t *payload)
{
    if (header->length != 8) {
        refuse_host(agent, "protocol", "CLOCK that is not one number");
        return;
    }
    if (!may_open(agent, header->stream))
        return;
    uint64_t ns = get_le64(payload);
    struct timespec now = {.tv_sec = (time_t)(ns / 1000000000), .tv_nsec = (long)(ns % 1000000000)};
    bool set = agent->server->set_clock(&now) == 0;
    send_exit(agent, header->stream, set ? 0 : EXIT_GUEST_FAILED, set ? "the clock is set" : strerror(errno));
}

void finish_thaw(struct agent *agent)
{
    if (agent->thawed && agent->server->thawed != NULL)
        agent->server->thawed();
    agent->thawed = false;
}

static void on_freeze(struct agent *agent, const struct frame_header *header)
{
    struct reason words = {""};
    if (header->length != 0) {
        refuse_host(agent, "protocol", "FREEZE with a payload");
        return;
    }
    if (!may_open(agent, header->stream))
        return;
    finish_thaw(agent);
    bool frozen = agent->server->freeze(agent->server->init, &words);
    agent->frozen = agent->frozen || frozen;
    send_exit(agent, header->stream, frozen ? 0 : EXIT_GUEST_FAILED, words.words);
}

static void on_thaw(struct agent *agent, const struct frame_header *header, const char *records)
{
    struct reason why = {""};
    struct thaw thaw;
    if (!may_open(agent, header->stream))
        return;
    char *copy = malloc(header->length + 1);
    bool thawed = copy != NULL || refuse(&why, "no memory");
    if (copy != NULL)
        memcpy(copy, records, header->length);
    if (thawed && (thawed = thaw_parse(copy, header->length, &thaw, &why))) {
        thawed = agent->server->thaw(&thaw, &why);
        /* What comes after this connection is between the host and another VM. */
        if (thawed && thaw.boot != NULL)
            memcpy(agent->server->boot, thaw.boot, strlen(thaw.boot) + 1);
        thaw_free(&thaw);
    }
    free(copy);
    if (thawed) {
        agent->frozen = false;
        agent->thawed = true;
    }
    send_exit(agent, header->stream, thawed ? 0 : EXIT_GUEST_FAILED,
              thawed ? "the guest goes on" : why.words);
}

static void on_shutdown(struct agent *agent, const char *records, size_t size)
{
    const char *text = record_value(records, size, "grace");
    unsigned long grace;
    if (text == NULL || !parse_number(text, GRACE_MAX, &grace)) {
        refuse_host(agent, "protocol", "SHUTDOWN without a grace of 0 to 86400 seconds");
        return;
    }
    if (sigqueue(agent->server->init, SIGNAL_POWER_OFF, (union sigval){.sival_int = (int)grace}) != 0)
        refuse_host(agent, "shutdown", "PID 1 cannot be told to power off");
}

static void on_ping(struct agent *agent, const struct frame_header *header, const uint8_t *payload)
{
    if (header->length > FRAME_PING_MAX)
        refuse_host(agent, "protocol", "PING of more than 64 bytes");
    else
        outbox_put(&agent->out, (struct frame_header){.length = header->length, .type = FRAME_PONG}, payload);
}

/* DATA, CREDIT, SIGNAL, RESIZE, CLOSE. One for a stream that is over was under way when it ended: no fault.
 */
static void on_stream_frame(struct agent *agent, const struct frame_header *header, const uint8_t *payload)
{
    struct stream *stream = find_stream(agent, header->stream);
    bool numeric =
        header->type == FRAME_CREDIT || header->type == FRAME_SIGNAL || header->type == FRAME_RESIZE;
    if (numeric && header->length != 4) {
        refuse_host(agent, "protocol", "CREDIT, SIGNAL or RESIZE that is not four bytes");
        return;
    }
    if (stream == NULL || stream->closed)
        return;
    uint32_t number = numeric ? get_le32(payload) : 0;
    if (header->type == FRAME_CLOSE)
        stream_close(stream);
    else if (header->type == FRAME_SIGNAL && (number == 0 || number > SIGNAL_MAX))
        refuse_host(agent, "protocol", "SIGNAL with a number that is none");
    else if (header->type == FRAME_SIGNAL)
        stream_signal(stream, (int)number);
    else if (header->type == FRAME_RESIZE)
        stream_resize(stream, (uint16_t)number, (uint16_t)(number >> 16));
    else if (header->type == FRAME_CREDIT && !stream_credit(stream, header->channel, number))
        refuse_host(agent, "credit", "more credit than the window");
    else if (header->type == FRAME_DATA &&
             (header->channel != CHANNEL_STDIN || !stream_input(stream, payload, header->length)))
        refuse_host(agent, "credit", "DATA beyond its credit, after its end, or not on stdin");
}

void on_frame(struct agent *agent, const struct frame_header *header, const uint8_t *payload)
{
    const char *records = (const char *)payload;
    bool has_records = header->type == FRAME_HELLO || header->type == FRAME_EXEC ||
                       header->type == FRAME_FILES || header->type == FRAME_HEALTH ||
                       header->type == FRAME_ATTACH || header->type == FRAME_SHUTDOWN ||
                       header->type == FRAME_THAW;
    if (agent->refused && header->type != FRAME_HELLO)
        return;
    if (!agent->greeted && header->type != FRAME_HELLO) {
        refuse_host(agent, "protocol", "the first frame is not HELLO");
        return;
    }
    if (has_records && !records_valid(records, header->length)) {
        refuse_host(agent, "protocol", "records that cannot be read");
        return;
    }
    switch (header->type) {
    case FRAME_HELLO:
        on_hello(agent, records, header->length);
        break;
    case FRAME_PING:
        on_ping(agent, header, payload);
        break;
    case FRAME_EXEC:
    case FRAME_FILES:
    case FRAME_HEALTH:
    case FRAME_ATTACH:
        on_request(agent, header, records);
        break;
    case FRAME_CLOCK:
        on_clock(agent, header, payload);
        break;
    case FRAME_FREEZE:
        on_freeze(agent, header);
        break;
    case FRAME_THAW:
        on_thaw(agent, header, records);
        break;
    case FRAME_SHUTDOWN:
        on_shutdown(agent, records, header->length);
        break;
    case FRAME_DATA:
    case FRAME_CREDIT:
    case FRAME_SIGNAL:
    case FRAME_RESIZE:
    case FRAME_CLOSE:
        on_stream_frame(agent, header, payload);
        break;
    case FRAME_ERROR:
        discard_streams(agent, false);
        agent->refused = true;
        break;
    default:
        refuse_host(agent, "protocol", "a frame of a type that the host does not send");
        break;
    }
}
