// SPDX-License-Identifier: Apache-2.0
#include "netlink.h"

#include "files.h"

#include <errno.h>
#include <linux/if_addr.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

/* <net/if.h> has this one too, but does not go together with the kernel's own header on every C library. */
enum {
    INTERFACE_UP = 1,
    REQUEST_SIZE = 256,
    ANSWER_S = 5,
    V4_SIZE = 4,
    V6_SIZE = 16,
    MAC_SIZE = 6,
    DUMP_SIZE = 32768, /* the kernel puts no more into one message of a dump */
    FOUND_MAX = 64,
    FLUSHES_MAX = 64,
};

struct request {
    union {
        struct nlmsghdr header;
        uint8_t bytes[REQUEST_SIZE];
    };
};

static size_t address_size(const struct ip *ip)
{
    return ip->family == AF_INET ? V4_SIZE : V6_SIZE;
}

/* Append, aligned as netlink wants it. What is asked for here always fits. */
static void append(struct request *request, const void *data, size_t size)
{
    size_t at = NLMSG_ALIGN(request->header.nlmsg_len);
    memcpy(request->bytes + at, data, size);
    request->header.nlmsg_len = (uint32_t)(at + size);
}

static void append_attribute(struct request *request, unsigned type, const void *data, size_t size)
{
    const struct rtattr attribute = {.rta_len = (uint16_t)(sizeof attribute + size),
                                     .rta_type = (uint16_t)type};
    append(request, &attribute, sizeof attribute);
    append(request, data, size);
}

static struct request request_begin(unsigned type, unsigned flags, const void *body, size_t size)
{
    struct request request = {.header = {.nlmsg_len = NLMSG_HDRLEN,
                                         .nlmsg_type = (uint16_t)type,
                                         .nlmsg_flags = (uint16_t)(NLM_F_REQUEST | NLM_F_ACK | flags)}};
    append(&request, body, size);
    return request;
}

static bool send_whole(int netlink, const struct request *request)
{
    ssize_t sent;
    do
        sent = send(netlink, request, request->header.nlmsg_len, 0);
    while (sent < 0 && errno == EINTR);
    return sent >= 0;
}

static bool request_send(int netlink, const struct request *request)
{
    struct {
        struct nlmsghdr header;
        struct nlmsgerr error;
        uint8_t rest[REQUEST_SIZE]; /* The request again. */
    } answer;
    ssize_t got;
    if (!send_whole(netlink, request))
        return false;
    do
        got = recv(netlink, &answer, sizeof answer, 0);
    while (got < 0 && errno == EINTR);
    if (got < 0)
        return false;
    if ((size_t)got < offsetof(__typeof__(answer), rest) || answer.header.nlmsg_type != NLMSG_ERROR) {
        errno = EPROTO;
        return false;
    }
    errno = -answer.error.error;
    return answer.error.error == 0;
}

int netlink_open(void)
{
    int netlink = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    const struct timeval patience = {.tv_sec = ANSWER_S};
    const struct sockaddr_nl address = {.nl_family = AF_NETLINK};
    if (netlink >= 0 && (setsockopt(netlink, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) != 0 ||
                         bind(netlink, (const struct sockaddr *)&address, sizeof address) != 0)) {
        int error = errno;
        close_fd(&netlink);
        errno = error;
    }
    return netlink;
}

bool netlink_rename(int netlink, unsigned interface, const char *name)
{
    const struct ifinfomsg body = {.ifi_family = AF_UNSPEC, .ifi_index = (int)interface};
    struct request request = request_begin(RTM_NEWLINK, 0, &body, sizeof body);
    append_attribute(&request, IFLA_IFNAME, name, strlen(name) + 1);
    return request_send(netlink, &request);
}

bool netlink_up(int netlink, unsigned interface, unsigned mtu)
{
    const struct ifinfomsg body = {.ifi_family = AF_UNSPEC,
                                   .ifi_index = (int)interface,
                                   .ifi_flags = INTERFACE_UP,
                                   .ifi_change = INTERFACE_UP};
    struct request request = request_begin(RTM_NEWLINK, 0, &body, sizeof body);
    uint32_t value = mtu;
    if (mtu > 0)
        append_attribute(&request, IFLA_MTU, &value, sizeof value);
    return request_send(netlink, &request);
}

bool netlink_down(int netlink, unsigned interface)
{
    const struct ifinfomsg body = {
        .ifi_family = AF_UNSPEC, .ifi_index = (int)interface, .ifi_change = INTERFACE_UP};
    const struct request request = request_begin(RTM_NEWLINK, 0, &body, sizeof body);
    return request_send(netlink, &request);
}

bool netlink_mac(int netlink, unsigned interface, const uint8_t mac[6])
{
    const struct ifinfomsg body = {.ifi_family = AF_UNSPEC, .ifi_index = (int)interface};
    struct request request = request_begin(RTM_NEWLINK, 0, &body, sizeof body);
    append_attribute(&request, IFLA_ADDRESS, mac, MAC_SIZE);
    return request_send(netlink, &request);
}

/* --- the addresses of an interface --- */

