/* SPDX-License-Identifier: BSD-3-Clause
 * object.c - a stored array as a row of chunks: chunk number in, decoded bytes out.
 *
 *   index -> entry -> source (read, CRC) -> codec -> filter
 */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

/* ---- what chunks are read from ---------------------------------------------------------------- */

/* Of all objects: held for an instant, and never by a thread that a forked child lacks. */
static pthread_mutex_t g_bases_lock = PTHREAD_MUTEX_INITIALIZER;

void lm__object_fork_prepare(void) { pthread_mutex_lock(&g_bases_lock); }
void lm__object_fork_done(void) { pthread_mutex_unlock(&g_bases_lock); }

struct lm__base *lm__base_new(lm_store *store, uint64_t chunks,
                              const struct lm_root *root)
{
    struct lm__base *base = calloc(1, sizeof *base);
    if (!base)
        return NULL;
    base->refs = 1;
    base->store = store;
    base->index.chunks = chunks;
    base->index.depth = lm__index_depth(chunks);
    base->index.root = lm__entry_of_root(root);
    lm__store_retain(store);
    return base;
}

void lm__base_drop(struct lm__base *base)
{
    if (lm_sub_acq_rel(&base->refs, 1) != 1)
        return;
    lm__index_fini(&base->index);
    lm_store_close(base->store);
    free(base);
}

/* ---- lifetime --------------------------------------------------------------------------------- */

int lm_object_open(lm_store *store, const struct lm_object_spec *spec, lm_object **out,
                   struct lm_error *err)
{
    struct lm_error cause = lm__error(LM_E_FORMAT, "object");
    cause.tag = spec->tag;
    if (!lm__is_power_of_two(spec->chunk_bytes) ||
        spec->chunk_bytes < LM_CHUNK_BYTES_MIN ||
        spec->chunk_bytes > LM_CHUNK_BYTES_MAX || spec->object_bytes == 0 ||
        spec->object_bytes > INT64_MAX || spec->shuffle_width > spec->chunk_bytes)
        return lm__fail(err, cause);
    lm_object *o = calloc(1, sizeof *o);
    if (o) {
        o->refs = 1;
        o->spec = *spec;
        o->chunk_shift = lm__log2(spec->chunk_bytes);
        o->chunks = lm__div_up(spec->object_bytes, spec->chunk_bytes);
        o->base = lm__base_new(store, o->chunks, &spec->root);
    }
    if (!o || !o->base) {
        free(o);
        cause.code = -ENOMEM;
        return lm__fail(err, cause);
    }
    *out = o;
    return 0;
}

void lm__object_retain(lm_object *o) { lm_add_relaxed(&o->refs, 1); }

void lm_object_close(lm_object *o)
{
    if (lm_sub_acq_rel(&o->refs, 1) != 1)
        return;
    lm__base_drop(o->base);
    free(o);
}

struct lm__base *lm__object_base(lm_object *o)
{
    pthread_mutex_lock(&g_bases_lock);
    struct lm__base *base = o->base;
    lm_add_relaxed(&base->refs, 1);
    lm__pause("base");
    pthread_mutex_unlock(&g_bases_lock);
    return base;
}

void lm__object_set_base(lm_object *o, struct lm__base *base)
{
    pthread_mutex_lock(&g_bases_lock);
    struct lm__base *old = o->base;
    o->base = base;
    pthread_mutex_unlock(&g_bases_lock);
    lm__base_drop(old);
}

int lm_object_rebase(lm_object *o, lm_store *store, const struct lm_root *root)
{
    struct lm__base *base = lm__base_new(store, o->chunks, root);
    if (!base)
        return -ENOMEM;
    lm__object_set_base(o, base);
    return 0;
}

int lm_object_diff(lm_object *a, lm_object *b, uint64_t from, uint64_t *first,
                   uint64_t *count, struct lm_error *err)
{
    if (a->spec.object_bytes != b->spec.object_bytes ||
        a->spec.chunk_bytes != b->spec.chunk_bytes)
        return lm__fail(err, lm__error(-EINVAL, "objects"));
    struct lm__scratch scratch = lm__scratch_take();
    struct lm__base *old = lm__object_base(a), *new = lm__object_base(b);
    int rc = lm__index_diff(&old->index, &old->store->source, &new->index,
                            &new->store->source, from, &scratch, first, count, err);
    lm__base_drop(old);
    lm__base_drop(new);
    lm__scratch_give(&scratch);
    return rc;
}

