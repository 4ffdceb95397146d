// SPDX-License-Identifier: Apache-2.0
#include "network.h"

#include "devices.h"
#include "fields.h"
#include "files.h"
#include "inroot.h"
#include "records.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAC_LENGTH = 17, MTU_LEAST = 68, MTU_MAX = 65535, V4_BITS = 32, V6_BITS = 128, LINE_SIZE = 320 };

/* --- what the host asks for --- */

static bool parse_ip(const char *text, struct ip *ip)
{
    ip->family = strchr(text, ':') == NULL ? AF_INET : AF_INET6;
    ip->prefix = ip->family == AF_INET ? V4_BITS : V6_BITS;
    return inet_pton(ip->family, text, ip->bytes) == 1;
}

static bool parse_address(char *text, struct ip *ip)
{
    unsigned long prefix;
    char *slash = strchr(text, '/');
    if (slash == NULL)
        return false;
    *slash = '\0';
    bool parsed = parse_ip(text, ip) && parse_number(slash + 1, ip->prefix, &prefix);
    *slash = '/';
    if (parsed)
        ip->prefix = (unsigned)prefix;
    return parsed;
}

static bool parse_mac(char *text)
{
    if (strlen(text) != MAC_LENGTH)
        return false;
    for (size_t i = 0; i < MAC_LENGTH; i++) {
        if (i % 3 == 2 ? text[i] != ':' : !isxdigit((unsigned char)text[i]))
            return false;
        text[i] = (char)tolower((unsigned char)text[i]);
    }
    return true;
}

/* As the kernel's dev_valid_name(). */
static bool name_valid(const char *name)
{
    size_t length = strlen(name);
    return length > 0 && length < IF_NAMESIZE && strcmp(name, ".") != 0 && strcmp(name, "..") != 0 &&
           strpbrk(name, "/: \t\n\v\f\r") == NULL;
}

static bool wrong(const struct field *field, const char *expected, struct reason *why)
{
    return refuse(why, "net: %s=%s: expected %s", field->key, field->value, expected);
}

static bool take_field(struct interface *interface, const struct field *field, struct reason *why)
{
    unsigned long number;
    if (strcmp(field->key, "mac") == 0) {
        interface->mac = field->value;
        return parse_mac(field->value) || wrong(field, "a MAC address", why);
    }
    if (strcmp(field->key, "old_mac") == 0) {
        interface->old_mac = field->value;
        return parse_mac(field->value) || wrong(field, "a MAC address", why);
    }
    if (strcmp(field->key, "name") == 0) {
        interface->name = field->value;
        return name_valid(field->value) || wrong(field, "the name of an interface", why);
    }
    if (strcmp(field->key, "mtu") == 0) {
        if (!parse_number(field->value, MTU_MAX, &number) || number < MTU_LEAST)
            return wrong(field, "a number from 68 to 65535", why);
        interface->mtu = (unsigned)number;
    } else if (strcmp(field->key, "address") == 0) {
        if (interface->address_count == INTERFACE_ADDRESSES_MAX)
            return wrong(field, "at most 16 addresses", why);
        return parse_address(field->value, &interface->addresses[interface->address_count++]) ||
               wrong(field, "ADDRESS/PREFIX", why);
    } else if (strcmp(field->key, "gateway") == 0) {
        if (interface->gateway_count == INTERFACE_GATEWAYS_MAX)
            return wrong(field, "at most 4 gateways", why);
        return parse_ip(field->value, &interface->gateways[interface->gateway_count++]) ||
               wrong(field, "an address", why);
    }
    return true;
}

bool network_add_interface(struct network *network, char *value, struct reason *why)
{
    if (network->count == NETWORK_INTERFACES_MAX)
        return refuse(why, "net: expected at most %d", NETWORK_INTERFACES_MAX);
    struct interface *interface = &network->interfaces[network->count++];
    struct field field;
    enum fields_step step;
    while ((step = fields_next(&value, &field)) == FIELDS_ONE) {
        if (!take_field(interface, &field, why))
            return false;
    }
    if (step == FIELDS_BROKEN)
        return refuse(why, "net: its fields cannot be read");
    return interface->mac != NULL || refuse(why, "net: it needs a mac");
}

