/* SPDX-License-Identifier: BSD-3-Clause
 * Does the difference of two states name exactly the chunks that differ, and read no page that
 * they share?
 */
#define _GNU_SOURCE
#include "states.h"

/* ---- an oracle ---------------------------------------------------------------------------- */

static int diff(struct test_states *t, struct lm__index *a, struct lm__index *b,
                uint64_t from, uint64_t *first, uint64_t *count, struct lm_error *err)
{
    struct lm__source *source = &t->store->source;
    return lm__index_diff(a, source, b, source, from, &t->scratch, first, count, err);
}

static void check_diff(struct test_states *t, const struct lm__entry roots[2],
                       struct lm__entry *const oracles[2], int may_keep_pages)
{
    struct lm__index a = test_index(t, roots[0]), b = test_index(t, roots[1]);
    if (!may_keep_pages)
        a.kept_bytes = b.kept_bytes = UINT64_MAX / 2;
    struct lm_error err;
    uint64_t first, count, at = 0;
    for (;;) {
        uint64_t wanted = at, end;
        while (wanted < t->chunks &&
               lm__entry_is_equal(&oracles[0][wanted], &oracles[1][wanted]))
            wanted++;
        int rc = diff(t, &a, &b, at, &first, &count, &err);
        if (rc < 0)
            CHECK_CALL(rc, err);
        CHECK_EQ(rc, wanted < t->chunks);
        if (rc == 0)
            break;
        for (end = wanted; end < t->chunks; end++)
            if (lm__entry_is_equal(&oracles[0][end], &oracles[1][end]))
                break;
        CHECK_EQ(first, wanted);
        CHECK_EQ(count, end - wanted);
        at = end;
    }
    lm__index_fini(&a);
    lm__index_fini(&b);
}

/* Some generations, and the differences between each two of them, in both directions. */
static int test_generations(uint64_t chunks)
{
    enum { GENERATIONS = 5 };
    struct test_states t;
    struct lm__entry *oracles[GENERATIONS], roots[GENERATIONS] = {{0}};
    uint64_t state = chunks;
    if (test_states_open(&t, chunks) != 0)
        return TEST_SKIP;
    struct lm__change *changes = calloc(chunks, sizeof *changes);
    oracles[0] = calloc(chunks, sizeof *oracles[0]);
    CHECK(changes && oracles[0]);
    for (int g = 1; g < GENERATIONS; g++) {
        static const unsigned densities[] = {1, 2, 20, 500};
        uint64_t from = test_random(&state) % chunks;
        uint64_t to = from + 1 + test_random(&state) % (5 * LM_PAGE_ENTRIES);
        uint64_t count = test_changes(changes, from, to < chunks ? to : chunks,
                                      densities[g % 4], 1 + (unsigned)g % 3, &state);
        oracles[g] = malloc(chunks * sizeof *oracles[g]);
        CHECK(oracles[g]);
        memcpy(oracles[g], oracles[g - 1], chunks * sizeof *oracles[g]);
        for (uint64_t i = 0; i < count; i++)
            oracles[g][changes[i].chunk_idx] = changes[i].entry;
        roots[g] = test_update(&t, roots[g - 1], changes, count);
    }
    for (int i = 0; i < GENERATIONS; i++)
        for (int j = 0; j < GENERATIONS; j++) {
            struct lm__entry *const pair[2] = {oracles[i], oracles[j]};
            check_diff(&t, (struct lm__entry[2]){roots[i], roots[j]}, pair, j != i + 1);
        }
    for (int g = 0; g < GENERATIONS; g++)
        free(oracles[g]);
    free(changes);
    test_states_close(&t);
    return 0;
}

/* ---- what is read ---------------------------------------------------------------------------- */

/* Five full leaves, of which the third is changed. */
struct two_states {
    struct test_states t;
    struct lm__entry roots[2];
    struct lm__index a, b, zero;
};

static void two_states_open(struct two_states *s)
{
    enum { CHUNKS = 5 * LM_PAGE_ENTRIES };
    static struct lm__change changes[CHUNKS];
    uint64_t state = 3;
    CHECK_EQ(test_states_open(&s->t, CHUNKS), 0);
    for (uint64_t c = 0; c < CHUNKS; c++)
        changes[c] = (struct lm__change){c, test_payload(&state)};
    s->roots[0] = test_update(&s->t, (struct lm__entry){0}, changes, CHUNKS);
    for (uint64_t i = 0; i < 2; i++)
        changes[i] = (struct lm__change){2500 + i, test_payload(&state)};
    s->roots[1] = test_update(&s->t, s->roots[0], changes, 2);
    s->a = test_index(&s->t, s->roots[0]);
    s->b = test_index(&s->t, s->roots[1]);
    s->zero = test_index(&s->t, (struct lm__entry){0});
}

