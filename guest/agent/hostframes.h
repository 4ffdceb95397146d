/* SPDX-License-Identifier: Apache-2.0 */
/* The agent's end of its connection to the host, and what each frame of the host has it do. */
#ifndef HYPEMAN_HOSTFRAMES_H
#define HYPEMAN_HOSTFRAMES_H

#include "box.h"
#include "serve.h"
#include "stream.h"

enum { STREAMS_MAX = 64, NEWS_MS = 1000 };

struct agent {
    const struct server *server;
    int epoll;
    int signals;
    bool connected;
    bool greeted;     /* the host's HELLO is in */
    bool unanswered;  /* and the answer to it is not out */
    int64_t news_by;  /* until when it may be that news of the host are older than its HELLO */
    int64_t leave_at; /* when a host that seems to have left has; NO_DEADLINE */
    bool refused;     /* an ERROR was sent: nothing but another HELLO is heard */
    bool broken;      /* where a frame begins is lost: nothing at all is heard until the host leaves */
    bool readable;
    bool ended;
    bool frozen;   /* the guest is: nothing is started in it */
    bool thawed;   /* it has been since it was last tidied up */
    uint32_t turn; /* whose output goes first */
    struct inbox in;
    struct outbox out;
    struct stream streams[STREAMS_MAX];
};

/* A frame that is whole. */
void on_frame(struct agent *agent, const struct frame_header *header, const uint8_t *payload);

/* Do what is left of a THAW. */
void finish_thaw(struct agent *agent);

/* The end of this connection, as far as the agent goes. */
void refuse_host(struct agent *agent, const char *code, const char *message);

/* The host has left: nothing of the connection is left. */
void disconnect_host(struct agent *agent);

/* End all streams; `at_once`: a terminal has no time to be left in. */
void discard_streams(struct agent *agent, bool at_once);

#endif
