/* SPDX-License-Identifier: BSD-3-Clause
 * Does every edge of the chunk state machine go where it should, and only from there?
 */
#define _GNU_SOURCE
#include "test.h"

static void test_one_chunk(uint64_t count, uint64_t idx)
{
    struct lm__chunks c = {0};
    CHECK_EQ(lm__chunks_init(&c, count), 0);
    CHECK_EQ(lm__chunks_state(&c, idx), LM_CHUNK_ABSENT);
    CHECK(!lm__chunks_claim(&c, idx, LM_CHUNK_CLEAN));
    CHECK(lm__chunks_claim(&c, idx, LM_CHUNK_ABSENT));
    CHECK_EQ(lm__chunks_state(&c, idx), LM_CHUNK_FILLING);
    CHECK(!lm__chunks_claim(&c, idx, LM_CHUNK_ABSENT));
    CHECK(!lm__chunks_claim(&c, idx, LM_CHUNK_CLEAN));
    CHECK_EQ(c.resident, 0);

    lm__chunks_abandon(&c, idx);
    CHECK_EQ(lm__chunks_state(&c, idx), LM_CHUNK_ABSENT);

    CHECK(lm__chunks_claim(&c, idx, LM_CHUNK_ABSENT));
    CHECK(lm__chunks_publish(&c, idx, 0));
    CHECK_EQ(lm__chunks_state(&c, idx), LM_CHUNK_CLEAN);
    CHECK_EQ(c.resident, 1);
    CHECK(!lm__chunks_claim(&c, idx, LM_CHUNK_ABSENT));

    CHECK(lm__chunks_claim(&c, idx, LM_CHUNK_CLEAN)); /* to be filled up */
    CHECK_EQ(c.resident, 0);
    CHECK(lm__chunks_publish(&c, idx, 0));
    CHECK_EQ(c.resident, 1);
    lm__chunks_fini(&c);
}

static void test_forgotten_chunks_are_absent(void)
{
    struct lm__chunks c = {0};
    CHECK_EQ(lm__chunks_init(&c, 3), 0);
    CHECK(lm__chunks_claim(&c, 0, LM_CHUNK_ABSENT) && lm__chunks_publish(&c, 0, 0));
    CHECK(lm__chunks_claim(&c, 1, LM_CHUNK_ABSENT)); /* stays in flight */
    lm__chunks_forget_all(&c);
    CHECK_EQ(c.resident, 0);
    CHECK_EQ(lm__chunks_state(&c, 0), LM_CHUNK_ABSENT);
    CHECK_EQ(lm__chunks_state(&c, 1), LM_CHUNK_FILLING); /* (C1) */
    CHECK(!lm__chunks_claim(&c, 1, LM_CHUNK_ABSENT));
    CHECK(!lm__chunks_publish(&c, 1, 0)); /* (C4) */
    CHECK_EQ(lm__chunks_state(&c, 1), LM_CHUNK_FILLING);
    lm__chunks_abandon(&c, 1);
    for (uint64_t i = 0; i < 3; i++) {
        CHECK(lm__chunks_claim(&c, i, LM_CHUNK_ABSENT) && lm__chunks_publish(&c, i, 0));
        CHECK_EQ(lm__chunks_state(&c, i), LM_CHUNK_CLEAN);
    }
    CHECK_EQ(c.resident, 3);
    lm__chunks_fini(&c);
}

#define RACE_CHUNKS 2000

static struct lm__chunks g_race;
static _Atomic unsigned g_owners[RACE_CHUNKS];

static void *claimer(void *unused)
{
    (void)unused;
    for (uint64_t i = 0; i < RACE_CHUNKS; i++)
        if (lm__chunks_claim(&g_race, i, LM_CHUNK_ABSENT)) {
            lm_add_relaxed(&g_owners[i], 1);
            CHECK(lm__chunks_publish(&g_race, i, 0));
        }
    return NULL;
}

static void test_each_chunk_has_one_owner(void)
{
    pthread_t threads[4];
    CHECK_EQ(lm__chunks_init(&g_race, RACE_CHUNKS), 0);
    for (int i = 0; i < 4; i++)
        threads[i] = test_thread(claimer, NULL);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    for (uint64_t i = 0; i < RACE_CHUNKS; i++)
        CHECK_EQ(g_owners[i], 1);
    CHECK_EQ(g_race.resident, RACE_CHUNKS);
    lm__chunks_fini(&g_race);
}

/* ---- every edge, from every state ---------------------------------------------------------- */

#define STATES 8

