/* SPDX-License-Identifier: BSD-3-Clause
 * Does an index that is updated, again and again, say of every chunk what an array says, and
 * does the file grow by little more than what is new?
 */
#define _GNU_SOURCE
#include "states.h"

enum { PATCH_OF_ONE = LM_ENTRY_BYTES + LM_PAIR_BYTES };

/* ---- an oracle ---------------------------------------------------------------------------- */

static void check_chunks(struct test_states *t, struct lm__entry root,
                         const struct lm__entry *oracle, uint64_t from, uint64_t to)
{
    struct lm__index index = test_index(t, root);
    struct lm__entry e;
    struct lm_error err;
    for (uint64_t c = from; c < to; c++) {
        CHECK_CALL(
            lm__index_lookup(&index, &t->store->source, c, &t->scratch, &e, &err), err);
        CHECK(lm__entry_is_equal(&e, &oracle[c]));
    }
    lm__index_fini(&index);
}

/* Changes in some windows, scattered in some and dense in others, near the ends of leaves. */
static uint64_t random_changes(const struct test_states *t, struct lm__change *changes,
                               uint64_t *state)
{
    static const unsigned densities[] = {1, 2, 30, 1000};
    uint64_t count = 0, windows = 1 + test_random(state) % 4, at = 0;
    uint64_t stride = t->chunks / windows + 1;
    for (uint64_t i = 0; i < windows; i++) {
        uint64_t from = i * stride + test_random(state) % stride;
        if (test_random(state) % 2)
            from = lm__round_down(from, LM_PAGE_ENTRIES);
        from = from < at ? at : from;
        uint64_t end = from + test_random(state) % (3 * LM_PAGE_ENTRIES);
        if (test_random(state) % 2)
            end = lm__round_up(end, LM_PAGE_ENTRIES);
        at = end < t->chunks ? end : t->chunks;
        unsigned one_in = densities[test_random(state) % 4];
        unsigned zero_in = test_random(state) % 3 == 0 ? 1 : 3;
        if (from < at)
            count += test_changes(changes + count, from, at, one_in, zero_in, state);
    }
    return count;
}

static int test_generations(uint64_t chunks, int generations)
{
    struct test_states t;
    uint64_t state = chunks;
    if (test_states_open(&t, chunks) != 0)
        return TEST_SKIP;
    struct lm__entry *oracle = calloc(chunks, sizeof *oracle), root = {0};
    struct lm__change *changes = calloc(chunks, sizeof *changes);
    CHECK(oracle && changes);
    for (int g = 0; g < generations; g++) {
        uint64_t count = random_changes(&t, changes, &state);
        for (uint64_t i = 0; i < count; i++)
            oracle[changes[i].chunk_idx] = changes[i].entry;
        root = test_update(&t, root, changes, count);
        if (count) {
            uint64_t last = changes[count - 1].chunk_idx;
            check_chunks(&t, root, oracle, changes[0].chunk_idx, last + 1);
        }
    }
    check_chunks(&t, root, oracle, 0, chunks);

    uint64_t count = 0;
    for (uint64_t c = 0; c < chunks; c++)
        if (!lm__entry_is_zero(&oracle[c]))
            changes[count++] = (struct lm__change){.chunk_idx = c};
    root = test_update(&t, root, changes, count);
    CHECK(lm__entry_is_zero(&root)); /* all of it is, and nothing says so at length */
    free(oracle);
    free(changes);
    test_states_close(&t);
    return 0;
}

/* ---- how a page is stored -------------------------------------------------------------------- */

static struct lm__change *changes_of_all(uint64_t chunks, uint64_t *state)
{
    struct lm__change *changes = calloc(chunks, sizeof *changes);
    CHECK(changes);
    for (uint64_t c = 0; c < chunks; c++)
        changes[c] = (struct lm__change){c, test_payload(state)};
    return changes;
}

static struct lm__entry base_of(const struct test_states *t, struct lm__entry patch)
{
    struct lm__entry base;
    CHECK_EQ(patch.codec, LM_PAGE_PATCH);
    CHECK_EQ(lm__io_pread(t->writer->fd, patch.offset, sizeof base, &base, 0), 0);
    return base;
}

