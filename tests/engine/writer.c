/* SPDX-License-Identifier: BSD-3-Clause
 * Do blocks of any size and alignment, with gaps between them, become the object they make up?
 */
#define _GNU_SOURCE
#include "test.h"

#define CHUNK_BYTES 4096u

static uint8_t *random_blocks(struct test_store *t, uint64_t *state)
{
    struct lm_error err;
    lm_writer *writer;
    lm_writer_object *object;
    lm_job *job;
    uint64_t bytes = t->enc.object_bytes;
    uint8_t *oracle = calloc(1, bytes);
    CHECK(oracle);
    t->path = test_path("store.lzm");
    CHECK_CALL(lm_writer_create(t->path, &writer, &err), err);
    CHECK_CALL(lm_writer_begin(writer, &t->enc, &object, &err), err);
    for (uint64_t offset = 0; offset < bytes;) {
        uint64_t scale = 1ull << test_random(state) % 16;
        uint64_t n = test_random(state) % (scale + 1);
        if (test_random(state) % 4 == 0)
            offset += test_random(state) % (2 * scale); /* a gap */
        if (offset > bytes)
            break;
        if (test_random(state) % 4 == 0) /* up to the end of a chunk */
            n = CHUNK_BYTES - offset % CHUNK_BYTES;
        if (n > bytes - offset)
            n = bytes - offset;
        memcpy(oracle + offset, t->data + offset, n);
        CHECK_CALL(lm_writer_write(object, offset, t->data + offset, n, &job, &err),
                   err);
        test_finish(job);
        offset += n;
        if (n == 0 && test_random(state) % 8 == 0)
            break; /* the end of the object is never given */
    }
    CHECK_CALL(lm_writer_end(object, &t->written, &err), err);
    CHECK_CALL(lm_writer_commit(writer, "{}", 2, NULL, &err), err);
    lm_writer_close(writer);
    return oracle;
}

static void check_object(struct test_store *t, const uint8_t *oracle)
{
    uint64_t bytes = t->enc.object_bytes;
    uint8_t *got = malloc(bytes);
    lm_job *job;
    CHECK(got);
    CHECK_EQ(lm_object_read(t->object, 0, bytes, got, &job), 0);
    test_finish(job);
    CHECK(memcmp(got, oracle, bytes) == 0);
    CHECK_EQ(lm_object_verify(t->object, &job), 0);
    test_finish(job);
    free(got);
}

static void test_random_blocks(int round)
{
    uint64_t state = 1000 + (uint64_t)round;
    struct test_store t = {
        .enc = {.object_bytes = 1 + test_random(&state) % 200000,
                .chunk_bytes = CHUNK_BYTES,
                .shuffle_width = (uint32_t)(test_random(&state) % 10),
                .codec = round % 3,
                .level = round % 5}};
    t.data = malloc(t.enc.object_bytes);
    CHECK(t.data);
    test_fill(t.data, t.enc.object_bytes, state);
    uint8_t *oracle = random_blocks(&t, &state);
    test_store_open(&t);
    check_object(&t, oracle);
    free(oracle);
    test_store_close(&t);
}

/* ---- order, errors ------------------------------------------------------------------------------- */

