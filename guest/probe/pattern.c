// SPDX-License-Identifier: Apache-2.0
#include "pattern.h"

#include <string.h>

enum step_kind { STEP_BYTE, STEP_ANY, STEP_SET, STEP_SPLIT, STEP_JUMP, STEP_BEGIN, STEP_END, STEP_MATCH };

/* --- compile --- */

struct parser {
    struct pattern *pattern;
    const unsigned char *at;
    int depth;
    struct reason *why;
};

static bool emit(struct parser *parser, struct pattern_step step)
{
    struct pattern *pattern = parser->pattern;
    if (pattern->size == PATTERN_CODE_MAX)
        return refuse(parser->why, "the pattern is too long");
    pattern->code[pattern->size++] = step;
    return true;
}

/* In front of what begins at `start`, whose own jumps stay within it. */
static bool insert(struct parser *parser, size_t start, struct pattern_step step)
{
    struct pattern *pattern = parser->pattern;
    if (!emit(parser, step))
        return false;
    memmove(&pattern->code[start + 1], &pattern->code[start],
            (pattern->size - start - 1) * sizeof pattern->code[0]);
    pattern->code[start] = step;
    return true;
}

static void set_add(uint8_t set[32], unsigned low, unsigned high)
{
    for (unsigned c = low; c <= high; c++)
        set[c / 8] |= (uint8_t)(1U << c % 8);
}

/* \d, \w, \s into a set. False: it is none of them. */
static bool set_add_class(uint8_t set[32], unsigned char name)
{
    switch (name) {
    case 'w':
        set_add(set, 'a', 'z');
        set_add(set, 'A', 'Z');
        set_add(set, '_', '_');
        set_add(set, '0', '9');
        return true;
    case 'd':
        set_add(set, '0', '9');
        return true;
    case 's':
        set_add(set, ' ', ' ');
        set_add(set, '\t', '\r');
        return true;
    default:
        return false;
    }
}

static uint8_t *new_set(struct parser *parser)
{
    struct pattern *pattern = parser->pattern;
    if (pattern->set_count == PATTERN_SETS_MAX) {
        (void)refuse(parser->why, "the pattern has too many sets");
        return NULL;
    }
    memset(pattern->sets[pattern->set_count], 0, sizeof pattern->sets[0]);
    return pattern->sets[pattern->set_count++];
}

static bool emit_set(struct parser *parser)
{
    return emit(parser,
                (struct pattern_step){.kind = STEP_SET, .value = (uint8_t)(parser->pattern->set_count - 1)});
}

static bool is_alphanumeric(unsigned char c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c >= 0x80;
}

/* What a backslash makes of the character behind it, which is no class. -1: nothing. */
static int unescape(unsigned char c)
{
    if (c == 't')
        return '\t';
    return c == '\0' || is_alphanumeric(c) ? -1 : c;
}

/* One item of a bracket: a character, -1 for a class that was added, -2 for what is none. */
static int bracket_item(struct parser *parser, uint8_t set[32])
{
    unsigned char c = *parser->at++;
    if (c != '\\')
        return c == '\0' || c >= 0x80 ? -2 : c;
    c = *parser->at;
    if (c == '\0')
        return -2;
    parser->at++;
    if (set_add_class(set, c))
        return -1;
    int escaped = unescape(c);
    return escaped < 0 ? -2 : escaped;
}

static bool bracket(struct parser *parser)
{
    uint8_t *set = new_set(parser);
    if (set == NULL)
        return false;
    bool negated = *++parser->at == '^';
    if (negated)
        parser->at++;
    bool first = true;
    while (*parser->at != '\0' && (*parser->at != ']' || first)) {
        first = false;
        int low = bracket_item(parser, set);
        int high = low;
        if (parser->at[0] == '-' && low >= -1 && parser->at[1] != ']' && parser->at[1] != '\0') {
            parser->at++;
            high = bracket_item(parser, set);
            if (low < 0 || high < low)
                return refuse(parser->why, "a range in brackets is none");
        }
        if (low == -2)
            return refuse(parser->why, "a character in brackets is not known");
        if (low >= 0)
            set_add(set, (unsigned)low, (unsigned)high);
    }
    if (*parser->at++ != ']')
        return refuse(parser->why, "a [ is not closed");
    for (size_t i = 0; negated && i < 32; i++)
        set[i] = (uint8_t)~set[i];
    return emit_set(parser);
}

