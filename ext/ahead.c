/* SPDX-License-Identifier: BSD-3-Clause
 * ahead.c - readahead: chunks are filled before a reader gets to them, where faults show a run.
 *
 *   faults at chunk 7, 8, 9          --> a stream with stride +1 chunk
 *   10 [11 12 13]                    --> filled by the workers, but for the first: the tripwire
 *   fault at 10 --> [15 ... 20]      --> and so on, ever more, up to AHEAD_BYTES
 *
 * A chunk in memory raises no fault, so a run that is ahead of its reader would go blind.
 * Therefore the first chunk of each piece is left out: its fault says that the reader has come
 * so far, half a window before the end of what is filled, and the next piece is begun.  The
 * reader waits for one chunk in a piece, while the workers go on.  One who is quicker than they
 * are is seen without, since he faults on what they are filling; and a piece without a hole
 * consists of whole huge pages, which can be moved into place.
 *
 * Strides are in bytes, of exact addresses: a column of a matrix whose rows are not whole
 * chunks.  What a reader does chunk after chunk, wherever in them, is a stride of one chunk.
 *
 * A stream that is replaced before half of what it asked for was reached has wasted work: then
 * it takes one more fault in line to begin the next one, until a stream proves good.
 */
#include "internal.h"

#define AHEAD_BYTES  ((uint64_t)32 << 20) /* of a stream's window, at most */
#define WINDOW_FIRST 4                    /* chunks */
#define FAULTS_MIN   2   /* in line before the one that begins a stream; 3, with gaps */
#define PROVEN       16  /* chunks reached: the stream is a good one */
#define QUIET_MAX    128 /* faults elsewhere, until a stream is taken to have ended */

/* ---- where a stream leads to ---------------------------------------------------------------- */

static uint64_t chunk_of(const lm_region *r, uint64_t offset)
{
    return offset >> r->chunk_shift;
}

static int is_chunkwise(const lm_region *r, int64_t stride)
{
    return stride == (int64_t)1 << r->chunk_shift ||
           stride == -((int64_t)1 << r->chunk_shift);
}

static uint64_t place_in(const lm_region *r, int64_t stride, uint64_t offset)
{
    return is_chunkwise(r, stride) ? lm__round_down(offset, 1ull << r->chunk_shift)
                                   : offset;
}

/* How many steps of the stream it is from where it was to `offset`; -1: it does not get there. */
static int64_t steps_to(const lm_region *r, const struct lm__stream *s, uint64_t offset)
{
    int64_t way = (int64_t)(place_in(r, s->stride, offset) - s->at);
    return way % s->stride == 0 && way / s->stride >= 0 ? way / s->stride : -1;
}

/* How many steps it can go; none from the rest of the last page, behind the object. */
static uint64_t steps_left(const lm_region *r, const struct lm__stream *s)
{
    uint64_t last = r->object->spec.object_bytes - 1;
    if (s->stride < 0)
        return s->at / (uint64_t)-s->stride;
    return s->at < last ? (last - s->at) / (uint64_t)s->stride : 0;
}

/* ---- detection: all under the lock ----------------------------------------------------------- */

/* Two streams may have as much as there is room for. */
static uint64_t window_max(const lm_region *r)
{
    uint64_t bytes = r->ahead.room.bytes;
    unsigned streams = 0;
    for (unsigned i = 0; i < LM_STREAMS; i++)
        streams += r->ahead.streams[i].stride != 0;
    if (streams > 2 && bytes != UINT64_MAX)
        bytes = bytes / streams * 2;
    return (bytes < AHEAD_BYTES ? bytes : AHEAD_BYTES) >> r->chunk_shift;
}

static int was_seen(const struct lm__ahead *a, const lm_region *r, uint64_t offset,
                    int is_anywhere_in_chunk)
{
    for (unsigned i = 0; i < LM_AHEAD_HISTORY; i++)
        if (a->history[i] == offset ||
            (is_anywhere_in_chunk && a->history[i] != LM_NONE &&
             chunk_of(r, a->history[i]) == chunk_of(r, offset)))
            return 1;
    return 0;
}

/* The last faults lie in line with this one. */
static int is_in_line(const struct lm__ahead *a, const lm_region *r, uint64_t offset,
                      int64_t stride)
{
    unsigned faults = FAULTS_MIN + a->strikes + !is_chunkwise(r, stride);
    for (unsigned i = 1; i <= faults; i++)
        if (!was_seen(a, r, offset - (uint64_t)((int64_t)i * stride),
                      is_chunkwise(r, stride)))
            return 0;
    return 1;
}

/* The stride of a run that this fault belongs to, or 0. */
static int64_t find_stride(const struct lm__ahead *a, const lm_region *r,
                           uint64_t offset)
{
    int64_t chunk = (int64_t)1 << r->chunk_shift;
    if (lm_load_relaxed(&a->advice) == LM_ADVICE_SEQUENTIAL ||
        is_in_line(a, r, offset, chunk))
        return chunk;
    if (is_in_line(a, r, offset, -chunk))
        return -chunk;
    for (unsigned i = 0; i < LM_AHEAD_HISTORY; i++) {
        int64_t stride = (int64_t)(offset - a->history[i]);
        if (a->history[i] != LM_NONE && (stride > chunk || stride < -chunk) &&
            is_in_line(a, r, offset, stride))
            return stride;
    }
    return 0;
}