bool network_add_dns(struct network *network, const char *value, struct reason *why)
{
    struct ip ip;
    if (!parse_ip(value, &ip))
        return refuse(why, "dns=%s: expected an address", value);
    if (network->dns_count == NETWORK_DNS_MAX)
        return refuse(why, "dns=%s: expected at most %d", value, NETWORK_DNS_MAX);
    network->dns[network->dns_count++] = value;
    return true;
}

bool network_add_search(struct network *network, const char *value, struct reason *why)
{
    size_t length = strlen(value);
    for (size_t i = 0; i < length; i++) {
        if (!isalnum((unsigned char)value[i]) && strchr("-._", value[i]) == NULL)
            length = 0;
    }
    if (length == 0 || length > UCHAR_MAX)
        return refuse(why, "search=%s: expected a domain", value);
    if (network->search_count == NETWORK_SEARCH_MAX)
        return refuse(why, "search=%s: expected at most %d", value, NETWORK_SEARCH_MAX);
    network->search[network->search_count++] = value;
    return true;
}

bool network_wanted(const struct network *network)
{
    return network->count > 0 || network->dns_count > 0 || network->search_count > 0;
}

/* --- interfaces --- */

static bool find_all(const struct network *network, int64_t deadline, unsigned *indexes, struct reason *why)
{
    for (size_t i = 0; i < network->count; i++) {
        char name[DEVICE_PATH_SIZE];
        const char *mac = network->interfaces[i].mac;
        if (!wait_for_device(find_interface, mac, name, deadline))
            return refuse(why, "network: no interface with the MAC address %s came up", mac);
        indexes[i] = if_nametoindex(name);
        if (indexes[i] == 0)
            return refuse(why, "network: cannot find %s again: %s", name, strerror(errno));
    }
    return true;
}

static bool has_name(unsigned index, const char *name)
{
    return name == NULL || if_nametoindex(name) == index;
}

/* First all out of the way, then in: two may have each other's names. */
static bool rename_all(const struct network *network, int netlink, const unsigned *indexes,
                       struct reason *why)
{
    bool aside[NETWORK_INTERFACES_MAX] = {false};
    for (size_t i = 0; i < network->count; i++) {
        char name[IF_NAMESIZE];
        aside[i] = !has_name(indexes[i], network->interfaces[i].name);
        (void)snprintf(name, sizeof name, "hypeman%u", indexes[i]);
        if (aside[i] && !netlink_rename(netlink, indexes[i], name))
            return refuse(why, "network: cannot rename %s: %s", network->interfaces[i].mac, strerror(errno));
    }
    for (size_t i = 0; i < network->count; i++) {
        const struct interface *interface = &network->interfaces[i];
        if (aside[i] && !netlink_rename(netlink, indexes[i], interface->name))
            return refuse(why, "network: cannot name %s %s: %s", interface->mac, interface->name,
                          strerror(errno));
    }
    return true;
}

static bool refuse_ip(const struct interface *interface, const struct ip *ip, const char *what,
                      struct reason *why)
{
    int error = errno;
    char text[INET6_ADDRSTRLEN] = "";
    (void)inet_ntop(ip->family, ip->bytes, text, sizeof text);
    return refuse(why, "network: cannot set the %s %s of %s: %s", what, text, interface->mac,
                  strerror(error));
}

static bool configure(const struct interface *interface, int netlink, unsigned index, struct reason *why)
{
    if (!netlink_up(netlink, index, interface->mtu))
        return refuse(why, "network: cannot bring %s up with an MTU of %u: %s", interface->mac,
                      interface->mtu, strerror(errno));
    for (size_t i = 0; i < interface->address_count; i++) {
        if (!netlink_address(netlink, index, &interface->addresses[i]))
            return refuse_ip(interface, &interface->addresses[i], "address", why);
    }
    for (size_t i = 0; i < interface->gateway_count; i++) {
        if (!netlink_gateway(netlink, index, &interface->gateways[i]))
            return refuse_ip(interface, &interface->gateways[i], "gateway", why);
    }
    return true;
}

static bool configure_all(const struct network *network, int netlink, int64_t deadline, struct reason *why)
{
    unsigned indexes[NETWORK_INTERFACES_MAX] = {0};
    if (!find_all(network, deadline, indexes, why) || !rename_all(network, netlink, indexes, why))
        return false;
    for (size_t i = 0; i < network->count; i++) {
        if (!configure(&network->interfaces[i], netlink, indexes[i], why))
            return false;
    }
    return true;
}

