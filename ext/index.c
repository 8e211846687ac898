/* SPDX-License-Identifier: BSD-3-Clause
 * index.c - which payload a chunk has: the tree of index pages, read on demand.
 *
 *   root [e e e e ...]       a page is an array of entries; an entry of an inner page
 *          |     |           describes the page below, an entry of a leaf a payload.
 *        leaf   leaf         An entry of zeros stands for zeros, at any level.
 *
 * (I1) A node is published once, complete and verified, and never changes.
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

/* Read a page of `bytes` bytes, stored as it is or as an LZ4 block. */
static int page_read(const struct lm__entry *e, size_t bytes, struct lm__source *source,
                     struct lm__scratch *scratch, void *page, struct lm_error *err)
{
    if (e->stored_bytes == bytes)
        return lm__source_read(source, e, "index page", scratch, page, err);
    const struct lm__codec *lz4 = lm__codec(LM_CODEC_LZ4);
    struct lm_error cause = lm__error(LM_E_DECODE, "index page");
    cause.offset = e->offset;
    cause.expected = bytes;
    cause.code = lz4 ? lm__scratch_reserve(scratch, e->stored_bytes) : LM_E_CODEC;
    if (cause.code != 0)
        return lm__fail(err, cause);
    int rc = lm__source_read(source, e, "index page", scratch, scratch->a, err);
    if (rc != 0)
        return rc;
    int64_t n = lz4->decode(scratch, scratch->a, e->stored_bytes, page, bytes);
    cause.code = LM_E_DECODE;
    return n == (int64_t)bytes ? 0 : lm__fail(err, cause);
}

static int node_load(const struct lm__entry *e, uint32_t count, int is_leaf,
                     struct lm__source *source, struct lm__scratch *scratch,
                     struct lm__index_node **out, struct lm_error *err)
{
    struct lm_error cause = lm__error(LM_E_FORMAT, "index page");
    cause.offset = e->offset;
    static const uint8_t zero[sizeof e->zero];
    size_t bytes = count * sizeof *e;
    if (e->stored_bytes > bytes || e->codec || e->filter ||
        memcmp(e->zero, zero, sizeof zero) != 0) {
        cause.expected = bytes;
        cause.found = e->stored_bytes;
        return lm__fail(err, cause);
    }
    size_t child_bytes = is_leaf ? 0 : count * sizeof(struct lm__index_node *);
    size_t head_bytes = sizeof(struct lm__index_node) + child_bytes;
    struct lm__index_node *node = calloc(1, head_bytes + bytes);
    if (!node) {
        cause.code = -ENOMEM;
        return lm__fail(err, cause);
    }
    node->count = count;
    node->entries = (struct lm__entry *)((char *)node + head_bytes);
    int rc = page_read(e, bytes, source, scratch, node->entries, err);
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

int lm__index_lookup(struct lm__index *index, struct lm__source *source,
                     uint64_t chunk_idx, struct lm__scratch *scratch,
                     struct lm__entry *out, struct lm_error *err)
{
    lm_assert(chunk_idx < index->chunks);
    _Atomic(struct lm__index_node *) *slot = &index->root_node; /* NULL: not kept */
    struct lm__entry entry = index->root;

    for (unsigned level = index->depth; level > 0 && !lm__entry_is_zero(&entry);
         level--) {
        struct lm__index_node *node = slot ? lm_load_acquire(slot) : NULL;
        struct lm__index_node *loaded = NULL;
        unsigned shift = lm__log2(LM_PAGE_ENTRIES) * (level - 1);
        if (!node) {
            uint64_t page_idx = chunk_idx >> shift >> lm__log2(LM_PAGE_ENTRIES);
            uint32_t count = lm__index_page_entries(index->chunks, level, page_idx);
            int rc =
                node_load(&entry, count, level == 1, source, scratch, &loaded, err);
            if (rc != 0)
                return rc;
            if (slot && !may_keep(index, source, loaded))
                slot = NULL;
            if (slot && lm_cas_acq_rel(slot, &node, loaded)) { /* pairs with the load */
                node = loaded;
                loaded = NULL;
            }
        }
        const struct lm__index_node *page = node ? node : loaded;
        uint32_t i = (uint32_t)(chunk_idx >> shift) & (LM_PAGE_ENTRIES - 1);
        lm_assert(i < page->count);
        entry = page->entries[i];
        slot = node && level > 1 ? &node->child[i] : NULL;
        free(loaded); /* not kept, or another thread was faster */
    }
    *out = entry;
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