struct found {
    struct ip all[FOUND_MAX];
    size_t count;
};

static void take_address(const struct nlmsghdr *header, unsigned interface, struct found *found)
{
    struct ifaddrmsg body;
    if (header->nlmsg_type != RTM_NEWADDR || header->nlmsg_len < NLMSG_LENGTH(sizeof body))
        return;
    memcpy(&body, NLMSG_DATA(header), sizeof body);
    if (body.ifa_index != interface || found->count == FOUND_MAX ||
        (body.ifa_family != AF_INET && body.ifa_family != AF_INET6))
        return;
    struct ip ip = {.family = body.ifa_family, .prefix = body.ifa_prefixlen};
    unsigned wanted = ip.family == AF_INET ? IFA_LOCAL : IFA_ADDRESS;
    unsigned left = header->nlmsg_len - (unsigned)NLMSG_LENGTH(sizeof body);
    const char *at = (const char *)header + NLMSG_LENGTH(sizeof body);
    struct rtattr attribute;
    while (left >= sizeof attribute) {
        memcpy(&attribute, at, sizeof attribute);
        if (attribute.rta_len < sizeof attribute || attribute.rta_len > left)
            return;
        if (attribute.rta_type == wanted && attribute.rta_len == RTA_LENGTH(address_size(&ip))) {
            memcpy(ip.bytes, at + RTA_LENGTH(0), address_size(&ip));
            found->all[found->count++] = ip;
            return;
        }
        unsigned step = RTA_ALIGN((unsigned)attribute.rta_len);
        if (step > left)
            return;
        at += step;
        left -= step;
    }
}

/* Some of the addresses; FOUND_MAX of them: there may be more. */
static bool find_addresses(int netlink, unsigned interface, struct found *found)
{
    static union {
        struct nlmsghdr header;
        uint8_t bytes[DUMP_SIZE];
    } answer;
    const struct ifaddrmsg body = {.ifa_family = AF_UNSPEC};
    const struct request request = request_begin(RTM_GETADDR, NLM_F_DUMP, &body, sizeof body);
    found->count = 0;
    if (!send_whole(netlink, &request))
        return false;
    for (;;) {
        ssize_t got = recv(netlink, &answer, sizeof answer, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return false;
        unsigned left = (unsigned)got;
        for (const struct nlmsghdr *header = &answer.header; NLMSG_OK(header, left);
             header = NLMSG_NEXT(header, left)) {
            if (header->nlmsg_type == NLMSG_DONE)
                return true;
            if (header->nlmsg_type == NLMSG_ERROR) {
                errno = EPROTO;
                return false;
            }
            take_address(header, interface, found);
        }
    }
}

static bool remove_address(int netlink, unsigned interface, const struct ip *address)
{
    const struct ifaddrmsg body = {.ifa_family = (uint8_t)address->family,
                                   .ifa_prefixlen = (uint8_t)address->prefix,
                                   .ifa_index = interface};
    struct request request = request_begin(RTM_DELADDR, 0, &body, sizeof body);
    append_attribute(&request, IFA_LOCAL, address->bytes, address_size(address));
    /* Others may go with the first of a network. */
    return request_send(netlink, &request) || errno == EADDRNOTAVAIL;
}

bool netlink_flush(int netlink, unsigned interface)
{
    struct found found;
    for (int pass = 0; pass < FLUSHES_MAX; pass++) {
        if (!find_addresses(netlink, interface, &found))
            return false;
        if (found.count == 0)
            return true;
        for (size_t i = 0; i < found.count; i++) {
            if (!remove_address(netlink, interface, &found.all[i]))
                return false;
        }
    }
    errno = EBUSY;
    return false;
}

bool netlink_address(int netlink, unsigned interface, const struct ip *address)
{
    struct ifaddrmsg body = {.ifa_family = (uint8_t)address->family,
                             .ifa_prefixlen = (uint8_t)address->prefix,
                             .ifa_index = interface};
    /* Who gave it to us sees to it that nobody else has it: it can be used at once. */
    if (address->family == AF_INET6)
        body.ifa_flags = IFA_F_NODAD;
    struct request request = request_begin(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &body, sizeof body);
    append_attribute(&request, IFA_LOCAL, address->bytes, address_size(address));
    append_attribute(&request, IFA_ADDRESS, address->bytes, address_size(address));
    return request_send(netlink, &request) || errno == EEXIST;
}

bool netlink_gateway(int netlink, unsigned interface, const struct ip *gateway)
{
    const struct rtmsg body = {.rtm_family = (uint8_t)gateway->family,
                               .rtm_table = RT_TABLE_MAIN,
                               .rtm_protocol = RTPROT_STATIC,
                               .rtm_scope = RT_SCOPE_UNIVERSE,
                               .rtm_type = RTN_UNICAST,
                               .rtm_flags = RTNH_F_ONLINK};
    struct request request = request_begin(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &body, sizeof body);
    append_attribute(&request, RTA_GATEWAY, gateway->bytes, address_size(gateway));
    append_attribute(&request, RTA_OIF, &interface, sizeof interface);
    return request_send(netlink, &request);
}
