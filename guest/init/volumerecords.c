// SPDX-License-Identifier: Apache-2.0
#include "volumerecords.h"

#include "fields.h"

#include <string.h>

bool volume_path_valid(const char *path)
{
    if (strcmp(path, "/") == 0)
        return true;
    while (*path == '/') {
        size_t length = strcspn(++path, "/");
        if (length == 0 || (length == 1 && path[0] == '.') ||
            (length == 2 && path[0] == '.' && path[1] == '.'))
            return false;
        path += length;
        if (*path == '\0')
            return true;
    }
    return false;
}

static bool take_flag(const struct field *field, bool *flag, struct reason *why)
{
    *flag = strcmp(field->value, "1") == 0;
    return *flag || strcmp(field->value, "0") == 0 ||
           refuse(why, "config disk: volume: %s=%s: expected 0 or 1", field->key, field->value);
}

static bool take_field(struct volume *volume, const struct field *field, struct reason *why)
{
    if (strcmp(field->key, "serial") == 0)
        volume->serial = field->value;
    else if (strcmp(field->key, "path") == 0)
        volume->path = field->value;
    else if (strcmp(field->key, "fstype") == 0)
        volume->type = field->value;
    else if (strcmp(field->key, "readonly") == 0)
        return take_flag(field, &volume->readonly, why);
    else if (strcmp(field->key, "overlay") == 0)
        return take_flag(field, &volume->overlay, why);
    else if (strcmp(field->key, "required") == 0)
        return take_flag(field, &volume->required, why);
    return true;
}

bool volume_parse(char *value, struct volume *volume, struct reason *why)
{
    *volume = (struct volume){.type = "ext4", .required = true, .filesystem = -1};
    struct field field;
    enum fields_step step;
    while ((step = fields_next(&value, &field)) == FIELDS_ONE) {
        if (!take_field(volume, &field, why))
            return false;
    }
    if (step == FIELDS_BROKEN)
        return refuse(why, "config disk: volume: its fields cannot be read");
    if (volume->serial == NULL || *volume->serial == '\0' || volume->path == NULL)
        return refuse(why, "config disk: volume: it needs a serial and a path");
    if (!volume_path_valid(volume->path))
        return refuse(why, "config disk: volume: path=%s: expected an absolute path without . and ..",
                      volume->path);
    if (strcmp(volume->type, "ext4") != 0 && strcmp(volume->type, "erofs") != 0)
        return refuse(why, "config disk: volume: fstype=%s: expected ext4 or erofs", volume->type);
    /* The serial is the name of the layer's folder. */
    if (volume->overlay && (strchr(volume->serial, '/') != NULL || volume->serial[0] == '.'))
        return refuse(why, "config disk: volume: serial=%s: no overlay can have that name", volume->serial);
    volume->readonly = volume->readonly || volume->overlay || strcmp(volume->type, "erofs") == 0;
    return true;
}

bool volumes_sort(struct volumes *volumes, struct reason *why)
{
    for (size_t i = 1; i < volumes->count; i++) {
        struct volume volume = volumes->all[i];
        size_t at = i;
        for (; at > 0 && strcmp(volumes->all[at - 1].path, volume.path) > 0; at--)
            volumes->all[at] = volumes->all[at - 1];
        volumes->all[at] = volume;
        if (at > 0 && strcmp(volumes->all[at - 1].path, volume.path) == 0)
            return refuse(why, "config disk: volume: path=%s stands there twice", volume.path);
    }
    return true;
}

bool volumes_hold_etc(const struct volumes *volumes)
{
    for (size_t i = 0; i < volumes->count; i++) {
        const char *path = volumes->all[i].path;
        if (strcmp(path, "/") == 0 || strcmp(path, "/etc") == 0 || strncmp(path, "/etc/", 5) == 0)
            return true;
    }
    return false;
}

bool volumes_hold_root(const struct volumes *volumes)
{
    return volumes->count > 0 && strcmp(volumes->all[0].path, "/") == 0; /* They are sorted. */
}
