// SPDX-License-Identifier: Apache-2.0
#include "frame.h"

#include "bytes.h"

void frame_header_put(uint8_t at[FRAME_HEADER_SIZE], struct frame_header header)
{
    put_le32(at, header.length);
    put_le32(at + 4, header.stream);
    at[8] = header.type;
    at[9] = header.channel;
    at[10] = 0;
    at[11] = 0;
}

bool frame_header_get(const uint8_t at[FRAME_HEADER_SIZE], struct frame_header *header)
{
    header->length = get_le32(at);
    header->stream = get_le32(at + 4);
    header->type = at[8];
    header->channel = at[9];
    return header->length <= FRAME_PAYLOAD_MAX && header->channel <= CHANNEL_STDERR && at[10] == 0 &&
           at[11] == 0;
}
