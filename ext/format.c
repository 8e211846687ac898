/* SPDX-License-Identifier: BSD-3-Clause
 * format.c - bytes <-> structs of the store file.  Pure: no I/O, no allocation.
 *
 * FORMAT.md is the specification; the offsets here are its tables.  Nothing read from a file
 * is believed before its checksum and its bounds have been checked.
 */
#include "internal.h"

static const uint8_t SUPERBLOCK_MAGIC[8] = {0x89, 'L',  'Z',  'M',
                                            '\r', '\n', 0x1a, '\n'};
static const uint8_t RECORD_MAGIC[8] = {'L', 'Z', 'M', 'C', 'O', 'M', 'M', 'T'};

static int all_zero(const uint8_t *p, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        if (p[i])
            return 0;
    return 1;
}

static struct lm_error at(struct lm_error e, uint64_t offset, uint64_t expected,
                          uint64_t found)
{
    e.offset = offset;
    e.expected = expected;
    e.found = found;
    return e;
}

void lm__superblock_encode(const struct lm__superblock *sb, uint8_t *out)
{
    memset(out, 0, LM_SUPERBLOCK_BYTES);
    memcpy(out, SUPERBLOCK_MAGIC, 8);
    lm__put32(out + 8, LM_FORMAT_VERSION);
    memcpy(out + 16, sb->store_id, 16);
    lm__put64(out + 32, sb->created_ns);
    lm__put32(out + 60, lm_crc32c(0, out, 60));
}

int lm__superblock_decode(const uint8_t *in, struct lm__superblock *sb,
                          struct lm_error *err)
{
    uint32_t crc = lm_crc32c(0, in, 60), version = lm__get32(in + 8);
    if (memcmp(in, SUPERBLOCK_MAGIC, 8) != 0)
        return lm__fail(err, at(lm__error(LM_E_MAGIC, "magic number"), 0,
                                lm__get64(SUPERBLOCK_MAGIC), lm__get64(in)));
    if (lm__get32(in + 60) != crc)
        return lm__fail(err, at(lm__error(LM_E_CHECKSUM, "superblock"), 0,
                                lm__get32(in + 60), crc));
    if (version > LM_FORMAT_VERSION)
        return lm__fail(err, at(lm__error(LM_E_VERSION, "format version"), 8,
                                LM_FORMAT_VERSION, version));
    if (version == 0 || !all_zero(in + 12, 4) || !all_zero(in + 40, 20))
        return lm__fail(err,
                        at(lm__error(LM_E_FORMAT, "superblock"), 0, LM_NONE, LM_NONE));
    memcpy(sb->store_id, in + 16, 16);
    sb->created_ns = lm__get64(in + 32);
    return 0;
}

void lm__record_encode(const struct lm__record *rec, uint8_t *out)
{
    memset(out, 0, LM_RECORD_BYTES);
    memcpy(out, RECORD_MAGIC, 8);
    memcpy(out + 8, rec->store_id, 16);
    lm__put64(out + 24, rec->offset);
    lm__put64(out + 32, rec->sequence);
    lm__put64(out + 40, rec->previous_offset);
    lm__put64(out + 48, rec->time_ns);
    lm__put64(out + 56, rec->manifest.offset);
    lm__put32(out + 64, rec->manifest.stored_bytes);
    lm__put32(out + 68, rec->manifest_bytes);
    lm__put32(out + 72, rec->manifest.crc);
    out[76] = rec->manifest.codec;
    lm__put32(out + 124, lm_crc32c(0, out, 124));
}

static int record_is_sound(const struct lm__record *rec, const uint8_t *in)
{
    const struct lm__entry *m = &rec->manifest;
    if (!all_zero(in + 77, 47) || rec->sequence == 0 ||
        rec->previous_offset >= rec->offset)
        return 0;
    if (m->offset < LM_SUPERBLOCK_BYTES || m->offset > rec->offset ||
        m->stored_bytes > rec->offset - m->offset)
        return 0;
    if (m->codec == LM_CODEC_NONE)
        return rec->manifest_bytes == m->stored_bytes;
    /* LZ4 can't do better than 255 to 1, so no more memory is asked for than this. */
    return m->codec == LM_CODEC_LZ4 && rec->manifest_bytes / 255 <= m->stored_bytes;
}

int lm__record_decode(const uint8_t *in, uint64_t offset, const uint8_t *store_id,
                      struct lm__record *rec, struct lm_error *err)
{
    if (memcmp(in, RECORD_MAGIC, 8) != 0)
        return lm__fail(err, at(lm__error(LM_E_MAGIC, "commit record"), offset,
                                lm__get64(RECORD_MAGIC), lm__get64(in)));
    uint32_t crc = lm_crc32c(0, in, 124);
    if (lm__get32(in + 124) != crc)
        return lm__fail(err, at(lm__error(LM_E_CHECKSUM, "commit record"), offset,
                                lm__get32(in + 124), crc));
    *rec = (struct lm__record){
        .offset = lm__get64(in + 24),
        .sequence = lm__get64(in + 32),
        .previous_offset = lm__get64(in + 40),
        .time_ns = lm__get64(in + 48),
        .manifest = {.offset = lm__get64(in + 56),
                     .stored_bytes = lm__get32(in + 64),
                     .crc = lm__get32(in + 72),
                     .codec = in[76]},
        .manifest_bytes = lm__get32(in + 68),
    };
    memcpy(rec->store_id, in + 8, 16);
    if (memcmp(rec->store_id, store_id, 16) != 0)
        return lm__fail(err,
                        at(lm__error(LM_E_NO_COMMIT, "store id in the commit record"),
                           offset, lm__get64(store_id), lm__get64(in + 8)));
    if (rec->offset != offset)
        return lm__fail(err,
                        at(lm__error(LM_E_NO_COMMIT, "offset in the commit record"),
                           offset, offset, rec->offset));
    if (!record_is_sound(rec, in))
        return lm__fail(
            err, at(lm__error(LM_E_FORMAT, "commit record"), offset, LM_NONE, LM_NONE));
    return 0;
}

int lm__entry_is_zero(const struct lm__entry *e)
{
    return all_zero((const uint8_t *)e, sizeof *e);
}

int lm__entry_is_equal(const struct lm__entry *a, const struct lm__entry *b)
{
    return memcmp(a, b, sizeof *a) == 0;
}

struct lm__entry lm__entry_of_root(const struct lm_root *root)
{
    return (struct lm__entry){.offset = root->offset,
                              .stored_bytes = root->bytes,
                              .crc = root->crc,
                              .codec = (uint8_t)root->kind};
}

struct lm_root lm__root_of(const struct lm__entry *e)
{
    return (struct lm_root){e->offset, e->stored_bytes, e->crc, e->codec};
}

unsigned lm__index_depth(uint64_t chunks)
{
    unsigned depth = 1;
    for (uint64_t pages = chunks; pages > LM_PAGE_ENTRIES; depth++)
        pages = lm__div_up(pages, LM_PAGE_ENTRIES);
    return depth;
}

uint32_t lm__index_page_entries(uint64_t chunks, unsigned level, uint64_t page_idx)
{
    uint64_t children = chunks;
    for (unsigned k = 1; k < level; k++)
        children = lm__div_up(children, LM_PAGE_ENTRIES);
    uint64_t left = children - page_idx * LM_PAGE_ENTRIES;
    return (uint32_t)(left < LM_PAGE_ENTRIES ? left : LM_PAGE_ENTRIES);
}
