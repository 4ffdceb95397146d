// SPDX-License-Identifier: Apache-2.0
/* A guest that does its worst, as PID 1 of the initrd: on the console from the start, and once it has said that it
   is ready also on the report port, the agent's port and the network. It never ends. */

#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netpacket/packet.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#ifndef BOOT_SECONDS
#define BOOT_SECONDS 10
#endif

static char boot[33];
/* a prefix in each field and a quote that is not closed: what a reader would try again and again */
static char slow[4096];

static void pause_ms(long ms)
{
    nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL);
}

static int find_port(const char *wanted)
{
    for (;; pause_ms(5)) {
        DIR *folder = opendir("/sys/class/virtio-ports");
        struct dirent *entry;
        while (folder != NULL && (entry = readdir(folder)) != NULL) {
            char path[300], name[64] = "";
            snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", entry->d_name);
            FILE *file = fopen(path, "re");
            if (file == NULL)
                continue;
            if (fgets(name, sizeof name, file) != NULL)
                name[strcspn(name, "\n")] = '\0';
            fclose(file);
            if (strcmp(name, wanted) != 0)
                continue;
            snprintf(path, sizeof path, "/dev/%s", entry->d_name);
            int port = open(path, O_RDWR | O_CLOEXEC);
            if (port >= 0) {
                closedir(folder);
                return port;
            }
        }
        if (folder != NULL)
            closedir(folder);
    }
}

static void put(int fd, const void *data, size_t size)
{
    const char *at = data;
    while (size > 0) {
        ssize_t done = write(fd, at, size);
        if (done < 0) {
            pause_ms(10);
            continue;
        }
        at += done;
        size -= (size_t)done;
    }
}

static void prepare(void)
{
    mkdir("/proc", 0755);
    mkdir("/sys", 0755);
    mount("proc", "/proc", "proc", 0, NULL);
    mount("sysfs", "/sys", "sysfs", 0, NULL);
    mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
    char line[4096] = "";
    FILE *file = fopen("/proc/cmdline", "re");
    if (file == NULL || fgets(line, sizeof line, file) == NULL)
        _exit(1);
    fclose(file);
    const char *found = strstr(line, "hypeman.boot=");
    if (found != NULL)
        snprintf(boot, sizeof boot, "%.32s", found + strlen("hypeman.boot="));
    strcpy(slow, "HYPEMAN-EXIT");
    while (strlen(slow) < sizeof slow - 32)
        strcat(slow, " a=HYPEMAN-EXIT");
    strcat(slow, " \"\n");
}

static void flood_console(void)
{
    struct termios raw;
    int console = open("/dev/console", O_WRONLY | O_CLOEXEC);
    if (tcgetattr(console, &raw) == 0) {
        raw.c_oflag &= ~(tcflag_t)OPOST;
        tcsetattr(console, TCSANOW, &raw);
    }
    /* some hundred lines a second: with more, QEMU itself has no time for the guest */
    for (;; pause_ms(2))
        put(console, slow, strlen(slow));
}

static void flood_report(int port)
{
    char text[512];
    for (unsigned i = 0;; i++) {
        int size = snprintf(text, sizeof text,
                            "HYPEMAN-EXIT code=%u message=\"%u\" boot=%s\n"
                            "HYPEMAN-EMERGENCY ts=2026-02-03T04:05:06Z state=%s boot=%s\n"
                            "HYPEMAN-STAGE name=s%u start=0 end=1 boot=%s\n",
                            i % 256, i, boot, i % 2 ? "left" : "entered", boot, i, boot);
        put(port, text, (size_t)size);
        put(port, slow, strlen(slow));
    }
}

static size_t add_frame(char *to, uint8_t type, const char *payload, uint32_t size)
{
    uint32_t head[3] = {size, 0, type};
    memcpy(to, head, sizeof head);
    memcpy(to + sizeof head, payload, size);
    return sizeof head + size;
}

static void flood_agent(void)
{
    enum { HELLO = 1, PONG = 3 };
    static char buffer[65536];
    int port = find_port("org.hypeman.agent");
    char hello[128];
    int size = snprintf(hello, sizeof hello, "version=1%cboot=%s%cagent=1", 0, boot, 0) + 1;
    for (unsigned turn = 0;; turn++) {
        size_t used = 0;
        /* what looks like a HELLO and is none; then one; then answers to nothing */
        for (int i = 0; i < 15 && turn % 2; i++)
            used += add_frame(buffer + used, HELLO, slow, 1000);
        used += add_frame(buffer + used, HELLO, hello, (uint32_t)size);
        while (used < sizeof buffer - 64)
            used += add_frame(buffer + used, PONG, "12345678", 8);
        put(port, buffer, used);
    }
}

static void flood_network(void)
{
    int out = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
    struct ifreq request = {0};
    strcpy(request.ifr_name, "eth0");
    while (ioctl(out, SIOCGIFINDEX, &request) != 0)
        pause_ms(100);
    struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_ifindex = request.ifr_ifindex, .sll_halen = 6};
    request.ifr_flags = IFF_UP;
    ioctl(out, SIOCSIFFLAGS, &request);
    unsigned char frame[600];
    memset(frame, 0xff, sizeof frame);
    for (;;) {
        for (int i = 6; i < 60; i++)
            frame[i] = (unsigned char)rand();
        if (sendto(out, frame, sizeof frame, 0, (struct sockaddr *)&to, sizeof to) < 0)
            pause_ms(1);
    }
}

int main(void)
{
    prepare();
    if (fork() == 0)
        flood_console();
    pause_ms(BOOT_SECONDS * 1000L);
    int report = find_port("org.hypeman.report");
    char text[256];
    int size = snprintf(text, sizeof text,
                        "HYPEMAN-PROGRAM-START ts=2026-02-03T04:05:06Z mode=exec boot=%s\n"
                        "HYPEMAN-AGENT-READY ts=2026-02-03T04:05:06Z boot=%s\n",
                        boot, boot);
    put(report, text, (size_t)size);
    if (fork() == 0)
        flood_report(report);
    if (fork() == 0)
        flood_agent();
    if (fork() == 0)
        flood_network();
    for (;;)
        pause();
}
