// SPDX-License-Identifier: Apache-2.0
/* A network's end, friendly or hostile, in guests and in hosts: `netprobe VERB WORD...`.
 *
 *   serve LABEL PORT...                 answer on TCP and UDP, IPv4 and IPv6, for ever
 *   ask tcp|udp ADDRESS PORT MS         print a server's label and what it sees of us; 1 if it says nothing
 *                                       in this time. A refusal is not taken for an answer: a server whose
 *                                       machine is just up may not listen yet.
 *   nag ADDRESS PORT                    ask by UDP ten times a second, from one port; a line for each time
 *   upload|download ADDRESS PORT BYTES  print nanoseconds: to the server's word that it has them all, or from
 *                                       the first to the last byte
 *   flows ADDRESS PORT MS               open as many connections as there can be in this time, and end each
 *                                       when it is answered or refused; print how many were, and were tried
 *   talk ADDRESS PORT                   lines of stdin over one connection, each printed once it is back
 *   send INTERFACE HEX...               these frames, as they are
 *   watch INTERFACE                     "watching", then a line for each frame: `in HEX` or `out HEX`
 *
 * What fails ends it with 1 and the reason on stderr. */
#include <arpa/inet.h>
#include <errno.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <netpacket/packet.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    PORTS_MAX = 16,
    FRAME_MAX = 65536,
    CHUNK = 65536,
    LINE_MAX_BYTES = 256,
    RETRY_MS = 200,
    REFUSED_MS = 5000,
    FLOWS = 32,
    FLOWS_MS = 100
};

static unsigned char chunk[CHUNK];

static _Noreturn void fail(const char *what)
{
    bool late = errno == EAGAIN || errno == EINPROGRESS;
    (void)fprintf(stderr, "%s: %s\n", what, late ? "timeout" : strerror(errno));
    exit(1);
}

