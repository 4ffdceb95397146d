// SPDX-License-Identifier: Apache-2.0
/* The module with any file: the first two bytes are the size of the caller's buffer, the rest is the file. */
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <nss.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

nss_gethostbyname4_r _nss_hypemand_gethostbyname4_r;
nss_gethostbyname2_r _nss_hypemand_gethostbyname2_r;
nss_gethostbyaddr_r _nss_hypemand_gethostbyaddr_r;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void write_file(const uint8_t *data, size_t size)
{
    int fd = open(HOSTS_PATH, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0 || write(fd, data, size) != (ssize_t)size)
        abort();
    (void)close(fd);
}

/* So that nothing of what is looked at is left out. */
static volatile size_t seen;

/* Every byte of an answer is there: the sanitizer sees one that is not. */
static void look_at(const struct hostent *host)
{
    static const uint8_t web[16] = {10, 0, 0, 2};
    seen += strlen(host->h_name);
    for (char **alias = host->h_aliases; *alias != NULL; alias++)
        seen += strlen(*alias);
    for (char **address = host->h_addr_list; *address != NULL; address++)
        seen += memcmp(*address, web, (size_t)host->h_length) == 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t address[4] = {10, 0, 0, 2};
    struct gaih_addrtuple *tuples = NULL;
    struct hostent host;
    int number = 0;
    int error = 0;
    if (size < 2)
        return 0;
    size_t room = (size_t)(data[0] | data[1] << 8) % 4096;
    char *buffer = malloc(room + 1);
    if (buffer == NULL)
        abort();
    write_file(data + 2, size - 2);
    if (_nss_hypemand_gethostbyname4_r("web", &tuples, buffer, room, &number, &error, NULL) ==
        NSS_STATUS_SUCCESS) {
        for (; tuples != NULL; tuples = tuples->next)
            seen += strlen(tuples->name) + tuples->addr[0];
    }
    for (int i = 0; i < 2; i++) {
        if (_nss_hypemand_gethostbyname2_r("web", i == 0 ? AF_INET : AF_INET6, &host, buffer, room, &number,
                                           &error) == NSS_STATUS_SUCCESS)
            look_at(&host);
    }
    if (_nss_hypemand_gethostbyaddr_r(address, sizeof address, AF_INET, &host, buffer, room, &number,
                                      &error) == NSS_STATUS_SUCCESS)
        look_at(&host);
    free(buffer);
    return 0;
}