static void test_patches_are_of_the_plain_page(void)
{
    struct test_states t;
    uint64_t state = 5;
    CHECK_EQ(test_states_open(&t, 1024), 0);
    struct lm__change *all = changes_of_all(1024, &state);
    struct lm__entry plain = test_update(&t, (struct lm__entry){0}, all, 1024);
    CHECK_EQ(plain.codec, LM_PAGE_PLAIN);
    CHECK_EQ(plain.stored_bytes, 1024 * LM_ENTRY_BYTES);

    struct lm__change one = {7, test_payload(&state)}, other = {900, {0}};
    struct lm__entry first = test_update(&t, plain, &one, 1), base = base_of(&t, first);
    CHECK_EQ(first.stored_bytes, PATCH_OF_ONE);
    CHECK(lm__entry_is_equal(&base, &plain));
    struct lm__entry second = test_update(&t, first, &other, 1);
    base = base_of(&t, second);
    CHECK_EQ(second.stored_bytes, PATCH_OF_ONE + LM_PAIR_BYTES);
    CHECK(lm__entry_is_equal(&base, &plain));

    /* What is undone is not said, and what is not new is not written. */
    struct lm__entry third = test_update(&t, second, &all[7], 1);
    CHECK_EQ(third.stored_bytes, PATCH_OF_ONE);
    uint64_t tail = t.writer->tail;
    struct lm__entry same = test_update(&t, third, &all[7], 1);
    CHECK(lm__entry_is_equal(&same, &third));
    same = test_update(&t, third, NULL, 0);
    CHECK(lm__entry_is_equal(&same, &third));
    same = test_update(&t, third, &all[900], 1);
    CHECK(lm__entry_is_equal(&same, &plain));
    CHECK_EQ(t.writer->tail, tail);

    /* An eighth of a page is where patches end. */
    for (uint64_t c = 0; c < 1024; c++)
        all[c].entry = test_payload(&state);
    const uint32_t few = (24576 / 8 - 1 - LM_ENTRY_BYTES) / LM_PAIR_BYTES;
    struct lm__entry large = test_update(&t, plain, all, few);
    CHECK_EQ(large.stored_bytes, LM_ENTRY_BYTES + few * LM_PAIR_BYTES);
    CHECK_EQ(large.codec, LM_PAGE_PATCH);
    CHECK_EQ(test_update(&t, large, &all[few], 1).codec, LM_PAGE_PLAIN);
    CHECK_EQ(test_update(&t, plain, all, few + 1).codec, LM_PAGE_PLAIN);
    free(all);
    test_states_close(&t);
}

static void test_a_page_of_zeros_grows_in_the_smaller_form(void)
{
    struct test_states t;
    uint64_t state = 6, tail;
    CHECK_EQ(test_states_open(&t, 1024), 0);
    struct lm__change *all = changes_of_all(1024, &state);
    struct lm__entry root = test_update(&t, (struct lm__entry){0}, all + 1023, 1), base;
    CHECK_EQ(root.stored_bytes, PATCH_OF_ONE);
    int is_plain = 0;
    for (uint64_t n = 1; n < 1024; n++) {
        tail = t.writer->tail;
        root = test_update(&t, root, &all[n - 1], 1);
        CHECK(t.writer->tail - tail <= LM_ENTRY_BYTES + (n + 1) * LM_PAIR_BYTES);
        CHECK(t.writer->tail - tail <= 1024 * LM_ENTRY_BYTES);
        if (!is_plain && root.codec == LM_PAGE_PATCH) {
            base = base_of(&t, root);
            CHECK(lm__entry_is_zero(&base));
        }
        is_plain |= root.codec == LM_PAGE_PLAIN;
    }
    CHECK(is_plain);
    free(all);
    test_states_close(&t);
}

/* ---- growth ------------------------------------------------------------------------------------ */

static void test_scattered_changes_take_less_than_a_hundredth(void)
{
    enum { CHUNKS = 32768, CHANGED = 328, PAYLOAD_BYTES = 40 << 10, GENERATIONS = 100 };
    struct test_states t;
    uint64_t state = 7;
    CHECK_EQ(test_states_open(&t, CHUNKS), 0);
    struct lm__change *all = changes_of_all(CHUNKS, &state), few[CHANGED];
    struct lm__entry root = test_update(&t, (struct lm__entry){0}, all, CHUNKS);
    uint64_t begin = t.writer->tail;
    for (int g = 0; g < GENERATIONS; g++) {
        uint64_t tail = t.writer->tail, chunk = 0;
        for (int i = 0; i < CHANGED; i++, chunk += CHUNKS / CHANGED)
            few[i] = (struct lm__change){
                chunk + test_random(&state) % (CHUNKS / CHANGED), test_payload(&state)};
        root = test_update(&t, root, few, CHANGED);
        if (g == 0)
            CHECK(t.writer->tail - tail < CHANGED * PAYLOAD_BYTES / 1000);
    }
    /* Over many snapshots too, with the plain pages that are due at times. */
    CHECK(t.writer->tail - begin <
          (uint64_t)GENERATIONS * CHANGED * (PAYLOAD_BYTES / 100));
    free(all);
    test_states_close(&t);
}

/* ---- readers that race for the same patches ---------------------------------------------------- */

struct readers {
    struct test_states t;
    struct lm__index index;
    const struct lm__change *wanted;
};

static void *reader(void *arg)
{
    struct readers *r = arg;
    struct lm__scratch scratch = {0};
    struct lm__entry e;
    struct lm_error err;
    for (uint64_t c = 0; c < r->t.chunks; c++) {
        CHECK_CALL(
            lm__index_lookup(&r->index, &r->t.store->source, c, &scratch, &e, &err),
            err);
        CHECK(lm__entry_is_equal(&e, &r->wanted[c].entry));
    }
    lm__scratch_give(&scratch);
    return NULL;
}

