/* SPDX-License-Identifier: BSD-3-Clause
 * copy.c - an object of one file goes to another, as it is stored or encoded anew.
 *
 * Of an object that shares most with one that was copied before only the difference is
 * copied, and the copies share as much: a history is copied state by state, oldest first.
 */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

struct lm_copy {
    lm_writer *to;
    lm_object *from;
    struct lm_encoding enc;
    int is_encoded_anew;
    struct lm__index index; /* of the copy that it differs from, in the new file */
    uint64_t *chunks;       /* that are copied, one for each step */
    uint64_t count, capacity;
    struct lm__change *changes;
    uint64_t change_count;
    struct lm_written written;
};

static int add_run(lm_copy *c, uint64_t first, uint64_t count)
{
    int rc = lm__array_reserve(&c->chunks, &c->capacity, c->count + count,
                               sizeof c->chunks[0]);
    for (uint64_t i = 0; i < count && rc == 0; i++)
        c->chunks[c->count++] = first + i;
    return rc;
}

static int find_chunks(lm_copy *c, lm_object *before, struct lm_error *err)
{
    static const struct lm_root zero;
    struct lm__scratch scratch = lm__scratch_take();
    struct lm__base *now = lm__object_base(c->from);
    struct lm__base *then = before ? lm__object_base(before)
                                   : lm__base_new(now->store, c->from->chunks, &zero);
    uint64_t first = 0, count = 0;
    int found = then ? 1 : lm__fail(err, lm__error(-ENOMEM, "copy"));
    while (found > 0) {
        found = lm__index_diff(&now->index, &now->store->source, &then->index,
                               &then->store->source, first + count, &scratch, &first,
                               &count, err);
        if (found > 0 && add_run(c, first, count) != 0)
            found = lm__fail(err, lm__error(-ENOMEM, "copy"));
    }
    lm__base_drop(now);
    if (then)
        lm__base_drop(then);
    lm__scratch_give(&scratch);
    return found;
}

static void copy_free(lm_copy *c)
{
    lm_object_close(c->from);
    free(c->chunks);
    free(c->changes);
    free(c);
}

int lm_copy_begin(lm_writer *to, lm_object *from, lm_object *before,
                  const struct lm_root *before_root, const struct lm_encoding *enc,
                  lm_copy **out, struct lm_error *err)
{
    if ((enc &&
         (!lm__encoding_is_sound(enc) || enc->chunk_bytes != from->spec.chunk_bytes)) ||
        (before && before->chunks != from->chunks))
        return lm__fail(err, lm__error(-EINVAL, "copy"));
    lm_copy *c = calloc(1, sizeof *c);
    if (!c)
        return lm__fail(err, lm__error(-ENOMEM, "copy"));
    c->to = to;
    c->from = from;
    lm__object_retain(from);
    c->index.chunks = from->chunks;
    c->index.depth = lm__index_depth(from->chunks);
    if (before)
        c->index.root = lm__entry_of_root(before_root);
    if (enc) {
        c->enc = *enc;
        c->is_encoded_anew = 1;
    }
    int rc = find_chunks(c, before, err);
    c->changes = malloc((c->count + 1) * sizeof c->changes[0]);
    if (rc == 0 && !c->changes)
        rc = lm__fail(err, lm__error(-ENOMEM, "copy"));
    if (rc != 0)
        copy_free(c);
    else
        *out = c;
    return rc;
}

static int appended(void *context, uint64_t chunk_idx, const struct lm__entry *e,
                    enum lm__appended how, struct lm_error *err)
{
    lm_copy *c = context;
    (void)err;
    c->changes[c->change_count++] = (struct lm__change){chunk_idx, *e};
    c->written.chunks_total++;
    c->written.chunks_zero += how == LM_APPENDED_ZERO;
    c->written.chunks_repeated += how == LM_APPENDED_REPEAT;
    if (how == LM_APPENDED_PAYLOAD)
        c->written.stored_bytes += e->stored_bytes;
    return 0;
}

/* The payload as it is, or the bytes that it stands for.  Zeros have no payload. */
static int read_chunk(lm_copy *c, struct lm__scratch *scratch,
                      struct lm__chunk_bytes *chunk, struct lm__entry *e,
                      struct lm_error *err)
{
    static const uint8_t zeros[LM_CHUNK_BYTES_MIN];
    uint8_t *bytes = NULL;
    uint64_t stored_bytes = 0;
    struct lm__base *base = lm__object_base(c->from);
    struct lm__source *source = &base->store->source;
    int rc = lm__index_lookup(&base->index, source, chunk->chunk, scratch, e, err);
    chunk->count = lm__object_chunk_bytes(c->from, chunk->chunk);
    if (rc == 0 && lm__entry_is_zero(e)) {
        *chunk = (struct lm__chunk_bytes){
            .chunk = chunk->chunk, .bytes = zeros, .count = 1, .encoded = e};
    } else if (rc == 0 && c->is_encoded_anew) {
        rc = lm__scratch_reserve_block(scratch, c->from->spec.chunk_bytes);
        bytes = scratch->block; /* the encoder has the buffers */
        if (rc == 0)
            rc = lm__object_decode(c->from, chunk->chunk, scratch, &bytes,
                                   &stored_bytes, err);
        chunk->bytes = bytes;
    } else if (rc == 0) {
        rc = lm__scratch_reserve(scratch, e->stored_bytes);
        if (rc == 0)
            rc = lm__source_read(source, e, "payload", scratch, scratch->b, err);
        chunk->bytes = scratch->b;
        chunk->count = e->stored_bytes;
        chunk->encoded = e;
    }
    lm__base_drop(base);
    return rc;
}

static int copy_step(void *context, uint64_t step_idx, struct lm__scratch *scratch,
                     struct lm_error *err)
{
    lm_copy *c = context;
    struct lm__chunk_bytes chunk = {.chunk = c->chunks[step_idx], .enc = &c->enc};
    struct lm__entry e;
    int rc = lm__append_wait_for_room(c->to, step_idx, err);
    if (rc != 0)
        return rc;
    *err = lm__error(-ENOMEM, "copy");
    rc = read_chunk(c, scratch, &chunk, &e, err);
    if (rc < 0)
        return lm__append_fail(c->to, *err, err);
    return lm__append_step(c->to, step_idx, &chunk, scratch, err);
}

int lm_copy_write(lm_copy *c, lm_job **out)
{
    struct lm__job_spec spec = {.step = copy_step, .context = c, .steps = c->count};
    *out = NULL;
    if (c->count == 0)
        return 0;
    lm__append_begin(c->to, c->count, appended, c);
    return lm__job_start(&spec, out);
}

int lm_copy_end(lm_copy *c, struct lm_written *out, struct lm_error *err)
{
    struct lm__source source = {.fd = c->to->fd, .end_offset = c->to->tail};
    struct lm__scratch scratch = lm__scratch_take();
    struct lm_error cause;
    struct lm__entry root;
    int rc = lm__append_check(c->to, err);
    if (rc == 0) {
        rc = lm__index_update(&c->index, &source, c->to, c->changes, c->change_count,
                              &scratch, &root, &cause);
        if (rc != 0)
            lm__append_fail(c->to, cause, err);
        else
            c->written.root = lm__root_of(&root);
    }
    *out = c->written;
    lm__scratch_give(&scratch);
    copy_free(c);
    return rc;
}
