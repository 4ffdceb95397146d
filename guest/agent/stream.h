/* SPDX-License-Identifier: Apache-2.0 */
/* One exec: a process, its three pipes, and the credit on each. */
#ifndef HYPEMAN_STREAM_H
#define HYPEMAN_STREAM_H

#include "box.h"
#include "environment.h"
#include "spawn.h"

enum stream_state { STREAM_FREE, STREAM_STARTING, STREAM_RUNNING, STREAM_ENDED };

/* What came for stdin and the process has not taken. Never more than a window. */
struct pending {
    uint8_t *bytes;
    size_t capacity;
    size_t start;
    size_t end;
};

struct output {
    int fd; /* -1 once it has ended */
    bool readable;
    uint32_t credit;
};

struct stream {
    enum stream_state state;
    uint32_t id;
    pid_t pid; /* also the process group */
    bool reaped;
    bool closed; /* the host has lost interest */
    int code;
    struct reason message;

    /* Needed until the exec's verdict is in. */
    int verdict;
    struct spawn spawn;
    struct identity who;
    char *records;
    char **argv;
    char **given;
    char **environment;
    char home[IDENTITY_HOME_MAX + 6];
    uint64_t early_signals; /* bit N - 1: signal N came before the exec was done */

    int input; /* -1 once it has ended */
    bool input_eof;
    struct pending pending;
    uint32_t window;          /* what the host may still send */
    uint32_t consumed;        /* what it is to be given back */
    struct output outputs[2]; /* stdout, stderr */
};

/* Where in the epoll data an event says what it is of. */
enum stream_source { STREAM_INPUT, STREAM_OUTPUT, STREAM_ERROR_OUTPUT, STREAM_VERDICT, STREAM_SOURCES };

/* Begin an exec of these records (valid ones). What fails is said by the stream's EXIT, never otherwise.
 * Its fds are added to the epoll with `index` * STREAM_SOURCES + source as data. */
void stream_start(struct stream *stream, uint32_t id, const char *records, size_t size, int epoll,
                  uint32_t index);

/* Bytes for stdin; none: its end. False if the host had no credit for them, or had ended it before. */
bool stream_input(struct stream *stream, const uint8_t *bytes, uint32_t size);

/* More may be sent on stdout (1) or stderr (2). False if that is more than a window. */
bool stream_credit(struct stream *stream, uint8_t channel, uint32_t more);

void stream_signal(struct stream *stream, int number);
void stream_close(struct stream *stream);
void stream_reaped(struct stream *stream, int status);

/* Move bytes and frames as far as fds, credit and room allow. True if anything moved. */
bool stream_pump(struct stream *stream, struct outbox *outbox);

/* Kill its processes, give everything back. */
void stream_discard(struct stream *stream);

#endif
