/* SPDX-License-Identifier: BSD-3-Clause
 * filter.c - byte shuffle: the k-th bytes of all elements side by side.
 *
 *   elements   a0 a1 a2 a3  b0 b1 b2 b3  c0 c1 ...        width 4
 *   shuffled   a0 b0 c0 ... a1 b1 c1 ... a2 b2 ...        planes of n bytes
 *
 * Numbers that lie close together share their high bytes, so planes of high bytes compress
 * well.  Widths 2, 4, 8 and 16 go through 16-byte vectors (SSE2 on x86-64 and NEON on arm64,
 * which every such processor has): a transpose of a 16 x width block is log2(width) rounds of
 * pairwise interleaving, and shuffling runs the same network backwards.
 */
#include <string.h>

#include "internal.h"

#define INLINE static inline __attribute__((always_inline))

typedef uint8_t v16 __attribute__((vector_size(16)));

static inline v16 load(const uint8_t *p)
{
    v16 v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline void store(uint8_t *p, v16 v) { memcpy(p, &v, sizeof v); }

#ifdef __clang__
#define PICK(a, b, ...) __builtin_shufflevector((a), (b), __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle((a), (b), (v16){__VA_ARGS__})
#endif

static inline v16 interleave_lo(v16 a, v16 b)
{
    return PICK(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}

static inline v16 interleave_hi(v16 a, v16 b)
{
    return PICK(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

static inline v16 even_bytes(v16 a, v16 b)
{
    return PICK(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
}

static inline v16 odd_bytes(v16 a, v16 b)
{
    return PICK(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}

/* One round joins vector i of the first half with vector i of the second half.  Starting
 * from planes, round after round doubles the length of the runs that belong together. */
INLINE void unshuffle_blocks(size_t width, size_t n, const uint8_t *src, uint8_t *dst)
{
    v16 a[16], b[16];
    for (size_t i = 0; i + 16 <= n; i += 16) {
        for (size_t k = 0; k < width; k++)
            a[k] = load(src + k * n + i);
        for (size_t round = 1; round < width; round *= 2) {
            for (size_t k = 0; k < width / 2; k++) {
                b[2 * k] = interleave_lo(a[k], a[k + width / 2]);
                b[2 * k + 1] = interleave_hi(a[k], a[k + width / 2]);
            }
            memcpy(a, b, width * sizeof a[0]);
        }
        for (size_t k = 0; k < width; k++)
            store(dst + (i * width + 16 * k), a[k]);
    }
}

INLINE void shuffle_blocks(size_t width, size_t n, const uint8_t *src, uint8_t *dst)
{
    v16 a[16], b[16];
    for (size_t i = 0; i + 16 <= n; i += 16) {
        for (size_t k = 0; k < width; k++)
            a[k] = load(src + (i * width + 16 * k));
        for (size_t round = 1; round < width; round *= 2) {
            for (size_t k = 0; k < width / 2; k++) {
                b[k] = even_bytes(a[2 * k], a[2 * k + 1]);
                b[k + width / 2] = odd_bytes(a[2 * k], a[2 * k + 1]);
            }
            memcpy(a, b, width * sizeof a[0]);
        }
        for (size_t k = 0; k < width; k++)
            store(dst + k * n + i, a[k]);
    }
}

void lm__shuffle(size_t width, size_t bytes, const uint8_t *src, uint8_t *dst)
{
    size_t n = bytes / width, done = lm__round_down(n, 16);
    switch (width) {
    case 2: shuffle_blocks(2, n, src, dst); break;
    case 4: shuffle_blocks(4, n, src, dst); break;
    case 8: shuffle_blocks(8, n, src, dst); break;
    case 16: shuffle_blocks(16, n, src, dst); break;
    default: done = 0;
    }
    for (size_t j = 0; j < width; j++)
        for (size_t i = done; i < n; i++)
            dst[j * n + i] = src[i * width + j];
    memcpy(dst + n * width, src + n * width, bytes - n * width);
}

void lm__unshuffle(size_t width, size_t bytes, const uint8_t *src, uint8_t *dst)
{
    size_t n = bytes / width, done = lm__round_down(n, 16);
    switch (width) {
    case 2: unshuffle_blocks(2, n, src, dst); break;
    case 4: unshuffle_blocks(4, n, src, dst); break;
    case 8: unshuffle_blocks(8, n, src, dst); break;
    case 16: unshuffle_blocks(16, n, src, dst); break;
    default: done = 0;
    }
    for (size_t i = done; i < n; i++)
        for (size_t j = 0; j < width; j++)
            dst[i * width + j] = src[j * n + i];
    memcpy(dst + n * width, src + n * width, bytes - n * width);
}