static void test_blocks_out_of_order_are_refused(void)
{
    struct lm_encoding enc = {.object_bytes = 10000, .chunk_bytes = CHUNK_BYTES};
    static const uint8_t data[10000];
    struct lm_written written;
    struct lm_error err;
    lm_writer *writer;
    lm_writer_object *object;
    lm_job *job;
    char *path = test_path("store.lzm");
    CHECK_CALL(lm_writer_create(path, &writer, &err), err);
    CHECK_CALL(lm_writer_begin(writer, &enc, &object, &err), err);
    CHECK_CALL(lm_writer_write(object, 5000, data, 100, &job, &err), err);
    test_finish(job);
    CHECK_EQ(lm_writer_write(object, 5099, data, 1, &job, &err), LM_E_ORDER);
    CHECK_EQ(lm_writer_write(object, 9999, data, 2, &job, &err), LM_E_ORDER);
    CHECK_EQ(lm_writer_write(object, 5100, data, UINT64_MAX, &job, &err), LM_E_ORDER);
    CHECK_EQ(lm_writer_write(object, UINT64_MAX, data, 2, &job, &err), LM_E_ORDER);
    CHECK_CALL(lm_writer_write(object, 5100, data, 4900, &job, &err), err);
    test_finish(job);
    CHECK_CALL(lm_writer_end(object, &written, &err), err);
    lm_writer_close(writer);
    unlink(path);
    free(path);
}

/* Fail the first write, then the second, ... : each is reported and nothing is committed. */
static void test_each_failed_write_is_reported(void)
{
    struct test_store t = {.enc = {.object_bytes = 100000, .chunk_bytes = CHUNK_BYTES}};
    struct lm_written written;
    struct lm_error err;
    lm_writer *writer;
    lm_writer_object *object;
    lm_job *job;
    int rc = -1;
    t.data = malloc(t.enc.object_bytes);
    CHECK(t.data);
    test_fill(t.data, t.enc.object_bytes, 9);
    for (int64_t skip = 0; rc != 0; skip++) {
        char *path = test_path("store.lzm");
        lm_inject(LM_INJECT_WRITE, skip, 1, ENOSPC);
        rc = lm_writer_create(path, &writer, &err);
        if (rc == 0) {
            CHECK_CALL(lm_writer_begin(writer, &t.enc, &object, &err), err);
            CHECK_CALL(
                lm_writer_write(object, 0, t.data, t.enc.object_bytes, &job, &err),
                err);
            while (job && !lm_job_wait(job, 1000))
                ;
            if (job)
                lm_job_close(job, 0);
            rc = lm_writer_end(object, &written, &err);
            int commit = lm_writer_commit(writer, "{}", 2, NULL, &err);
            CHECK(rc == 0 || commit != 0);
            rc = rc ? rc : commit;
            lm_writer_close(writer);
        }
        CHECK(rc == 0 || rc == -ENOSPC);
        unlink(path);
        free(path);
        CHECK(skip < 100);
    }
    lm_inject(LM_INJECT_WRITE, 0, 0, 0);
    free(t.data);
}

static void test_cancelled_write_is_not_committed(void)
{
    struct lm_encoding enc = {.object_bytes = 64 << 20,
                              .chunk_bytes = CHUNK_BYTES,
                              .codec = LM_CODEC_ZSTD,
                              .level = 15};
    struct lm_written written;
    struct lm_error err;
    lm_writer *writer;
    lm_writer_object *object;
    lm_job *job;
    char *path = test_path("store.lzm");
    uint8_t *data = malloc(enc.object_bytes);
    CHECK(data);
    memset(data, 'x', enc.object_bytes);
    CHECK_CALL(lm_writer_create(path, &writer, &err), err);
    CHECK_CALL(lm_writer_begin(writer, &enc, &object, &err), err);
    CHECK_CALL(lm_writer_write(object, 0, data, enc.object_bytes, &job, &err), err);
    lm_job_close(job, 0);
    CHECK_EQ(lm_writer_end(object, &written, &err), LM_E_CANCELLED);
    CHECK_EQ(lm_writer_commit(writer, "{}", 2, NULL, &err), LM_E_CANCELLED);
    lm_writer_close(writer);
    unlink(path);
    free(path);
    free(data);
}

int main(void)
{
    if (test_codecs() != 0)
        return test_skip("no lz4 and zstd");
    for (int round = 0; round < 60; round++)
        test_random_blocks(round);
    test_blocks_out_of_order_are_refused();
    test_each_failed_write_is_reported();
    test_cancelled_write_is_not_committed();
    return TEST_OK;
}
