// SPDX-License-Identifier: Apache-2.0
/* No event of the kernel tells that a socket begins to listen: the groups of sock_diag tell of sockets that
 * are destroyed. So it is asked, which costs some 20 us, and which the program does not notice as it would a
 * connection. */
#include "kinds.h"

#include "files.h"

#include <errno.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { LISTENING = 10, ANSWER_SIZE = 16384, ANSWERS_MAX = 64 };

struct question {
    struct nlmsghdr header;
    struct inet_diag_req_v2 request;
};

static bool is_loopback4(const uint8_t *bytes)
{
    return bytes[0] == 127;
}

static bool is_loopback6(const struct in6_addr *address)
{
    return IN6_IS_ADDR_LOOPBACK(address) ||
           (IN6_IS_ADDR_V4MAPPED(address) && is_loopback4(address->s6_addr + 12));
}

/* How the socket is reached from here. False: on a loopback address alone. */
static bool take_socket(const struct inet_diag_msg *found, union address *address)
{
    memset(address, 0, sizeof *address);
    if (found->idiag_family == AF_INET) {
        address->v4 = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = found->id.idiag_sport};
        memcpy(&address->v4.sin_addr, found->id.idiag_src, 4);
        if (address->v4.sin_addr.s_addr != htonl(INADDR_ANY))
            return !is_loopback4((const uint8_t *)&address->v4.sin_addr);
        address->v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        return true;
    }
    address->v6 = (struct sockaddr_in6){
        .sin6_family = AF_INET6, .sin6_port = found->id.idiag_sport, .sin6_scope_id = found->id.idiag_if};
    memcpy(&address->v6.sin6_addr, found->id.idiag_src, 16);
    if (!IN6_IS_ADDR_UNSPECIFIED(&address->v6.sin6_addr))
        return !is_loopback6(&address->v6.sin6_addr);
    address->v6.sin6_addr = in6addr_loopback;
    return true;
}

enum finding { NOTHING, LOOPBACK, REACHABLE };

/* One datagram of the kernel's answer. *last: no other follows. */
static enum finding take_answer(const char *bytes, size_t size, uint16_t port, union address *address,
                                bool *last)
{
    enum finding finding = NOTHING;
    union address one;
    struct nlmsghdr header;
    for (size_t at = 0; at + sizeof header <= size; at += NLMSG_ALIGN(header.nlmsg_len)) {
        memcpy(&header, bytes + at, sizeof header);
        if (header.nlmsg_len < sizeof header || header.nlmsg_len > size - at ||
            header.nlmsg_type == NLMSG_DONE || header.nlmsg_type == NLMSG_ERROR) {
            *last = true;
            return finding;
        }
        struct inet_diag_msg found;
        if (header.nlmsg_type != SOCK_DIAG_BY_FAMILY || header.nlmsg_len < NLMSG_HDRLEN + sizeof found)
            continue;
        memcpy(&found, bytes + at + NLMSG_HDRLEN, sizeof found);
        if (found.idiag_state != LISTENING || found.id.idiag_sport != htons(port))
            continue;
        bool reachable = take_socket(&found, &one);
        if (finding == NOTHING || reachable)
            *address = one;
        finding = reachable ? REACHABLE : finding == NOTHING ? LOOPBACK : finding;
        if (reachable)
            return finding;
    }
    return finding;
}

/* All sockets of a family that listen on the port; the kernel answers at once. */
static enum finding ask(uint8_t family, uint16_t port, union address *address, int *error)
{
    enum finding finding = NOTHING;
    bool last = false;
    int diag = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
    struct question question = {
        .header = {.nlmsg_len = sizeof question,
                   .nlmsg_type = SOCK_DIAG_BY_FAMILY,
                   .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP},
        .request = {.sdiag_family = family,
                    .sdiag_protocol = IPPROTO_TCP,
                    .idiag_states = 1U << LISTENING,
                    .id = {.idiag_sport = htons(port)}},
    };
    if (diag < 0 || send(diag, &question, sizeof question, 0) < 0) {
        *error = errno;
        last = true;
    }
    for (int i = 0; i < ANSWERS_MAX && !last && finding != REACHABLE; i++) {
        _Alignas(struct nlmsghdr) char bytes[ANSWER_SIZE];
        union address one;
        ssize_t got = recv(diag, bytes, sizeof bytes, 0);
        if (got <= 0)
            break;
        enum finding more = take_answer(bytes, (size_t)got, port, &one, &last);
        if (more > finding) {
            finding = more;
            *address = one;
        }
    }
    close_fd(&diag);
    return finding;
}

enum probe_state tcp_find(uint16_t port, bool loopback, union address *address, struct reason *why)
{
    int error = 0;
    union address other;
    enum finding finding = ask(AF_INET, port, address, &error);
    if (finding != REACHABLE) {
        enum finding more = ask(AF_INET6, port, &other, &error);
        if (more > finding) {
            finding = more;
            *address = other;
        }
    }
    if (finding == REACHABLE || (finding == LOOPBACK && loopback))
        return PROBE_PASSED;
    if (error != 0)
        (void)refuse(why, "the kernel cannot be asked: %s", strerror(error));
    else if (finding == LOOPBACK)
        (void)refuse(why, "port %u listens on a loopback address only", port);
    else
        (void)refuse(why, "nothing listens on port %u", port);
    return PROBE_FAILED;
}
