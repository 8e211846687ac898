/* SPDX-License-Identifier: BSD-3-Clause
 * queues.c - in which order a budget's chunks go.
 *
 *   comes --> NEW ----------------> dropped, a GHOST      NEW has an eighth of the limit, and
 *                                     |                   what KNOWN leaves
 *   comes back while remembered --> KNOWN, with lives: so many turns of the queue does it stay
 *
 * An access to what is in memory is no fault, so nobody knows how often it is used: all that can
 * be seen is that a chunk comes back soon after it was dropped.  Hence two queues, as in 2Q
 * (Johnson and Shasha, VLDB 1994) and S3-FIFO (Yang et al., SOSP 2023).  A scan passes through
 * NEW.  A chunk gets more lives each time it comes back.
 *
 * (Q1) A chunk's note has its place.  Entries of a queue that it is not in are passed over, so
 *      who leaves a queue does not look for his entry.
 *
 * All under the lock of budget.c.
 */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

#define NEW_SHARE   8  /* of the limit is for NEW chunks */
#define LEVEL_MAX   3  /* a chunk has 2^level - 1 lives */
#define CLOCK_SHIFT 16 /* of the bytes that a ghost's age is counted in */
#define CLOCK_MASK  ((1u << LM_NOTE_STAMP_BITS) - 1)

/* A region as its budget knows it, and as long as an entry does. */
struct lm__member {
    lm_region *region; /* NULL: it has left */
    uint64_t entries;
    uint64_t bytes[2]; /* in each queue */
};

struct lm__queued {
    struct lm__member *member;
    uint64_t chunk_idx;
};

/* ---- rings ----------------------------------------------------------------------------------- */

static int push(struct lm__queue *q, struct lm__queued entry)
{
    if (q->count == q->capacity) {
        uint64_t capacity = q->capacity ? 2 * q->capacity : 64;
        struct lm__queued *ring = malloc(capacity * sizeof ring[0]);
        if (!ring)
            return -ENOMEM;
        for (uint64_t i = 0; i < q->count; i++)
            ring[i] = q->ring[(q->head + i) & (q->capacity - 1)];
        free(q->ring);
        q->ring = ring;
        q->head = 0;
        q->capacity = capacity;
    }
    q->ring[(q->head + q->count++) & (q->capacity - 1)] = entry;
    return 0;
}

static struct lm__queued pop(struct lm__queue *q)
{
    struct lm__queued entry = q->ring[q->head];
    q->head = (q->head + 1) & (q->capacity - 1);
    q->count--;
    return entry;
}

static struct lm__note *note_of(const struct lm__queued *e)
{
    lm_region *r = e->member->region;
    return r ? lm__chunks_note(&r->chunks, e->chunk_idx) : NULL;
}

/* Of queue `q`, where it has been. */
static void entry_free(const struct lm__queues *qs, const struct lm__queue *q,
                       struct lm__queued e)
{
    struct lm__note *note = note_of(&e);
    if (note)
        note->entries &= ~(1u << (q - qs->queues)) & 3;
    if (--e.member->entries == 0 && !e.member->region)
        free(e.member);
}

/* ---- places ---------------------------------------------------------------------------------- */

static struct lm__queue *queue_of(struct lm__queues *qs, unsigned place)
{
    return place == LM_PLACE_NEW || place == LM_PLACE_KNOWN
               ? &qs->queues[place - LM_PLACE_NEW]
               : NULL;
}

static void count(struct lm__queues *qs, const lm_region *r, unsigned place,
                  uint64_t bytes)
{
    struct lm__queue *q = queue_of(qs, place);
    if (!q)
        return;
    q->bytes += bytes;
    r->charges.member->bytes[place - LM_PLACE_NEW] += bytes;
}

static void set_place(struct lm__queues *qs, const lm_region *r, struct lm__note *note,
                      unsigned place)
{
    count(qs, r, note->place, -(1ull << r->chunk_shift));
    count(qs, r, place, 1ull << r->chunk_shift);
    note->place = place & 3;
}

/* What was dropped by others, and comes again, has the entry that it had.  Without memory for one
 * the chunk is in no queue, and stays. */
static void enter(struct lm__queues *qs, lm_region *r, uint64_t chunk_idx,
                  unsigned place)
{
    struct lm__note *note = lm__chunks_note(&r->chunks, chunk_idx);
    struct lm__queued entry = {r->charges.member, chunk_idx};
    unsigned bit = 1u << (place - LM_PLACE_NEW);
    if (!note || (!(note->entries & bit) && push(queue_of(qs, place), entry) != 0))
        return;
    entry.member->entries += !(note->entries & bit);
    note->entries |= bit & 3;
    set_place(qs, r, note, place);
}

/* ---- a chunk comes, and is dropped ----------------------------------------------------------- */

uint64_t lm__queues_clock(const struct lm__queues *qs)
{
    return qs->dropped_bytes >> CLOCK_SHIFT;
}

static int was_dropped(const struct lm__queues *qs, const struct lm__note *note,
                       uint64_t since)
{
    uint64_t now = lm__queues_clock(qs);
    return note && note->place == LM_PLACE_GHOST &&
           ((now - note->stamp) & CLOCK_MASK) <= now - since;
}

/* Ghosts are remembered that were dropped since: while that much again has not been. */
static uint64_t remembered(const struct lm__queues *qs, uint64_t limit_bytes)
{
    uint64_t age = limit_bytes >> CLOCK_SHIFT, now = lm__queues_clock(qs);
    return now > age ? now - age : 0;
}

