/* SPDX-License-Identifier: BSD-3-Clause
 * pool.h - the system's pool of huge pages, for tests that add some to it.
 */
#ifndef LM_TEST_POOL_H
#define LM_TEST_POOL_H
#include "test.h"

#define POOL "/proc/sys/vm/nr_hugepages"

UNUSED static long pool_pages(void)
{
    long pages = -1;
    FILE *f = fopen(POOL, "re");
    if (f && fscanf(f, "%ld", &pages) != 1)
        pages = -1;
    if (f)
        fclose(f);
    return pages;
}

/* 1 if the pool has changed by `pages`. */
UNUSED static int pool_grow(long pages)
{
    long before = pool_pages();
    FILE *f = before < 0 ? NULL : fopen(POOL, "we");
    if (!f)
        return 0;
    fprintf(f, "%ld", before + pages);
    fclose(f);
    return pool_pages() == before + pages;
}

#endif