static int64_t now_ns(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void write_all(int file, const void *data, size_t length)
{
    for (size_t done = 0; done < length;) {
        ssize_t written = send(file, (const char *)data + done, length - done, MSG_NOSIGNAL);
        if (written < 0)
            fail("send");
        done += (size_t)written;
    }
}

/* A line without its end; false at the connection's. */
static bool read_line(int file, char *line)
{
    size_t used = 0;
    while (used < LINE_MAX_BYTES - 1 && read(file, line + used, 1) == 1) {
        if (line[used] == '\n') {
            line[used] = '\0';
            return true;
        }
        used++;
    }
    return false;
}

/* Read so many bytes; the time from the first to the last. */
static int64_t take_bytes(int file, long long count)
{
    int64_t start = 0;
    while (count > 0) {
        ssize_t got = read(file, chunk, sizeof chunk);
        if (got <= 0)
            fail("read");
        if (start == 0)
            start = now_ns();
        count -= got;
    }
    return now_ns() - start;
}

static void give_bytes(int file, long long count)
{
    while (count > 0) {
        size_t length = count < CHUNK ? (size_t)count : CHUNK;
        write_all(file, chunk, length);
        count -= (long long)length;
    }
}

/* --- server --- */

static int describe_peer(char *text, const char *label, const struct sockaddr_in6 *peer)
{
    char address[INET6_ADDRSTRLEN] = "";
    (void)inet_ntop(AF_INET6, &peer->sin6_addr, address, sizeof address);
    const char *shown = strncmp(address, "::ffff:", 7) == 0 ? address + 7 : address;
    return snprintf(text, LINE_MAX_BYTES, "%s %s %u\n", label, shown, ntohs(peer->sin6_port));
}

static int listen_on(int type, uint16_t port)
{
    int one = 1;
    int off = 0;
    struct sockaddr_in6 any = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    int file = socket(AF_INET6, type | SOCK_CLOEXEC, 0);
    if (file < 0 || setsockopt(file, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) != 0 ||
        setsockopt(file, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off) != 0 ||
        setsockopt(file, IPPROTO_IPV6, IPV6_RECVPKTINFO, &one, sizeof one) != 0 ||
        bind(file, (struct sockaddr *)&any, sizeof any) != 0 ||
        (type == SOCK_STREAM && listen(file, SOMAXCONN) != 0))
        fail("listen");
    return file;
}

static void serve_connection(int file, const char *label, const struct sockaddr_in6 *peer)
{
    char line[LINE_MAX_BYTES];
    long long count;
    if (!read_line(file, line))
        return;
    if (strcmp(line, "ask") == 0) {
        write_all(file, line, (size_t)describe_peer(line, label, peer));
    } else if (sscanf(line, "upload %lld", &count) == 1) {
        (void)take_bytes(file, count);
        write_all(file, "done\n", 5);
    } else if (sscanf(line, "download %lld", &count) == 1) {
        give_bytes(file, count);
    } else if (strcmp(line, "talk") == 0) {
        ssize_t got;
        while ((got = read(file, line, sizeof line)) > 0)
            write_all(file, line, (size_t)got);
    }
}

static void accept_one(int listener, const char *label)
{
    struct sockaddr_in6 peer;
    socklen_t length = sizeof peer;
    int file = accept(listener, (struct sockaddr *)&peer, &length);
    if (file < 0)
        return;
    if (fork() == 0) {
        serve_connection(file, label, &peer);
        exit(0);
    }
    (void)close(file);
}

/* The answer goes out from the address that was asked. */
static void answer_datagram(int file, const char *label)
{
    char text[LINE_MAX_BYTES];
    char control[256];
    struct sockaddr_in6 peer;
    struct iovec part = {text, sizeof text};
    struct msghdr message = {.msg_name = &peer,
                             .msg_namelen = sizeof peer,
                             .msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control,
                             .msg_controllen = sizeof control};
    if (recvmsg(file, &message, 0) < 0)
        return;
    for (struct cmsghdr *item = CMSG_FIRSTHDR(&message); item != NULL; item = CMSG_NXTHDR(&message, item)) {
        if (item->cmsg_level == IPPROTO_IPV6 && item->cmsg_type == IPV6_PKTINFO)
            ((struct in6_pktinfo *)(void *)CMSG_DATA(item))->ipi6_ifindex = 0;
    }
    part.iov_len = (size_t)describe_peer(text, label, &peer);
    (void)sendmsg(file, &message, 0);
}

static _Noreturn void serve(char **words)
{
    struct pollfd polled[2 * PORTS_MAX];
    nfds_t count = 0;
    const char *label = *words++;
    for (; *words != NULL && count < 2 * PORTS_MAX; words++) {
        uint16_t port = (uint16_t)atoi(*words);
        polled[count++] = (struct pollfd){.fd = listen_on(SOCK_STREAM, port), .events = POLLIN};
        polled[count++] = (struct pollfd){.fd = listen_on(SOCK_DGRAM, port), .events = POLLIN};
    }
    (void)signal(SIGCHLD, SIG_IGN);
    (void)puts("serving");
    for (;;) {
        if (poll(polled, count, -1) < 0)
            continue;
        for (nfds_t i = 0; i < count; i++) {
            if (polled[i].revents != 0 && i % 2 == 0)
                accept_one(polled[i].fd, label);
            else if (polled[i].revents != 0)
                answer_datagram(polled[i].fd, label);
        }
    }
}

/* --- client --- */

/* Whether to try again after what has just failed. */
static bool was_refused(int64_t deadline)
{
    if (errno != ECONNREFUSED || now_ns() > deadline)
        return false;
    (void)usleep(20000);
    return true;
}

/* A connected socket; `milliseconds` (0: no end) hold for the connecting and each read. */
static int reach(const char *address, const char *port, int type, int milliseconds)
{
    struct addrinfo hints = {.ai_socktype = type, .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV};
    struct addrinfo *found = NULL;
    struct timeval limit = {milliseconds / 1000, milliseconds % 1000 * 1000};
    if (getaddrinfo(address, port, &hints, &found) != 0) {
        (void)fprintf(stderr, "%s: no address\n", address);
        exit(1);
    }
    int64_t deadline = now_ns() + (int64_t)(milliseconds > 0 ? milliseconds : REFUSED_MS) * 1000000;
    for (;;) {
        int file = socket(found->ai_family, type | SOCK_CLOEXEC, 0);
        if (file < 0 || setsockopt(file, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) != 0 ||
            setsockopt(file, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) != 0)
            fail("socket");
        if (connect(file, found->ai_addr, found->ai_addrlen) == 0) {
            freeaddrinfo(found);
            return file;
        }
        if (!was_refused(deadline))
            fail("connect");
        (void)close(file);
    }
}

static int ask(char **words)
{
    bool stream = strcmp(words[0], "tcp") == 0;
    int milliseconds = atoi(words[3]);
    int64_t deadline = now_ns() + (int64_t)milliseconds * 1000000;
    int each = stream || milliseconds < RETRY_MS ? milliseconds : RETRY_MS;
    int file = reach(words[1], words[2], stream ? SOCK_STREAM : SOCK_DGRAM, each);
    ssize_t got;
    do {
        got = send(file, "ask\n", 4, MSG_NOSIGNAL) < 0 ? -1 : read(file, chunk, sizeof chunk);
    } while (got < 0 && !stream && ((errno == EAGAIN && now_ns() < deadline) || was_refused(deadline)));
    if (got <= 0)
        fail("read");
    return fwrite(chunk, 1, (size_t)got, stdout) == (size_t)got ? 0 : 1;
}

/* What comes of one question: the answer, or why there is none. */
static _Noreturn void nag(char **words)
{
    int file = reach(words[0], words[1], SOCK_DGRAM, 100);
    for (;;) {
        ssize_t got = send(file, "ask\n", 4, 0) < 0 ? -1 : read(file, chunk, sizeof chunk);
        if (got < 0)
            (void)puts(errno == EAGAIN ? "silence" : strerror(errno));
        else
            (void)fwrite(chunk, 1, (size_t)got, stdout);
        if (got >= 0 || errno != EAGAIN)
            (void)usleep(100000);
    }
}

static int transfer(const char *verb, char **words)
{
    char line[LINE_MAX_BYTES];
    long long count = atoll(words[2]);
    int file = reach(words[0], words[1], SOCK_STREAM, 0);
    write_all(file, line, (size_t)snprintf(line, sizeof line, "%s %lld\n", verb, count));
    if (strcmp(verb, "download") == 0)
        return printf("%lld\n", (long long)take_bytes(file, count)) < 0;
    int64_t start = now_ns();
    give_bytes(file, count);
    if (!read_line(file, line))
        fail("read");
    return printf("%lld\n", (long long)(now_ns() - start)) < 0;
}

/* Wait for answers to what has been begun, not long; the number of those that came. */
static unsigned await_answers(struct pollfd *begun, nfds_t count)
{
    unsigned answered = 0;
    int64_t late = now_ns() + (int64_t)FLOWS_MS * 1000000;
    for (int64_t left = late - now_ns(); left > 0 && answered < count; left = late - now_ns()) {
        if (poll(begun, count, (int)(left / 1000000) + 1) <= 0)
            continue;
        for (nfds_t i = 0; i < count; i++) {
            if (begun[i].fd < 0 || begun[i].revents == 0)
                continue;
            (void)close(begun[i].fd);
            begun[i].fd = -1;
            answered++;
        }
    }
    for (nfds_t i = 0; i < count; i++) {
        if (begun[i].fd >= 0)
            (void)close(begun[i].fd);
    }
    return answered;
}

static int flows(char **words)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV};
    struct addrinfo *found = NULL;
    unsigned answered = 0;
    unsigned tried = 0;
    if (getaddrinfo(words[0], words[1], &hints, &found) != 0)
        fail("address");
    int64_t end = now_ns() + atoll(words[2]) * 1000000;
    while (now_ns() < end) {
        struct pollfd begun[FLOWS];
        for (nfds_t i = 0; i < FLOWS; i++) {
            int file = socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
            if (file < 0)
                fail("socket");
            (void)connect(file, found->ai_addr, found->ai_addrlen);
            begun[i] = (struct pollfd){.fd = file, .events = POLLOUT};
        }
        tried += FLOWS;
        answered += await_answers(begun, FLOWS);
    }
    freeaddrinfo(found);
    return printf("%u %u\n", answered, tried) < 0;
}

