/* SPDX-License-Identifier: BSD-3-Clause
 * budget.c - how much memory the regions of a budget may have.
 *
 *   charge --> the chunk is filled --> entered in a queue --> victim --> dropped
 *
 * (B1) A chunk is charged before it has a page, and until it has none.
 * (B2) Nobody waits for room who has room: what is charged never exceeds the limit, but where the
 *      limit was lowered or the region came with what it had.
 *
 * queues.c knows whose chunks go first.
 */
#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include "internal.h"

#define HOPE_NS       5000000000ull /* without any room; then it is an error */
#define AHEAD_SHARE   8 /* of the limit, at most, is filled before it is asked for */
#define SLACK_BYTES   ((uint64_t)8 << 20)
#define BUFFERS_SHARE 4  /* of the limit, at most, is for buffers */
#define HEADROOM      32 /* one part in as many is kept free by the evictor */
#define HEADROOM_MAX  ((uint64_t)32 << 20)

struct lm_budget {
    lm_budget *next;
    uint32_t refs;
    uint64_t limit_bytes, used_bytes, pinned_bytes;
    struct lm__queues queues;
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
        if (was_there)
            lm__queues_dropped(&b->queues, r, run, bytes);
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

static int take_victim_locked(lm_budget *b, int may_spill, struct lm__victim *v)
{
    struct lm__choice choice = {b->limit_bytes, may_spill, can_go};
    return lm__queues_take(&b->queues, &choice, v);
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

void lm__budget_filled(lm_region *r, struct lm__run run)
{
    lm_budget *b = r->charges.budget;
    if (!b)
        return;
    pthread_mutex_lock(&g_lock);
    for (uint64_t i = run.first; r->charges.member && i < run.first + run.count; i++)
        b->counts.chunks_back += lm__queues_filled(&b->queues, r, i, b->limit_bytes);
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
            lm__queues_enter(&b->queues, r, i);
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
    lm__queues_fini(&b->queues);
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
    lm__queues_leave(&b->queues, m);
    pthread_cond_broadcast(&g_freed);
}

/* With what it has. */
static int join_locked(lm_region *r, lm_budget *b)
{
    struct lm__member *m = lm__queues_join(r);
    if (!m)
        return -ENOMEM;
    r->charges.member = m;
    r->charges.budget = b;
    for (uint64_t j = 0; j < r->charges.pin_count; j++)
        b->pinned_bytes += run_bytes(r, r->charges.pins[j]);
    uint64_t end = r->chunks.count, i = 0;
    for (; (i = lm__chunks_next(&r->chunks, i, end, LM_CHUNKS_RESIDENT)) < end; i++) {
        charge_locked(b, r, run_bytes(r, (struct lm__run){i, 1}));
        lm__queues_enter(&b->queues, r, i);
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

struct lm__ahead_room lm__budget_ahead_room(const lm_region *r)
{
    struct lm__ahead_room room = {UINT64_MAX, 0};
    const lm_budget *b = r->charges.budget;
    if (!b)
        return room;
    pthread_mutex_lock(&g_lock);
    uint64_t share = b->limit_bytes / AHEAD_SHARE;
    room.bytes = lm__queues_new_bytes(&b->queues, b->limit_bytes) / 2;
    room.bytes = room.bytes < share ? room.bytes : share;
    room.clock = lm__queues_clock(&b->queues);
    pthread_mutex_unlock(&g_lock);
    return room;
}

int lm__budget_forget_drop(lm_region *r, uint64_t chunk_idx, uint64_t clock)
{
    lm_budget *b = r->charges.budget;
    if (!b)
        return 0;
    pthread_mutex_lock(&g_lock);
    int was_dropped =
        r->charges.member && lm__queues_forget_drop(&b->queues, r, chunk_idx, clock);
    pthread_mutex_unlock(&g_lock);
    return was_dropped;
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
