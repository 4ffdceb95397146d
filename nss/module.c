// SPDX-License-Identifier: Apache-2.0
/* libnss_hypemand.so.2: names of VMs for the C library of the host, nsswitch.conf(5), from the file that the
 * daemon keeps. The interface is glibc's <nss.h>; what a status and an error together ask of the caller
 * stands in glibc's manual, "NSS Modules Interface". */
#include "hosts.h"
#include "room.h"

#include <errno.h>
#include <netdb.h>
#include <nss.h>
#include <stdalign.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>

#ifndef HOSTS_PATH
#define HOSTS_PATH "/run/hypemand/hosts"
#endif

#define EXPORT __attribute__((visibility("default")))

EXPORT nss_gethostbyname4_r _nss_hypemand_gethostbyname4_r;
EXPORT nss_gethostbyname3_r _nss_hypemand_gethostbyname3_r;
EXPORT nss_gethostbyname2_r _nss_hypemand_gethostbyname2_r;
EXPORT nss_gethostbyname_r _nss_hypemand_gethostbyname_r;
EXPORT nss_gethostbyaddr2_r _nss_hypemand_gethostbyaddr2_r;
EXPORT nss_gethostbyaddr_r _nss_hypemand_gethostbyaddr_r;

/* Where a caller wants errors. */
struct errors {
    int *number;
    int *host;
};

static enum nss_status fail(struct errors errors, enum nss_status status, int number, int host)
{
    *errors.number = number;
    *errors.host = host;
    return status;
}

/* The caller comes again with a larger buffer. */
static enum nss_status too_small(struct errors errors)
{
    return fail(errors, NSS_STATUS_TRYAGAIN, ERANGE, NETDB_INTERNAL);
}

static enum nss_status not_found(struct errors errors, bool other_family)
{
    return fail(errors, NSS_STATUS_NOTFOUND, ENOENT, other_family ? NO_DATA : HOST_NOT_FOUND);
}

/* No file: no VM. */
static enum nss_status unreadable(struct errors errors, int error)
{
    if (error == ENOENT)
        return not_found(errors, false);
    return fail(errors, NSS_STATUS_UNAVAIL, error, NO_RECOVERY);
}

/* --- an answer of one family, in the form of gethostbyname(3) --- */

struct answer {
    struct hostent *host;
    struct room room;
    char *addresses; /* one behind the other */
    size_t count;
};

/* The first line says how the host is called: by the first of its names. */
static bool begin(struct answer *answer, const struct host_line *line)
{
    struct hostent *host = answer->host;
    host->h_addrtype = line->family;
    host->h_length = (int)address_length(line->family);
    host->h_aliases = room_take(&answer->room, line->count * sizeof(char *), alignof(char *));
    host->h_name = host->h_aliases == NULL ? NULL : room_text(&answer->room, line->names[0]);
    if (host->h_name == NULL)
        return false;
    for (size_t i = 1; i < line->count; i++) {
        host->h_aliases[i - 1] = room_text(&answer->room, line->names[i]);
        if (host->h_aliases[i - 1] == NULL)
            return false;
    }
    host->h_aliases[line->count - 1] = NULL;
    return true;
}

static bool add(struct answer *answer, const struct host_line *line)
{
    if (answer->count == 0 && !begin(answer, line))
        return false;
    char *address =
        room_copy(&answer->room, line->address, (size_t)answer->host->h_length, alignof(uint32_t));
    if (address == NULL)
        return false;
    if (answer->count++ == 0)
        answer->addresses = address;
    return true;
}

static bool finish(struct answer *answer)
{
    struct hostent *host = answer->host;
    host->h_addr_list = room_take(&answer->room, (answer->count + 1) * sizeof(char *), alignof(char *));
    if (host->h_addr_list == NULL)
        return false;
    for (size_t i = 0; i < answer->count; i++)
        host->h_addr_list[i] = answer->addresses + i * (size_t)host->h_length;
    host->h_addr_list[answer->count] = NULL;
    return true;
}

/* --- what is asked for --- */

struct question {
    int family;
    const char *name;    /* or NULL */
    const void *address; /* of which the first line is the answer */
};

static bool is_asked(const struct question *question, const struct host_line *line)
{
    if (question->name != NULL)
        return host_line_names(line, question->name);
    return line->family == question->family &&
           memcmp(line->address, question->address, address_length(line->family)) == 0;
}

static enum nss_status search(struct hosts *hosts, const struct question *question, struct answer *answer,
                              struct errors errors)
{
    struct host_line line;
    bool other_family = false;
    while (hosts_next(hosts, &line)) {
        if (!is_asked(question, &line))
            continue;
        if (line.family != question->family) {
            other_family = true;
            continue;
        }
        if (!add(answer, &line))
            return too_small(errors);
        if (question->address != NULL)
            break;
    }
    if (hosts->failed)
        return unreadable(errors, errno);
    if (answer->count == 0)
        return not_found(errors, other_family);
    return finish(answer) ? NSS_STATUS_SUCCESS : too_small(errors);
}

