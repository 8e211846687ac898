/* SPDX-License-Identifier: BSD-3-Clause
 * Does shuffle do what FORMAT.md says, for any width and length, and does unshuffle undo it?
 */
#define _GNU_SOURCE
#include "test.h"

#define BYTES_MAX 1400

static void naive(size_t width, size_t bytes, const uint8_t *src, uint8_t *dst)
{
    size_t n = bytes / width;
    memcpy(dst, src, bytes);
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < width; j++)
            dst[j * n + i] = src[i * width + j];
}

/* Exact allocations, so that a sanitizer sees each byte too far. */
static void check(size_t width, size_t bytes, const uint8_t *data)
{
    uint8_t *src = malloc(bytes + !bytes), *wanted = malloc(bytes + !bytes);
    uint8_t *there = malloc(bytes + !bytes), *back = malloc(bytes + !bytes);
    CHECK(src && wanted && there && back);
    memcpy(src, data, bytes);
    naive(width, bytes, src, wanted);
    lm__shuffle(width, bytes, src, there);
    CHECK(memcmp(there, wanted, bytes) == 0);
    lm__unshuffle(width, bytes, there, back);
    CHECK(memcmp(back, src, bytes) == 0);
    free(src);
    free(wanted);
    free(there);
    free(back);
}

int main(void)
{
    uint8_t data[BYTES_MAX];
    uint64_t state = 3;
    for (size_t i = 0; i < BYTES_MAX; i++)
        data[i] = (uint8_t)test_random(&state);
    for (size_t width = 1; width <= 40; width++) {
        for (size_t bytes = 0; bytes < 3 * width + 3; bytes++)
            check(width, bytes, data);
        for (int i = 0; i < 60; i++)
            check(width, test_random(&state) % BYTES_MAX, data);
        check(width, BYTES_MAX, data);
    }
    check(BYTES_MAX, BYTES_MAX, data);
    check(BYTES_MAX + 1, BYTES_MAX, data);
    return TEST_OK;
}
