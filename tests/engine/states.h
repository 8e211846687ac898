/* SPDX-License-Identifier: BSD-3-Clause
 * states.h - states of an index in a store that is appended to, without any payloads.
 */
#ifndef LM_TEST_STATES_H
#define LM_TEST_STATES_H
#include "test.h"

/* A store with a writer on it.  Entries of chunks are made up: nobody reads the payloads. */
struct test_states {
    char *path;
    lm_store *store;
    lm_writer *writer;
    struct lm__scratch scratch;
    uint64_t chunks;
};

/* 0, or TEST_SKIP. */
UNUSED static int test_states_open(struct test_states *t, uint64_t chunks)
{
    struct lm_error err;
    struct lm_commit commit;
    lm_writer *writer;
    if (test_codecs() != 0)
        return test_skip("no lz4 and zstd");
    *t = (struct test_states){.path = test_path("states.lzm"), .chunks = chunks};
    CHECK_CALL(lm_writer_create(t->path, &writer, &err), err);
    CHECK_CALL(lm_writer_commit(writer, "{}", 2, NULL, &err), err);
    lm_writer_close(writer);
    CHECK_CALL(lm_store_open_write(t->path, &t->store, &commit, &err), err);
    CHECK_CALL(lm_writer_open(t->store, &t->writer, &err), err);
    t->scratch = lm__scratch_take();
    return 0;
}

UNUSED static void test_states_close(struct test_states *t)
{
    lm__scratch_give(&t->scratch);
    lm_writer_close(t->writer);
    lm_store_close(t->store);
    unlink(t->path);
    free(t->path);
}

UNUSED static struct lm__index test_index(const struct test_states *t,
                                          struct lm__entry root)
{
    return (struct lm__index){
        .root = root, .chunks = t->chunks, .depth = lm__index_depth(t->chunks)};
}

/* The root of the state that `changes` make of the state with root `old`. */
UNUSED static struct lm__entry test_update(struct test_states *t, struct lm__entry old,
                                           const struct lm__change *changes,
                                           uint64_t count)
{
    struct lm_error err;
    struct lm__entry root;
    struct lm__index index = test_index(t, old);
    CHECK_CALL(lm__index_update(&index, &t->store->source, t->writer, changes, count,
                                &t->scratch, &root, &err),
               err);
    lm__append_keep(t->writer);
    return root;
}

/* An entry as of a chunk that does not compress: nothing in it repeats. */
UNUSED static struct lm__entry test_payload(uint64_t *state)
{
    uint64_t random = test_random(state);
    return (struct lm__entry){.offset = random >> 20,
                              .stored_bytes = 40960 - (uint32_t)random % 4096,
                              .crc = (uint32_t)test_random(state),
                              .codec = LM_CODEC_ZSTD};
}

/* Changes of random chunks, ascending: each chunk of [from, to) one time in `one_in`, and one
 * of them in `zero_in` becomes zero.  Returns how many. */
UNUSED static uint64_t test_changes(struct lm__change *changes, uint64_t from,
                                    uint64_t to, unsigned one_in, unsigned zero_in,
                                    uint64_t *state)
{
    uint64_t count = 0;
    for (uint64_t c = from; c < to; c++) {
        if (test_random(state) % one_in != 0)
            continue;
        changes[count++] = (struct lm__change){.chunk_idx = c};
        if (test_random(state) % zero_in != 0)
            changes[count - 1].entry = test_payload(state);
    }
    return count;
}

#endif
