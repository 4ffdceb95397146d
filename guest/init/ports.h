/* SPDX-License-Identifier: Apache-2.0 */
/* Init's two virtio ports. Neither holds up the boot: they are opened when they come up. */
#ifndef HYPEMAN_PORTS_H
#define HYPEMAN_PORTS_H

#include <stdbool.h>

struct ports {
    int report; /* -1 until it is there */
    int stop;
    int events; /* readable when there may be a new port; closed with the first event that finds none missing
                 */
};

#define PORTS_NONE ((struct ports){-1, -1, -1})

/* Open what is there, and watch for what is not: by `events`, which may be open. */
void ports_open(struct ports *ports);

/* A device event has come: look again. */
void ports_event(struct ports *ports);

/* Collects what comes in on the stop port until it is a line. */
struct stop_line {
    char text[32];
    unsigned used;
    bool too_long;
};

/* One byte more. True if it completed an order to power off, with its seconds of grace. */
bool stop_line_add(struct stop_line *line, char byte, unsigned *grace);

#endif
