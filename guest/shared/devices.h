/* SPDX-License-Identifier: Apache-2.0 */
/* Devices by what the host called them, never by their number. */
#ifndef HYPEMAN_DEVICES_H
#define HYPEMAN_DEVICES_H

#include <stdbool.h>
#include <stdint.h>

enum { DEVICE_PATH_SIZE = 288, DEVICE_WAIT_MS = 10000 };

/* The /dev path of a block device by its serial, of a virtio port by its name. False if it is not there. */
bool find_block(const char *serial, char path[DEVICE_PATH_SIZE]);
bool find_port(const char *name, char path[DEVICE_PATH_SIZE]);

/* The name of a network interface by its MAC address, in lower case. */
bool find_interface(const char *mac, char name[DEVICE_PATH_SIZE]);

/* A socket that becomes readable with every device event of the kernel; -1 with errno. */
int device_events_open(void);

/* Throw away what has been queued on it. */
void device_events_drain(int events);

typedef bool find_device(const char *name, char path[DEVICE_PATH_SIZE]);

/* Look now, and again at every device event until the deadline. */
bool wait_for_device(find_device *find, const char *name, char path[DEVICE_PATH_SIZE], int64_t deadline);

#endif
