/* SPDX-License-Identifier: BSD-3-Clause
 * Do blocks that were compressed one by one decode as one block, whatever they hold?
 */
#define _GNU_SOURCE
#include "test.h"

#define PART_BYTES_MAX 70000
#define PARTS_MAX      6

/* Noise, runs, text-like repeats, or too little for a match. */
static void make_part(uint8_t *p, size_t bytes, uint64_t *state)
{
    uint64_t kind = test_random(state) % 4;
    for (size_t i = 0; i < bytes; i++)
        p[i] = kind == 0   ? (uint8_t)test_random(state)
               : kind == 1 ? 7
               : kind == 2 ? (uint8_t)(i * i / 97 % 5)
                           : (uint8_t)(i % 300 < 40 ? test_random(state) : i % 13);
}

static void test_random_parts(uint64_t seed)
{
    static uint8_t plain[PARTS_MAX * PART_BYTES_MAX], packed[sizeof plain + 4096],
        part[2 * PART_BYTES_MAX], back[sizeof plain];
    const struct lm__codec *lz4 = lm__codec(LM_CODEC_LZ4);
    struct lm__lz4_joint joint = {.block = packed, .capacity = sizeof packed};
    uint64_t state = seed;
    size_t parts = 1 + test_random(&state) % PARTS_MAX, bytes = 0;
    for (size_t i = 0; i < parts; i++) {
        /* Lengths around 15 and 15 + 255 are where a run's length takes another byte. */
        static const size_t lengths[] = {1, 14, 15, 16, 269, 270, 271, 525, 4096};
        uint64_t pick = test_random(&state) % 12;
        size_t n = pick < 9 ? lengths[pick] : 1 + test_random(&state) % PART_BYTES_MAX;
        make_part(plain + bytes, n, &state);
        struct lm__plain one = {.bytes = plain + bytes, .count = n};
        int64_t m = lz4->encode(NULL, &one, seed % 3 ? 1 : 9, part, sizeof part);
        CHECK(m > 0);
        CHECK_EQ(lm__lz4_join(&joint, part, (size_t)m), 0);
        bytes += n;
        CHECK_EQ(lz4->decode(NULL, packed, joint.bytes, back, sizeof back), bytes);
        CHECK(memcmp(plain, back, bytes) == 0);
    }
}

static void test_what_does_not_fit_is_refused(void)
{
    uint8_t block[12], part[64];
    const struct lm__plain noise = {.bytes = (const uint8_t *)"0123456789",
                                    .count = 10};
    struct lm__lz4_joint joint = {.block = block, .capacity = sizeof block};
    int64_t n = lm__codec(LM_CODEC_LZ4)->encode(NULL, &noise, 1, part, sizeof part);
    CHECK_EQ(n, 11);
    CHECK_EQ(lm__lz4_join(&joint, part, (size_t)n), 0);
    CHECK_EQ(lm__lz4_join(&joint, part, (size_t)n), -1);
    CHECK_EQ(joint.bytes, n);
}

int main(void)
{
    if (test_codecs() != 0)
        return test_skip("no lz4 and zstd");
    for (uint64_t seed = 1; seed <= 300; seed++)
        test_random_parts(seed);
    test_what_does_not_fit_is_refused();
    return TEST_OK;
}
