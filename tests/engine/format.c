/* SPDX-License-Identifier: BSD-3-Clause
 * Do superblock and commit record survive the way to bytes and back, and is every other
 * bit pattern refused?
 */
#define _GNU_SOURCE
#include "test.h"

static const struct lm__superblock SUPERBLOCK = {
    .store_id = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16},
    .created_ns = 0x0123456789ABCDEF,
};

static const struct lm__record RECORD = {
    .store_id = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16},
    .offset = 1 << 20,
    .sequence = 3,
    .previous_offset = 4096,
    .time_ns = 1234567890123456789,
    .manifest = {.offset = 640,
                 .stored_bytes = 100,
                 .crc = 0xDEADBEEF,
                 .codec = LM_CODEC_LZ4},
    .manifest_bytes = 25500,
};

static int superblock_decode(const uint8_t *bytes)
{
    struct lm__superblock out;
    return lm__superblock_decode(bytes, &out, NULL);
}

static int record_decode(const uint8_t *bytes)
{
    struct lm__record out;
    return lm__record_decode(bytes, RECORD.offset, RECORD.store_id, &out, NULL);
}

static void test_round_trip(void)
{
    uint8_t bytes[LM_RECORD_BYTES];
    struct lm__superblock sb = {0};
    struct lm__record rec;
    lm__superblock_encode(&SUPERBLOCK, bytes);
    CHECK_EQ(lm__superblock_decode(bytes, &sb, NULL), 0);
    CHECK(memcmp(&sb, &SUPERBLOCK, sizeof sb) == 0);
    lm__record_encode(&RECORD, bytes);
    CHECK_EQ(lm__record_decode(bytes, RECORD.offset, RECORD.store_id, &rec, NULL), 0);
    CHECK(memcmp(rec.store_id, RECORD.store_id, 16) == 0);
    CHECK_EQ(rec.offset, RECORD.offset);
    CHECK_EQ(rec.sequence, RECORD.sequence);
    CHECK_EQ(rec.previous_offset, RECORD.previous_offset);
    CHECK_EQ(rec.time_ns, RECORD.time_ns);
    CHECK_EQ(rec.manifest_bytes, RECORD.manifest_bytes);
    CHECK(memcmp(&rec.manifest, &RECORD.manifest, sizeof rec.manifest) == 0);
}

/* `crc_offset` 0: leave the checksum wrong; else make it right again. */
static void each_bit(uint8_t *bytes, int count, int crc_offset,
                     int (*decode)(const uint8_t *), int may_pass_from, int may_pass_to)
{
    CHECK_EQ(decode(bytes), 0);
    for (int bit = 0; bit < 8 * count; bit++) {
        int is_data = bit / 8 >= may_pass_from && bit / 8 < may_pass_to;
        bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
        if (crc_offset)
            lm__put32(bytes + crc_offset, lm_crc32c(0, bytes, (size_t)crc_offset));
        int rc = decode(bytes);
        CHECK(rc == 0 ? is_data || bit / 8 >= count - 4 * !!crc_offset
                      : rc <= LM_E_MAGIC && rc >= LM_E_NO_COMMIT);
        bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
        if (crc_offset)
            lm__put32(bytes + crc_offset, lm_crc32c(0, bytes, (size_t)crc_offset));
    }
}

static void test_each_flipped_bit_is_refused(void)
{
    uint8_t bytes[LM_RECORD_BYTES];
    lm__superblock_encode(&SUPERBLOCK, bytes);
    each_bit(bytes, LM_SUPERBLOCK_BYTES, 0, superblock_decode, 0, 0);
    lm__record_encode(&RECORD, bytes);
    each_bit(bytes, LM_RECORD_BYTES, 0, record_decode, 0, 0);
}

/* With a right checksum only fields whose every value has a meaning may change. */
static void test_each_forged_bit(void)
{
    uint8_t bytes[LM_RECORD_BYTES];
    lm__superblock_encode(&SUPERBLOCK, bytes);
    each_bit(bytes, LM_SUPERBLOCK_BYTES, 60, superblock_decode, 16, 40);
    lm__record_encode(&RECORD, bytes);
    each_bit(bytes, LM_RECORD_BYTES, 124, record_decode, 32, 77);
}

static void test_order_of_verdicts(void)
{
    uint8_t bytes[LM_SUPERBLOCK_BYTES];
    lm__superblock_encode(&SUPERBLOCK, bytes);
    bytes[8] = 2; /* the future, damaged */
    CHECK_EQ(superblock_decode(bytes), LM_E_CHECKSUM);
    lm__put32(bytes + 60, lm_crc32c(0, bytes, 60));
    CHECK_EQ(superblock_decode(bytes), LM_E_VERSION);
    bytes[0] ^= 1;
    CHECK_EQ(superblock_decode(bytes), LM_E_MAGIC);
}

static void refuse(struct lm__record rec, int code)
{
    uint8_t bytes[LM_RECORD_BYTES];
    lm__record_encode(&rec, bytes);
    CHECK_EQ(record_decode(bytes), code);
}

static void test_contradictions(void)
{
    struct lm__record rec = RECORD;
    rec.offset += 64;
    refuse(rec, LM_E_NO_COMMIT); /* a copy, stored as data */
    rec = RECORD, rec.store_id[3] ^= 1;
    refuse(rec, LM_E_NO_COMMIT);
    rec = RECORD, rec.sequence = 0;
    refuse(rec, LM_E_FORMAT);
    rec = RECORD, rec.previous_offset = rec.offset;
    refuse(rec, LM_E_FORMAT);
    rec = RECORD, rec.manifest.offset = 63;
    refuse(rec, LM_E_FORMAT);
    rec = RECORD, rec.manifest.offset = UINT64_MAX;
    refuse(rec, LM_E_FORMAT);
    rec = RECORD, rec.manifest.offset = rec.offset - 99;
    refuse(rec, LM_E_FORMAT);
    rec = RECORD, rec.manifest.codec = LM_CODEC_ZSTD;
    refuse(rec, LM_E_FORMAT);
    rec = RECORD, rec.manifest.codec = LM_CODEC_NONE;
    refuse(rec, LM_E_FORMAT);
    rec = RECORD, rec.manifest_bytes = 255 * 101;
    refuse(rec, LM_E_FORMAT);
}

static void test_index_shape(void)
{
    static const struct {
        uint64_t chunks;
        unsigned depth;
    } cases[] = {
        {1, 1},
        {1024, 1},
        {1025, 2},
        {1 << 20, 2},
        {(1 << 20) + 1, 3},
        {1ull << 30, 3},
        {(1ull << 30) + 1, 4},
        {1ull << 51, 6},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        CHECK_EQ(lm__index_depth(cases[i].chunks), cases[i].depth);
    CHECK_EQ(lm__index_page_entries(1, 1, 0), 1);
    CHECK_EQ(lm__index_page_entries(1025, 1, 0), 1024);
    CHECK_EQ(lm__index_page_entries(1025, 1, 1), 1);
    CHECK_EQ(lm__index_page_entries(1025, 2, 0), 2);
    CHECK_EQ(lm__index_page_entries((1 << 20) + 1, 3, 0), 2);
    CHECK_EQ(lm__index_page_entries((1 << 20) + 1, 2, 1), 1);
}

int main(void)
{
    test_round_trip();
    test_each_flipped_bit_is_refused();
    test_each_forged_bit();
    test_order_of_verdicts();
    test_contradictions();
    test_index_shape();
    return TEST_OK;
}