static void give_up(struct lm__ahead *a, struct lm__stream *s)
{
    a->wasted += s->ahead - (s->ahead > 0 && s->wire != LM_NONE);
    if (s->ahead > s->reached && a->strikes < LM_AHEAD_HISTORY - FAULTS_MIN - 1)
        a->strikes++;
    s->stride = 0;
}

static struct lm__stream *begin(struct lm__ahead *a, const lm_region *r,
                                uint64_t offset)
{
    int64_t stride = find_stride(a, r, offset);
    a->history[a->clock % LM_AHEAD_HISTORY] = offset;
    if (stride == 0)
        return NULL;
    struct lm__stream *s = &a->streams[0]; /* the one that was quiet for longest */
    for (unsigned i = 1; i < LM_STREAMS; i++)
        if (a->streams[i].stride == 0 ||
            (s->stride != 0 && a->streams[i].last < s->last))
            s = &a->streams[i];
    if (s->stride != 0)
        give_up(a, s);
    *s = (struct lm__stream){.at = place_in(r, stride, offset),
                             .stride = stride,
                             .window = WINDOW_FIRST / 2,
                             .wire = LM_NONE,
                             .most = UINT32_MAX,
                             .asked = {a->room.clock, a->room.clock}};
    if (lm_load_relaxed(&a->advice) == LM_ADVICE_SEQUENTIAL)
        s->window = (uint32_t)window_max(r) / 8;
    return s;
}

/* A fault on what was asked for: it is not there yet, or no more.  In the latter case too much was
 * asked for, beside what others ask for: from then on it is less, and slowly more again. */
static void note_inside(lm_region *r, struct lm__stream *s, uint64_t chunk_idx)
{
    if (!lm__budget_forget_drop(r, chunk_idx, s->asked[0])) {
        s->is_chased = 1;
    } else if (!s->is_late) {
        s->is_late = 1;
        s->calm = s->reached;
        s->most = s->window > 2 * WINDOW_FIRST ? s->window / 2 : WINDOW_FIRST;
    }
}

/* The stream that leads to `offset`, which has got there. */
static struct lm__stream *follow(struct lm__ahead *a, lm_region *r, uint64_t offset)
{
    for (unsigned i = 0; i < LM_STREAMS; i++) {
        struct lm__stream *s = &a->streams[i];
        if (s->stride != 0 && a->clock - s->last > QUIET_MAX)
            give_up(a, s);
        int64_t steps = s->stride != 0 ? steps_to(r, s, offset) : -1;
        if (steps < 0 || steps > s->ahead + 1)
            continue;
        uint32_t reached = (uint32_t)steps < s->ahead ? (uint32_t)steps : s->ahead;
        s->reached += reached;
        s->ahead -= reached;
        s->at = place_in(r, s->stride, offset);
        if ((uint64_t)steps == reached && s->at != s->wire)
            note_inside(r, s, chunk_of(r, offset));
        if (s->reached >= PROVEN)
            a->strikes = 0;
        return s;
    }
    return NULL;
}

/* The next piece of a stream, if it is time. */
struct piece {
    uint64_t at; /* of its first step */
    int64_t stride;
    uint64_t count;
};

static struct piece extend(const lm_region *r, struct lm__stream *s)
{
    struct piece piece = {.stride = s->stride};
    uint64_t most = window_max(r), left = steps_left(r, s) - s->ahead;
    if (s->most < most)
        most = s->most;
    uint32_t window = 2 * s->window < most ? 2 * s->window : (uint32_t)most;
    if (2 * s->ahead > window)
        return piece;
    s->window = window;
    piece.at = s->at + (uint64_t)(s->stride * ((int64_t)s->ahead + 1));
    piece.count = s->window - s->ahead;
    /* Pieces end where huge pages do. */
    uint64_t unit = LM_HUGE_BYTES >> r->chunk_shift;
    uint64_t beyond = unit > 1 ? (chunk_of(r, piece.at) + piece.count) % unit : 0;
    if (s->stride == (int64_t)1 << r->chunk_shift && piece.count > 2 * unit)
        piece.count -= beyond;
    if (piece.count > left)
        piece.count = left;
    s->ahead += (uint32_t)piece.count;
    s->wire = s->is_chased || piece.count == 0 ? LM_NONE : piece.at;
    s->is_chased = s->is_late = 0;
    s->asked[0] = s->asked[1];
    s->asked[1] = r->ahead.room.clock;
    if (s->most != UINT32_MAX && s->reached - s->calm > 32 * (uint64_t)s->most) {
        s->most += s->most / 2;
        s->calm = s->reached;
    }
    if (s->wire != LM_NONE) {
        piece.at += (uint64_t)piece.stride;
        piece.count--;
    }
    return piece;
}

/* ---- for the rest of the engine --------------------------------------------------------------- */

void lm__ahead_note(lm_region *r, uint64_t offset, int is_write)
{
    struct lm__ahead *a = &r->ahead;
    struct piece piece = {0};
    if (lm_load_relaxed(&a->advice) == LM_ADVICE_RANDOM)
        return;
    pthread_mutex_lock(&a->lock);
    a->clock++;
    a->room = lm__budget_ahead_room(r);
    struct lm__stream *s = follow(a, r, offset);
    if (!s && window_max(r) >= WINDOW_FIRST)
        s = begin(a, r, offset);
    if (s) {
        s->last = a->clock;
        piece = extend(r, s);
        a->chunks += piece.count;
    }
    pthread_mutex_unlock(&a->lock);
    if (piece.count > 0) /* where that fails, there is demand */
        lm__prefetch_run(r, piece.at, piece.stride, piece.count,
                         is_write && r->tracking != LM_TRACK_NONE);
}
