/* SPDX-License-Identifier: Apache-2.0 */
/* Attempts of a check, one after the other, without ever waiting but in `probe_wait`. */
#ifndef HYPEMAN_PROBE_H
#define HYPEMAN_PROBE_H

#include "kinds.h"

/* Make ready what has to be there before the program runs: the socket of NOTIFY, the console of LOG. */
bool probe_open(struct probe *probe, const struct check *check, const struct probe_place *place,
                struct reason *why);

/* Begin an attempt. Its result, or PENDING: then wait for fd and deadline, and call probe_step. */
enum probe_state probe_begin(struct probe *probe);

/* The fd has events (`ready`), or the deadline has passed. */
enum probe_state probe_step(struct probe *probe, bool ready);

/* Begin an attempt and wait for its result. `told` is called when `why` of one that is PENDING is another. */
enum probe_state probe_wait(struct probe *probe, void (*told)(void *, const struct reason *), void *context);

/* How long to wait before the next attempt, when the first was `elapsed_ms` ago. */
int probe_pause(const struct probe *probe, int64_t elapsed_ms);

/* What is left to do after it has passed, for those that others still speak to: pass on or throw away what
 * comes, until there is nothing any more, which may be never. */
void probe_close(struct probe *probe);

#endif