static bool escape(struct parser *parser)
{
    unsigned char c = *++parser->at;
    if (c != '\0' && strchr("dws", c) != NULL) {
        uint8_t *set = new_set(parser);
        if (set == NULL)
            return false;
        (void)set_add_class(set, c);
        parser->at++;
        return emit_set(parser);
    }
    int byte = unescape(c);
    if (byte < 0)
        return refuse(parser->why, "a backslash is followed by what it does not know");
    parser->at++;
    return emit(parser, (struct pattern_step){.kind = STEP_BYTE, .value = (uint8_t)byte});
}

static bool alternatives(struct parser *parser);

static bool group(struct parser *parser)
{
    parser->at++;
    if (++parser->depth > PATTERN_DEPTH_MAX)
        return refuse(parser->why, "the pattern has too many groups in each other");
    if (!alternatives(parser))
        return false;
    parser->depth--;
    return *parser->at++ == ')' || refuse(parser->why, "a ( is not closed");
}

static bool atom(struct parser *parser)
{
    unsigned char c = *parser->at;
    switch (c) {
    case '(':
        return group(parser);
    case '[':
        return bracket(parser);
    case '\\':
        return escape(parser);
    case '*':
    case '+':
    case '?':
    case ']':
    case '{':
    case '}':
        return refuse(parser->why, "%c has nothing that it belongs to", c);
    default:
        parser->at++;
        return emit(parser, (struct pattern_step){.kind = c == '.' ? STEP_ANY : STEP_BYTE, .value = c});
    }
}

static bool piece(struct parser *parser)
{
    size_t start = parser->pattern->size;
    if (*parser->at == '^' || *parser->at == '$')
        return emit(parser, (struct pattern_step){.kind = *parser->at++ == '^' ? STEP_BEGIN : STEP_END});
    if (!atom(parser))
        return false;
    int16_t length = (int16_t)(parser->pattern->size - start);
    switch (*parser->at) {
    case '*':
        parser->at++;
        return insert(parser, start, (struct pattern_step){STEP_SPLIT, 0, 1, (int16_t)(length + 2)}) &&
               emit(parser, (struct pattern_step){STEP_JUMP, 0, (int16_t)(-length - 1), 0});
    case '+':
        parser->at++;
        return emit(parser, (struct pattern_step){STEP_SPLIT, 0, (int16_t)-length, 1});
    case '?':
        parser->at++;
        return insert(parser, start, (struct pattern_step){STEP_SPLIT, 0, 1, (int16_t)(length + 1)});
    default:
        return true;
    }
}

static bool alternatives(struct parser *parser)
{
    struct pattern *pattern = parser->pattern;
    size_t start = pattern->size;
    while (*parser->at != '\0' && *parser->at != '|' && *parser->at != ')') {
        if (!piece(parser))
            return false;
    }
    if (*parser->at != '|')
        return true;
    parser->at++;
    if (!insert(parser, start, (struct pattern_step){.kind = STEP_SPLIT, .first = 1}) ||
        !emit(parser, (struct pattern_step){.kind = STEP_JUMP}))
        return false;
    size_t jump = pattern->size - 1;
    pattern->code[start].second = (int16_t)(pattern->size - start);
    /* As deep as there are alternatives, which PATTERN_MAX bounds. */
    if (!alternatives(parser))
        return false;
    pattern->code[jump].first = (int16_t)(pattern->size - jump);
    return true;
}

bool pattern_compile(struct pattern *pattern, const char *text, struct reason *why)
{
    pattern->size = 0;
    pattern->set_count = 0;
    size_t length = strnlen(text, PATTERN_MAX + 1);
    if (length == 0 || length > PATTERN_MAX)
        return refuse(why, "the pattern has not 1 to %d bytes", PATTERN_MAX);
    struct parser parser = {.pattern = pattern, .at = (const unsigned char *)text, .why = why};
    if (!alternatives(&parser))
        return false;
    if (*parser.at != '\0')
        return refuse(why, "a ) closes nothing");
    return emit(&parser, (struct pattern_step){.kind = STEP_MATCH});
}

