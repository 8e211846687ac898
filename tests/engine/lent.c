/* SPDX-License-Identifier: BSD-3-Clause
 * A thread that Ctrl-C has ended the wait of is lent a false page of a chunk that another thread
 * fills.  Is it gone before anybody can write to it, and does the real one stay if it was
 * faster?
 */
#define _GNU_SOURCE
#include "pause.h"
#include "uffd.h"
#include "writable.h"

static struct lm_error g_cause;
static struct lm__failed g_failed;

/* As fault.c does it for a thread that waits for page 1 of the chunk, and is no more. */
static void *lend(void *chunk)
{
    struct lm__scratch scratch = {0};
    const struct array *a = &g.arrays[0];
    uintptr_t page = (uintptr_t)a->memory + (size_t)chunk * g_chunk + g_page;
    g_cause = lm__error(-EINTR, "wait for the chunk");
    g_failed = (struct lm__failed){.cause = &g_cause,
                                   .tid = test_tid(),
                                   .page = page,
                                   .span = {page, g_page},
                                   .from = LM_CHUNK_FILLING,
                                   .is_interrupt = 1};
    lm__ones_serve(a->region, g_failed, &scratch);
    lm_failure_take(test_tid(), NULL);
    return NULL;
}

static void *write_first(void *chunk)
{
    put(&g.arrays[0], (size_t)chunk * g_chunk, "first", 5);
    return NULL;
}

/* Installed for a writer, and not yet published: it is no false page, and stays. */
static void test_a_page_that_is_there_is_not_lent(size_t chunk)
{
    test_hold("publish");
    pthread_t writer = test_thread(write_first, (void *)chunk);
    test_await_held();
    put(&g.arrays[0], chunk * g_chunk + g_page, "second", 6); /* needs nobody */
    pthread_join(test_thread(lend, (void *)chunk), NULL);
    CHECK(test_is_present(g.arrays[0].memory + chunk * g_chunk + g_page));
    test_let_go();
    pthread_join(writer, NULL);
    memory_is_right(&g.arrays[0]);
}

static void *write_second(void *chunk)
{
    put(&g.arrays[0], (size_t)chunk * g_chunk + g_page, "second", 6);
    return NULL;
}

/* Nobody writes to a false page: the chunk is not published before it is gone. */
static void test_a_chunk_with_a_lent_page_is_not_published(size_t chunk)
{
    lm_region *r = g.arrays[0].region;
    uint64_t fills = lm_load_relaxed(&r->fills);
    lm_region_evict(r, 0, g.arrays[0].enc.object_bytes);
    lm_inject(LM_INJECT_READ, 0, -1, LM_INJECT_HANG);
    pthread_t first = test_thread(write_first, (void *)chunk);
    AWAIT(lm__chunks_state(&r->chunks, chunk) == LM_CHUNK_FILLING);
    test_hold("lent");
    pthread_t lender = test_thread(lend, (void *)chunk);
    test_await_held();
    lm_inject(LM_INJECT_READ, 0, 0, 0);
    pthread_t second = test_thread(write_second, (void *)chunk);
    AWAIT(lm_load_relaxed(&r->fills) > fills); /* all but published */
    for (int i = 0; i < 100; i++) {
        sched_yield();
        CHECK_EQ(lm__chunks_state(&r->chunks, chunk), LM_CHUNK_FILLING);
    }
    test_let_go();
    pthread_join(lender, NULL);
    pthread_join(first, NULL);
    pthread_join(second, NULL);
    memory_is_right(&g.arrays[0]);
}

int main(void)
{
    struct lm_written written[2];
    if (test_codecs() != 0)
        return test_skip("no lz4 and zstd");
    if (lm_pager_start() != 0)
        return test_skip("no userfaultfd");
    store_make((struct lm_region_options){0});
    if (g.arrays[0].region->tracking != LM_TRACK_PROTECT)
        return test_skip("no write protection");
    if (test_two_handlers(g.arrays[0].region)) { /* one fills, the other one serves */
        test_a_page_that_is_there_is_not_lent(4);
        test_a_chunk_with_a_lent_page_is_not_published(8);
        snapshot(written);
        all_is_right();
    }
    store_close();
    return TEST_OK;
}
