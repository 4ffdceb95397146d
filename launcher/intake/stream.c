// SPDX-License-Identifier: Apache-2.0
#include "stream.h"

#include <inttypes.h>
#include <stdbool.h>
#include <string.h>

#include "fail.h"
#include "input.h"
#include "memory.h"
#include "state.h"

#define MAGIC 0x5145564dU /* QEVM */
#define FORMAT_VERSION 3
#define RAM_VERSION 4

enum section { START = 1, PART = 2, END = 3, FULL = 4, CONFIGURATION = 7, COMMAND = 8, FOOTER = 0x7e };

enum flag { ZERO = 0x02, SIZES = 0x04, PAGE = 0x08, LAST = 0x10, CONTINUE = 0x20, ALL_FLAGS = 0xfff };

/* A name on the wire: its length, and so many bytes. */
struct name {
    size_t length;
    unsigned char text[255];
};

static struct {
    const char *block;
    uint64_t size;
    bool is_sized; /* the sizes of the blocks have come */
    bool is_begun; /* the section `ram` has, which is this one: */
    bool is_ended;
    uint32_t number;
    bool has_block; /* a page has named its block, which is: */
    struct name current;
} stream;

static const unsigned char *take(size_t size)
{
    if (input_available() < size) {
        memory_flush(); /* its pages are in the input's buffer */
        if (!input_fill(size))
            fail(STATUS_CUT_SHORT, "the stream ends early");
    }
    return input_take(size);
}

static uint64_t decode(const unsigned char *bytes, size_t size)
{
    uint64_t number = 0;
    for (size_t i = 0; i < size; i++)
        number = number << 8 | bytes[i];
    return number;
}

/* A number, which goes to the state too. */
static uint64_t copy_number(size_t size)
{
    const unsigned char *bytes = take(size);
    state_put(bytes, size);
    return decode(bytes, size);
}

static void copy_bytes(size_t size)
{
    state_put(take(size), size);
}

static void take_name(struct name *name)
{
    name->length = *take(1);
    memcpy(name->text, take(name->length), name->length);
}

static void put_name(const struct name *name)
{
    unsigned char length = (unsigned char)name->length;
    state_put(&length, 1);
    state_put(name->text, name->length);
}

static bool is_name(const struct name *name, const char *text)
{
    return name->length == strlen(text) && memcmp(name->text, text, name->length) == 0;
}

static void put_number(uint64_t number)
{
    unsigned char bytes[8];
    for (size_t i = 0; i < sizeof(bytes); i++)
        bytes[i] = (unsigned char)(number >> (56 - 8 * i));
    state_put(bytes, sizeof(bytes));
}

/* All blocks of memory, which have `total` bytes together. */
static void take_sizes(uint64_t total)
{
    bool is_there = false;
    if (stream.is_sized)
        fail(STATUS_BAD_STREAM, "the sizes of the memory come twice");
    stream.is_sized = true;
    while (total > 0) {
        struct name name;
        take_name(&name);
        put_name(&name);
        uint64_t size = copy_number(8);
        if (size == 0 || size > total)
            fail(STATUS_BAD_STREAM, "the sizes of the memory do not add up");
        total -= size;
        if (!is_name(&name, stream.block))
            continue;
        if (is_there || size != stream.size)
            fail(STATUS_BAD_STREAM, "the memory has %" PRIu64 " bytes instead of %" PRIu64, size,
                 stream.size);
        is_there = true;
    }
    if (!is_there)
        fail(STATUS_BAD_STREAM, "there is no memory %s", stream.block);
}

static void take_own_page(uint64_t offset, bool zero)
{
    if (offset >= stream.size)
        fail(STATUS_BAD_STREAM, "a page at %#" PRIx64 ", where there is no memory", offset);
    if (!zero)
        memory_put(offset, take(PAGE_SIZE));
    else if (*take(1) == 0)
        memory_clear(offset);
    else
        fail(STATUS_BAD_STREAM, "a page of one byte that is not zero");
}