/* --- match --- */

static size_t jump(size_t from, int distance)
{
    return distance < 0 ? from - (size_t)-distance : from + (size_t)distance;
}

/* Add a step, and all that are reached from it without a byte. */
static void reach(struct matcher *matcher, size_t from, bool at_begin, bool at_end)
{
    uint16_t stack[PATTERN_CODE_MAX];
    size_t depth = 0;
    const struct pattern *pattern = matcher->pattern;
    if (matcher->seen[from] == matcher->turn)
        return;
    matcher->seen[from] = matcher->turn;
    stack[depth++] = (uint16_t)from;
    while (depth > 0) {
        size_t at = stack[--depth];
        const struct pattern_step *step = &pattern->code[at];
        size_t next[2];
        size_t count = 0;
        if (step->kind == STEP_SPLIT || step->kind == STEP_JUMP)
            next[count++] = jump(at, step->first);
        if (step->kind == STEP_SPLIT)
            next[count++] = jump(at, step->second);
        if ((step->kind == STEP_BEGIN && at_begin) || (step->kind == STEP_END && at_end))
            next[count++] = at + 1;
        if (step->kind == STEP_MATCH)
            matcher->matched = true;
        if (count == 0 && step->kind != STEP_BEGIN)
            matcher->states[matcher->state_count++] = (uint16_t)at;
        for (size_t i = 0; i < count; i++) {
            if (matcher->seen[next[i]] == matcher->turn)
                continue;
            matcher->seen[next[i]] = matcher->turn;
            stack[depth++] = (uint16_t)next[i];
        }
    }
}

static void new_turn(struct matcher *matcher)
{
    if (++matcher->turn == 0) {
        memset(matcher->seen, 0, sizeof matcher->seen);
        matcher->turn = 1;
    }
}

static void begin_line(struct matcher *matcher)
{
    new_turn(matcher);
    matcher->state_count = 0;
    reach(matcher, 0, true, false);
}

void matcher_start(struct matcher *matcher, const struct pattern *pattern)
{
    memset(matcher, 0, sizeof *matcher);
    matcher->pattern = pattern;
    begin_line(matcher);
}

static bool takes(const struct pattern *pattern, const struct pattern_step *step, uint8_t byte)
{
    switch (step->kind) {
    case STEP_BYTE:
        return step->value == byte;
    case STEP_ANY:
        return true;
    case STEP_SET:
        return (pattern->sets[step->value][byte / 8] >> byte % 8 & 1) != 0;
    default:
        return false;
    }
}

/* The steps that wait for the line's end have it. */
static void end_line(struct matcher *matcher)
{
    uint16_t before[PATTERN_CODE_MAX];
    size_t count = matcher->state_count;
    memcpy(before, matcher->states, count * sizeof before[0]);
    new_turn(matcher);
    matcher->state_count = 0;
    for (size_t i = 0; i < count; i++) {
        if (matcher->pattern->code[before[i]].kind == STEP_END)
            reach(matcher, before[i], false, true);
    }
}

static void take_byte(struct matcher *matcher, uint8_t byte)
{
    uint16_t before[PATTERN_CODE_MAX];
    size_t count = matcher->state_count;
    memcpy(before, matcher->states, count * sizeof before[0]);
    new_turn(matcher);
    matcher->state_count = 0;
    for (size_t i = 0; i < count; i++) {
        if (takes(matcher->pattern, &matcher->pattern->code[before[i]], byte))
            reach(matcher, (size_t)before[i] + 1, false, false);
    }
    reach(matcher, 0, false, false); /* It may begin anywhere. */
}

bool matcher_feed(struct matcher *matcher, uint8_t byte)
{
    if (matcher->matched)
        return true;
    bool held = matcher->carriage_return;
    matcher->carriage_return = byte == '\r';
    if (held && byte != '\n')
        take_byte(matcher, '\r');
    if (byte == '\n') {
        end_line(matcher);
        if (!matcher->matched)
            begin_line(matcher);
    } else if (byte != '\r') {
        take_byte(matcher, byte);
    }
    return matcher->matched;
}
