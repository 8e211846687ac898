/* SPDX-License-Identifier: BSD-3-Clause
 * index.c - which payload a chunk has: the tree of index pages, read on demand.
 *
 *   root [e e e e ...]       a page is an array of entries; an entry of an inner page
 *          |     |           describes the page below, an entry of a leaf a payload.
 *        leaf   leaf         An entry of zeros stands for zeros, at any level.
 *
 *   patch [base | slot, e | slot, e]     what a page differs in from its base: a plain page
 *            '--> [e e e e ...]          of the same place, or zeros
 *
 * (I1) A node is published once, complete and verified, and never changes.  It holds a page's
 *      entries, however they are stored.
 * (I2) Readers take no lock.  Two that load the same page race with compare-and-swap, and
 *      the loser frees its copy.
 */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

/* Pages of equal entries are a few hundred bytes in the file. */
#define KEPT_BYTES_MIN ((uint64_t)16 << 20)

struct lm__index_node {
    uint32_t count;
    struct lm__entry *entries;
    _Atomic(struct lm__index_node *) child[]; /* inner nodes only */
};

/* ---- pages as they are stored --------------------------------------------------------- */

static int fail(struct lm_error cause, int code, uint64_t expected, uint64_t found,
                struct lm_error *err)
{
    cause.code = code;
    cause.expected = expected;
    cause.found = found;
    return lm__fail(err, cause);
}

/* 0 if an entry describes a page of this kind, but for its length. */
static int check_kind(const struct lm__entry *e, enum lm_page_kind kind,
                      struct lm_error cause, struct lm_error *err)
{
    static const uint8_t zero[sizeof e->zero];
    if (e->codec != kind)
        return fail(cause, LM_E_FORMAT, kind, e->codec, err);
    if (e->filter != LM_FILTER_NONE)
        return fail(cause, LM_E_FORMAT, LM_FILTER_NONE, e->filter, err);
    return memcmp(e->zero, zero, sizeof zero) == 0 ? 0 : lm__fail(err, cause);
}

/* Stored as it is, or as an LZ4 block. */
static int read_plain(const struct lm__entry *e, uint32_t count,
                      struct lm__source *source, struct lm__scratch *scratch,
                      struct lm__entry *entries, struct lm_error *err)
{
    const struct lm__codec *lz4 = lm__codec(LM_CODEC_LZ4);
    struct lm_error cause = lm__error(LM_E_FORMAT, "index page");
    size_t bytes = count * sizeof *e;
    cause.offset = e->offset;
    int rc = check_kind(e, LM_PAGE_PLAIN, cause, err);
    if (rc != 0)
        return rc;
    if (e->stored_bytes > bytes)
        return fail(cause, LM_E_FORMAT, bytes, e->stored_bytes, err);
    if (e->stored_bytes == bytes)
        return lm__source_read(source, e, "index page", scratch, entries, err);

    rc = lz4 ? lm__scratch_reserve(scratch, e->stored_bytes) : LM_E_CODEC;
    if (rc != 0)
        return fail(cause, rc, bytes, LM_NONE, err);
    rc = lm__source_read(source, e, "index page", scratch, scratch->a, err);
    if (rc != 0)
        return rc;
    int64_t n = lz4->decode(scratch, scratch->a, e->stored_bytes, entries, bytes);
    if (n == (int64_t)bytes)
        return 0;
    return fail(cause, LM_E_DECODE, bytes, n < 0 ? LM_NONE : (uint64_t)n, err);
}

/* Read what a patch consists of into the scratch, and check all but its base.  *pairs: how
 * many entries it changes. */
static int read_pairs(const struct lm__entry *e, uint32_t count,
                      struct lm__source *source, struct lm__scratch *scratch,
                      uint32_t *pairs, struct lm_error *err)
{
    struct lm_error cause = lm__error(LM_E_FORMAT, "index patch");
    uint64_t bytes_max = LM_ENTRY_BYTES + (uint64_t)count * LM_PAIR_BYTES;
    cause.offset = e->offset;
    int rc = check_kind(e, LM_PAGE_PATCH, cause, err);
    if (rc != 0)
        return rc;
    if (e->stored_bytes < LM_ENTRY_BYTES + LM_PAIR_BYTES ||
        e->stored_bytes > bytes_max ||
        (e->stored_bytes - LM_ENTRY_BYTES) % LM_PAIR_BYTES != 0)
        return fail(cause, LM_E_FORMAT, bytes_max, e->stored_bytes, err);
    /* Of the largest size: the buffers must not move when the base is unpacked. */
    rc = lm__scratch_reserve(scratch, LM_PATCH_BYTES_MAX);
    if (rc != 0)
        return fail(cause, rc, LM_NONE, LM_NONE, err);
    rc = lm__source_read(source, e, "index patch", scratch, scratch->b, err);
    if (rc != 0)
        return rc;

    *pairs = (e->stored_bytes - LM_ENTRY_BYTES) / LM_PAIR_BYTES;
    const uint8_t *pair = scratch->b + LM_ENTRY_BYTES;
    for (uint32_t i = 0, slot_min = 0; i < *pairs; i++, pair += LM_PAIR_BYTES) {
        uint32_t slot = lm__get16(pair);
        if (slot < slot_min)
            return fail(cause, LM_E_FORMAT, slot_min, slot, err);
        if (slot >= count)
            return fail(cause, LM_E_FORMAT, count - 1, slot, err);
        slot_min = slot + 1;
    }
    return 0;
}