static int talk(char **words)
{
    char line[LINE_MAX_BYTES];
    int file = reach(words[0], words[1], SOCK_STREAM, 0);
    write_all(file, "talk\n", 5);
    while (fgets(line, sizeof line, stdin) != NULL) {
        write_all(file, line, strlen(line));
        if (!read_line(file, line))
            fail("read");
        (void)puts(line);
    }
    return 0;
}

/* --- frames --- */

static int open_interface(const char *name)
{
    struct sockaddr_ll place = {
        .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL), .sll_ifindex = (int)if_nametoindex(name)};
    struct packet_mreq all = {.mr_ifindex = place.sll_ifindex, .mr_type = PACKET_MR_PROMISC};
    int file = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
    if (place.sll_ifindex == 0 || file < 0 || bind(file, (struct sockaddr *)&place, sizeof place) != 0 ||
        setsockopt(file, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &all, sizeof all) != 0)
        fail(name);
    return file;
}

static int send_frames(char **words)
{
    int file = open_interface(*words++);
    for (; *words != NULL; words++) {
        size_t length = strlen(*words) / 2;
        for (size_t i = 0; i < length && i < sizeof chunk; i++) {
            char digits[3] = {(*words)[2 * i], (*words)[2 * i + 1], '\0'};
            chunk[i] = (unsigned char)strtoul(digits, NULL, 16);
        }
        if (send(file, chunk, length, 0) != (ssize_t)length)
            fail("send");
    }
    return 0;
}

