/* SPDX-License-Identifier: BSD-3-Clause
 * Is every answer of UFFDIO_COPY handled: no hang, no false bytes without an error?
 */
#define _GNU_SOURCE
#include "test.h"

#define CHUNK_BYTES 16384u
#define CHUNKS      12
#define BYTES       (CHUNKS * CHUNK_BYTES)

static struct test_store g_store;

/* Fail `count` installs after the first `skip`, and read everything, minding errors. */
static void sweep(int error, int64_t skip, int64_t count, int may_report)
{
    struct lm_error err;
    lm_region *region;
    CHECK_EQ(test_region_open(&g_store, &region), 0);
    const volatile uint8_t *served = lm_region_addr(region);
    lm_inject(LM_INJECT_UFFD_COPY, skip, count, error);
    for (uint64_t at = 0; at < BYTES; at += 1024) {
        uint64_t over = lm_region_settle(region);
        uint8_t got = served[at];
        int has_error = lm_failure_take(test_tid(), &err);
        int has_failed = test_failures(region) != over;
        CHECK((!has_error && !has_failed) || may_report);
        CHECK(has_error || has_failed || got == g_store.data[at]);
    }
    lm_inject(LM_INJECT_UFFD_COPY, 0, 0, 0);
    lm_region_settle(region);
    CHECK(test_same(served, g_store.data, BYTES)); /* all has healed */
    CHECK_EQ(lm_failure_take(test_tid(), &err), 0);
    lm_region_close(region);
}

int main(void)
{
    static const struct {
        int error, may_report;
    } cases[] = {
        {EEXIST, 0}, {EAGAIN, 0}, {ENOMEM, 1}, {ENOENT, 1}, {EINVAL, 1}, {EFAULT, 1},
    };
    struct lm_encoding enc = {.object_bytes = BYTES,
                              .chunk_bytes = CHUNK_BYTES,
                              .codec = LM_CODEC_LZ4,
                              .level = 1};
    struct lm_pager_stats stats;
    lm_region *region;
    if (test_store_make(&g_store, enc, 4) != 0 ||
        test_region_open(&g_store, &region) != 0)
        return TEST_SKIP;
    lm_region_close(region);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        for (int64_t skip = 0; skip < 4; skip++)
            for (int64_t count = 1; count < 9; count += 1 + count)
                sweep(cases[i].error, skip, count, cases[i].may_report);
    lm_pager_stats(&stats);
    CHECK(stats.eexist > 0 && stats.eagain > 0 && stats.enomem > 0 && stats.enoent > 0);
    CHECK(stats.refused > 0);
    test_store_close(&g_store);
    return TEST_OK;
}