static enum nss_status answer_question(const struct question *question, struct hostent *host,
                                       struct room room, struct errors errors)
{
    struct hosts hosts;
    struct answer answer = {.host = host, .room = room};
    if (question->family != AF_INET && question->family != AF_INET6)
        return fail(errors, NSS_STATUS_UNAVAIL, EAFNOSUPPORT, NO_DATA);
    if (!hosts_open(&hosts, HOSTS_PATH))
        return unreadable(errors, errno);
    enum nss_status status = search(&hosts, question, &answer, errors);
    hosts_close(&hosts);
    return status;
}

/* --- an answer of all families, in the form of getaddrinfo(3) --- */

/* Fill *tuple, or take one if it is NULL: the caller may have the first already. */
static bool fill_tuple(struct gaih_addrtuple **tuple, const struct host_line *line, char *name,
                       struct room *room)
{
    if (*tuple == NULL)
        *tuple = room_take(room, sizeof **tuple, alignof(struct gaih_addrtuple));
    if (*tuple == NULL)
        return false;
    **tuple = (struct gaih_addrtuple){.name = name, .family = line->family};
    memcpy((*tuple)->addr, line->address, address_length(line->family));
    return true;
}

static enum nss_status search_all(struct hosts *hosts, const char *name, struct gaih_addrtuple **first,
                                  struct room *room, struct errors errors)
{
    struct host_line line;
    struct gaih_addrtuple **next = first;
    char *canonical = NULL;
    while (hosts_next(hosts, &line)) {
        if (!host_line_names(&line, name))
            continue;
        if (canonical == NULL && (canonical = room_text(room, line.names[0])) == NULL)
            return too_small(errors);
        if (!fill_tuple(next, &line, canonical, room))
            return too_small(errors);
        next = &(*next)->next;
    }
    if (hosts->failed)
        return unreadable(errors, errno);
    return canonical == NULL ? not_found(errors, false) : NSS_STATUS_SUCCESS;
}

/* --- what glibc calls --- */

EXPORT enum nss_status _nss_hypemand_gethostbyname4_r(const char *name, struct gaih_addrtuple **pat,
                                                      char *buffer, size_t buflen, int *errnop, int *h_errnop,
                                                      int32_t *ttlp)
{
    struct errors errors = {errnop, h_errnop};
    struct room room = {buffer, buflen};
    struct hosts hosts;
    if (ttlp != NULL)
        *ttlp = 0;
    if (!hosts_open(&hosts, HOSTS_PATH))
        return unreadable(errors, errno);
    enum nss_status status = search_all(&hosts, name, pat, &room, errors);
    hosts_close(&hosts);
    return status;
}

EXPORT enum nss_status _nss_hypemand_gethostbyname3_r(const char *name, int af, struct hostent *result,
                                                      char *buffer, size_t buflen, int *errnop, int *h_errnop,
                                                      int32_t *ttlp, char **canonp)
{
    const struct question question = {.family = af == AF_UNSPEC ? AF_INET : af, .name = name};
    enum nss_status status =
        answer_question(&question, result, (struct room){buffer, buflen}, (struct errors){errnop, h_errnop});
    if (ttlp != NULL)
        *ttlp = 0;
    if (status == NSS_STATUS_SUCCESS && canonp != NULL)
        *canonp = result->h_name;
    return status;
}

EXPORT enum nss_status _nss_hypemand_gethostbyname2_r(const char *name, int af, struct hostent *result,
                                                      char *buffer, size_t buflen, int *errnop, int *h_errnop)
{
    return _nss_hypemand_gethostbyname3_r(name, af, result, buffer, buflen, errnop, h_errnop, NULL, NULL);
}

EXPORT enum nss_status _nss_hypemand_gethostbyname_r(const char *name, struct hostent *result, char *buffer,
                                                     size_t buflen, int *errnop, int *h_errnop)
{
    return _nss_hypemand_gethostbyname2_r(name, AF_INET, result, buffer, buflen, errnop, h_errnop);
}

EXPORT enum nss_status _nss_hypemand_gethostbyaddr2_r(const void *addr, socklen_t len, int af,
                                                      struct hostent *result, char *buffer, size_t buflen,
                                                      int *errnop, int *h_errnop, int32_t *ttlp)
{
    struct errors errors = {errnop, h_errnop};
    const struct question question = {.family = af, .address = addr};
    if (ttlp != NULL)
        *ttlp = 0;
    if ((af == AF_INET || af == AF_INET6) && len < address_length(af))
        return fail(errors, NSS_STATUS_UNAVAIL, EINVAL, NO_RECOVERY);
    return answer_question(&question, result, (struct room){buffer, buflen}, errors);
}

EXPORT enum nss_status _nss_hypemand_gethostbyaddr_r(const void *addr, socklen_t len, int af,
                                                     struct hostent *result, char *buffer, size_t buflen,
                                                     int *errnop, int *h_errnop)
{
    return _nss_hypemand_gethostbyaddr2_r(addr, len, af, result, buffer, buflen, errnop, h_errnop, NULL);
}