/* --- other addresses --- */

static bool find_present(const struct network *network, unsigned *indexes, struct reason *why)
{
    for (size_t i = 0; i < network->count; i++) {
        char name[DEVICE_PATH_SIZE];
        const struct interface *interface = &network->interfaces[i];
        const char *old = interface->old_mac == NULL ? interface->mac : interface->old_mac;
        if (!find_interface(old, name) && !find_interface(interface->mac, name))
            return refuse(why, "network: the guest has no interface with the MAC address %s", old);
        indexes[i] = if_nametoindex(name);
        if (indexes[i] == 0)
            return refuse(why, "network: cannot find %s again: %s", name, strerror(errno));
    }
    return true;
}

/* One that was parsed. */
static void mac_bytes(const char *mac, uint8_t bytes[6])
{
    for (size_t i = 0; i < 6; i++)
        bytes[i] = (uint8_t)strtoul(mac + 3 * i, NULL, 16);
}

/* First all without addresses: two may have each other's. */
static bool clear_all(const struct network *network, int netlink, const unsigned *indexes, struct reason *why)
{
    for (size_t i = 0; i < network->count; i++) {
        if (!netlink_down(netlink, indexes[i]) || !netlink_flush(netlink, indexes[i]))
            return refuse(why, "network: cannot take its addresses from %s: %s", network->interfaces[i].mac,
                          strerror(errno));
    }
    return true;
}

static bool readdress_all(const struct network *network, int netlink, struct reason *why)
{
    uint8_t bytes[6];
    unsigned indexes[NETWORK_INTERFACES_MAX] = {0};
    if (!find_present(network, indexes, why) || !clear_all(network, netlink, indexes, why) ||
        !rename_all(network, netlink, indexes, why))
        return false;
    for (size_t i = 0; i < network->count; i++) {
        const struct interface *interface = &network->interfaces[i];
        mac_bytes(interface->mac, bytes);
        if (!netlink_mac(netlink, indexes[i], bytes))
            return refuse(why, "network: cannot set the MAC address %s: %s", interface->mac, strerror(errno));
        if (!configure(interface, netlink, indexes[i], why))
            return false;
    }
    return true;
}

bool network_readdress(const struct network *network, struct reason *why)
{
    int netlink = netlink_open();
    if (netlink < 0)
        return refuse(why, "network: cannot talk to the kernel: %s", strerror(errno));
    bool done = readdress_all(network, netlink, why);
    close_fd(&netlink);
    return done;
}

/* --- who resolves names --- */

bool network_write_resolver(const struct network *network, const char *path, struct reason *why)
{
    char text[(NETWORK_DNS_MAX + NETWORK_SEARCH_MAX) * LINE_SIZE];
    size_t used = 0;
    for (size_t i = 0; i < network->dns_count; i++)
        used += (size_t)snprintf(text + used, sizeof text - used, "nameserver %s\n", network->dns[i]);
    for (size_t i = 0; i < network->search_count; i++)
        used += (size_t)snprintf(text + used, sizeof text - used, "%s%s%s", i == 0 ? "search " : " ",
                                 network->search[i], i + 1 == network->search_count ? "\n" : "");
    int root = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    int etc = root < 0 ? -1 : folder_in_root(root, "/etc");
    int folder = etc < 0 ? -1 : openat(etc, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool written = folder >= 0 && file_replace(folder, "resolv.conf", text);
    if (!written)
        (void)refuse(why, "network: cannot write /etc/resolv.conf: %s", strerror(errno));
    close_fd(&folder);
    close_fd(&etc);
    close_fd(&root);
    return written;
}

bool network_setup(const struct network *network, const char *path, int64_t deadline, struct reason *why)
{
    int netlink = netlink_open();
    if (netlink < 0)
        return refuse(why, "network: cannot talk to the kernel: %s", strerror(errno));
    bool renewed = network->count > 0 && network->interfaces[0].old_mac != NULL;
    bool done =
        renewed ? readdress_all(network, netlink, why) : configure_all(network, netlink, deadline, why);
    close_fd(&netlink);
    if (done && network->dns_count + network->search_count > 0)
        done = network_write_resolver(network, path, why);
    return done;
}
