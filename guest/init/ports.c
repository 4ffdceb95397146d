// SPDX-License-Identifier: Apache-2.0
#include "ports.h"

#include "devices.h"
#include "files.h"
#include "records.h"

#include <fcntl.h>
#include <string.h>

enum { GRACE_MAX = 86400 };

static void open_missing(int *port, const char *name, int flags)
{
    char path[DEVICE_PATH_SIZE];
    if (*port < 0 && find_port(name, path))
        *port = open(path, flags | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
}

static void open_all(struct ports *ports)
{
    open_missing(&ports->report, "org.hypeman.report", O_WRONLY);
    open_missing(&ports->stop, "org.hypeman.stop", O_RDONLY);
}

void ports_open(struct ports *ports)
{
    if (ports->events < 0)
        ports->events = device_events_open();
    else
        device_events_drain(ports->events);
    open_all(ports);
}

void ports_event(struct ports *ports)
{
    device_events_drain(ports->events);
    open_all(ports);
    if (ports->report >= 0 && ports->stop >= 0)
        close_fd(&ports->events);
}

bool stop_line_add(struct stop_line *line, char byte, unsigned *grace)
{
    static const char order[] = "poweroff ";
    if (byte != '\n') {
        line->too_long = line->too_long || line->used + 1 >= sizeof line->text;
        if (!line->too_long)
            line->text[line->used++] = byte;
        return false;
    }
    line->text[line->used] = '\0';
    unsigned long seconds;
    bool whole = !line->too_long && strlen(line->text) == line->used &&
                 strncmp(line->text, order, sizeof order - 1) == 0 &&
                 parse_number(line->text + sizeof order - 1, GRACE_MAX, &seconds);
    *line = (struct stop_line){0};
    if (whole)
        *grace = (unsigned)seconds;
    return whole;
}
