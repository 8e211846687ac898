/* SPDX-License-Identifier: BSD-3-Clause
 * lz4join.c - several LZ4 blocks, compressed each on its own, as one.
 *
 *   block      token [length] literals offset [length] | ... | token [length] literals
 *
 * A block is a row of sequences, literals and then a match, of which the last has literals
 * only.  So two blocks become one by making one run of the last literals of the first and the
 * first literals of the second.  Matches look back by distance, and stay right.
 * ("LZ4 Block Format Description", in the documents of the reference implementation.)
 *
 * Why: LZ4 learns little from data of another kind, such as the next plane of shuffled bytes,
 * is led to skip by what does not compress, and has a denser table for up to 64 KiB.  What is
 * smaller depends on the data; the writer's trial decides.
 */
#include "internal.h"

#define NIBBLE_MAX                                                                     \
    15u /* a length from here on goes on in bytes of 255 and a last one */

static size_t length_bytes(size_t length)
{
    return length < NIBBLE_MAX ? 0 : (length - NIBBLE_MAX) / 255 + 1;
}

static const uint8_t *length_read(const uint8_t *p, size_t *length)
{
    if (*length == NIBBLE_MAX)
        do
            *length += *p;
        while (*p++ == 255);
    return p;
}

static void run_head_write(uint8_t *p, size_t literals, unsigned match_nibble)
{
    unsigned nibble = literals < NIBBLE_MAX ? (unsigned)literals : NIBBLE_MAX;
    size_t more = length_bytes(literals);
    *p++ = (uint8_t)(nibble << 4 | match_nibble);
    for (size_t left = literals - NIBBLE_MAX; more > 0; more--, left -= 255)
        *p++ = more > 1 ? 255 : (uint8_t)left;
}

/* The run of literals that begins at `at`. */
static struct lm__lz4_run run_read(const uint8_t *block, size_t at)
{
    size_t literals = block[at] >> 4;
    const uint8_t *p = length_read(block + at + 1, &literals);
    return (struct lm__lz4_run){at, (size_t)(p - block), literals};
}

static struct lm__lz4_run last_run(const uint8_t *block, size_t bytes)
{
    struct lm__lz4_run run = run_read(block, 0);
    while (run.literals_at + run.literals < bytes) {
        size_t match = block[run.at] & NIBBLE_MAX;
        const uint8_t *p = block + run.literals_at + run.literals + 2;
        run = run_read(block, (size_t)(length_read(p, &match) - block));
    }
    return run;
}

int lm__lz4_join(struct lm__lz4_joint *joint, const uint8_t *next, size_t next_bytes)
{
    struct lm__lz4_run last = joint->last, first = run_read(next, 0);
    size_t literals = last.literals + first.literals;
    size_t literals_at = last.at + 1 + length_bytes(literals);
    size_t rest = next_bytes - first.literals_at;
    if (joint->bytes == 0) /* as it is */
        literals_at = first.literals_at;
    if (literals_at + last.literals + rest > joint->capacity)
        return -1;

    uint8_t *block = joint->block;
    memmove(block + literals_at, block + last.literals_at, last.literals);
    memcpy(block + literals_at + last.literals, next + first.literals_at, rest);
    run_head_write(block + last.at, literals, next[0] & NIBBLE_MAX);

    size_t old_bytes = joint->bytes;
    joint->bytes = literals_at + last.literals + rest;
    joint->last = last_run(next, next_bytes);
    if (old_bytes > 0 && joint->last.at == 0) { /* literals only: the run has grown */
        joint->last = (struct lm__lz4_run){last.at, literals_at, literals};
    } else {
        size_t moved = joint->bytes - next_bytes;
        joint->last.at += moved;
        joint->last.literals_at += moved;
    }
    return 0;
}