static void take_page(uint64_t offset, uint64_t flags)
{
    bool zero = (flags & ZERO) != 0;
    if (!stream.is_sized)
        fail(STATUS_BAD_STREAM, "a page before the sizes of the memory");
    if ((flags & CONTINUE) == 0)
        take_name(&stream.current);
    else if (!stream.has_block)
        fail(STATUS_BAD_STREAM, "a page of no block");
    stream.has_block = true;
    if (is_name(&stream.current, stream.block)) {
        take_own_page(offset, zero);
        return;
    }
    /* the page before it may be one that has not gone to the state, so it names its block */
    put_number(offset | (flags & ~(uint64_t)CONTINUE));
    put_name(&stream.current);
    copy_bytes(zero ? 1 : PAGE_SIZE);
}

static void take_ram(void)
{
    while (true) {
        uint64_t number = decode(take(8), 8);
        uint64_t flags = number & ALL_FLAGS;
        switch (flags) {
        case ZERO:
        case ZERO | CONTINUE:
        case PAGE:
        case PAGE | CONTINUE:
            take_page(number & ~(uint64_t)ALL_FLAGS, flags);
            continue;
        case SIZES:
            put_number(number);
            take_sizes(number & ~(uint64_t)ALL_FLAGS);
            continue;
        case LAST:
            put_number(number);
            break;
        default:
            fail(STATUS_BAD_STREAM, "a page with unknown flags %#" PRIx64, flags);
        }
        break;
    }
    if (copy_number(1) != FOOTER || copy_number(4) != stream.number)
        fail(STATUS_BAD_STREAM, "a section of the memory does not end");
}

/* The first section of a kind. */
static void take_start(void)
{
    struct name name;
    uint32_t number = (uint32_t)copy_number(4);
    take_name(&name);
    put_name(&name);
    copy_bytes(4);
    uint64_t version = copy_number(4);
    if (!is_name(&name, "ram") || version != RAM_VERSION || stream.is_begun)
        fail(STATUS_BAD_STREAM, "a section that is not known");
    stream.is_begun = true;
    stream.number = number;
    take_ram();
}

static void take_next(bool last)
{
    if (copy_number(4) != stream.number || !stream.is_begun || stream.is_ended)
        fail(STATUS_BAD_STREAM, "a section that has not begun");
    take_ram();
    stream.is_ended = last;
}

/* The header, and the machine's name. */
static void take_header(void)
{
    if (copy_number(4) != MAGIC || copy_number(4) != FORMAT_VERSION)
        fail(STATUS_BAD_STREAM, "the stream does not begin as one of QEMU");
    if (copy_number(1) != CONFIGURATION)
        fail(STATUS_BAD_STREAM, "the stream does not name its machine");
    uint64_t length = copy_number(4);
    if (length > sizeof(stream.current.text))
        fail(STATUS_BAD_STREAM, "the name of the machine is too long");
    copy_bytes((size_t)length);
}

static void copy_rest(void)
{
    do {
        size_t size = input_available();
        state_put(input_take(size), size);
    } while (input_fill(1));
}

void stream_split(const char *block, uint64_t size)
{
    memset(&stream, 0, sizeof(stream));
    stream.block = block;
    stream.size = size;
    take_header();
    while (true) {
        uint64_t section = copy_number(1);
        switch (section) {
        case START:
            take_start();
            break;
        case PART:
        case END:
            take_next(section == END);
            break;
        case COMMAND:
            copy_bytes(2);
            copy_bytes((size_t)copy_number(2));
            break;
        case FULL:
            if (!stream.is_ended)
                fail(STATUS_BAD_STREAM, "a device before the end of the memory");
            memory_flush();
            copy_rest();
            return;
        default:
            fail(STATUS_BAD_STREAM, "a section of unknown type %" PRIu64, section);
        }
    }
}
