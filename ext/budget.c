/* SPDX-License-Identifier: BSD-3-Clause
 * budget.c - how much memory the regions of a budget may have, and whose chunks go first.
 *
 *   charge --> the chunk is filled --> entered in a queue --> victim --> dropped, a ghost
 *
 * (B1) A chunk is charged before it has a page, and until it has none.
 * (B2) Nobody waits for room who has room: what is charged never exceeds the limit, but where the
 *      limit was lowered or the region came with what it had.
 *
 * An access to what is in memory is no fault, so nobody knows how often it is used: all that can
 * be seen is that a chunk comes back soon after it was dropped.  Hence two queues, as in 2Q
 * (Johnson and Shasha, VLDB 1994) and S3-FIFO (Yang et al., SOSP 2023).  A chunk that comes for
 * the first time is NEW, and is dropped after a short while: a scan passes through there.  One
 * that comes back while its ghost is remembered is KNOWN, and each time that happens it gets
 * more lives: so many turns of the queue does it stay, asked or not.
 */
#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include "internal.h"

#define HOPE_NS       5000000000ull /* without any room; then it is an error */
#define NEW_SHARE     8             /* of the limit is for NEW chunks */
#define AHEAD_SHARE   8  /* of the limit, at most, is filled before it is asked for */
#define GHOST_SHARE   1  /* limits' worth of drops is a ghost remembered for */
#define LEVEL_MAX     3  /* a chunk has 2^level - 1 lives */
#define CLOCK_SHIFT   16 /* of the bytes that a ghost's age is counted in */
#define CLOCK_MASK    ((1u << LM_NOTE_STAMP_BITS) - 1)
#define SLACK_BYTES   ((uint64_t)8 << 20)
#define BUFFERS_SHARE 4  /* of the limit, at most, is for buffers */
#define HEADROOM      32 /* one part in as many is kept free by the evictor */
#define HEADROOM_MAX  ((uint64_t)32 << 20)

/* A region as its budget knows it, and as long as an entry does. */
struct lm__member {
    lm_region *region; /* NULL: it has left */
    uint64_t entries;
    uint64_t bytes[2]; /* in each queue */
};

struct entry {
    struct lm__member *member;
    uint64_t chunk_idx;
};

struct queue {
    struct entry *ring;
    uint64_t head, count, capacity; /* a power of two */
    uint64_t bytes;                 /* of the chunks that are in it */
};

struct lm_budget {
    lm_budget *next;
    uint32_t refs;
    uint64_t limit_bytes, used_bytes, pinned_bytes;
    uint64_t dropped_bytes;  /* ever: the clock of ghosts */
    struct queue queues[2];  /* by place - LM_PLACE_NEW */
    struct lm__spill *spill; /* NULL: what was written stays; fixed */
    int spill_error;         /* of the last try: -errno */
    uint64_t stuck_ns;       /* since when there is no room for anybody; 0: there was */
    struct lm_budget_stats counts;
};

/* A leaf: of all budgets, and what regions have in them. */
static pthread_mutex_t g_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t g_freed = PTHREAD_COND_INITIALIZER;  /* there is more room */
static pthread_cond_t g_excess = PTHREAD_COND_INITIALIZER; /* there is little */
static lm_budget *g_budgets;
static int g_is_excess;

/* ---- queues ---------------------------------------------------------------------------------- */

