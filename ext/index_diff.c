/* SPDX-License-Identifier: BSD-3-Clause
 * index_diff.c - in which chunks two states of an object differ.
 *
 *   a [e1 e2 e3 e4]     Equal entries describe equal bytes, of a chunk or of all the chunks
 *       =  |  =  =      below a page, since nothing in a file is ever overwritten: what two
 *   b [e1 e5 e3 e4]     states share is never read.  e2 and e5 are, and compared in turn.
 *
 * Where one side is zero its pages have no bytes, and only the other side's are read.
 */
#include "internal.h"

struct pair {
    struct lm__index_reader side[2];
    int is_different; /* what is sought: chunks that differ, or that do not */
};

/* Find the first chunk, from *at on, that is as sought, below one slot of two pages or, where
 * `parent` is NULL, below their roots.  1: *at is it; 0: *at is behind that slot's chunks. */
static int seek(const struct pair *p, const struct lm__index_page *parent,
                uint32_t slot, uint64_t *at, struct lm_error *err)
{
    const struct lm__index *index = p->side[0].index;
    unsigned level = parent ? parent->level - 1 : index->depth;
    unsigned shift = lm__log2(LM_PAGE_ENTRIES) * level;
    const struct lm__entry *e[2];
    for (int i = 0; i < 2; i++)
        e[i] =
            parent ? lm__index_page_entry(&parent[i], slot) : &p->side[i].index->root;
    int is_equal = lm__entry_is_equal(e[0], e[1]);
    if (is_equal || level == 0) {
        if (is_equal != p->is_different)
            return 1;
        *at = ((*at >> shift) + 1) << shift;
        return 0;
    }
    struct lm__index_page page[2];
    int rc = lm__index_page_open(&p->side[0], parent, slot, &page[0], err);
    if (rc != 0)
        return rc;
    rc = lm__index_page_open(&p->side[1], parent ? &parent[1] : NULL, slot, &page[1],
                             err);
    if (rc == 0) {
        uint32_t count = lm__index_page_entries(index->chunks, level, page[0].page_idx);
        unsigned below = shift - lm__log2(LM_PAGE_ENTRIES);
        for (uint32_t i = (uint32_t)(*at >> below) & (LM_PAGE_ENTRIES - 1);
             rc == 0 && i < count; i++)
            rc = seek(p, page, i, at, err);
        lm__index_page_close(&page[1]);
    }
    lm__index_page_close(&page[0]);
    return rc;
}

int lm__index_diff(struct lm__index *a, struct lm__source *a_source,
                   struct lm__index *b, struct lm__source *b_source, uint64_t from,
                   struct lm__scratch *scratch, uint64_t *first, uint64_t *count,
                   struct lm_error *err)
{
    struct pair p = {.side = {{a, a_source, scratch}, {b, b_source, scratch}},
                     .is_different = 1};
    lm_assert(a->chunks == b->chunks);
    if (from >= a->chunks)
        return 0;
    int rc = seek(&p, NULL, 0, &from, err);
    if (rc != 1)
        return rc;
    uint64_t end = from;
    p.is_different = 0;
    rc = seek(&p, NULL, 0, &end, err);
    if (rc < 0)
        return rc;
    if (end > a->chunks)
        end = a->chunks;
    *first = from;
    *count = end - from;
    return 1;
}
