// SPDX-License-Identifier: Apache-2.0
/* Any bytes as the records of a config disk: they are taken apart or refused with words, and what is taken
 * can be used. Nothing is started. */
#include "config.h"
#include "settings.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct config config;
    struct reason why = {""};
    char *records = malloc(size > 0 ? size : 1);
    if (records == NULL)
        abort();
    memcpy(records, data, size);
    if (config_parse(records, size, &config, &why)) {
        const struct settings settings = {config.records, config.size};
        char *lines = settings_manager_lines(&settings);
        if (config.argv[0] == NULL || config.folder[0] != '/' || lines == NULL)
            abort();
        free(lines);
    } else if (why.words[0] == '\0') {
        abort();
    }
    config_free(&config);
    return 0;
}
