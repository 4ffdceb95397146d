// SPDX-License-Identifier: Apache-2.0
/* The module's entry points, against files of every kind. Exits 1 if anything is not as it should be. */
#include "../expect.h"
#include "hosts.h"
#include "room.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <nss.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { ROOM = 4096, MANY = 2000 };

nss_gethostbyname4_r _nss_hypemand_gethostbyname4_r;
nss_gethostbyname3_r _nss_hypemand_gethostbyname3_r;
nss_gethostbyname2_r _nss_hypemand_gethostbyname2_r;
nss_gethostbyname_r _nss_hypemand_gethostbyname_r;
nss_gethostbyaddr2_r _nss_hypemand_gethostbyaddr2_r;
nss_gethostbyaddr_r _nss_hypemand_gethostbyaddr_r;

static void write_bytes(const char *bytes, size_t size)
{
    int fd = open(HOSTS_PATH, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0 || write(fd, bytes, size) != (ssize_t)size)
        abort();
    (void)close(fd);
}

static void write_text(const char *text)
{
    write_bytes(text, strlen(text));
}

/* What the last call answered. */
static struct {
    enum nss_status status;
    int number;
    int error;
    char text[ROOM]; /* name alias… address… */
} last;

static void add_word(const char *word)
{
    size_t used = strlen(last.text);
    (void)snprintf(last.text + used, sizeof last.text - used, "%s%s", used == 0 ? "" : " ", word);
}

static void add_address(int family, const void *bytes)
{
    char word[INET6_ADDRSTRLEN];
    add_word(inet_ntop(family, bytes, word, sizeof word));
}

static void take(enum nss_status status, int number, int error, const struct hostent *host)
{
    last.status = status;
    last.number = number;
    last.error = error;
    last.text[0] = '\0';
    if (status != NSS_STATUS_SUCCESS)
        return;
    add_word(host->h_name);
    for (char **alias = host->h_aliases; *alias != NULL; alias++)
        add_word(*alias);
    for (char **address = host->h_addr_list; *address != NULL; address++)
        add_address(host->h_addrtype, *address);
}

/* With a buffer of exactly this size, so that the sanitizer sees a byte too much. */
static void by_name(const char *name, int family, size_t size)
{
    struct hostent host;
    int number = 0;
    int error = 0;
    int32_t ttl = 7;
    char *canonical = NULL;
    char *buffer = malloc(size + 1);
    if (buffer == NULL)
        abort();
    enum nss_status status = _nss_hypemand_gethostbyname3_r(name, family, &host, buffer + 1, size, &number,
                                                            &error, &ttl, &canonical);
    take(status, number, error, &host);
    EXPECT(ttl == 0);
    EXPECT(status != NSS_STATUS_SUCCESS || canonical == host.h_name);
    free(buffer);
}

static void by_address(const char *text, int family, size_t size)
{
    uint8_t bytes[16];
    struct hostent host;
    int number = 0;
    int error = 0;
    char *buffer = malloc(size + 1);
    if (buffer == NULL || inet_pton(family, text, bytes) != 1)
        abort();
    enum nss_status status = _nss_hypemand_gethostbyaddr_r(bytes, (socklen_t)address_length(family), family,
                                                           &host, buffer + 1, size, &number, &error);
    take(status, number, error, &host);
    free(buffer);
}

static void by_any(const char *name, size_t size)
{
    struct gaih_addrtuple first;
    struct gaih_addrtuple *tuples = &first;
    char *buffer = malloc(size + 1);
    if (buffer == NULL)
        abort();
    /* nscd hands the first one in, getaddrinfo does not: the same either way. */
    for (int i = 0; i < 2; i++) {
        int number = 0;
        int error = 0;
        last.status = _nss_hypemand_gethostbyname4_r(name, &tuples, buffer + 1, size, &number, &error, NULL);
        last.number = number;
        last.error = error;
        last.text[0] = '\0';
        for (const struct gaih_addrtuple *at = tuples; last.status == NSS_STATUS_SUCCESS && at != NULL;
             at = at->next) {
            if (at == tuples)
                add_word(at->name);
            EXPECT(at->name == tuples->name && at->scopeid == 0);
            add_address(at->family, at->addr);
        }
        EXPECT(i == 1 || tuples == &first);
        tuples = NULL;
    }
    free(buffer);
}

static void expect_none(int error, int line)
{
    if (last.status == NSS_STATUS_NOTFOUND && last.number == ENOENT && last.error == error)
        return;
    (void)fprintf(stderr, "%s:%d: status %d, errno %d, h_errno %d\n", __FILE__, line, last.status,
                  last.number, last.error);
    failures++;
}
#define EXPECT_NONE(error) expect_none(error, __LINE__)

