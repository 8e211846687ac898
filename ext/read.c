/* SPDX-License-Identifier: BSD-3-Clause
 * read.c - objects decoded into private memory, or only verified, on all cores.
 *
 * What needs no address space of its own: unpacking, verifying, and machines that have no
 * userfaultfd.
 */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

struct read_job {
    lm_object *object;
    uint64_t offset; /* of the object's bytes, [offset, offset + nbytes) */
    uint64_t nbytes;
    uint8_t *dst; /* NULL: verify only */
};

static int read_step(void *context, uint64_t step_idx, struct lm__scratch *scratch,
                     struct lm_error *err)
{
    struct read_job *job = context;
    lm_object *o = job->object;
    uint64_t chunk_idx = (job->offset >> o->chunk_shift) + step_idx, stored_bytes = 0;
    uint64_t start = chunk_idx << o->chunk_shift;
    uint64_t end = start + lm__object_chunk_bytes(o, chunk_idx);
    uint64_t low = start > job->offset ? start : job->offset;
    uint64_t high = end < job->offset + job->nbytes ? end : job->offset + job->nbytes;
    uint8_t *bytes = NULL;
    int rc = lm__object_decode(o, chunk_idx, scratch, &bytes, &stored_bytes, err);
    if (rc < 0 || !job->dst)
        return rc < 0 ? rc : 0;
    if (rc == LM_ZERO_CHUNK)
        memset(job->dst + (low - job->offset), 0, (size_t)(high - low));
    else
        memcpy(job->dst + (low - job->offset), bytes + (low - start),
               (size_t)(high - low));
    return 0;
}

static void read_free(void *context)
{
    struct read_job *job = context;
    lm_object_close(job->object);
    free(job);
}

static int read_start(lm_object *o, uint64_t offset, uint64_t nbytes, void *dst,
                      lm_job **out)
{
    if (nbytes == 0 || offset > o->spec.object_bytes ||
        nbytes > o->spec.object_bytes - offset)
        return -EINVAL;
    struct read_job *job = malloc(sizeof *job);
    if (!job)
        return -ENOMEM;
    *job =
        (struct read_job){.object = o, .offset = offset, .nbytes = nbytes, .dst = dst};
    lm__object_retain(o);
    struct lm__job_spec spec = {
        .step = read_step,
        .free_context = read_free,
        .context = job,
        .steps =
            ((offset + nbytes - 1) >> o->chunk_shift) - (offset >> o->chunk_shift) + 1,
        .keep_going = dst == NULL,
    };
    return lm__job_start(&spec, out);
}

int lm_object_read(lm_object *o, uint64_t offset, uint64_t nbytes, void *dst,
                   lm_job **out)
{
    return dst ? read_start(o, offset, nbytes, dst, out) : -EINVAL;
}

int lm_object_verify(lm_object *o, lm_job **out)
{
    return read_start(o, 0, o->spec.object_bytes, NULL, out);
}