/* A chunk brought into a state by the edges that lead there. */
static void bring(struct lm__chunks *c, uint64_t idx, enum lm__chunk_state state)
{
    if (state == LM_CHUNK_ABSENT)
        return;
    CHECK_EQ(lm__chunks_claim(c, idx, LM_CHUNK_ABSENT), 1);
    if (state == LM_CHUNK_FILLING)
        return;
    CHECK(lm__chunks_publish(c, idx, state != LM_CHUNK_CLEAN));
    if (state == LM_CHUNK_CLEAN || state == LM_CHUNK_DIRTY)
        return;
    if (state == LM_CHUNK_REFILLING) {
        CHECK_EQ(lm__chunks_claim(c, idx, LM_CHUNK_DIRTY), 1);
        return;
    }
    CHECK(lm__chunks_move(c, idx, LM_CHUNK_DIRTY, LM_CHUNK_FROZEN));
    if (state == LM_CHUNK_FROZEN)
        return;
    CHECK(lm__chunks_move(c, idx, LM_CHUNK_FROZEN, LM_CHUNK_COPYING));
    if (state == LM_CHUNK_SAVED)
        lm__chunks_copied(c, idx);
}

static int is_dirty(enum lm__chunk_state s)
{
    return s == LM_CHUNK_DIRTY || s == LM_CHUNK_REFILLING;
}

/* A chunk is in `state`, its neighbour ABSENT, and all is counted and found accordingly. */
static void check(const struct lm__chunks *c, uint64_t idx, enum lm__chunk_state state)
{
    int is_resident = lm__chunk_is_resident(state);
    CHECK_EQ(lm__chunks_state(c, idx), state);
    CHECK_EQ(c->resident, is_resident);
    CHECK_EQ(c->dirty, is_dirty(state));
    CHECK_EQ(lm__chunks_next(c, 0, c->count, LM_CHUNKS_ANY),
             state != LM_CHUNK_ABSENT ? idx : c->count);
    CHECK_EQ(lm__chunks_next(c, 0, c->count, LM_CHUNKS_RESIDENT),
             is_resident ? idx : c->count);
    CHECK_EQ(lm__chunks_next(c, 0, c->count, LM_CHUNKS_CLEAN),
             state == LM_CHUNK_CLEAN ? idx : c->count);
    CHECK_EQ(lm__chunks_next(c, 0, c->count, LM_CHUNKS_DIRTY),
             is_dirty(state) ? idx : c->count);
    CHECK_EQ(lm__chunks_next(c, idx + 1, c->count, LM_CHUNKS_ANY), c->count);
    CHECK_EQ(lm__chunks_next(c, 0, idx, LM_CHUNKS_ANY), idx);
}

static int is_claimed(enum lm__chunk_state s)
{
    return s == LM_CHUNK_FILLING || s == LM_CHUNK_REFILLING || s == LM_CHUNK_COPYING;
}

/* Moving and claiming, from the state that it has and from each that it has not. */
static void test_moves_from(enum lm__chunk_state state, uint64_t count, uint64_t idx)
{
    for (int from = 0; from < STATES; from++) {
        struct lm__chunks c = {0};
        CHECK_EQ(lm__chunks_init(&c, count), 0);
        bring(&c, idx, state);
        check(&c, idx, state);
        if (from != (int)state) {
            CHECK_EQ(lm__chunks_move(&c, idx, from, LM_CHUNK_DIRTY), 0);
            CHECK_EQ(lm__chunks_claim(&c, idx, from), 0);
            check(&c, idx, state);
        } else if (!is_claimed(state)) {
            int was_written = state != LM_CHUNK_ABSENT && state != LM_CHUNK_CLEAN;
            CHECK_EQ(lm__chunks_claim(&c, idx, from), 1);
            check(&c, idx, was_written ? LM_CHUNK_REFILLING : LM_CHUNK_FILLING);
            CHECK(lm__chunks_publish(&c, idx, 0));
            check(&c, idx, was_written ? LM_CHUNK_DIRTY : LM_CHUNK_CLEAN);
        }
        lm__chunks_fini(&c);
    }
}