void lm__queues_enter(struct lm__queues *qs, lm_region *r, uint64_t chunk_idx)
{
    enter(qs, r, chunk_idx, LM_PLACE_NEW);
}

int lm__queues_filled(struct lm__queues *qs, lm_region *r, uint64_t chunk_idx,
                      uint64_t limit_bytes)
{
    struct lm__note *note = lm__chunks_note(&r->chunks, chunk_idx);
    int is_back = was_dropped(qs, note, remembered(qs, limit_bytes));
    if (note && note->place == LM_PLACE_GHOST) {
        note->level = !is_back                  ? 0
                      : note->level < LEVEL_MAX ? note->level + 1u
                                                : LEVEL_MAX;
        note->lives = (1u << note->level) - 1;
    }
    enter(qs, r, chunk_idx, is_back ? LM_PLACE_KNOWN : LM_PLACE_NEW);
    return is_back;
}

void lm__queues_dropped(struct lm__queues *qs, lm_region *r, struct lm__run run,
                        uint64_t bytes)
{
    for (uint64_t i = run.first; i < run.first + run.count; i++) {
        struct lm__note *note = lm__chunks_note(&r->chunks, i);
        if (!note)
            continue;
        set_place(qs, r, note, LM_PLACE_GHOST);
        note->stamp = lm__queues_clock(qs) & CLOCK_MASK;
    }
    qs->dropped_bytes += bytes;
}

int lm__queues_forget_drop(struct lm__queues *qs, lm_region *r, uint64_t chunk_idx,
                           uint64_t clock)
{
    struct lm__note *note = lm__chunks_note(&r->chunks, chunk_idx);
    if (!was_dropped(qs, note, clock))
        return 0;
    note->place = LM_PLACE_NONE;
    return 1;
}

uint64_t lm__queues_new_bytes(const struct lm__queues *qs, uint64_t limit_bytes)
{
    uint64_t known = qs->queues[1].bytes, least = limit_bytes / NEW_SHARE;
    return known + least < limit_bytes ? limit_bytes - known : least;
}

/* ---- who goes -------------------------------------------------------------------------------- */

/* More of the queue's head, as far as it lies in one huge page: that is given back whole. */
static void take_neighbours(struct lm__queues *qs, struct lm__queue *q,
                            const struct lm__choice *choice, struct lm__victim *v)
{
    uint64_t unit = LM_HUGE_BYTES >> v->region->chunk_shift;
    while (q->count > 0) {
        struct lm__queued *e = &q->ring[q->head];
        uint64_t next = v->run.first + v->run.count;
        struct lm__note *note = note_of(e);
        if (e->member->region != v->region || e->chunk_idx != next || unit == 0 ||
            next % unit == 0 || queue_of(qs, note->place) != q || note->lives > 0 ||
            !choice->can_go(v->region, next, choice->may_spill))
            return;
        entry_free(qs, q, pop(q));
        set_place(qs, v->region, note, LM_PLACE_NONE);
        v->run.count++;
    }
}

static int take_from(struct lm__queues *qs, struct lm__queue *q,
                     const struct lm__choice *choice, struct lm__victim *v)
{
    for (uint64_t stuck = 0; stuck < q->count;) {
        struct lm__queued e = pop(q);
        struct lm__note *note = note_of(&e);
        if (!note || queue_of(qs, note->place) != q) { /* it has left, or comes again */
            entry_free(qs, q, e);
        } else if (note->lives > 0) {
            note->lives--;
            push(q, e); /* into the place that pop() has left */
        } else if (!choice->can_go(e.member->region, e.chunk_idx, choice->may_spill) ||
                   !lm__region_retain_live(e.member->region)) {
            push(q, e);
            stuck++;
        } else {
            v->region = e.member->region;
            v->run = (struct lm__run){e.chunk_idx, 1};
            set_place(qs, v->region, note, LM_PLACE_NONE);
            take_neighbours(qs, q, choice, v);
            entry_free(qs, q, e);
            return 1;
        }
    }
    return 0;
}

int lm__queues_take(struct lm__queues *qs, const struct lm__choice *choice,
                    struct lm__victim *v)
{
    struct lm__queue *fresh = &qs->queues[0], *known = &qs->queues[1];
    int is_fresh = fresh->bytes > choice->limit_bytes / NEW_SHARE || known->count == 0;
    struct lm__queue *first = is_fresh ? fresh : known;
    return take_from(qs, first, choice, v) ||
           take_from(qs, is_fresh ? known : fresh, choice, v);
}

/* ---- regions come and go --------------------------------------------------------------------- */

/* Its notes are of no use any more: ghosts are another budget's, or older. */
struct lm__member *lm__queues_join(lm_region *r)
{
    struct lm__member *m = calloc(1, sizeof *m);
    if (m) {
        m->region = r;
        lm__chunks_forget_notes(&r->chunks);
    }
    return m;
}

void lm__queues_leave(struct lm__queues *qs, struct lm__member *m)
{
    for (int i = 0; i < 2; i++)
        qs->queues[i].bytes -= m->bytes[i];
    m->region = NULL;
    if (m->entries == 0)
        free(m);
}

void lm__queues_fini(struct lm__queues *qs)
{
    for (int i = 0; i < 2; i++) {
        struct lm__queue *q = &qs->queues[i];
        while (q->count > 0)
            entry_free(qs, q, pop(q));
        free(q->ring);
    }
}
