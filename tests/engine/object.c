/* SPDX-License-Identifier: BSD-3-Clause
 * Does reading any range of an object give its bytes, and does verifying find all damage?
 */
#define _GNU_SOURCE
#include "test.h"

#define CHUNK_BYTES 8192u
#define BYTES       (50 * CHUNK_BYTES + 123)

static void test_ranges(int codec, uint32_t width)
{
    struct test_store t;
    struct lm_encoding enc = {.object_bytes = BYTES,
                              .chunk_bytes = CHUNK_BYTES,
                              .shuffle_width = width,
                              .codec = codec,
                              .level = 1};
    uint64_t state = 77;
    CHECK_EQ(test_store_make(&t, enc, 21 + width), 0);
    for (int i = 0; i < 100; i++) {
        uint64_t offset = test_random(&state) % BYTES;
        uint64_t scale = 1ull << test_random(&state) % 19;
        uint64_t bytes = 1 + test_random(&state) % scale;
        if (bytes > BYTES - offset)
            bytes = BYTES - offset;
        uint8_t *got = malloc(bytes);
        lm_job *job;
        CHECK(got);
        CHECK_EQ(lm_object_read(t.object, offset, bytes, got, &job), 0);
        test_finish(job);
        CHECK(memcmp(got, t.data + offset, bytes) == 0);
        free(got);
    }
    test_store_close(&t);
}

static void test_ranges_outside_are_refused(struct test_store *t)
{
    uint8_t byte;
    lm_job *job;
    CHECK_EQ(lm_object_read(t->object, BYTES, 1, &byte, &job), -EINVAL);
    CHECK_EQ(lm_object_read(t->object, 0, 0, &byte, &job), -EINVAL);
    CHECK_EQ(lm_object_read(t->object, 5, UINT64_MAX - 4, &byte, &job), -EINVAL);
    CHECK_EQ(lm_object_read(t->object, UINT64_MAX, 2, &byte, &job), -EINVAL);
    CHECK_EQ(lm_object_read(t->object, 0, 1, NULL, &job), -EINVAL);
}

/* A damaged chunk, or one that the file has lost, is an error of that chunk alone. */
static void test_verify_finds_all_damage(struct test_store *t)
{
    struct lm_error errors[60];
    struct lm_progress p;
    lm_job *job;
    uint64_t damaged = 0, wanted = 0;
    for (uint64_t c = 0; c < t->object->chunks; c += 3) {
        struct lm__entry e = test_entry(t, c);
        if (lm__entry_is_zero(&e))
            continue;
        test_store_damage(t, c);
        wanted++;
    }
    CHECK(wanted > 3);
    CHECK_EQ(lm_object_verify(t->object, &job), 0);
    while (!lm_job_wait(job, 1000))
        ;
    lm_job_progress(job, &p);
    CHECK_EQ(p.steps_done, t->object->chunks);
    CHECK_EQ(p.errors, wanted);
    damaged = (uint64_t)lm_job_errors(job, errors, 60);
    CHECK_EQ(damaged, wanted);
    for (uint64_t i = 0; i < damaged; i++) {
        CHECK_EQ(errors[i].code, LM_E_CHECKSUM);
        CHECK_EQ(errors[i].tag, 7);
        CHECK_EQ(errors[i].chunk_idx % 3, 0);
        CHECK_EQ(errors[i].offset, test_entry(t, errors[i].chunk_idx).offset);
    }
    lm_job_close(job, 0);
}

/* Entries with a right checksum that promise what their payload is not. */
static void test_hostile_entries(void)
{
    static const uint8_t payload[CHUNK_BYTES] = {1, 2, 3};
    const struct lm__entry good = {.offset = 64,
                                   .stored_bytes = CHUNK_BYTES,
                                   .crc = lm_crc32c(0, payload, CHUNK_BYTES)};
    struct lm__entry cases[7];
    for (int i = 0; i < 7; i++)
        cases[i] = good;
    cases[1].codec = LM_CODEC_LZ4, cases[2].codec = LM_CODEC_ZSTD, cases[3].codec = 3;
    cases[4].filter = 2, cases[5].zero[0] = 1, cases[6].stored_bytes = UINT32_MAX;
    static const int wanted[7] = {0,           LM_E_DECODE, LM_E_DECODE, LM_E_FORMAT,
                                  LM_E_FORMAT, LM_E_FORMAT, LM_E_FORMAT};
    for (int i = 0; i < 7; i++) {
        char *path = test_path("file");
        uint8_t *file = calloc(1, 64 + CHUNK_BYTES + sizeof good);
        CHECK(file);
        memcpy(file + 64, payload, CHUNK_BYTES);
        memcpy(file + 64 + CHUNK_BYTES, &cases[i], sizeof good);
        test_file_write(path, file, 64 + CHUNK_BYTES + sizeof good);
        lm_store store = {.refs = 1,
                          .source = {.fd = open(path, O_RDONLY | O_CLOEXEC),
                                     .end_offset = 64 + CHUNK_BYTES + 24}};
        struct lm_object_spec spec = {
            .object_bytes = CHUNK_BYTES,
            .chunk_bytes = CHUNK_BYTES,
            .shuffle_width = 4,
            .root = {.offset = 64 + CHUNK_BYTES,
                     .bytes = 24,
                     .crc = lm_crc32c(0, &cases[i], sizeof good)}};
        struct lm_error err;
        struct lm__scratch scratch = lm__scratch_take();
        uint8_t *out = NULL; /* in the scratch */
        uint64_t stored_bytes = 0;
        lm_object *object;
        CHECK_CALL(lm_object_open(&store, &spec, &object, &err), err);
        CHECK_EQ(lm__object_decode(object, 0, &scratch, &out, &stored_bytes, &err),
                 wanted[i]);
        lm_object_close(object);
        lm__scratch_give(&scratch);
        close(store.source.fd);
        unlink(path);
        free(path);
        free(file);
    }
}

int main(void)
{
    struct test_store t;
    struct lm_encoding enc = {.object_bytes = BYTES,
                              .chunk_bytes = CHUNK_BYTES,
                              .shuffle_width = 4,
                              .codec = LM_CODEC_ZSTD,
                              .level = 1};
    if (test_store_make(&t, enc, 1) != 0)
        return TEST_SKIP;
    for (int codec = LM_CODEC_NONE; codec <= LM_CODEC_ZSTD; codec++)
        for (uint32_t width = 0; width <= 16; width += 3)
            test_ranges(codec, width);
    test_ranges_outside_are_refused(&t);
    test_verify_finds_all_damage(&t);
    test_store_close(&t);
    test_hostile_entries();
    return TEST_OK;
}
