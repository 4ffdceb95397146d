/* SPDX-License-Identifier: Apache-2.0 */
/* Fields: what stands in the value of some records, `key=value` joined by commas (docs/protocol.md). */
#ifndef HYPEMAN_FIELDS_H
#define HYPEMAN_FIELDS_H

enum fields_step { FIELDS_ONE, FIELDS_END, FIELDS_BROKEN };

struct field {
    const char *key;
    char *value; /* decoded, where the text stood */
};

/* Cut the next field off *rest, which is written to. BROKEN: no `=`, no key, or a `%` that is not followed by
 * two hex digits of a byte other than NUL. */
enum fields_step fields_next(char **rest, struct field *field);

#endif