static void expect_small(int line)
{
    if (last.status == NSS_STATUS_TRYAGAIN && last.number == ERANGE && last.error == NETDB_INTERNAL)
        return;
    (void)fprintf(stderr, "%s:%d: status %d, errno %d, h_errno %d\n", __FILE__, line, last.status,
                  last.number, last.error);
    failures++;
}
#define EXPECT_SMALL() expect_small(__LINE__)

static const char two[] = "10.0.0.2\tweb web.hypeman\n"
                          "fd00::2\tweb web.hypeman\n"
                          "10.0.0.3\tdb db.hypeman\n";

static void test_names(void)
{
    write_text(two);
    by_name("web", AF_INET, ROOM);
    EXPECT_TEXT(last.text, "web web.hypeman 10.0.0.2");
    by_name("web.hypeman", AF_INET6, ROOM);
    EXPECT_TEXT(last.text, "web web.hypeman fd00::2");
    by_name("db", AF_UNSPEC, ROOM);
    EXPECT_TEXT(last.text, "db db.hypeman 10.0.0.3");
    by_any("web", ROOM);
    EXPECT_TEXT(last.text, "web 10.0.0.2 fd00::2");
    by_any("db.hypeman", ROOM);
    EXPECT_TEXT(last.text, "db 10.0.0.3");
}

static void test_case_makes_no_difference(void)
{
    write_text(two);
    by_name("WeB.HYPEMAN", AF_INET, ROOM);
    EXPECT_TEXT(last.text, "web web.hypeman 10.0.0.2");
    by_any("DB", ROOM);
    EXPECT_TEXT(last.text, "db 10.0.0.3");
}

static void test_names_that_are_not_there(void)
{
    write_text(two);
    static const char *const names[] = {"", "we", "webb", "web.", "10.0.0.2", "hypeman", "web\tweb.hypeman"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        by_name(names[i], AF_INET, ROOM);
        EXPECT_NONE(HOST_NOT_FOUND);
        by_any(names[i], ROOM);
        EXPECT_NONE(HOST_NOT_FOUND);
    }
    by_name("db", AF_INET6, ROOM);
    EXPECT_NONE(NO_DATA);
    by_name("web", AF_UNIX, ROOM);
    EXPECT(last.status == NSS_STATUS_UNAVAIL && last.number == EAFNOSUPPORT);
}

static void test_addresses(void)
{
    write_text(two);
    by_address("10.0.0.3", AF_INET, ROOM);
    EXPECT_TEXT(last.text, "db db.hypeman 10.0.0.3");
    by_address("fd00::2", AF_INET6, ROOM);
    EXPECT_TEXT(last.text, "web web.hypeman fd00::2");
    by_address("10.0.0.4", AF_INET, ROOM);
    EXPECT_NONE(HOST_NOT_FOUND);
    write_text("10.0.0.2 first alias\n10.0.0.2 second\n");
    by_address("10.0.0.2", AF_INET, ROOM);
    EXPECT_TEXT(last.text, "first alias 10.0.0.2");

    struct hostent host;
    int number = 0;
    int error = 0;
    char buffer[ROOM];
    int32_t ttl = 7;
    EXPECT(_nss_hypemand_gethostbyaddr2_r("abc", 3, AF_INET, &host, buffer, sizeof buffer, &number, &error,
                                          &ttl) == NSS_STATUS_UNAVAIL);
    EXPECT(number == EINVAL && ttl == 0);
    EXPECT(_nss_hypemand_gethostbyaddr2_r("\012\0\0\002", 4, AF_INET, &host, buffer, sizeof buffer, &number,
                                          &error, NULL) == NSS_STATUS_SUCCESS);
    EXPECT(_nss_hypemand_gethostbyname_r("second", &host, buffer, sizeof buffer, &number, &error) ==
           NSS_STATUS_SUCCESS);
    EXPECT(host.h_addrtype == AF_INET && host.h_length == 4);
    EXPECT(_nss_hypemand_gethostbyname2_r("second", AF_INET6, &host, buffer, sizeof buffer, &number,
                                          &error) == NSS_STATUS_NOTFOUND);
}

