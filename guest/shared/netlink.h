/* SPDX-License-Identifier: Apache-2.0 */
/* Requests to the kernel's routing netlink (rtnetlink(7)). Each waits for the kernel's answer, which comes at
 * once. All but netlink_open: false with errno. */
#ifndef HYPEMAN_NETLINK_H
#define HYPEMAN_NETLINK_H

#include <stdbool.h>
#include <stdint.h>

/* An address of the family AF_INET (4 bytes) or AF_INET6 (16), and how many bits of it are the network's. */
struct ip {
    int family;
    uint8_t bytes[16];
    unsigned prefix;
};

/* A socket, or -1 with errno. */
int netlink_open(void);

/* Bring an interface down: what was routed by it goes. */
bool netlink_down(int netlink, unsigned interface);

/* Give it another MAC address. */
bool netlink_mac(int netlink, unsigned interface, const uint8_t mac[6]);

/* Take all its addresses from it. */
bool netlink_flush(int netlink, unsigned interface);

bool netlink_rename(int netlink, unsigned interface, const char *name);

/* Set the MTU (0: leave it) of an interface and bring it up. */
bool netlink_up(int netlink, unsigned interface, unsigned mtu);

/* Give an interface an address. That it has it already is no error. */
bool netlink_address(int netlink, unsigned interface, const struct ip *address);

/* The default route of the gateway's family, by this gateway, which need not be in a network of ours. */
bool netlink_gateway(int netlink, unsigned interface, const struct ip *gateway);

#endif
