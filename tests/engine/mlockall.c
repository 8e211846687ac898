/* SPDX-License-Identifier: BSD-3-Clause
 * Is a region right in a process that locks all its memory?  Locking fills new mappings with
 * zeros before anybody else can.
 */
#define _GNU_SOURCE
#include "test.h"

int main(void)
{
    struct test_store t;
    struct lm_encoding enc = {.object_bytes = 20 << 20, .chunk_bytes = 65536};
    lm_region *region;
    if (test_store_make(&t, enc, 9) != 0 || test_region_open(&t, &region) != 0)
        return TEST_SKIP;
    lm_region_close(region);
    if (mlockall(MCL_FUTURE) != 0)
        return test_skip("may not lock memory");
    CHECK_EQ(test_region_open(&t, &region), 0);
    CHECK(test_same(lm_region_addr(region), t.data, enc.object_bytes));
    lm_region_release(region);
    CHECK_EQ(*(volatile uint8_t *)lm_region_addr(region), 0xFF);
    CHECK_EQ(lm_failure_take(test_tid(), NULL), 1);
    lm_region_close(region);
    munlockall();
    test_store_close(&t);
    return TEST_OK;
}