/* Whatever is too small is said to be so, and what is large enough is right: at every size in between. */
static void test_buffers(void)
{
    size_t small = 0;
    write_text(two);
    for (size_t size = 0; size < 256; size++) {
        by_name("web", AF_INET, size);
        if (last.status == NSS_STATUS_SUCCESS) {
            EXPECT_TEXT(last.text, "web web.hypeman 10.0.0.2");
            continue;
        }
        EXPECT_SMALL();
        small = size;
    }
    EXPECT(small > 16 && small < 128);
    for (size_t size = 0; size < 256; size++) {
        by_address("fd00::2", AF_INET6, size);
        if (last.status == NSS_STATUS_SUCCESS)
            EXPECT_TEXT(last.text, "web web.hypeman fd00::2");
        else
            EXPECT_SMALL();
        by_any("web", size);
        if (last.status == NSS_STATUS_SUCCESS)
            EXPECT_TEXT(last.text, "web 10.0.0.2 fd00::2");
        else
            EXPECT_SMALL();
    }
    by_name("nobody", AF_INET, 0);
    EXPECT_NONE(HOST_NOT_FOUND);
}

static void test_many_addresses(void)
{
    static char text[MANY * 32];
    size_t used = 0;
    for (unsigned i = 0; i < MANY; i++)
        used += (size_t)snprintf(text + used, sizeof text - used, "10.1.%u.%u many\n", i / 256, i % 256);
    write_text(text);
    struct hostent host;
    int number = 0;
    int error = 0;
    size_t size = (size_t)MANY * 64;
    char *buffer = malloc(size);
    if (buffer == NULL)
        abort();
    EXPECT(_nss_hypemand_gethostbyname_r("many", &host, buffer, size, &number, &error) == NSS_STATUS_SUCCESS);
    size_t count = 0;
    while (host.h_addr_list[count] != NULL) {
        const uint8_t wanted[4] = {10, 1, (uint8_t)(count / 256), (uint8_t)(count % 256)};
        EXPECT(memcmp(host.h_addr_list[count], wanted, sizeof wanted) == 0);
        count++;
    }
    EXPECT(count == MANY);
    free(buffer);
    by_any("many", ROOM);
    EXPECT_SMALL();
}

static void test_what_a_file_may_have(void)
{
    write_text("\n   \n# 10.0.0.2 web\n\t10.0.0.9 \t web\talias # web2 comment\r\n10.0.0.8 last");
    by_name("web", AF_INET, ROOM);
    EXPECT_TEXT(last.text, "web alias 10.0.0.9");
    by_name("web2", AF_INET, ROOM);
    EXPECT_NONE(HOST_NOT_FOUND);
    by_name("last", AF_INET, ROOM);
    EXPECT_TEXT(last.text, "last 10.0.0.8");
    write_text("10.0.0.1 a a2 b\n10.0.0.2 other b\n");
    by_name("b", AF_INET, ROOM);
    EXPECT_TEXT(last.text, "a a2 b 10.0.0.1 10.0.0.2");
    write_text("10.0.0.1 n0 n1 n2 n3 n4 n5 n6 n7 n8 n9 n10 n11 n12 n13 n14 n15 n16\n");
    by_name("n15", AF_INET, ROOM);
    EXPECT(last.status == NSS_STATUS_SUCCESS);
    by_name("n16", AF_INET, ROOM);
    EXPECT_NONE(HOST_NOT_FOUND);
}

static void test_broken_lines(void)
{
    write_text("web\n10.0.0.2\n10.0.0.2/24 web\n10.0.0 web\n256.0.0.1 web\nfd00::2%eth0 web\n:: \n"
               "web 10.0.0.2\n10.0.0.2#web\n fd00:::2 web\n\xff\xfe web\n10.0.0.7 web\n");
    by_any("web", ROOM);
    EXPECT_TEXT(last.text, "web 10.0.0.7");
    static const char nul[] = "10.0.0.1 a\0b web\n10.0.0.2 web\n\0\0\0";
    write_bytes(nul, sizeof nul - 1);
    by_any("web", ROOM);
    EXPECT_TEXT(last.text, "web 10.0.0.2");
}