static _Noreturn void watch(const char *interface)
{
    int file = open_interface(interface);
    (void)puts("watching");
    for (;;) {
        struct sockaddr_ll from;
        socklen_t size = sizeof from;
        ssize_t length = recvfrom(file, chunk, sizeof chunk, 0, (struct sockaddr *)&from, &size);
        if (length < 0)
            fail(interface);
        (void)fputs(from.sll_pkttype == PACKET_OUTGOING ? "out " : "in ", stdout);
        for (ssize_t i = 0; i < length; i++)
            (void)printf("%02x", chunk[i]);
        (void)putchar('\n');
    }
}

int main(int argc, char **argv)
{
    (void)setvbuf(stdout, NULL, _IOLBF, FRAME_MAX);
    const char *verb = argc > 2 ? argv[1] : "";
    if (strcmp(verb, "serve") == 0)
        serve(argv + 2);
    if (strcmp(verb, "ask") == 0 && argc == 6)
        return ask(argv + 2);
    if (strcmp(verb, "nag") == 0 && argc == 4)
        nag(argv + 2);
    if ((strcmp(verb, "upload") == 0 || strcmp(verb, "download") == 0) && argc == 5)
        return transfer(verb, argv + 2);
    if (strcmp(verb, "flows") == 0 && argc == 5)
        return flows(argv + 2);
    if (strcmp(verb, "talk") == 0 && argc == 4)
        return talk(argv + 2);
    if (strcmp(verb, "send") == 0)
        return send_frames(argv + 2);
    if (strcmp(verb, "watch") == 0)
        watch(argv[2]);
    (void)fprintf(stderr, "netprobe: what is `%s`?\n", verb);
    return 2;
}
