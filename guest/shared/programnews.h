/* SPDX-License-Identifier: Apache-2.0 */
/* What init says to the agent of the VM's program, on the socket that was the agent's gate: each a packet. */
#ifndef HYPEMAN_PROGRAMNEWS_H
#define HYPEMAN_PROGRAMNEWS_H

#include "reason.h"

#include <stdbool.h>
#include <stddef.h>

/* The other ends of a program's stdin, stdout and stderr. -1: there is none. A program with stdin or a
 * terminal has them, another one has no end but the console. */
struct program_ends {
    int console;  /* where its output goes, whoever else reads it */
    int input;    /* non-blocking; of a terminal its master */
    int output;   /* the same of stdout; of a terminal its master again */
    int error;    /* of stderr; none of a terminal */
    int terminal; /* the terminal itself, which so outlives a program that closes it */
};

#define PROGRAM_ENDS_NONE ((struct program_ends){-1, -1, -1, -1, -1})

struct program_news {
    int first;  /* the first process of its namespace */
    bool ended; /* with code and message; else it runs, and its ends come with it */
    int code;
    struct reason message;
};

/* The ends stay the caller's. False: nobody hears it. */
bool program_news_send(int socket, const struct program_news *news, const struct program_ends *ends);

/* False: there are none now; with errno 0, none will come. The ends, close-on-exec, are the caller's. */
bool program_news_receive(int socket, struct program_news *news, struct program_ends *ends);

void program_ends_close(struct program_ends *ends);

#endif
