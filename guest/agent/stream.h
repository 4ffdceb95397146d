/* SPDX-License-Identifier: Apache-2.0 */
/* One exec or copy: a process, what it is connected by (pipes or a terminal), and the credit on each. Or one
 * that is attached to the VM's program, and has no process of its own. */
#ifndef HYPEMAN_STREAM_H
#define HYPEMAN_STREAM_H

#include "box.h"
#include "environment.h"
#include "groups.h"
#include "spawn.h"

enum stream_state {
    STREAM_FREE,
    STREAM_STARTING,
    STREAM_RUNNING,
    STREAM_ENDED,
    STREAM_LEAVING, /* the host knows of it no more; what was in its terminal has been told to end */
};

/* Of FILES and HEALTH the process is one of ours, which ends when its other end is away. */
enum stream_kind { STREAM_EXEC, STREAM_TERMINAL, STREAM_FILES, STREAM_HEALTH, STREAM_ATTACH };

enum { HANG_UP_GRACE_MS = 2000 };

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
    uint64_t place; /* of STREAM_ATTACH: how much of the program's output came before what is next */
};

struct stream {
    enum stream_state state;
    enum stream_kind kind;
    uint32_t id;
    pid_t pid; /* also the process group, but for those of ours */
    struct group group;
    bool reaped;
    bool closed;      /* the host has lost interest */
    int64_t deadline; /* of what was in a terminal that has been hung up, or of who holds the VM's program up
                         by taking no output; or NO_DEADLINE */
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
    struct environment_store store;
    uint64_t early_signals; /* bit N - 1: signal N came before the exec was done */

    int input; /* -1 once it has ended */
    bool input_eof;
    bool feeds;      /* of STREAM_ATTACH: its input is the program's */
    bool late;       /* of STREAM_ATTACH: it ends since it did not take the output */
    bool line_begun; /* the last byte that was typed into the terminal did not end a line */
    struct pending pending;
    uint32_t window;          /* what the host may still send */
    uint32_t consumed;        /* what it is to be given back */
    struct output outputs[2]; /* stdout, stderr */
};

/* Where in the epoll data an event says what it is of. */
enum stream_source { STREAM_INPUT, STREAM_OUTPUT, STREAM_ERROR_OUTPUT, STREAM_VERDICT, STREAM_SOURCES };

/* Where the place of a stream is: its fds are added to the epoll with `index` * STREAM_SOURCES + source as
 * data. */
struct place {
    int epoll;
    uint32_t index;
};

/* Begin what a frame of this type (EXEC, FILES, HEALTH or ATTACH) orders, by its records (valid ones). What
 * fails is said by the stream's EXIT, never otherwise. */
void stream_start(struct stream *stream, uint32_t id, uint8_t type, const char *records, size_t size,
                  struct place place);

/* Bytes for stdin; none: its end. False if the host had no credit for them, or had ended it before. */
bool stream_input(struct stream *stream, const uint8_t *bytes, uint32_t size);

/* More may be sent on stdout (1) or stderr (2). False if that is more than a window. */
bool stream_credit(struct stream *stream, uint8_t channel, uint32_t more);

void stream_signal(struct stream *stream, int number);
void stream_resize(struct stream *stream, uint16_t rows, uint16_t columns);
void stream_reaped(struct stream *stream, int status);

/* End what runs: a control group is killed, a terminal hung up and what remains of its group killed
 * HANG_UP_GRACE_MS later;
 * a copy sees that its other end is away, and removes what is half there. EXIT still follows. */
void stream_close(struct stream *stream);

/* The deadline has passed. */
void stream_expire(struct stream *stream);

/* Move bytes and frames as far as fds, credit and room allow. True if anything moved. */
bool stream_pump(struct stream *stream, struct outbox *outbox);

/* As stream_close, but without EXIT: the host that it was for is away. At the end of the agent, `at_once`, a
 * terminal has no time to be left in. */
void stream_discard(struct stream *stream, bool at_once);

#endif