/* A line that is too long is passed over, wherever it begins and ends; its neighbours are read. */
static void test_long_lines(void)
{
    static char text[8 * HOSTS_LINE_MAX];
    for (size_t length = HOSTS_LINE_MAX - 20; length < HOSTS_LINE_MAX + 20; length++) {
        for (size_t times = 1; times < 5; times++) {
            size_t used = (size_t)snprintf(text, sizeof text, "10.0.0.1 web\n");
            size_t begin = used;
            used += (size_t)snprintf(text + used, sizeof text - used, "10.0.0.2 web ");
            memset(text + used, 'x', length * times - (used - begin));
            used = begin + length * times;
            used += (size_t)snprintf(text + used, sizeof text - used, "\n10.0.0.3 web\n");
            write_bytes(text, used);
            by_name("web", AF_INET, ROOM);
            bool whole = length * times < HOSTS_LINE_MAX - 1;
            EXPECT_TEXT(last.text, whole ? "web 10.0.0.1 10.0.0.2 10.0.0.3" : "web 10.0.0.1 10.0.0.3");
        }
    }
    memset(text, 'x', sizeof text);
    write_bytes(text, sizeof text);
    by_name("web", AF_INET, ROOM);
    EXPECT_NONE(HOST_NOT_FOUND);
}

static void test_a_file_that_is_too_large(void)
{
    write_text("10.0.0.1 web\n");
    if (truncate(HOSTS_PATH, HOSTS_SIZE_MAX) != 0)
        abort();
    int fd = open(HOSTS_PATH, O_WRONLY | O_APPEND | O_CLOEXEC);
    if (fd < 0 || write(fd, "\n10.0.0.2 late\n", 15) != 15)
        abort();
    (void)close(fd);
    by_name("web", AF_INET, ROOM);
    EXPECT_TEXT(last.text, "web 10.0.0.1");
    by_name("late", AF_INET, ROOM);
    EXPECT_NONE(HOST_NOT_FOUND);
}

static void test_files_that_cannot_be_read(void)
{
    (void)unlink(HOSTS_PATH);
    by_name("web", AF_INET, ROOM);
    EXPECT_NONE(HOST_NOT_FOUND);
    by_any("web", ROOM);
    EXPECT_NONE(HOST_NOT_FOUND);
    by_address("10.0.0.2", AF_INET, ROOM);
    EXPECT_NONE(HOST_NOT_FOUND);
    write_text("");
    by_any("web", ROOM);
    EXPECT_NONE(HOST_NOT_FOUND);
    (void)unlink(HOSTS_PATH);
    if (mkdir(HOSTS_PATH, 0755) != 0)
        abort();
    by_any("web", ROOM);
    EXPECT(last.status == NSS_STATUS_UNAVAIL && last.number == EINVAL && last.error == NO_RECOVERY);
    (void)rmdir(HOSTS_PATH);
    /* Nobody writes to it, and nobody waits for that. */
    if (mkfifo(HOSTS_PATH, 0644) != 0)
        abort();
    by_name("web", AF_INET, ROOM);
    EXPECT(last.status == NSS_STATUS_UNAVAIL && last.number == EINVAL && last.error == NO_RECOVERY);
    (void)unlink(HOSTS_PATH);
    if (symlink(HOSTS_PATH, HOSTS_PATH) != 0)
        abort();
    by_name("web", AF_INET, ROOM);
    EXPECT(last.status == NSS_STATUS_UNAVAIL && last.number == ELOOP);
    (void)unlink(HOSTS_PATH);
}

static void test_no_descriptor_is_left(void)
{
    write_text(two);
    int before = dup(STDERR_FILENO);
    (void)close(before);
    by_name("web", AF_INET, ROOM);
    by_name("web", AF_INET, 8);
    by_any("nobody", ROOM);
    by_address("10.0.0.3", AF_INET, ROOM);
    (void)unlink(HOSTS_PATH);
    by_any("web", ROOM);
    int after = dup(STDERR_FILENO);
    (void)close(after);
    EXPECT(before == after);
}

static void test_room(void)
{
    char buffer[64];
    struct room room = {buffer + 1, sizeof buffer - 1};
    EXPECT(room_take(&room, SIZE_MAX, 8) == NULL && room.left == sizeof buffer - 1);
    const char *aligned = room_take(&room, 8, 8);
    EXPECT(aligned != NULL && (uintptr_t)aligned % 8 == 0);
    EXPECT(room_take(&room, room.left, 1) != NULL && room.left == 0);
    EXPECT(room_take(&room, 0, 1) != NULL && room_take(&room, 1, 1) == NULL);
}

int main(void)
{
    test_names();
    test_case_makes_no_difference();
    test_names_that_are_not_there();
    test_addresses();
    test_buffers();
    test_many_addresses();
    test_what_a_file_may_have();
    test_broken_lines();
    test_long_lines();
    test_a_file_that_is_too_large();
    test_files_that_cannot_be_read();
    test_no_descriptor_is_left();
    test_room();
    (void)fprintf(stderr, failures == 0 ? "unit: all as it should be\n" : "unit: failed\n");
    return failures == 0 ? 0 : 1;
}
