/* The little of RFC 6455 that the load generator needs: the accept key and frame heads. */
#ifndef BENCH_WEBSOCKET_H
#define BENCH_WEBSOCKET_H

#include "common.h"

enum { CONTINUATION = 0, TEXT = 1, BINARY = 2, CLOSE = 8, PING = 9, PONG = 10 };
enum { HEAD_MAX = 14, CONTROL_MAX = 125, ACCEPT_SIZE = 28 };

static inline uint32_t turn_left(uint32_t word, int bits) {
    return (word << bits) | (word >> (32 - bits));
}

static inline void sha1_block(uint32_t state[5], const uint8_t *block) {
    static const uint32_t constants[4] = {0x5A827999, 0x6ED9EBA1, 0x8F1BBCDC, 0xCA62C1D6};
    uint32_t w[80], a = state[0], b = state[1], c = state[2], d = state[3], e = state[4];
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)block[4 * i] << 24 | (uint32_t)block[4 * i + 1] << 16 |
               (uint32_t)block[4 * i + 2] << 8 | block[4 * i + 3];
    for (int i = 16; i < 80; i++)
        w[i] = turn_left(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
    for (int i = 0; i < 80; i++) {
        uint32_t mix = i < 20   ? (b & c) | (~b & d)
                       : i < 40 ? b ^ c ^ d
                       : i < 60 ? (b & c) | (b & d) | (c & d)
                                : b ^ c ^ d;
        uint32_t next = turn_left(a, 5) + mix + e + constants[i / 20] + w[i];
        e = d;
        d = c;
        c = turn_left(b, 30);
        b = a;
        a = next;
    }
    state[0] += a;
    state[1] += b;
    state[2] += c;
    state[3] += d;
    state[4] += e;
}

/* SHA-1 of at most 119 bytes, which is all that an accept key needs. */
static inline void sha1(const uint8_t *data, size_t size, uint8_t digest[20]) {
    uint32_t state[5] = {0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0};
    uint8_t padded[128] = {0};
    size_t total = size + 9 <= 64 ? 64 : 128;
    memcpy(padded, data, size);
    padded[size] = 0x80;
    for (int i = 0; i < 4; i++) padded[total - 1 - (size_t)i] = (uint8_t)((size * 8) >> (8 * i));
    for (size_t at = 0; at < total; at += 64) sha1_block(state, padded + at);
    for (int i = 0; i < 20; i++) digest[i] = (uint8_t)(state[i / 4] >> (24 - 8 * (i % 4)));
}

/* RFC 6455 4.2.2: base64 of SHA-1 over key and GUID. `key` has 24 characters. */
static inline void accept_key(const char *key, char accept[ACCEPT_SIZE + 1]) {
    static const char alphabet[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    uint8_t text[60], digest[21] = {0};
    memcpy(text, key, 24);
    memcpy(text + 24, "258EAFA5-E914-47DA-95CA-C5AB0DC85B11", 36);
    sha1(text, sizeof text, digest);
    for (int i = 0; i < 7; i++) {
        uint32_t word = (uint32_t)digest[3 * i] << 16 | (uint32_t)digest[3 * i + 1] << 8 |
                        digest[3 * i + 2];
        for (int k = 0; k < 4; k++) accept[4 * i + k] = alphabet[word >> (18 - 6 * k) & 63];
    }
    accept[27] = '=';
    accept[28] = 0;
}

/* A final frame's head for `size` bytes; returns its length. `mask` NULL: unmasked. */
static inline size_t put_head(uint8_t *to, int opcode, uint64_t size, const uint8_t *mask) {
    size_t at = 2;
    uint8_t bit = mask ? 0x80 : 0;
    to[0] = (uint8_t)(0x80 | opcode);
    if (size < 126) {
        to[1] = (uint8_t)(bit | size);
    } else if (size < 65536) {
        to[1] = bit | 126;
        to[2] = (uint8_t)(size >> 8);
        to[3] = (uint8_t)size;
        at = 4;
    } else {
        to[1] = bit | 127;
        for (int i = 0; i < 8; i++) to[2 + i] = (uint8_t)(size >> (56 - 8 * i));
        at = 10;
    }
    if (mask) {
        memcpy(to + at, mask, 4);
        at += 4;
    }
    return at;
}

/* The length of the whole head, from its first two bytes. */
static inline size_t head_size(const uint8_t *head) {
    size_t length = head[1] & 0x7F;
    return 2 + (length == 126 ? 2 : length == 127 ? 8 : 0) + (head[1] & 0x80 ? 4 : 0);
}

static inline uint64_t payload_size(const uint8_t *head) {
    uint64_t length = head[1] & 0x7F;
    if (length == 126) return (uint64_t)head[2] << 8 | head[3];
    if (length < 126) return length;
    length = 0;
    for (int i = 0; i < 8; i++) length = length << 8 | head[2 + i];
    return length;
}

#endif