static void test_racing_readers(void)
{
    enum { CHUNKS = 20 * LM_PAGE_ENTRIES };
    struct readers r;
    pthread_t threads[4];
    uint64_t state = 10;
    CHECK_EQ(test_states_open(&r.t, CHUNKS), 0);
    struct lm__change *all = changes_of_all(CHUNKS, &state), few[20];
    struct lm__entry root = test_update(&r.t, (struct lm__entry){0}, all, CHUNKS);
    for (uint64_t i = 0; i < 20; i++) {
        few[i] = (struct lm__change){i * LM_PAGE_ENTRIES + 5 * i, {0}};
        all[few[i].chunk_idx] = few[i];
    }
    r.index = test_index(&r.t, test_update(&r.t, root, few, 20));
    r.wanted = all;
    for (int i = 0; i < 4; i++)
        threads[i] = test_thread(reader, &r);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    lm__index_fini(&r.index);
    free(all);
    test_states_close(&r.t);
}

/* ---- errors -------------------------------------------------------------------------------------- */

static void test_each_failed_write_is_reported(void)
{
    enum { CHUNKS = 3000 };
    struct test_states t;
    uint64_t state = 8;
    struct lm__entry root;
    struct lm_error err;
    int rc = -1, failures = 0;
    CHECK_EQ(test_states_open(&t, CHUNKS), 0);
    struct lm__change *all = changes_of_all(CHUNKS, &state);
    struct lm__index index = test_index(&t, (struct lm__entry){0});
    for (int64_t skip = 0; rc != 0; skip++, failures += rc != 0) {
        lm_inject(LM_INJECT_WRITE, skip, 1, ENOSPC);
        rc = lm__index_update(&index, &t.store->source, t.writer, all, CHUNKS,
                              &t.scratch, &root, &err);
        lm_inject(LM_INJECT_WRITE, 0, 0, 0);
        CHECK(rc == 0 || rc == -ENOSPC);
        if (rc != 0) {
            uint64_t tail = t.writer->kept_tail;
            CHECK_EQ(err.offset, t.writer->tail);
            lm__append_fail(t.writer, err, NULL);
            lm__append_recover(t.writer);
            CHECK_EQ(t.writer->tail, tail);
        }
    }
    CHECK_EQ(failures, 4); /* three leaves and the root */
    lm__append_keep(t.writer);
    struct lm__entry *oracle = calloc(CHUNKS, sizeof *oracle);
    CHECK(oracle);
    for (int c = 0; c < CHUNKS; c++)
        oracle[c] = all[c].entry;
    check_chunks(&t, root, oracle, 0, CHUNKS);
    free(oracle);
    free(all);
    test_states_close(&t);
}

static void test_a_damaged_page_is_not_built_upon(void)
{
    enum { CHUNKS = 3000 };
    struct test_states t;
    uint64_t state = 9;
    struct lm__entry root, leaf, fresh;
    struct lm_error err;
    CHECK_EQ(test_states_open(&t, CHUNKS), 0);
    struct lm__change *all = changes_of_all(CHUNKS, &state);
    root = test_update(&t, (struct lm__entry){0}, all, CHUNKS);
    CHECK_EQ(lm__io_pread(t.writer->fd, root.offset, sizeof leaf, &leaf, 0), 0);
    test_file_damage(t.path, leaf.offset + 100);
    struct lm__index index = test_index(&t, root);
    struct lm__change change[2] = {{5, {0}}, {2000, {0}}};
    CHECK_EQ(lm__index_update(&index, &t.store->source, t.writer, change, 2, &t.scratch,
                              &fresh, &err),
             LM_E_CHECKSUM);
    CHECK_EQ(err.offset, leaf.offset);
    fresh = test_update(&t, root, change + 1, 1); /* which does not need that page */
    index = test_index(&t, fresh);
    CHECK_CALL(
        lm__index_lookup(&index, &t.store->source, 2000, &t.scratch, &leaf, &err), err);
    CHECK(lm__entry_is_zero(&leaf));
    lm__index_fini(&index);
    free(all);
    test_states_close(&t);
}

int main(void)
{
    static const struct {
        uint64_t chunks;
        int generations;
    } cases[] = {{1, 10},
                 {2, 10},
                 {1023, 40},
                 {1024, 40},
                 {1025, 40},
                 {5000, 30},
                 {70000, 20},
                 {1024 * 1024, 4},
                 {1024 * 1024 + 1, 4},
                 {3 * 1024 * 1024 - 5, 3}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        if (test_generations(cases[i].chunks, cases[i].generations) != 0)
            return TEST_SKIP;
    test_patches_are_of_the_plain_page();
    test_a_page_of_zeros_grows_in_the_smaller_form();
    test_scattered_changes_take_less_than_a_hundredth();
    test_racing_readers();
    test_each_failed_write_is_reported();
    test_a_damaged_page_is_not_built_upon();
    return TEST_OK;
}
