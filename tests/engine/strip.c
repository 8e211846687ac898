/* SPDX-License-Identifier: BSD-3-Clause
 * Is each chunk counted in the cell of a picture that it belongs to, and in no other?
 */
#define _GNU_SOURCE
#include "test.h"

enum { CELLS_MAX = 9, LEAF = 4096, STATES = 8 };

/* By the edges that lead there, in the order of the states. */
static void bring(struct lm__chunks *c, uint64_t idx, enum lm__chunk_state state)
{
    if (state >= LM_CHUNK_FILLING)
        CHECK_EQ(lm__chunks_claim(c, idx, LM_CHUNK_ABSENT), 1);
    if (state >= LM_CHUNK_CLEAN)
        CHECK(lm__chunks_publish(c, idx, state != LM_CHUNK_CLEAN));
    if (state == LM_CHUNK_REFILLING)
        CHECK_EQ(lm__chunks_claim(c, idx, LM_CHUNK_DIRTY), 1);
    if (state >= LM_CHUNK_FROZEN)
        CHECK(lm__chunks_move(c, idx, LM_CHUNK_DIRTY, LM_CHUNK_FROZEN));
    if (state >= LM_CHUNK_COPYING)
        CHECK(lm__chunks_move(c, idx, LM_CHUNK_FROZEN, LM_CHUNK_COPYING));
    if (state == LM_CHUNK_SAVED)
        lm__chunks_copied(c, idx);
}

/* A cell's chunks, looked at one by one. */
static struct lm_strip_cell count_cell(const lm_region *r, uint64_t idx, uint64_t end)
{
    struct lm_strip_cell cell = {.chunks = end - idx};
    for (; idx < end; idx++) {
        enum lm__chunk_state state = lm__chunks_state(&r->chunks, idx);
        cell.resident += (uint64_t)lm__chunk_is_resident(state);
        cell.dirty += r->tracking != LM_TRACK_NONE &&
                      (state == LM_CHUNK_DIRTY || state == LM_CHUNK_REFILLING);
    }
    return cell;
}

static void check_strip(const lm_region *r, uint64_t first, uint64_t chunks,
                        uint64_t count)
{
    struct lm_strip_cell cells[CELLS_MAX + 1];
    uint64_t idx = first, end;
    memset(cells, 0xFF, sizeof cells);
    lm_region_strip(r, first, chunks, cells, count);
    for (uint64_t i = 0; i < count; i++, idx = end) {
        end = idx + chunks / count + (i < chunks % count);
        struct lm_strip_cell right = count_cell(r, idx, end);
        CHECK_EQ(cells[i].chunks, right.chunks);
        CHECK_EQ(cells[i].resident, right.resident);
        CHECK_EQ(cells[i].dirty, right.dirty);
    }
    CHECK_EQ(idx, first + chunks);
    CHECK(cells[count].resident == UINT64_MAX); /* beyond them */
}

static void test_each_chunk_counts_in_its_cell(void)
{
    static lm_region r;
    uint64_t random = 1, total = 6 * LEAF + 100;
    CHECK_EQ(lm__chunks_init(&r.chunks, total), 0);
    for (uint64_t idx = 0; idx < total; idx += 1 + test_random(&random) % 50)
        if (idx / LEAF != 2) /* which does not exist */
            bring(&r.chunks, idx,
                  (enum lm__chunk_state)(test_random(&random) % STATES));
    for (int tracking = LM_TRACK_NONE; tracking <= LM_TRACK_PROTECT; tracking++) {
        r.tracking = tracking;
        for (uint64_t count = 1; count <= CELLS_MAX; count++) {
            check_strip(&r, 0, total, count);
            check_strip(&r, total, 0, count);
            check_strip(&r, 0, 2, count); /* fewer chunks than cells */
            for (int i = 0; i < 20; i++) {
                uint64_t first = test_random(&random) % total;
                check_strip(&r, first, test_random(&random) % (total - first), count);
            }
        }
    }
    lm__chunks_fini(&r.chunks);
}

static void test_a_lost_region_has_nothing_in_memory(void)
{
    static lm_region r;
    struct lm_strip_cell cell;
    CHECK_EQ(lm__chunks_init(&r.chunks, 1), 0);
    CHECK_EQ(lm__chunks_claim(&r.chunks, 0, LM_CHUNK_ABSENT), 1);
    CHECK(lm__chunks_publish(&r.chunks, 0, 0));
    r.lost = LM_E_CLOSED;
    lm_region_strip(&r, 0, 1, &cell, 1);
    CHECK_EQ(cell.chunks, 1);
    CHECK_EQ(cell.resident, 0);
    lm__chunks_fini(&r.chunks);
}

/* One by one they would take minutes. */
static void test_chunks_never_touched_are_not_looked_at(void)
{
    static lm_region r;
    struct lm_strip_cell cells[CELLS_MAX];
    uint64_t total = (uint64_t)1 << 38;
    CHECK_EQ(lm__chunks_init(&r.chunks, total), 0);
    CHECK_EQ(lm__chunks_claim(&r.chunks, total - 1, LM_CHUNK_ABSENT), 1);
    CHECK(lm__chunks_publish(&r.chunks, total - 1, 0));
    lm_region_strip(&r, 0, total, cells, CELLS_MAX);
    for (int i = 0; i < CELLS_MAX; i++)
        CHECK_EQ(cells[i].resident, i == CELLS_MAX - 1);
    lm__chunks_fini(&r.chunks);
}

int main(void)
{
    test_each_chunk_counts_in_its_cell();
    test_a_lost_region_has_nothing_in_memory();
    test_chunks_never_touched_are_not_looked_at();
    return TEST_OK;
}