static int push(struct queue *q, struct entry entry)
{
    if (q->count == q->capacity) {
        uint64_t capacity = q->capacity ? 2 * q->capacity : 64;
        struct entry *ring = malloc(capacity * sizeof ring[0]);
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

static struct entry pop(struct queue *q)
{
    struct entry entry = q->ring[q->head];
    q->head = (q->head + 1) & (q->capacity - 1);
    q->count--;
    return entry;
}

static struct lm__note *note_of(const struct entry *e)
{
    lm_region *r = e->member->region;
    return r ? lm__chunks_note(&r->chunks, e->chunk_idx) : NULL;
}

/* Of queue `q`, where it has been. */
static void entry_free(const lm_budget *b, const struct queue *q, struct entry e)
{
    struct lm__note *note = note_of(&e);
    if (note)
        note->entries &= ~(1u << (q - b->queues)) & 3;
    if (--e.member->entries == 0 && !e.member->region)
        free(e.member);
}

static int is_queue(unsigned place)
{
    return place == LM_PLACE_NEW || place == LM_PLACE_KNOWN;
}

static struct queue *queue_of(lm_budget *b, unsigned place)
{
    return is_queue(place) ? &b->queues[place - LM_PLACE_NEW] : NULL;
}

static void count(lm_budget *b, const lm_region *r, unsigned place, uint64_t bytes)
{
    if (!is_queue(place))
        return;
    b->queues[place - LM_PLACE_NEW].bytes += bytes;
    r->charges.member->bytes[place - LM_PLACE_NEW] += bytes;
}

static void set_place(lm_budget *b, const lm_region *r, struct lm__note *note,
                      unsigned place)
{
    count(b, r, note->place, -(1ull << r->chunk_shift));
    count(b, r, place, 1ull << r->chunk_shift);
    note->place = place & 3;
}

/* What was dropped by others, and comes again, has the entry that it had.  Without memory for one
 * the chunk is in no queue, and stays. */
static void enter(lm_budget *b, lm_region *r, uint64_t chunk_idx, unsigned place)
{
    struct lm__note *note = lm__chunks_note(&r->chunks, chunk_idx);
    struct entry entry = {r->charges.member, chunk_idx};
    unsigned bit = 1u << (place - LM_PLACE_NEW);
    if (!note || (!(note->entries & bit) && push(queue_of(b, place), entry) != 0))
        return;
    entry.member->entries += !(note->entries & bit);
    note->entries |= bit & 3;
    set_place(b, r, note, place);
}

/* ---- charges --------------------------------------------------------------------------------- */

static uint64_t headroom(const lm_budget *b)
{
    uint64_t share = b->limit_bytes / HEADROOM;
    return share < HEADROOM_MAX ? share : HEADROOM_MAX;
}

/* What threads decode in comes on top of the limit, up to the slack; the rest is taken off. */
static uint64_t room_bytes(const lm_budget *b)
{
    uint64_t buffers = lm__scratch_bytes(), most = b->limit_bytes / BUFFERS_SHARE;
    uint64_t over = buffers > SLACK_BYTES ? buffers - SLACK_BYTES : 0;
    return b->limit_bytes - (over < most ? over : most);
}

static int is_in_excess(const lm_budget *b)
{
    return b->stuck_ns != 0 || b->used_bytes > room_bytes(b) - headroom(b);
}

static uint64_t clock_of(const lm_budget *b) { return b->dropped_bytes >> CLOCK_SHIFT; }

static size_t run_bytes(const lm_region *r, struct lm__run run)
{
    return lm__region_run_span(r, run).bytes;
}

static void call_evictor_locked(const lm_budget *b)
{
    if (is_in_excess(b) && !g_is_excess) {
        g_is_excess = 1;
        pthread_cond_signal(&g_excess);
    }
}

static void charge_locked(lm_budget *b, lm_region *r, uint64_t bytes)
{
    b->used_bytes += bytes;
    b->stuck_ns = 0;
    r->charges.bytes += bytes;
    call_evictor_locked(b);
}

void lm__budget_uncharge(lm_region *r, struct lm__run run, int was_there)
{
    lm_budget *b = r->charges.budget;
    if (!b)
        return;
    pthread_mutex_lock(&g_lock);
    if (r->charges.member) {
        uint64_t bytes = run_bytes(r, run);
        b->used_bytes -= bytes;
        b->stuck_ns = 0;
        r->charges.bytes -= bytes;
        for (uint64_t i = run.first; was_there && i < run.first + run.count; i++) {
            struct lm__note *note = lm__chunks_note(&r->chunks, i);
            if (!note)
                continue;
            set_place(b, r, note, LM_PLACE_GHOST);
            note->stamp = clock_of(b) & CLOCK_MASK;
        }
        if (was_there)
            b->dropped_bytes += bytes;
        pthread_cond_broadcast(&g_freed);
    }
    pthread_mutex_unlock(&g_lock);
}

/* ---- victims --------------------------------------------------------------------------------- */

static int is_pinned(const lm_region *r, uint64_t chunk_idx)
{
    for (uint64_t i = 0; i < r->charges.pin_count; i++)
        if (chunk_idx - r->charges.pins[i].first < r->charges.pins[i].count)
            return 1;
    return 0;
}

/* Nothing of it would be lost; who may spill may take what was written, too. */
static int can_go(const lm_region *r, uint64_t chunk_idx, int may_spill)
{
    enum lm__chunk_state state = lm__chunks_state(&r->chunks, chunk_idx);
    int is_written = state == LM_CHUNK_DIRTY || state == LM_CHUNK_SAVED;
    int is_unneeded = state == LM_CHUNK_CLEAN ||
                      (is_written && may_spill && r->charges.budget->spill);
    return is_unneeded && !is_pinned(r, chunk_idx) &&
           (!r->is_writable || r->tracking == LM_TRACK_PROTECT);
}

/* More of the queue's head, as far as it lies in one huge page: that is given back whole. */
static void take_neighbours(lm_budget *b, struct queue *q, int may_spill,
                            struct lm__victim *v)
{
    uint64_t unit = LM_HUGE_BYTES >> v->region->chunk_shift;
    while (q->count > 0) {
        struct entry *e = &q->ring[q->head];
        uint64_t next = v->run.first + v->run.count;
        struct lm__note *note = note_of(e);
        if (e->member->region != v->region || e->chunk_idx != next || unit == 0 ||
            next % unit == 0 || queue_of(b, note->place) != q || note->lives > 0 ||
            !can_go(v->region, next, may_spill))
            return;
        entry_free(b, q, pop(q));
        set_place(b, v->region, note, LM_PLACE_NONE);
        v->run.count++;
    }
}

static int take_from(lm_budget *b, struct queue *q, int may_spill, struct lm__victim *v)
{
    for (uint64_t stuck = 0; stuck < q->count;) {
        struct entry e = pop(q);
        struct lm__note *note = note_of(&e);
        if (!note || queue_of(b, note->place) != q) { /* it has left, or comes again */
            entry_free(b, q, e);
        } else if (note->lives > 0) {
            note->lives--;
            push(q, e); /* into the place that pop() has left */
        } else if (!can_go(e.member->region, e.chunk_idx, may_spill) ||
                   !lm__region_retain_live(e.member->region)) {
            push(q, e);
            stuck++;
        } else {
            v->region = e.member->region;
            v->run = (struct lm__run){e.chunk_idx, 1};
            set_place(b, v->region, note, LM_PLACE_NONE);
            take_neighbours(b, q, may_spill, v);
            entry_free(b, q, e);
            return 1;
        }
    }
    return 0;
}

static int take_victim_locked(lm_budget *b, int may_spill, struct lm__victim *v)
{
    struct queue *fresh = &b->queues[0], *known = &b->queues[1];
    int is_fresh = fresh->bytes > b->limit_bytes / NEW_SHARE || known->count == 0;
    struct queue *first = is_fresh ? fresh : known, *second = is_fresh ? known : fresh;
    return take_from(b, first, may_spill, v) || take_from(b, second, may_spill, v);
}

/* Nothing may go now: how long is that so? */
static enum lm__room despair_locked(lm_budget *b)
{
    uint64_t now_ns = lm__now_ns();
    if (b->stuck_ns == 0)
        b->stuck_ns = now_ns;
    call_evictor_locked(b);
    return b->spill_error || now_ns - b->stuck_ns > HOPE_NS ? LM_ROOM_NEVER
                                                            : LM_ROOM_NONE;
}

enum lm__room lm__budget_charge(lm_region *r, struct lm__run run, struct lm__victim *v)
{
    lm_budget *b = r->charges.budget;
    enum lm__room room = LM_ROOM_CHARGED;
    if (!b)
        return room;
    pthread_mutex_lock(&g_lock);
    if (r->charges.member) {
        uint64_t bytes = run_bytes(r, run);
        if (b->used_bytes + bytes <= room_bytes(b))
            charge_locked(b, r, bytes);
        else if (bytes > room_bytes(b))
            room = LM_ROOM_NEVER;
        else
            room = take_victim_locked(b, 0, v) ? LM_ROOM_VICTIM : despair_locked(b);
    }
    pthread_mutex_unlock(&g_lock);
    return room;
}

/* Ghosts are, that were dropped since. */
static uint64_t remembered(const lm_budget *b)
{
    uint64_t age = GHOST_SHARE * b->limit_bytes >> CLOCK_SHIFT, now = clock_of(b);
    return now > age ? now - age : 0;
}

/* Since `clock`. */
static int was_dropped(const lm_budget *b, const struct lm__note *note, uint64_t clock)
{
    return note->place == LM_PLACE_GHOST &&
           ((clock_of(b) - note->stamp) & CLOCK_MASK) <= clock_of(b) - clock;
}

int lm__budget_forget_drop(lm_region *r, uint64_t chunk_idx, uint64_t clock)
{
    lm_budget *b = r->charges.budget;
    int is_dropped = 0;
    if (!b)
        return 0;
    pthread_mutex_lock(&g_lock);
    if (r->charges.member) {
        struct lm__note *note = lm__chunks_note(&r->chunks, chunk_idx);
        is_dropped = note && was_dropped(b, note, clock);
        if (is_dropped)
            note->place = LM_PLACE_NONE;
    }
    pthread_mutex_unlock(&g_lock);
    return is_dropped;
}

void lm__budget_filled(lm_region *r, struct lm__run run)
{
    lm_budget *b = r->charges.budget;
    if (!b)
        return;
    pthread_mutex_lock(&g_lock);
    for (uint64_t i = run.first; r->charges.member && i < run.first + run.count; i++) {
        struct lm__note *note = lm__chunks_note(&r->chunks, i);
        int is_back = note && was_dropped(b, note, remembered(b));
        if (note && note->place == LM_PLACE_GHOST) {
            note->level = !is_back                  ? 0
                          : note->level < LEVEL_MAX ? note->level + 1u
                                                    : LEVEL_MAX;
            note->lives = (1u << note->level) - 1;
            b->counts.chunks_back += is_back;
        }
        enter(b, r, i, is_back ? LM_PLACE_KNOWN : LM_PLACE_NEW);
    }
    pthread_mutex_unlock(&g_lock);
}

void lm__budget_return(const struct lm__victim *v, uint64_t dropped)
{
    lm_region *r = v->region;
    pthread_mutex_lock(&g_lock);
    lm_budget *b = r->charges.budget;
    for (uint64_t i = v->run.first;
         r->charges.member && i < v->run.first + v->run.count; i++) {
        struct lm__note *note = lm__chunks_note(&r->chunks, i);
        if (note && note->place == LM_PLACE_NONE &&
            !lm__chunk_is_away(lm__chunks_state(&r->chunks, i)))
            enter(b, r, i, LM_PLACE_NEW);
    }
    if (b)
        b->counts.chunks_evicted += dropped;
    pthread_mutex_unlock(&g_lock);
}

/* ---- waiting --------------------------------------------------------------------------------- */

static struct timespec after_ms(int ms)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += ms * 1000000L;
    until.tv_sec += until.tv_nsec / 1000000000L;
    until.tv_nsec %= 1000000000L;
    return until;
}

void lm__budget_await_room(int timeout_ms)
{
    struct timespec until = after_ms(timeout_ms);
    pthread_mutex_lock(&g_lock);
    pthread_cond_timedwait(&g_freed, &g_lock, &until);
    pthread_mutex_unlock(&g_lock);
}

void lm__budget_await_excess(void)
{
    pthread_mutex_lock(&g_lock);
    while (!g_is_excess)
        pthread_cond_wait(&g_excess, &g_lock);
    g_is_excess = 0;
    pthread_mutex_unlock(&g_lock);
}

enum lm__room lm__budget_take_excess(struct lm__victim *v)
{
    enum lm__room room = LM_ROOM_CHARGED;
    pthread_mutex_lock(&g_lock);
    for (lm_budget *b = g_budgets; b && room != LM_ROOM_VICTIM; b = b->next)
        if (is_in_excess(b))
            room = take_victim_locked(b, 1, v) ? LM_ROOM_VICTIM : LM_ROOM_NONE;
    pthread_mutex_unlock(&g_lock);
    return room;
}

/* ---- regions come and go ----------------------------------------------------------------------- */

static void drop_locked(lm_budget *b)
{
    if (--b->refs > 0)
        return;
    lm_budget **at = &g_budgets;
    while (*at != b)
        at = &(*at)->next;
    *at = b->next;
    for (int i = 0; i < 2; i++) {
        while (b->queues[i].count > 0)
            entry_free(b, &b->queues[i], pop(&b->queues[i]));
        free(b->queues[i].ring);
    }
    if (b->spill)
        lm__spill_drop(b->spill);
    free(b);
}

/* Whatever it has is charged to nobody from now on. */
static void leave_locked(lm_region *r)
{
    struct lm__member *m = r->charges.member;
    lm_budget *b = r->charges.budget;
    if (!m)
        return;
    b->used_bytes -= r->charges.bytes;
    for (uint64_t i = 0; i < r->charges.pin_count; i++)
        b->pinned_bytes -= run_bytes(r, r->charges.pins[i]);
    r->charges.bytes = 0;
    r->charges.member = NULL;
    for (int i = 0; i < 2; i++)
        b->queues[i].bytes -= m->bytes[i];
    m->region = NULL;
    if (m->entries == 0)
        free(m);
    pthread_cond_broadcast(&g_freed);
}

/* With what it has.  The notes are of no use any more: ghosts are another budget's, or older. */
static int join_locked(lm_region *r, lm_budget *b)
{
    struct lm__member *m = calloc(1, sizeof *m);
    if (!m)
        return -ENOMEM;
    m->region = r;
    r->charges.member = m;
    r->charges.budget = b;
    lm__chunks_forget_notes(&r->chunks);
    for (uint64_t j = 0; j < r->charges.pin_count; j++)
        b->pinned_bytes += run_bytes(r, r->charges.pins[j]);
    uint64_t end = r->chunks.count, i = 0;
    for (; (i = lm__chunks_next(&r->chunks, i, end, LM_CHUNKS_RESIDENT)) < end; i++) {
        charge_locked(b, r, run_bytes(r, (struct lm__run){i, 1}));
        enter(b, r, i, LM_PLACE_NEW);
    }
    return 0;
}

void lm__budget_release(lm_region *r)
{
    pthread_mutex_lock(&g_lock);
    leave_locked(r);
    pthread_mutex_unlock(&g_lock);
}

int lm__budget_join(lm_region *r, lm_budget *b)
{
    lm_budget *old = r->charges.budget;
    int rc = 0;
    pthread_mutex_lock(&g_lock);
    leave_locked(r);
    r->charges.budget = NULL;
    if (b) {
        rc = join_locked(r, b);
        b->refs += rc == 0;
    }
    if (old)
        drop_locked(old);
    pthread_mutex_unlock(&g_lock);
    return rc;
}

/* ---- for the program -------------------------------------------------------------------------- */

int lm_budget_open(uint64_t limit_bytes, const char *spill_folder, lm_budget **out)
{
    lm_budget *b = calloc(1, sizeof *b);
    if (b && spill_folder)
        b->spill = lm__spill_new(spill_folder);
    if (!b || (spill_folder && !b->spill)) {
        free(b);
        return -ENOMEM;
    }
    b->refs = 1;
    b->limit_bytes = limit_bytes;
    pthread_mutex_lock(&g_lock);
    b->next = g_budgets;
    g_budgets = b;
    pthread_mutex_unlock(&g_lock);
    *out = b;
    return 0;
}

void lm_budget_close(lm_budget *b)
{
    pthread_mutex_lock(&g_lock);
    drop_locked(b);
    pthread_mutex_unlock(&g_lock);
}

int lm__budget_is_over(const lm_budget *b)
{
    pthread_mutex_lock(&g_lock);
    int is_over = b->used_bytes > room_bytes(b);
    pthread_mutex_unlock(&g_lock);
    return is_over;
}

void lm__budget_set_limit(lm_budget *b, uint64_t limit_bytes)
{
    pthread_mutex_lock(&g_lock);
    b->limit_bytes = limit_bytes;
    pthread_mutex_unlock(&g_lock);
}

struct lm__spill *lm__budget_spill(const lm_region *r)
{
    return r->charges.budget ? r->charges.budget->spill : NULL;
}

void lm__budget_spilled(lm_region *r, int code)
{
    pthread_mutex_lock(&g_lock);
    if (r->charges.member) {
        r->charges.budget->spill_error = code;
        r->charges.budget->counts.chunks_spilled += code == 0;
    }
    pthread_mutex_unlock(&g_lock);
}

int lm__budget_take_spill_error(lm_region *r)
{
    int code = 0;
    pthread_mutex_lock(&g_lock);
    if (r->charges.member) {
        code = r->charges.budget->spill_error;
        r->charges.budget->spill_error = 0;
    }
    pthread_mutex_unlock(&g_lock);
    return code;
}

uint64_t lm__budget_limit(const lm_region *r)
{
    pthread_mutex_lock(&g_lock);
    const lm_budget *b = r->charges.budget;
    uint64_t limit_bytes = b ? b->limit_bytes : UINT64_MAX;
    pthread_mutex_unlock(&g_lock);
    return limit_bytes;
}

/* Half of what NEW chunks can have. */
struct lm__ahead_room lm__budget_ahead_room(const lm_region *r)
{
    struct lm__ahead_room room = {UINT64_MAX, 0};
    pthread_mutex_lock(&g_lock);
    const lm_budget *b = r->charges.budget;
    if (b) {
        uint64_t known = b->queues[1].bytes, least = b->limit_bytes / NEW_SHARE;
        uint64_t fresh = known < b->limit_bytes ? b->limit_bytes - known : 0;
        room.bytes = (fresh > least ? fresh : least) / 2;
        if (room.bytes > b->limit_bytes / AHEAD_SHARE)
            room.bytes = b->limit_bytes / AHEAD_SHARE;
        room.clock = clock_of(b);
    }
    pthread_mutex_unlock(&g_lock);
    return room;
}

void lm_budget_stats(const lm_budget *b, struct lm_budget_stats *out)
{
    pthread_mutex_lock(&g_lock);
    *out = b->counts;
    out->limit_bytes = b->limit_bytes;
    out->used_bytes = b->used_bytes;
    out->pinned_bytes = b->pinned_bytes;
    out->spilled_bytes = b->spill ? lm__spill_bytes(b->spill) : 0;
    pthread_mutex_unlock(&g_lock);
}

/* ---- pins -------------------------------------------------------------------------------------- */

/* Chunks that overlap the range.  0 or -EINVAL. */
static int run_of(const lm_region *r, uint64_t offset, uint64_t nbytes,
                  struct lm__run *run)
{
    uint64_t object_bytes = r->object->spec.object_bytes;
    if (nbytes == 0 || offset > object_bytes || nbytes > object_bytes - offset)
        return -EINVAL;
    run->first = offset >> r->chunk_shift;
    run->count = ((offset + nbytes - 1) >> r->chunk_shift) + 1 - run->first;
    return 0;
}

int lm_region_pin(lm_region *r, uint64_t offset, uint64_t nbytes, struct lm_error *err)
{
    struct lm__charges *c = &r->charges;
    struct lm__run run = {0, 1};
    int rc = run_of(r, offset, nbytes, &run);
    struct lm_error cause = lm__error(rc, "room for what is pinned");
    pthread_mutex_lock(&g_lock);
    lm_budget *b = c->member ? c->budget : NULL;
    uint64_t bytes = run_bytes(r, run);
    if (rc == 0 && b && b->pinned_bytes + bytes > room_bytes(b) - headroom(b)) {
        rc = LM_E_BUDGET;
        cause.expected = b->pinned_bytes + bytes;
        cause.found = b->limit_bytes;
    }
    if (rc == 0)
        rc = lm__array_reserve(&c->pins, &c->pin_capacity, c->pin_count + 1,
                               sizeof c->pins[0]);
    if (rc == 0) {
        c->pins[c->pin_count++] = run;
        if (b)
            b->pinned_bytes += bytes;
    }
    pthread_mutex_unlock(&g_lock);
    cause.code = rc;
    lm__region_blame(r, run.first, &cause);
    return rc == 0 ? 0 : lm__fail(err, cause);
}

void lm_region_unpin(lm_region *r, uint64_t offset, uint64_t nbytes)
{
    struct lm__charges *c = &r->charges;
    struct lm__run run;
    if (run_of(r, offset, nbytes, &run) != 0)
        return;
    pthread_mutex_lock(&g_lock);
    for (uint64_t i = 0; i < c->pin_count; i++)
        if (c->pins[i].first == run.first && c->pins[i].count == run.count) {
            c->pins[i] = c->pins[--c->pin_count];
            if (c->member)
                c->budget->pinned_bytes -= run_bytes(r, run);
            break;
        }
    pthread_cond_broadcast(&g_freed);
    pthread_mutex_unlock(&g_lock);
}

/* ---- fork -------------------------------------------------------------------------------------- */

void lm__budget_fork_prepare(void) { pthread_mutex_lock(&g_lock); }
void lm__budget_fork_done(void) { pthread_mutex_unlock(&g_lock); }

void lm__budget_fork_child(void)
{
    static const pthread_cond_t fresh = PTHREAD_COND_INITIALIZER;
    g_freed = g_excess = fresh;
}

void lm__budget_forked_locked(lm_region *r)
{
    lm_budget *b = r->charges.budget;
    if (!r->charges.member)
        return;
    leave_locked(r);
    if (!r->is_writable)
        join_locked(r, b);
}