static void two_states_close(struct two_states *s)
{
    lm__index_fini(&s->a);
    lm__index_fini(&s->b);
    test_states_close(&s->t);
}

/* The entry of a leaf, of a state whose root is a plain page. */
static struct lm__entry leaf_of(struct two_states *s, int which, uint64_t leaf)
{
    struct lm__index index = test_index(&s->t, s->roots[which]);
    const struct lm__index_reader r = {&index, &s->t.store->source, &s->t.scratch};
    struct lm__index_page root;
    struct lm_error err;
    CHECK_CALL(lm__index_page_open(&r, NULL, 0, &root, &err), err);
    struct lm__entry e = *lm__index_page_entry(&root, (uint32_t)leaf);
    lm__index_page_close(&root);
    lm__index_fini(&index);
    return e;
}

static void test_shared_pages_are_not_read(void)
{
    struct two_states s;
    struct lm_error err;
    uint64_t first, count;
    two_states_open(&s);
    for (uint64_t leaf = 0; leaf < 5; leaf++)
        if (leaf != 2)
            test_file_damage(s.t.path, leaf_of(&s, 0, leaf).offset + 5);
    CHECK_EQ(diff(&s.t, &s.a, &s.b, 0, &first, &count, &err), 1);
    CHECK_EQ(first, 2500);
    CHECK_EQ(count, 2);
    CHECK_EQ(diff(&s.t, &s.a, &s.b, 2501, &first, &count, &err), 1);
    CHECK_EQ(first, 2501); /* from the middle of a run on */
    CHECK_EQ(count, 1);
    CHECK_EQ(diff(&s.t, &s.a, &s.b, 2502, &first, &count, &err), 0);
    CHECK_EQ(diff(&s.t, &s.a, &s.b, 5120, &first, &count, &err), 0);
    CHECK_EQ(diff(&s.t, &s.a, &s.b, UINT64_MAX, &first, &count, &err), 0);
    CHECK_EQ(diff(&s.t, &s.a, &s.zero, 0, &first, &count, &err), LM_E_CHECKSUM);
    two_states_close(&s);
}

static void test_equal_roots_are_not_read(void)
{
    struct two_states s;
    struct lm_error err;
    uint64_t first, count;
    two_states_open(&s);
    test_file_damage(s.t.path, s.roots[0].offset + 5);
    struct lm__index same = test_index(&s.t, s.roots[0]);
    CHECK_EQ(diff(&s.t, &s.a, &same, 0, &first, &count, &err), 0);
    CHECK_EQ(diff(&s.t, &s.zero, &s.zero, 0, &first, &count, &err), 0);
    CHECK_EQ(diff(&s.t, &s.a, &s.b, 0, &first, &count, &err), LM_E_CHECKSUM);
    CHECK_EQ(err.offset, s.roots[0].offset);
    two_states_close(&s);
}

static void test_damage_is_reported_wherever_it_is_met(void)
{
    struct two_states s;
    struct lm_error err;
    uint64_t first, count;
    two_states_open(&s);
    struct lm__entry leaf = leaf_of(&s, 1, 2);
    CHECK_EQ(leaf.codec, LM_PAGE_PATCH);
    test_file_damage(s.t.path, leaf.offset + 5);
    for (int i = 0; i < 2; i++) {
        struct lm__index *a = i ? &s.b : &s.a, *b = i ? &s.a : &s.b;
        CHECK_EQ(diff(&s.t, a, b, 0, &first, &count, &err), LM_E_CHECKSUM);
        CHECK_EQ(err.offset, leaf.offset);
    }
    two_states_close(&s);
}

/* Runs are whole, across leaves too, and pages of zeros are none. */
static void test_against_zeros(void)
{
    struct two_states s;
    struct lm_error err;
    uint64_t first, count;
    two_states_open(&s);
    CHECK_EQ(diff(&s.t, &s.zero, &s.b, 1, &first, &count, &err), 1);
    CHECK_EQ(first, 1);
    CHECK_EQ(count, 5 * LM_PAGE_ENTRIES - 1);
    CHECK_EQ(diff(&s.t, &s.b, &s.zero, 0, &first, &count, &err), 1);
    CHECK_EQ(count, 5 * LM_PAGE_ENTRIES);
    two_states_close(&s);
}

int main(void)
{
    static const uint64_t cases[] = {
        1, 2, 1023, 1024, 1025, 4096, 70000, 1024 * 1024, 1024 * 1024 + 1,
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        if (test_generations(cases[i]) != 0)
            return TEST_SKIP;
    test_shared_pages_are_not_read();
    test_equal_roots_are_not_read();
    test_damage_is_reported_wherever_it_is_met();
    test_against_zeros();
    return TEST_OK;
}
