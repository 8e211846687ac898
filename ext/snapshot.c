/* SPDX-License-Identifier: BSD-3-Clause
 * snapshot.c - what was written to a store's memory goes to its file.
 *
 *   freeze (freeze.c) --> step for each chunk: copy, compare with what is stored, append
 *                             '--> changes --> index pages (index_update.c) --> commit
 *
 * Until the commit nothing refers to what was appended, and a chunk is CLEAN only when the
 * commit has made it so.
 */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

struct part {
    lm_region *region;
    struct lm_encoding enc;
    uint64_t first_item, first_step; /* fixed after begin, as all above */
    struct lm__change *changes;      /* filled in order by the steps, as all below */
    uint64_t change_count;
    struct lm_written written;
    _Atomic uint64_t replaced_bytes;
    struct lm__base *base; /* what the commit will make the object's; NULL: as it is */
};

struct lm_snapshot {
    lm_writer *writer;
    struct lm__freeze *freeze;
    struct part *parts;
    int part_count;
    uint64_t steps;
};

/* ---- steps: one chunk of an object each ---------------------------------------------------------- */

/* A region's chunk is as many of an object's. */
static unsigned shift_of(const struct part *p)
{
    return p->region->chunk_shift - p->region->object->chunk_shift;
}

static struct part *part_of(const lm_snapshot *s, uint64_t step_idx)
{
    int low = 0, high = s->part_count;
    while (high - low > 1) {
        int mid = (low + high) / 2;
        *(s->parts[mid].first_step <= step_idx ? &low : &high) = mid;
    }
    return &s->parts[low];
}

static uint64_t item_of(const struct part *p, uint64_t step_idx)
{
    return p->first_item + ((step_idx - p->first_step) >> shift_of(p));
}

static uint64_t chunk_of(const lm_snapshot *s, const struct part *p, uint64_t step_idx)
{
    uint64_t count, step = step_idx - p->first_step;
    const struct lm__frozen *items = lm__freeze_items(s->freeze, &count);
    uint64_t first = items[item_of(p, step_idx)].chunk_idx << shift_of(p);
    return first + (step & ((1u << shift_of(p)) - 1));
}

/* 1 if the bytes are what is stored, in a payload of *stored_bytes.  Where that can't be read,
 * it is replaced. */
static int is_stored(lm_object *o, uint64_t chunk_idx, const uint8_t *bytes,
                     struct lm__scratch *scratch, uint64_t *stored_bytes)
{
    uint8_t *stored = NULL;
    size_t count = lm__object_chunk_bytes(o, chunk_idx);
    int rc = lm__object_decode(o, chunk_idx, scratch, &stored, stored_bytes, NULL);
    if (rc == LM_ZERO_CHUNK)
        return lm__is_zero(bytes, count);
    return rc == 0 && memcmp(bytes, stored, count) == 0;
}

static int snapshot_step(void *context, uint64_t step_idx, struct lm__scratch *scratch,
                         struct lm_error *err)
{
    lm_snapshot *s = context;
    struct part *p = part_of(s, step_idx);
    lm_object *o = p->region->object;
    uint64_t item = item_of(p, step_idx), chunk_idx = chunk_of(s, p, step_idx);
    uint64_t mask = (1u << shift_of(p)) - 1;
    const uint8_t *bytes;
    uint64_t replaced_bytes = 0;
    struct lm__chunk_bytes chunk = {.chunk = step_idx, .enc = &p->enc};
    int rc = lm__append_wait_for_room(s->writer, step_idx, err);
    if (rc != 0)
        return rc;
    rc = lm__freeze_take(s->freeze, item, scratch, &bytes, err);
    if (rc != 0)
        return lm__append_fail(s->writer, *err, err);
    bytes += (chunk_idx & mask) << o->chunk_shift;
    if (chunk_idx < o->chunks &&
        !is_stored(o, chunk_idx, bytes, scratch, &replaced_bytes)) {
        lm_add_relaxed(&p->replaced_bytes, replaced_bytes);
        chunk.bytes = bytes;
        chunk.count = lm__object_chunk_bytes(o, chunk_idx);
    }
    rc = lm__append_step(s->writer, step_idx, &chunk, scratch, err);
    lm__freeze_give(s->freeze, item);
    return rc;
}

static int appended(void *context, uint64_t step_idx, const struct lm__entry *e,
                    enum lm__appended how, struct lm_error *err)
{
    lm_snapshot *s = context;
    struct part *p = part_of(s, step_idx);
    (void)err;
    if (how == LM_APPENDED_NOTHING)
        return 0;
    p->changes[p->change_count++] = (struct lm__change){chunk_of(s, p, step_idx), *e};
    p->written.chunks_total++;
    p->written.chunks_zero += how == LM_APPENDED_ZERO;
    p->written.chunks_repeated += how == LM_APPENDED_REPEAT;
    if (how == LM_APPENDED_PAYLOAD)
        p->written.stored_bytes += e->stored_bytes;
    return 0;
}

/* ---- life ------------------------------------------------------------------------------------------- */

