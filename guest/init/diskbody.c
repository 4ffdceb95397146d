// SPDX-License-Identifier: Apache-2.0
#include "diskbody.h"

#include "bytes.h"
#include "files.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { HEADER_SIZE = 16, MAGIC_SIZE = 8 };

char *disk_body_read(int fd, const struct disk_form *form, size_t *size, uint32_t *last, struct reason *why)
{
    uint8_t header[HEADER_SIZE];
    if (!file_read_exactly(fd, header, sizeof header, 0)) {
        (void)refuse(why, "%s: cannot be read: %s", form->disk, strerror(errno));
        return NULL;
    }
    *size = get_le32(header + 8);
    *last = get_le32(header + 12);
    if (memcmp(header, form->magic, MAGIC_SIZE) != 0 || *size > form->max) {
        (void)refuse(why, "%s: it does not begin as one of version 1 does", form->disk);
        return NULL;
    }
    char *body = malloc(*size + 1);
    if (body == NULL || !file_read_exactly(fd, body, *size, HEADER_SIZE)) {
        (void)refuse(why, "%s: %scannot be read: %s", form->disk, form->body, strerror(errno));
        free(body);
        return NULL;
    }
    return body;
}
