/* SPDX-License-Identifier: BSD-3-Clause
 * chunks.c - what every chunk of a region is doing right now.
 *
 *   ABSENT --claim--> FILLING --publish--> CLEAN --write--> DIRTY ------------.
 *     ^ ^-- abandon -----' ^--- claim --------'   ^ ^  '--claim--> REFILLING --'
 *     '------------- forget_all ------------------' | freeze
 *                                                   |    v
 *        CLEAN <--commit-- SAVED <--copied-- COPYING <-- FROZEN
 *                            '---- write, thaw ----> DIRTY
 *
 *        SPILLED <--spilled-- REFILLING <-- DIRTY, and back the same way
 *
 *   FROZEN chunks belong to a snapshot and may not change before they are copied; of a SAVED
 *   one there is a copy.  Giving memory back is claim, then abandon.
 *
 * (C1) Only the thread that moved a chunk to FILLING, REFILLING or COPYING may move it on.
 * (C2) A CLEAN chunk's bytes are its stored chunk, decoded; where nobody tracks writes, but for
 *      what the application wrote since.  Single pages of any chunk may be missing again: the
 *      application may have given them back to the system.  Such a chunk is claimed once more
 *      and filled up.
 * (C3) No thread waits for a chunk while holding a lock.
 * (C4) A word carries the generation in which its chunk was filled.  What is in memory by an
 *      older generation reads as ABSENT, so one increment forgets everything; a fill that ends
 *      in another generation than it began in does not publish.
 *
 * A word is four bytes, and zero is ABSENT.  Words live in leaves of LEAF_WORDS, and a leaf
 * that nobody has claimed a chunk of does not exist: 16 TiB of chunks cost a table of pointers,
 * of which the system gives memory to what is touched.  A leaf counts its dirty chunks, so
 * that finding them costs what was written.
 */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

#define LEAF_SHIFT 12
#define LEAF_WORDS ((uint64_t)1 << LEAF_SHIFT)
#define STATE_BITS 4
#define STATE_MASK ((1u << STATE_BITS) - 1)

struct lm__chunks_leaf {
    struct lm__note *notes; /* of budget.c, under its lock; NULL: none yet */
    _Atomic(lm__extent_slot *) extents;
    _Atomic uint32_t dirty; /* chunks for which is_dirty() */
    _Atomic uint32_t words[];
};

static uint32_t word(uint32_t generation, enum lm__chunk_state state)
{
    return generation << STATE_BITS | (uint32_t)state;
}

static int is_dirty(enum lm__chunk_state state)
{
    return state == LM_CHUNK_DIRTY || state == LM_CHUNK_REFILLING ||
           state == LM_CHUNK_SPILLED;
}

/* A thread is at it, whatever the generation. */
static int is_busy(enum lm__chunk_state state)
{
    return state == LM_CHUNK_FILLING || state == LM_CHUNK_REFILLING ||
           state == LM_CHUNK_COPYING;
}

static enum lm__chunk_state state_in(uint32_t value, uint32_t generation)
{
    enum lm__chunk_state state = (enum lm__chunk_state)(value & STATE_MASK);
    if (!is_busy(state) && value != word(generation, state))
        return LM_CHUNK_ABSENT;
    return state;
}

int lm__chunks_init(struct lm__chunks *c, uint64_t count)
{
    c->count = count;
    c->leaves = calloc(lm__div_up(count, LEAF_WORDS), sizeof c->leaves[0]);
    return c->leaves ? 0 : -ENOMEM;
}

static void leaf_free(struct lm__chunks_leaf *leaf)
{
    lm__extent_slot *extents = lm_load_relaxed(&leaf->extents);
    for (uint64_t i = 0; extents && i < LEAF_WORDS; i++)
        if (lm_load_relaxed(&extents[i]))
            lm__extent_drop(lm_load_relaxed(&extents[i]));
    free(extents);
    free(leaf->notes);
    free(leaf);
}