int lm__page_read(const struct lm__entry *e, uint32_t count, struct lm__source *source,
                  struct lm__scratch *scratch, struct lm__entry *entries,
                  struct lm__entry *base, struct lm_error *err)
{
    uint32_t pairs = 0;
    int rc = 0;
    *base = *e;
    if (e->codec == LM_PAGE_PATCH) {
        rc = read_pairs(e, count, source, scratch, &pairs, err);
        if (rc != 0)
            return rc;
        memcpy(base, scratch->b, sizeof *base);
    }
    if (lm__entry_is_zero(base))
        memset(entries, 0, count * sizeof entries[0]);
    else
        rc = read_plain(base, count, source, scratch, entries, err);
    if (rc != 0)
        return rc;
    const uint8_t *pair = scratch->b + LM_ENTRY_BYTES;
    for (uint32_t i = 0; i < pairs; i++, pair += LM_PAIR_BYTES)
        memcpy(&entries[lm__get16(pair)], pair + sizeof(uint16_t), sizeof entries[0]);
    return 0;
}

/* ---- pages in memory -------------------------------------------------------------------- */

static int node_load(const struct lm__entry *e, uint32_t count, int is_leaf,
                     const struct lm__index_reader *r, struct lm__index_node **out,
                     struct lm_error *err)
{
    struct lm__entry base;
    size_t child_bytes = is_leaf ? 0 : count * sizeof(struct lm__index_node *);
    size_t head_bytes = sizeof(struct lm__index_node) + child_bytes;
    struct lm__index_node *node = calloc(1, head_bytes + count * sizeof *e);
    if (!node) {
        struct lm_error cause = lm__error(-ENOMEM, "index page");
        cause.offset = e->offset;
        return lm__fail(err, cause);
    }
    node->count = count;
    node->entries = (struct lm__entry *)((char *)node + head_bytes);
    int rc = lm__page_read(e, count, r->source, r->scratch, node->entries, &base, err);
    if (rc != 0) {
        free(node);
        return rc;
    }
    *out = node;
    return 0;
}

/* Entries may share a page, and a hostile file describes more pages than any memory holds:
 * what goes beyond this bound is read anew each time. */
static int may_keep(struct lm__index *index, const struct lm__source *source,
                    const struct lm__index_node *node)
{
    uint64_t bytes = node->count * sizeof node->entries[0];
    return lm_add_relaxed(&index->kept_bytes, bytes) <
           lm_load_acquire(&source->end_offset) + KEPT_BYTES_MIN;
}

int lm__index_page_open(const struct lm__index_reader *r,
                        const struct lm__index_page *parent, uint32_t slot,
                        struct lm__index_page *out, struct lm_error *err)
{
    const struct lm__entry *e = &r->index->root;
    _Atomic(struct lm__index_node *) *link = &r->index->root_node; /* NULL: not kept */
    *out = (struct lm__index_page){.level = r->index->depth};
    if (parent) {
        lm_assert(parent->level > 1);
        e = lm__index_page_entry(parent, slot);
        link = parent->is_kept ? &parent->node->child[slot] : NULL;
        out->level = parent->level - 1;
        out->page_idx = parent->page_idx * LM_PAGE_ENTRIES + slot;
    }
    if (lm__entry_is_zero(e))
        return 0;
    struct lm__index_node *node = link ? lm_load_acquire(link) : NULL;
    out->is_kept = node != NULL;
    if (!node) {
        struct lm__index_node *loaded = NULL;
        uint32_t count =
            lm__index_page_entries(r->index->chunks, out->level, out->page_idx);
        int rc = node_load(e, count, out->level == 1, r, &loaded, err);
        if (rc != 0)
            return rc;
        if (link && may_keep(r->index, r->source, loaded)) {
            out->is_kept = 1;
            if (lm_cas_acq_rel(link, &node, loaded)) /* pairs with the load */
                node = loaded;
            else
                free(loaded); /* another thread was faster */
        } else {
            node = loaded;
        }
    }
    out->node = node;
    out->entries = node->entries;
    return 0;
}

const struct lm__entry *lm__index_page_entry(const struct lm__index_page *page,
                                             uint32_t slot)
{
    static const struct lm__entry zero;
    lm_assert(!page->entries || slot < page->node->count);
    return page->entries ? &page->entries[slot] : &zero;
}

void lm__index_page_close(struct lm__index_page *page)
{
    if (!page->is_kept)
        free(page->node);
}

/* ---- the tree --------------------------------------------------------------------------- */

int lm__index_lookup(struct lm__index *index, struct lm__source *source,
                     uint64_t chunk_idx, struct lm__scratch *scratch,
                     struct lm__entry *out, struct lm_error *err)
{
    const struct lm__index_reader r = {index, source, scratch};
    struct lm__index_page page, child;
    lm_assert(chunk_idx < index->chunks);
    int rc = lm__index_page_open(&r, NULL, 0, &page, err);
    while (rc == 0 && page.entries && page.level > 1) {
        unsigned shift = lm__log2(LM_PAGE_ENTRIES) * (page.level - 1);
        uint32_t slot = (uint32_t)(chunk_idx >> shift) & (LM_PAGE_ENTRIES - 1);
        rc = lm__index_page_open(&r, &page, slot, &child, err);
        lm__index_page_close(&page);
        page = child;
    }
    if (rc != 0)
        return rc;
    *out = *lm__index_page_entry(&page, (uint32_t)(chunk_idx % LM_PAGE_ENTRIES));
    lm__index_page_close(&page);
    return 0;
}

static void node_free(struct lm__index_node *node, unsigned level)
{
    if (!node)
        return;
    if (level > 1)
        for (uint32_t i = 0; i < node->count; i++)
            node_free(lm_load_relaxed(&node->child[i]), level - 1);
    free(node);
}

void lm__index_fini(struct lm__index *index)
{
    node_free(lm_load_relaxed(&index->root_node), index->depth);
}
