/* SPDX-License-Identifier: BSD-3-Clause
 * chunks.c - what every chunk of a region is doing right now.
 *
 *   ABSENT --claim--> FILLING --publish--> CLEAN       every edge is one function,
 *     ^ ^-- abandon -----' ^----- claim -----'|        lm__chunks_<edge>()
 *     '---------- forget_all -----------------'           evict is claim, then abandon
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
 * A word is four bytes, and zero is ABSENT.  Words live in leaves of LEAF_WORDS, and a leaf
 * that nobody has claimed a chunk of does not exist: 16 TiB of chunks cost a table of pointers,
 * of which the system gives memory to what is touched.
 */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

#define LEAF_SHIFT 12
#define LEAF_WORDS ((uint64_t)1 << LEAF_SHIFT)
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
    c->leaves = calloc(lm__div_up(count, LEAF_WORDS), sizeof c->leaves[0]);
    return c->leaves ? 0 : -ENOMEM;
}

void lm__chunks_fini(struct lm__chunks *c)
{
    /* The table of a long array has pages that nobody has touched, nor should. */
    for (uint64_t i = 0, left = lm_load_relaxed(&c->leaf_count); left > 0; i++) {
        _Atomic uint32_t *leaf = lm_load_relaxed(&c->leaves[i]);
        left -= leaf != NULL;
        free(leaf);
    }
    free(c->leaves);
}

/* NULL where no chunk of the leaf has ever been claimed. */
static _Atomic uint32_t *find_word(const struct lm__chunks *c, uint64_t idx)
{
    _Atomic uint32_t *leaf = lm_load_acquire(&c->leaves[idx >> LEAF_SHIFT]);
    return leaf ? &leaf[idx & (LEAF_WORDS - 1)] : NULL;
}

/* NULL: no memory. */
static _Atomic uint32_t *make_word(struct lm__chunks *c, uint64_t idx)
{
    _Atomic(_Atomic uint32_t *) *slot = &c->leaves[idx >> LEAF_SHIFT];
    _Atomic uint32_t *leaf = lm_load_acquire(slot);
    if (!leaf) {
        uint64_t left = c->count - (idx & ~(LEAF_WORDS - 1));
        _Atomic uint32_t *made =
            calloc(left < LEAF_WORDS ? left : LEAF_WORDS, sizeof *made);
        if (!made)
            return NULL;
        if (lm_cas_acq_rel(slot, &leaf, made)) { /* pairs with the loads */
            lm_add_relaxed(&c->leaf_count, 1);
            leaf = made;
        } else {
            free(made); /* another thread was faster */
        }
    }
    return &leaf[idx & (LEAF_WORDS - 1)];
}

enum lm__chunk_state lm__chunks_state(const struct lm__chunks *c, uint64_t idx)
{
    const _Atomic uint32_t *w = find_word(c, idx);
    if (!w)
        return LM_CHUNK_ABSENT;
    /* Pairs with publish and abandon: a thread that leaves its mark for the filler and then
     * reads FILLING here is sure to be seen by the filler, which looks after its store. */
    uint32_t value = lm_load_seq_cst(w);
    return state_in(value, lm_load_acquire(&c->generation));
}

uint64_t lm__chunks_next_clean(const struct lm__chunks *c, uint64_t idx, uint64_t end)
{
    while (idx < end && lm__chunks_state(c, idx) != LM_CHUNK_CLEAN)
        idx = find_word(c, idx) ? idx + 1 : (idx | (LEAF_WORDS - 1)) + 1;
    return idx < end ? idx : end;
}

uint64_t lm__chunks_mark_clean(const struct lm__chunks *c, uint64_t first,
                               uint64_t count, uint8_t *mask)
{
    uint64_t clean = 0, end = first + count;
    if (mask)
        memset(mask, 0, count);
    for (uint64_t i = first; (i = lm__chunks_next_clean(c, i, end)) < end; i++) {
        clean++;
        if (mask)
            mask[i - first] = 1;
    }
    return clean;
}

int lm__chunks_claim(struct lm__chunks *c, uint64_t idx, enum lm__chunk_state from)
{
    _Atomic uint32_t *w = make_word(c, idx);
    if (!w)
        return -ENOMEM;
    uint32_t generation = lm_load_acquire(&c->generation);
    uint32_t value = lm_load_acquire(w);
    if (state_in(value, generation) != from)
        return 0;
    if (!lm_cas_acq_rel(w, &value, word(generation, LM_CHUNK_FILLING)))
        return 0;
    if (from == LM_CHUNK_CLEAN)
        lm_sub_relaxed(&c->resident, 1);
    return 1;
}

int lm__chunks_publish(struct lm__chunks *c, uint64_t idx)
{
    /* After the install, before the verdict: pairs with the increment in forget_all. */
    uint32_t generation = lm_load_seq_cst(&c->generation);
    _Atomic uint32_t *w = find_word(c, idx);
    uint32_t value = lm_load_relaxed(w); /* (C1): nobody else changes it */
    lm_assert((value & STATE_MASK) == LM_CHUNK_FILLING);
    if (value != word(generation, LM_CHUNK_FILLING))
        return 0;
    lm_add_relaxed(&c->resident, 1);
    lm_store_seq_cst(w, word(generation, LM_CHUNK_CLEAN));
    return 1;
}

void lm__chunks_abandon(struct lm__chunks *c, uint64_t idx)
{
    _Atomic uint32_t *w = find_word(c, idx);
    lm_assert((lm_load_relaxed(w) & STATE_MASK) == LM_CHUNK_FILLING);
    lm_store_seq_cst(w, 0);
}

void lm__chunks_forget_all(struct lm__chunks *c)
{
    lm_add_seq_cst(&c->generation, 1);
    lm_store_relaxed(&c->resident, 0);
}