void lm__chunks_fini(struct lm__chunks *c)
{
    /* The table of a long array has pages that nobody has touched, nor should. */
    for (uint64_t i = 0, left = lm_load_relaxed(&c->leaf_count); left > 0; i++) {
        struct lm__chunks_leaf *leaf = lm_load_relaxed(&c->leaves[i]);
        left -= leaf != NULL;
        if (leaf)
            leaf_free(leaf);
    }
    free(c->leaves);
}

/* ---- words ------------------------------------------------------------------------------- */

/* NULL where no chunk of the leaf has ever been claimed. */
static struct lm__chunks_leaf *find_leaf(const struct lm__chunks *c, uint64_t idx)
{
    return lm_load_acquire(&c->leaves[idx >> LEAF_SHIFT]);
}

static _Atomic uint32_t *find_word(const struct lm__chunks *c, uint64_t idx)
{
    struct lm__chunks_leaf *leaf = find_leaf(c, idx);
    return leaf ? &leaf->words[idx & (LEAF_WORDS - 1)] : NULL;
}

/* How many the leaf of a chunk has. */
static uint64_t leaf_words(const struct lm__chunks *c, uint64_t idx)
{
    uint64_t left = c->count - (idx & ~(LEAF_WORDS - 1));
    return left < LEAF_WORDS ? left : LEAF_WORDS;
}

/* NULL: no memory. */
static _Atomic uint32_t *make_word(struct lm__chunks *c, uint64_t idx)
{
    _Atomic(struct lm__chunks_leaf *) *slot = &c->leaves[idx >> LEAF_SHIFT];
    struct lm__chunks_leaf *leaf = lm_load_acquire(slot);
    if (!leaf) {
        struct lm__chunks_leaf *made =
            calloc(1, sizeof *made + leaf_words(c, idx) * sizeof made->words[0]);
        if (!made)
            return NULL;
        if (lm_cas_acq_rel(slot, &leaf, made)) { /* pairs with the loads */
            lm_add_relaxed(&c->leaf_count, 1);
            leaf = made;
        } else {
            free(made); /* another thread was faster */
        }
    }
    return &leaf->words[idx & (LEAF_WORDS - 1)];
}

