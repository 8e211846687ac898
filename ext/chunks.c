/* SPDX-License-Identifier: BSD-3-Clause
 * chunks.c - what every chunk of a region is doing right now.
 *
 *   ABSENT --claim--> FILLING --publish--> CLEAN       every edge is one function,
 *     ^ ^-- abandon -----' ^----- claim -----'|        lm__chunks_<edge>()
 *     '---------- forget_all -----------------'
 *
 * (C1) Only the thread that moved a chunk to FILLING may move it on.
 * (C2) A CLEAN chunk's bytes are its stored chunk, decoded, but for what the application
 *      wrote since.  Single pages of it may be missing again: the application may have given
 *      them back to the system.  Such a chunk is claimed once more and filled up.
 * (C3) No thread waits for a chunk while holding a lock.
 * (C4) A word carries the generation in which its chunk was filled.  CLEAN of an older
 *      generation reads as ABSENT, so one increment forgets everything; a fill that ends in
 *      another generation than it began in does not publish.
 *
 * A word is four bytes, zero is ABSENT, and a long array is mapped without reserve: the kernel
 * gives memory to those of its pages that are touched, so 16 TiB of chunks cost nothing.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "internal.h"

#define MAPPED_COUNT_MIN                                                               \
    16384 /* mappings are scarce: small arrays come from the heap */
#define STATE_BITS 2
#define STATE_MASK ((1u << STATE_BITS) - 1)

static uint32_t word(uint32_t generation, enum lm__chunk_state state)
{
    return generation << STATE_BITS | (uint32_t)state;
}

static enum lm__chunk_state state_in(uint32_t value, uint32_t generation)
{
    enum lm__chunk_state state = (enum lm__chunk_state)(value & STATE_MASK);
    if (state == LM_CHUNK_CLEAN && value != word(generation, LM_CHUNK_CLEAN))
        return LM_CHUNK_ABSENT;
    return state;
}

int lm__chunks_init(struct lm__chunks *c, uint64_t count)
{
    c->count = count;
    if (count <= MAPPED_COUNT_MIN) {
        c->words = calloc(count, sizeof c->words[0]);
        return c->words ? 0 : -ENOMEM;
    }
    c->mapped_bytes = lm__round_up(count * sizeof c->words[0], lm__page_bytes());
    void *p = mmap(NULL, c->mapped_bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return -errno;
    c->words = p;
    return 0;
}

void lm__chunks_fini(struct lm__chunks *c)
{
    if (c->mapped_bytes)
        munmap(c->words, c->mapped_bytes);
    else
        free(c->words);
}

enum lm__chunk_state lm__chunks_state(const struct lm__chunks *c, uint64_t idx)
{
    /* Pairs with publish and abandon: a thread that leaves its mark for the filler and then
     * reads FILLING here is sure to be seen by the filler, which looks after its store. */
    uint32_t value = lm_load_seq_cst(&c->words[idx]);
    return state_in(value, lm_load_acquire(&c->generation));
}

int lm__chunks_claim(struct lm__chunks *c, uint64_t idx, enum lm__chunk_state from)
{
    uint32_t generation = lm_load_acquire(&c->generation);
    uint32_t value = lm_load_acquire(&c->words[idx]);
    if (state_in(value, generation) != from)
        return 0;
    if (!lm_cas_acq_rel(&c->words[idx], &value, word(generation, LM_CHUNK_FILLING)))
        return 0;
    if (from == LM_CHUNK_CLEAN)
        lm_sub_relaxed(&c->resident, 1);
    return 1;
}

int lm__chunks_publish(struct lm__chunks *c, uint64_t idx)
{
    /* After the install, before the verdict: pairs with the increment in forget_all. */
    uint32_t generation = lm_load_seq_cst(&c->generation);
    uint32_t value = lm_load_relaxed(&c->words[idx]); /* (C1): nobody else changes it */
    lm_assert((value & STATE_MASK) == LM_CHUNK_FILLING);
    if (value != word(generation, LM_CHUNK_FILLING))
        return 0;
    lm_add_relaxed(&c->resident, 1);
    lm_store_seq_cst(&c->words[idx], word(generation, LM_CHUNK_CLEAN));
    return 1;
}

void lm__chunks_abandon(struct lm__chunks *c, uint64_t idx)
{
    lm_assert((lm_load_relaxed(&c->words[idx]) & STATE_MASK) == LM_CHUNK_FILLING);
    lm_store_seq_cst(&c->words[idx], 0);
}

void lm__chunks_forget_all(struct lm__chunks *c)
{
    lm_add_seq_cst(&c->generation, 1);
    lm_store_relaxed(&c->resident, 0);
}
