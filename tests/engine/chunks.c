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

int main(void)
{
    test_one_chunk(1, 0);
    test_one_chunk(100, 99);
    test_one_chunk(1ull << 32, (1ull << 32) - 1); /* costs one leaf */
    test_forgotten_chunks_are_absent();
    test_each_chunk_has_one_owner();
    return TEST_OK;
}