/* Keep the counts, before a chunk can be seen in its new state or after it was in the old. */
static void count(struct lm__chunks *c, uint64_t idx, enum lm__chunk_state from,
                  enum lm__chunk_state to)
{
    int resident = lm__chunk_is_resident(to) - lm__chunk_is_resident(from);
    int dirty = is_dirty(to) - is_dirty(from);
    if (resident != 0)
        lm_add_relaxed(&c->resident, (uint64_t)resident);
    if (dirty != 0) {
        lm_add_relaxed(&c->dirty, (uint64_t)dirty);
        lm_add_relaxed(&find_leaf(c, idx)->dirty, (uint32_t)dirty);
    }
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

/* ---- searching ------------------------------------------------------------------------------ */

uint64_t lm__chunks_next(const struct lm__chunks *c, uint64_t idx, uint64_t end,
                         enum lm__chunk_set set)
{
    while (idx < end) {
        struct lm__chunks_leaf *leaf = find_leaf(c, idx);
        if (!leaf || (set == LM_CHUNKS_DIRTY && lm_load_seq_cst(&leaf->dirty) == 0)) {
            idx = (idx | (LEAF_WORDS - 1)) + 1;
            continue;
        }
        enum lm__chunk_state state = lm__chunks_state(c, idx);
        int is_in = set == LM_CHUNKS_CLEAN      ? state == LM_CHUNK_CLEAN
                    : set == LM_CHUNKS_RESIDENT ? lm__chunk_is_resident(state)
                    : set == LM_CHUNKS_DIRTY    ? is_dirty(state)
                                                : state != LM_CHUNK_ABSENT;
        if (is_in)
            return idx;
        idx++;
    }
    return end;
}

uint64_t lm__chunks_mark_resident(const struct lm__chunks *c, uint64_t first,
                                  uint64_t chunks, uint8_t *mask)
{
    uint64_t resident = 0, end = first + chunks;
    if (mask)
        memset(mask, 0, chunks);
    for (uint64_t i = first; (i = lm__chunks_next(c, i, end, LM_CHUNKS_RESIDENT)) < end;
         i++) {
        resident++;
        if (mask)
            mask[i - first] = 1;
    }
    return resident;
}

/* ---- fills ----------------------------------------------------------------------------------- */

/* from -> to, if that is the state. */
static int change(struct lm__chunks *c, uint64_t idx, enum lm__chunk_state from,
                  enum lm__chunk_state to)
{
    _Atomic uint32_t *w = find_word(c, idx);
    uint32_t generation = lm_load_acquire(&c->generation);
    uint32_t value = w ? lm_load_acquire(w) : 0;
    if (!w || state_in(value, generation) != from)
        return 0;
    count(c, idx, LM_CHUNK_ABSENT, to);
    if (lm_cas_acq_rel(w, &value, word(generation, to))) {
        count(c, idx, from, LM_CHUNK_ABSENT);
        return 1;
    }
    count(c, idx, to, LM_CHUNK_ABSENT);
    return 0;
}

int lm__chunks_claim(struct lm__chunks *c, uint64_t idx, enum lm__chunk_state from)
{
    int is_written = from != LM_CHUNK_ABSENT && from != LM_CHUNK_CLEAN;
    if (!make_word(c, idx))
        return -ENOMEM;
    return change(c, idx, from, is_written ? LM_CHUNK_REFILLING : LM_CHUNK_FILLING);
}

int lm__chunks_claim_to_drop(struct lm__chunks *c, uint64_t idx)
{
    enum lm__chunk_state from = lm__chunks_state(c, idx);
    if (from == LM_CHUNK_ABSENT)
        return 0;
    if (is_busy(from) || from == LM_CHUNK_FROZEN)
        return -EAGAIN;
    if (!change(c, idx, from, LM_CHUNK_FILLING))
        return -EAGAIN;
    return from == LM_CHUNK_SPILLED ? 2 : 1;
}

/* What is claimed becomes `to`.  0: the generation has changed. */
static int publish_as(struct lm__chunks *c, uint64_t idx, enum lm__chunk_state to)
{
    /* After the install, before the verdict: pairs with the increment in forget_all. */
    uint32_t generation = lm_load_seq_cst(&c->generation);
    _Atomic uint32_t *w = find_word(c, idx);
    uint32_t value = lm_load_relaxed(w); /* (C1): nobody else changes it */
    enum lm__chunk_state from = (enum lm__chunk_state)(value & STATE_MASK);
    lm_assert(from == LM_CHUNK_FILLING || from == LM_CHUNK_REFILLING);
    if (value != word(generation, from))
        return 0;
    count(c, idx, from, to);
    lm_store_seq_cst(w, word(generation, to));
    return 1;
}

int lm__chunks_publish(struct lm__chunks *c, uint64_t idx, int is_written)
{
    uint32_t value = lm_load_relaxed(find_word(c, idx));
    int was_written = (value & STATE_MASK) == LM_CHUNK_REFILLING;
    return publish_as(c, idx,
                      is_written || was_written ? LM_CHUNK_DIRTY : LM_CHUNK_CLEAN);
}

void lm__chunks_abandon(struct lm__chunks *c, uint64_t idx)
{
    _Atomic uint32_t *w = find_word(c, idx);
    uint32_t value = lm_load_relaxed(w);
    enum lm__chunk_state from = (enum lm__chunk_state)(value & STATE_MASK);
    lm_assert(from == LM_CHUNK_FILLING || from == LM_CHUNK_REFILLING);
    /* What was written is still there, but for the pages that could not be filled; or it has been
     * spilled. */
    enum lm__chunk_state to =
        lm__chunks_extent(c, idx) ? LM_CHUNK_SPILLED : LM_CHUNK_DIRTY;
    if (from != LM_CHUNK_REFILLING || !publish_as(c, idx, to))
        lm__chunks_forget(c, idx);
}

void lm__chunks_forget(struct lm__chunks *c, uint64_t idx)
{
    _Atomic uint32_t *w = find_word(c, idx);
    enum lm__chunk_state from = (enum lm__chunk_state)(lm_load_relaxed(w) & STATE_MASK);
    lm_assert(from == LM_CHUNK_FILLING || from == LM_CHUNK_REFILLING);
    count(c, idx, from, LM_CHUNK_ABSENT);
    lm_store_seq_cst(w, 0);
}

void lm__chunks_forget_all(struct lm__chunks *c)
{
    lm_add_seq_cst(&c->generation, 1);
    lm_store_relaxed(&c->resident, 0);
}

/* ---- writes and snapshots --------------------------------------------------------------------- */

int lm__chunks_move(struct lm__chunks *c, uint64_t idx, enum lm__chunk_state from,
                    enum lm__chunk_state to)
{
    return change(c, idx, from, to);
}

void lm__chunks_copied(struct lm__chunks *c, uint64_t idx)
{
    uint32_t generation = lm_load_seq_cst(&c->generation);
    _Atomic uint32_t *w = find_word(c, idx);
    uint32_t value = lm_load_relaxed(w);
    lm_assert((value & STATE_MASK) == LM_CHUNK_COPYING);
    int is_there = value == word(generation, LM_CHUNK_COPYING);
    lm_store_seq_cst(w, is_there ? word(generation, LM_CHUNK_SAVED) : 0);
}

/* ---- notes -------------------------------------------------------------------------------------- */

struct lm__note *lm__chunks_note(struct lm__chunks *c, uint64_t idx)
{
    struct lm__chunks_leaf *leaf = find_leaf(c, idx);
    if (leaf && !leaf->notes)
        leaf->notes = calloc(leaf_words(c, idx), sizeof leaf->notes[0]);
    return leaf && leaf->notes ? &leaf->notes[idx & (LEAF_WORDS - 1)] : NULL;
}

void lm__chunks_forget_notes(struct lm__chunks *c)
{
    for (uint64_t idx = 0; idx < c->count; idx += LEAF_WORDS) {
        struct lm__chunks_leaf *leaf = find_leaf(c, idx);
        if (leaf && leaf->notes)
            memset(leaf->notes, 0, leaf_words(c, idx) * sizeof leaf->notes[0]);
    }
}

/* ---- extents ------------------------------------------------------------------------------------- */

/* NULL: no chunk of the leaf has ever had one. */
static lm__extent_slot *find_slot(const struct lm__chunks *c, uint64_t idx)
{
    struct lm__chunks_leaf *leaf = find_leaf(c, idx);
    lm__extent_slot *slots = leaf ? lm_load_acquire(&leaf->extents) : NULL;
    return slots ? &slots[idx & (LEAF_WORDS - 1)] : NULL;
}

struct lm__extent *lm__chunks_extent(const struct lm__chunks *c, uint64_t idx)
{
    lm__extent_slot *slot = find_slot(c, idx);
    return slot ? lm_load_acquire(slot) : NULL;
}

int lm__chunks_set_extent(struct lm__chunks *c, uint64_t idx, struct lm__extent *extent)
{
    struct lm__chunks_leaf *leaf = find_leaf(c, idx);
    lm__extent_slot *none = NULL;
    if (!lm_load_acquire(&leaf->extents)) {
        lm__extent_slot *made = calloc(LEAF_WORDS, sizeof made[0]);
        if (!made)
            return -ENOMEM;
        if (!lm_cas_acq_rel(&leaf->extents, &none, made))
            free(made); /* another thread was faster */
    }
    lm_store_release(find_slot(c, idx), extent);
    return 0;
}

void lm__chunks_drop_extent(const struct lm__chunks *c, uint64_t idx)
{
    lm__extent_slot *slot = find_slot(c, idx);
    struct lm__extent *extent = slot ? lm_swap_seq_cst(slot, NULL) : NULL;
    if (extent)
        lm__extent_drop(extent);
}