/* What becomes of a claim. */
static void test_claims_end(uint64_t count, uint64_t idx)
{
    struct lm__chunks c = {0};
    CHECK_EQ(lm__chunks_init(&c, count), 0);
    bring(&c, idx, LM_CHUNK_FILLING);
    CHECK(lm__chunks_publish(&c, idx, 1)); /* by a writer */
    check(&c, idx, LM_CHUNK_DIRTY);
    CHECK_EQ(lm__chunks_claim(&c, idx, LM_CHUNK_DIRTY), 1);
    lm__chunks_abandon(&c, idx); /* what was written is not given up */
    check(&c, idx, LM_CHUNK_DIRTY);
    CHECK(lm__chunks_move(&c, idx, LM_CHUNK_DIRTY, LM_CHUNK_FROZEN));
    CHECK(lm__chunks_move(&c, idx, LM_CHUNK_FROZEN, LM_CHUNK_COPYING));
    lm__chunks_copied(&c, idx);
    check(&c, idx, LM_CHUNK_SAVED);
    CHECK_EQ(lm__chunks_claim(&c, idx, LM_CHUNK_SAVED), 1);
    lm__chunks_abandon(&c, idx); /* it can't be CLEAN: the fill was of an older state */
    check(&c, idx, LM_CHUNK_DIRTY);
    CHECK(lm__chunks_move(&c, idx, LM_CHUNK_DIRTY, LM_CHUNK_FROZEN));
    CHECK(lm__chunks_move(&c, idx, LM_CHUNK_FROZEN, LM_CHUNK_COPYING));
    lm__chunks_copied(&c, idx);
    CHECK(lm__chunks_move(&c, idx, LM_CHUNK_SAVED, LM_CHUNK_CLEAN)); /* the commit */
    check(&c, idx, LM_CHUNK_CLEAN);
    lm__chunks_fini(&c);
}

/* Only what nobody is at, and no snapshot waits for. */
static void test_claim_to_drop(enum lm__chunk_state state)
{
    struct lm__chunks c = {0};
    CHECK_EQ(lm__chunks_init(&c, 9), 0);
    bring(&c, 3, state);
    int is_others = is_claimed(state) || state == LM_CHUNK_FROZEN;
    int claimed = lm__chunks_claim_to_drop(&c, 3);
    CHECK_EQ(claimed, state == LM_CHUNK_ABSENT ? 0 : is_others ? -EAGAIN : 1);
    if (claimed == 1) {
        check(&c, 3, LM_CHUNK_FILLING);
        lm__chunks_abandon(&c, 3);
        check(&c, 3, LM_CHUNK_ABSENT);
    } else {
        check(&c, 3, state);
    }
    lm__chunks_fini(&c);
}

/* A claim is still its owner's, and comes to nothing; all else is ABSENT, and stays so whatever
 * a snapshot makes of it. */
static void test_forget_all(enum lm__chunk_state state)
{
    struct lm__chunks c = {0};
    CHECK_EQ(lm__chunks_init(&c, 9), 0);
    bring(&c, 3, state);
    lm__chunks_forget_all(&c);
    CHECK_EQ(c.resident, 0);
    CHECK_EQ(lm__chunks_state(&c, 3), is_claimed(state) ? state : LM_CHUNK_ABSENT);
    CHECK_EQ(lm__chunks_next(&c, 0, 9, LM_CHUNKS_DIRTY),
             state == LM_CHUNK_REFILLING ? 3 : 9);
    if (state == LM_CHUNK_COPYING) {
        lm__chunks_copied(&c, 3);
    } else if (is_claimed(state)) {
        CHECK(!lm__chunks_publish(&c, 3, 1));
        lm__chunks_abandon(&c, 3);
    } else if (state != LM_CHUNK_ABSENT) {
        CHECK(!lm__chunks_move(&c, 3, state, LM_CHUNK_CLEAN));
    }
    CHECK_EQ(lm__chunks_state(&c, 3), LM_CHUNK_ABSENT);
    CHECK_EQ(c.resident, 0);
    CHECK_EQ(lm__chunks_claim(&c, 3, LM_CHUNK_ABSENT), 1);
    CHECK(lm__chunks_publish(&c, 3, 0));
    CHECK_EQ(lm__chunks_state(&c, 3), LM_CHUNK_CLEAN);
    CHECK_EQ(c.resident, 1);
    lm__chunks_fini(&c);
}

/* Leaves without any are skipped, in whichever order chunks become dirty and clean. */
static void test_dirty_chunks_are_found_leaf_by_leaf(void)
{
    static const uint64_t leaf = 4096, chunks[] = {5, 4095, 3 * 4096, 7 * 4096 + 17};
    enum { N = sizeof chunks / sizeof chunks[0] };
    struct lm__chunks c = {0};
    CHECK_EQ(lm__chunks_init(&c, 8 * leaf), 0);
    for (uint64_t i = 0; i < 8 * leaf; i += 11)
        bring(&c, i, LM_CHUNK_CLEAN);
    for (int round = 0; round < 1 << N; round++) {
        uint64_t next = 0, count = 0;
        for (int i = 0; i < N; i++) {
            int is_in = round >> i & 1;
            enum lm__chunk_state was = lm__chunks_state(&c, chunks[i]);
            if (was == LM_CHUNK_ABSENT)
                bring(&c, chunks[i], is_in ? LM_CHUNK_DIRTY : LM_CHUNK_CLEAN);
            else
                CHECK(lm__chunks_move(&c, chunks[i], was,
                                      is_in ? LM_CHUNK_DIRTY : LM_CHUNK_CLEAN));
            count += (uint64_t)is_in;
        }
        CHECK_EQ(c.dirty, count);
        for (int i = 0; i < N; i++)
            if (round >> i & 1) {
                next = lm__chunks_next(&c, next, c.count, LM_CHUNKS_DIRTY);
                CHECK_EQ(next, chunks[i]);
                next++;
            }
        CHECK_EQ(lm__chunks_next(&c, next, c.count, LM_CHUNKS_DIRTY), c.count);
    }
    lm__chunks_fini(&c);
}