/* ---- chunks ------------------------------------------------------------------------------------- */

size_t lm__object_chunk_bytes(const lm_object *o, uint64_t chunk_idx)
{
    uint64_t left = o->spec.object_bytes - (chunk_idx << o->chunk_shift);
    return left < o->spec.chunk_bytes ? (size_t)left : o->spec.chunk_bytes;
}

static int entry_is_sound(const lm_object *o, const struct lm__entry *e, size_t bytes)
{
    static const uint8_t zero[sizeof e->zero];
    if (!lm__codec(e->codec) || memcmp(e->zero, zero, sizeof zero) != 0)
        return 0;
    if (e->filter > LM_FILTER_SHUFFLE ||
        (e->filter == LM_FILTER_SHUFFLE && o->spec.shuffle_width == 0))
        return 0;
    return e->codec == LM_CODEC_NONE ? e->stored_bytes == bytes
                                     : e->stored_bytes <= bytes;
}

int lm__object_reserve(const lm_object *o, struct lm__scratch *s)
{
    /* Whole pages are installed, so the buffers hold whole pages. */
    return lm__scratch_reserve(s, lm__round_up(o->spec.chunk_bytes, lm__page_bytes()));
}

static int decode(lm_object *o, struct lm__base *base, uint64_t chunk_idx,
                  struct lm__scratch *s, uint8_t **out, uint64_t *stored_bytes,
                  struct lm_error *err)
{
    size_t bytes = lm__object_chunk_bytes(o, chunk_idx);
    struct lm__source *source = &base->store->source;
    struct lm__entry e;
    int rc = lm__index_lookup(&base->index, source, chunk_idx, s, &e, err);
    if (rc != 0)
        return rc;
    if (lm__entry_is_zero(&e))
        return LM_ZERO_CHUNK;

    struct lm_error cause = lm__error(LM_E_FORMAT, "index entry");
    cause.offset = e.offset;
    cause.expected = bytes;
    cause.found = e.stored_bytes;
    if (!entry_is_sound(o, &e, bytes))
        return lm__fail(err, cause);
    return lm__payload_decode(source, &e, o->spec.shuffle_width, bytes, s, out,
                              stored_bytes, err);
}

int lm__object_decode(lm_object *o, uint64_t chunk_idx, struct lm__scratch *s,
                      uint8_t **out, uint64_t *stored_bytes, struct lm_error *err)
{
    struct lm__base *base = lm__object_base(o);
    int rc = decode(o, base, chunk_idx, s, out, stored_bytes, err);
    lm__base_drop(base);
    if (rc < 0 && err) {
        err->tag = o->spec.tag;
        err->chunk_idx = chunk_idx;
    }
    return rc;
}

int lm__object_is_zero(lm_object *o, uint64_t chunk_idx, struct lm__scratch *s)
{
    struct lm__entry e;
    struct lm__base *base = lm__object_base(o);
    int rc =
        lm__index_lookup(&base->index, &base->store->source, chunk_idx, s, &e, NULL);
    lm__base_drop(base);
    return rc != 0 ? rc : lm__entry_is_zero(&e);
}

void lm__object_will_need(lm_object *o, uint64_t first, uint64_t count,
                          struct lm__scratch *s)
{
    struct lm__base *base = lm__object_base(o);
    struct lm__source *source = &base->store->source;
    struct lm__entry e;
    uint64_t from = 0, to = 0; /* of the file: payloads mostly lie side by side */
    for (uint64_t i = first; i < first + count && i < o->chunks; i++) {
        if (lm__index_lookup(&base->index, source, i, s, &e, NULL) != 0)
            break;
        if (e.offset != to && to > from) {
            lm__io_will_need(source->fd, from, to - from);
            from = to;
        }
        if (!lm__entry_is_zero(&e)) {
            from = to > from ? from : e.offset;
            to = e.offset + e.stored_bytes;
        }
    }
    if (to > from)
        lm__io_will_need(source->fd, from, to - from);
    lm__base_drop(base);
}