static int parts_open(lm_snapshot *s, const struct lm_snapshot_part *parts)
{
    for (int i = 0; i < s->part_count; i++) {
        s->parts[i].region = parts[i].region;
        s->parts[i].enc = parts[i].encoding;
        s->parts[i].enc.object_bytes = parts[i].region->object->spec.object_bytes;
        lm_region_retain(parts[i].region);
        if (!lm__encoding_is_sound(&s->parts[i].enc) ||
            parts[i].encoding.chunk_bytes != parts[i].region->object->spec.chunk_bytes)
            return -EINVAL;
    }
    return 0;
}

/* Which steps are whose.  Memory is had here, so that later none is wanting. */
static int plan(lm_snapshot *s)
{
    uint64_t count;
    const struct lm__frozen *items = lm__freeze_items(s->freeze, &count);
    uint64_t item = 0;
    for (int i = 0; i < s->part_count; i++) {
        struct part *p = &s->parts[i];
        p->first_item = item;
        p->first_step = s->steps;
        while (item < count && items[item].region == (uint32_t)i)
            item++;
        uint64_t steps = (item - p->first_item) << shift_of(p);
        s->steps += steps;
        p->changes = malloc((steps + 1) * sizeof p->changes[0]);
        if (!p->changes)
            return -ENOMEM;
    }
    return 0;
}

static int freeze(lm_snapshot *s, struct lm_snapshot_stats *stats, struct lm_error *err)
{
    lm_region **regions = malloc(((size_t)s->part_count + 1) * sizeof regions[0]);
    if (!regions)
        return lm__fail(err, lm__error(-ENOMEM, "snapshot"));
    for (int i = 0; i < s->part_count; i++)
        regions[i] = s->parts[i].region;
    int rc = lm__freeze_begin(regions, s->part_count, &s->freeze, stats, err);
    free(regions);
    if (rc == 0 && (rc = plan(s)) != 0)
        lm__fail(err, lm__error(rc, "snapshot"));
    return rc;
}

int lm_snapshot_begin(lm_writer *w, const struct lm_snapshot_part *parts, int count,
                      lm_snapshot **out, struct lm_snapshot_stats *stats,
                      struct lm_error *err)
{
    lm_snapshot *s = calloc(1, sizeof *s);
    struct part *own = calloc((size_t)count + 1, sizeof own[0]);
    if (!s || !own) {
        free(s);
        free(own);
        return lm__fail(err, lm__error(-ENOMEM, "snapshot"));
    }
    s->writer = w;
    s->parts = own;
    s->part_count = count;
    lm__append_recover(w);
    int rc = lm__append_check(w, err);
    if (rc == 0 && (rc = parts_open(s, parts)) != 0)
        lm__fail(err, lm__error(rc, "encoding"));
    if (rc == 0)
        rc = freeze(s, stats, err);
    if (rc != 0)
        lm_snapshot_close(s, 0);
    else
        *out = s;
    return rc;
}

int lm_snapshot_write(lm_snapshot *s, lm_job **out)
{
    struct lm__job_spec spec = {.step = snapshot_step, .context = s, .steps = s->steps};
    *out = NULL;
    if (s->steps == 0)
        return 0;
    lm__append_begin(s->writer, s->steps, appended, s);
    return lm__job_start(&spec, out);
}

static int part_end(lm_snapshot *s, struct part *p, struct lm__scratch *scratch,
                    struct lm_error *err)
{
    lm_object *o = p->region->object;
    struct lm__base *old = lm__object_base(o);
    struct lm__entry root;
    int rc = lm__index_update(&old->index, &old->store->source, s->writer, p->changes,
                              p->change_count, scratch, &root, err);
    lm__base_drop(old);
    if (rc != 0)
        return rc;
    p->written.root = lm__root_of(&root);
    if (p->change_count == 0)
        return 0;
    p->base = lm__base_new(s->writer->store, o->chunks, &p->written.root);
    return p->base ? 0 : lm__fail(err, lm__error(-ENOMEM, "index"));
}

int lm_snapshot_end(lm_snapshot *s, struct lm_written *out, struct lm_error *err)
{
    struct lm__scratch scratch = lm__scratch_take();
    struct lm_error cause;
    int rc = lm__append_check(s->writer, err);
    for (int i = 0; i < s->part_count && rc == 0; i++) {
        rc = part_end(s, &s->parts[i], &scratch, &cause);
        if (rc != 0)
            lm__append_fail(s->writer, cause, err);
        out[i] = s->parts[i].written;
        out[i].replaced_bytes = lm_load_relaxed(&s->parts[i].replaced_bytes);
    }
    lm__scratch_give(&scratch);
    return rc;
}

void lm_snapshot_close(lm_snapshot *s, int is_committed)
{
    for (int i = 0; i < s->part_count && is_committed; i++)
        if (s->parts[i].base) {
            lm__object_set_base(s->parts[i].region->object, s->parts[i].base);
            s->parts[i].base = NULL;
        }
    if (s->freeze)
        lm__freeze_end(s->freeze, is_committed);
    for (int i = 0; i < s->part_count; i++) {
        if (s->parts[i].base)
            lm__base_drop(s->parts[i].base);
        if (s->parts[i].region)
            lm__region_drop(s->parts[i].region);
        free(s->parts[i].changes);
    }
    free(s->parts);
    free(s);
}
