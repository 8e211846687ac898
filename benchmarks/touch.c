/* SPDX-License-Identifier: BSD-3-Clause
 * touch.c - reads memory, word by word, and says how long it took.
 *
 *   cc -O2 -shared -fPIC touch.c -o libtouch.so
 */
#include "touch.h"

#include <time.h>

#define FACTOR 31 /* odd, so that nothing of the pages before is lost */

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

uint64_t touch_each(const void *memory, const uint64_t *offsets, size_t count,
                    uint64_t *ns)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < count; i++) {
        const volatile uint64_t *word =
            (const volatile uint64_t *)((const uint8_t *)memory + offsets[i]);
        uint64_t start = now_ns();
        uint64_t value = *word;
        ns[i] = now_ns() - start;
        sum = sum * FACTOR + value;
    }
    return sum;
}

uint64_t touch_all(const void *memory, size_t memory_bytes, uint64_t sum)
{
    const size_t words = TOUCH_PAGE_BYTES / sizeof(uint64_t);
    const uint64_t *page = (const uint64_t *)memory;
    const uint64_t *end = page + memory_bytes / sizeof(uint64_t);
    for (; page < end; page += words) {
        uint64_t of_page = 0;
        for (size_t i = 0; i < words; i++)
            of_page += page[i];
        sum = sum * FACTOR + of_page;
    }
    return sum;
}
