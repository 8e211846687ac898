/* SPDX-License-Identifier: BSD-3-Clause
 * Are both ways to compute CRC32C right, whole and in pieces, at any length and alignment?
 */
#define _GNU_SOURCE
#define lm_crc32c lm_crc32c_here /* the engine's own is linked as well */
#include "../../ext/crc32c.c"
#undef lm_crc32c
uint32_t lm_crc32c(uint32_t crc, const void *data, size_t data_bytes);
#include "test.h"

static uint32_t bit_by_bit(uint32_t crc, const uint8_t *p, size_t bytes)
{
    for (; bytes; p++, bytes--) {
        crc ^= *p;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0x82F63B78u : 0);
    }
    return crc;
}

/* From RFC 3720, B.4, and the check value of the CRC catalogue. */
static void test_known_vectors(void)
{
    uint8_t bytes[32];
    CHECK_EQ(lm_crc32c(0, "123456789", 9), 0xE3069283u);
    CHECK_EQ(lm_crc32c(0, "", 0), 0);
    memset(bytes, 0, sizeof bytes);
    CHECK_EQ(lm_crc32c(0, bytes, sizeof bytes), 0x8A9136AAu);
    memset(bytes, 0xFF, sizeof bytes);
    CHECK_EQ(lm_crc32c(0, bytes, sizeof bytes), 0x62A8AB43u);
    for (int i = 0; i < 32; i++)
        bytes[i] = (uint8_t)i;
    CHECK_EQ(lm_crc32c(0, bytes, sizeof bytes), 0x46DD794Eu);
}

static void test_both_ways(void)
{
    static uint8_t data[600];
    test_fill(data, sizeof data, 1);
    CHECK_EQ(lm_crc32c_here(0, data, sizeof data), lm_crc32c(0, data, sizeof data));
    for (size_t from = 0; from < 17; from++)
        for (size_t bytes = 0; bytes < 300; bytes++) {
            uint32_t wanted = bit_by_bit(~0u, data + from, bytes);
            CHECK_EQ(crc_by_table(~0u, data + from, bytes), wanted);
            if (has_instruction())
                CHECK_EQ(crc_by_instruction(~0u, data + from, bytes), wanted);
        }
}

static void test_pieces(void)
{
    uint8_t data[257];
    test_fill(data, sizeof data, 2);
    uint32_t whole = lm_crc32c(0, data, sizeof data);
    for (size_t cut = 0; cut <= sizeof data; cut++)
        CHECK_EQ(lm_crc32c(lm_crc32c(0, data, cut), data + cut, sizeof data - cut),
                 whole);
}

int main(void)
{
    test_known_vectors();
    test_both_ways();
    test_pieces();
    return TEST_OK;
}
