/* SPDX-License-Identifier: Apache-2.0 */
/* The network: interfaces by their MAC address, addresses, routes, and who resolves names. */
#ifndef HYPEMAN_NETWORK_H
#define HYPEMAN_NETWORK_H

#include "netlink.h"
#include "reason.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    INTERFACE_ADDRESSES_MAX = 16,
    INTERFACE_GATEWAYS_MAX = 4,
    NETWORK_INTERFACES_MAX = 16,
    NETWORK_DNS_MAX = 8,
    NETWORK_SEARCH_MAX = 16,
};

struct interface {
    const char *mac;     /* as /sys shows it */
    const char *old_mac; /* that it has until it is given the other, or NULL */
    const char *name;    /* that it is to have, or NULL */
    unsigned mtu;        /* or 0 */
    struct ip addresses[INTERFACE_ADDRESSES_MAX];
    size_t address_count;
    struct ip gateways[INTERFACE_GATEWAYS_MAX];
    size_t gateway_count;
};

struct network {
    struct interface interfaces[NETWORK_INTERFACES_MAX];
    size_t count;
    const char *dns[NETWORK_DNS_MAX];
    size_t dns_count;
    const char *search[NETWORK_SEARCH_MAX];
    size_t search_count;
};

/* Take the value of a `net`, `dns` or `search` record, which stays in use; the first is written to. */
bool network_add_interface(struct network *network, char *value, struct reason *why);
bool network_add_dns(struct network *network, const char *value, struct reason *why);
bool network_add_search(struct network *network, const char *value, struct reason *why);

/* Is there anything to set up? */
bool network_wanted(const struct network *network);

/* The interfaces that are there get other MAC addresses, and these addresses and routes in place of all that
 * they have. One that has no `old_mac`, or has the new one already, is found by that. */
bool network_readdress(const struct network *network, struct reason *why);

/* Write /etc/resolv.conf to the root at `path`, in place of what is there. */
bool network_write_resolver(const struct network *network, const char *path, struct reason *why);

/* Set it all up; resolv.conf is written to the root at `path`, in place of what the image has there.
 * Interfaces that are not there yet are waited for. */
bool network_setup(const struct network *network, const char *path, int64_t deadline, struct reason *why);

#endif