static _Atomic int g_is_over;

/* Whatever state a chunk is in, on to the next. */
static void *toggle(void *seed)
{
    uint64_t random = (uint64_t)(uintptr_t)seed;
    for (int i = 0; i < 30000; i++) {
        uint64_t idx = test_random(&random) % 8;
        switch (lm__chunks_state(&g_race, idx)) {
        case LM_CHUNK_ABSENT:
            if (lm__chunks_claim(&g_race, idx, LM_CHUNK_ABSENT) > 0)
                lm__chunks_publish(&g_race, idx, i & 1);
            break;
        case LM_CHUNK_CLEAN:
            lm__chunks_move(&g_race, idx, LM_CHUNK_CLEAN, LM_CHUNK_DIRTY);
            break;
        case LM_CHUNK_DIRTY:
            if (i % 3 == 0 && lm__chunks_claim(&g_race, idx, LM_CHUNK_DIRTY) > 0)
                lm__chunks_abandon(&g_race, idx);
            else
                lm__chunks_move(&g_race, idx, LM_CHUNK_DIRTY, LM_CHUNK_FROZEN);
            break;
        case LM_CHUNK_FROZEN:
            if (lm__chunks_move(&g_race, idx, LM_CHUNK_FROZEN, LM_CHUNK_COPYING))
                lm__chunks_copied(&g_race, idx);
            break;
        case LM_CHUNK_SAVED:
            lm__chunks_move(&g_race, idx, LM_CHUNK_SAVED,
                            i & 1 ? LM_CHUNK_CLEAN : LM_CHUNK_DIRTY);
            break;
        default:
            if (lm__chunks_claim_to_drop(&g_race, idx) > 0)
                lm__chunks_abandon(&g_race, idx);
        }
    }
    return NULL;
}

static void *search(void *unused)
{
    while (!lm_load_seq_cst(&g_is_over))
        CHECK(lm__chunks_next(&g_race, 0, g_race.count, LM_CHUNKS_DIRTY) <= 9);
    return unused;
}

/* A dirty chunk is found at any moment, whatever becomes of its neighbours; and in the end all
 * is counted. */
static void test_no_dirty_chunk_is_missed(void)
{
    uint64_t resident = 0, dirty = 0;
    pthread_t threads[3], searcher;
    memset(&g_race, 0, sizeof g_race);
    CHECK_EQ(lm__chunks_init(&g_race, 10), 0);
    bring(&g_race, 9, LM_CHUNK_DIRTY);
    searcher = test_thread(search, NULL);
    for (size_t i = 0; i < 3; i++)
        threads[i] = test_thread(toggle, (void *)(i + 1));
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    lm_store_seq_cst(&g_is_over, 1);
    pthread_join(searcher, NULL);
    for (uint64_t i = 0; i < 10; i++) {
        resident += (uint64_t)lm__chunk_is_resident(lm__chunks_state(&g_race, i));
        dirty += (uint64_t)is_dirty(lm__chunks_state(&g_race, i));
    }
    CHECK_EQ(g_race.resident, resident);
    CHECK_EQ(g_race.dirty, dirty);
    lm__chunks_fini(&g_race);
}

int main(void)
{
    test_one_chunk(1, 0);
    test_one_chunk(100, 99);
    test_one_chunk(1ull << 32, (1ull << 32) - 1); /* costs one leaf */
    test_forgotten_chunks_are_absent();
    test_each_chunk_has_one_owner();
    for (enum lm__chunk_state state = 0; state < STATES; state++) {
        test_moves_from(state, 1, 0);
        test_moves_from(state, 20000, 9000);
        test_claim_to_drop(state);
        test_forget_all(state);
    }
    test_claims_end(1, 0);
    test_claims_end(20000, 9000);
    test_dirty_chunks_are_found_leaf_by_leaf();
    test_no_dirty_chunk_is_missed();
    return TEST_OK;
}
