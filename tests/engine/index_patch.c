/* SPDX-License-Identifier: BSD-3-Clause
 * Does a patch page read as its base with the entries it changes, and is a forged one refused?
 */
#define _GNU_SOURCE
#include "test.h"

enum {
    ENTRIES = 40,
    BASE_OFFSET = LM_SUPERBLOCK_BYTES,
    PATCH_OFFSET = BASE_OFFSET + ENTRIES * LM_ENTRY_BYTES,
    PATCH_BYTES_MAX = LM_ENTRY_BYTES + (ENTRIES + 1) * LM_PAIR_BYTES,
    FILE_BYTES = PATCH_OFFSET + PATCH_BYTES_MAX,
};

/* A file of one plain page and a patch of it. */
struct file {
    struct lm__entry page[ENTRIES];
    struct lm__entry base, root;
    uint16_t slots[ENTRIES + 1];
    struct lm__entry entries[ENTRIES + 1];
    uint32_t pairs;
    uint64_t chunks;
};

static struct lm__entry payload(uint64_t offset)
{
    return (struct lm__entry){.offset = offset, .stored_bytes = 10, .crc = 11};
}

/* A sound one: slots 0, 7 and the last are changed. */
static struct file file_new(void)
{
    struct file f = {.pairs = 3, .chunks = ENTRIES, .slots = {0, 7, ENTRIES - 1}};
    for (int i = 0; i < ENTRIES; i++)
        f.page[i] = payload(1000 + (uint64_t)i);
    for (int i = 0; i < 2; i++)
        f.entries[i] = payload(2000 + (uint64_t)i);
    f.base = (struct lm__entry){.offset = BASE_OFFSET,
                                .stored_bytes = sizeof f.page,
                                .crc = lm_crc32c(0, f.page, sizeof f.page)};
    f.root = (struct lm__entry){.offset = PATCH_OFFSET,
                                .stored_bytes = LM_ENTRY_BYTES + 3 * LM_PAIR_BYTES,
                                .codec = LM_PAGE_PATCH};
    return f;
}

/* Look every chunk up, the last first.  The patch's checksum is made right, but for what
 * f->root.crc says beforehand. */
static struct lm_error lookup(const struct file *f, struct lm__entry *out)
{
    uint8_t bytes[FILE_BYTES] = {0}, *patch = bytes + PATCH_OFFSET;
    char *path = test_path("patch");
    memcpy(bytes + BASE_OFFSET, f->page, sizeof f->page);
    memcpy(patch, &f->base, sizeof f->base);
    for (uint32_t i = 0; i < f->pairs; i++) {
        uint8_t *pair = patch + LM_ENTRY_BYTES + i * LM_PAIR_BYTES;
        lm__put16(pair, f->slots[i]);
        memcpy(pair + 2, &f->entries[i], LM_ENTRY_BYTES);
    }
    test_file_write(path, bytes, sizeof bytes);
    struct lm__source source = {.fd = open(path, O_RDONLY | O_CLOEXEC),
                                .end_offset = sizeof bytes};
    struct lm__index index = {
        .root = f->root, .chunks = f->chunks, .depth = lm__index_depth(f->chunks)};
    if (f->root.stored_bytes <= PATCH_BYTES_MAX)
        index.root.crc ^= lm_crc32c(0, patch, f->root.stored_bytes);
    struct lm__scratch scratch = {0};
    struct lm_error err = lm__error(0, "");
    for (uint64_t c = f->chunks; c-- > 0 && err.code == 0;)
        lm__index_lookup(&index, &source, c, &scratch, &out[c], &err);
    lm__index_fini(&index);
    lm__scratch_give(&scratch);
    close(source.fd);
    unlink(path);
    free(path);
    return err;
}

static void test_patch_of_a_plain_page(void)
{
    struct file f = file_new();
    struct lm__entry out[ENTRIES];
    CHECK_EQ(lookup(&f, out).code, 0);
    for (int i = 0; i < ENTRIES; i++)
        CHECK_EQ(out[i].offset, i == 0             ? 2000
                                : i == 7           ? 2001
                                : i == ENTRIES - 1 ? 0
                                                   : 1000 + i);
    CHECK(lm__entry_is_zero(&out[ENTRIES - 1]));
}

static void test_patch_of_a_packed_page(void)
{
    struct file f = file_new();
    struct lm__entry out[ENTRIES];
    uint8_t packed[sizeof f.page];
    struct lm__plain plain = {.bytes = (const uint8_t *)f.page, .count = sizeof f.page};
    int64_t n = lm__codec(LM_CODEC_LZ4)->encode(NULL, &plain, 1, packed, sizeof packed);
    CHECK(n > 0 && n < (int64_t)sizeof packed);
    memcpy(f.page, packed, (size_t)n);
    f.base.stored_bytes = (uint32_t)n;
    f.base.crc = lm_crc32c(0, packed, (size_t)n);
    CHECK_EQ(lookup(&f, out).code, 0);
    CHECK_EQ(out[6].offset, 1006);
    CHECK_EQ(out[7].offset, 2001);
}

static void test_patch_of_zeros(void)
{
    struct file f = file_new();
    struct lm__entry out[ENTRIES];
    f.base = (struct lm__entry){0};
    CHECK_EQ(lookup(&f, out).code, 0);
    for (int i = 0; i < ENTRIES; i++)
        CHECK_EQ(out[i].offset, i == 0 ? 2000 : i == 7 ? 2001 : 0);
}

static void test_patch_of_every_slot(void)
{
    struct file f = file_new();
    struct lm__entry out[ENTRIES];
    f.pairs = ENTRIES;
    for (uint16_t i = 0; i < ENTRIES; i++) {
        f.slots[i] = i;
        f.entries[i] = payload(3000 + (uint64_t)i);
    }
    f.root.stored_bytes = LM_ENTRY_BYTES + ENTRIES * LM_PAIR_BYTES;
    CHECK_EQ(lookup(&f, out).code, 0);
    for (int i = 0; i < ENTRIES; i++)
        CHECK_EQ(out[i].offset, 3000 + i);
}

/* ---- forged patches, each with a right checksum ------------------------------------------ */

static void check_refused(const struct file *f, struct lm_error wanted)
{
    struct lm__entry out[ENTRIES + 1];
    struct lm_error err = lookup(f, out);
    CHECK_EQ(err.code, wanted.code);
    CHECK_EQ(err.offset, wanted.offset);
    CHECK_EQ(err.expected, wanted.expected);
    CHECK_EQ(err.found, wanted.found);
}

static struct lm_error at(uint64_t offset, int code, uint64_t expected, uint64_t found)
{
    return (struct lm_error){
        .code = code, .offset = offset, .expected = expected, .found = found};
}

static void test_lengths(void)
{
    static const uint32_t lengths[] = {0,
                                       1,
                                       LM_ENTRY_BYTES - 1,
                                       LM_ENTRY_BYTES,
                                       LM_ENTRY_BYTES + LM_PAIR_BYTES - 1,
                                       LM_ENTRY_BYTES + 3 * LM_PAIR_BYTES + 1,
                                       LM_ENTRY_BYTES + (ENTRIES + 1) * LM_PAIR_BYTES,
                                       UINT32_MAX};
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        struct file f = file_new();
        f.root.stored_bytes = lengths[i];
        check_refused(&f, at(PATCH_OFFSET, LM_E_FORMAT,
                             LM_ENTRY_BYTES + ENTRIES * LM_PAIR_BYTES, lengths[i]));
    }
}

static void test_slots(void)
{
    struct file f = file_new();
    f.slots[1] = 0; /* twice */
    check_refused(&f, at(PATCH_OFFSET, LM_E_FORMAT, 1, 0));
    f = file_new(), f.slots[0] = 8; /* descending */
    check_refused(&f, at(PATCH_OFFSET, LM_E_FORMAT, 9, 7));
    f = file_new(), f.slots[2] = ENTRIES; /* behind the page */
    check_refused(&f, at(PATCH_OFFSET, LM_E_FORMAT, ENTRIES - 1, ENTRIES));
    f = file_new(), f.slots[2] = UINT16_MAX;
    check_refused(&f, at(PATCH_OFFSET, LM_E_FORMAT, ENTRIES - 1, UINT16_MAX));
}

static void test_roots(void)
{
    struct file f = file_new();
    f.root.crc = 1;
    struct lm__entry out[ENTRIES];
    CHECK_EQ(lookup(&f, out).code, LM_E_CHECKSUM);
    f = file_new(), f.root.filter = LM_FILTER_SHUFFLE;
    check_refused(&f, at(PATCH_OFFSET, LM_E_FORMAT, LM_FILTER_NONE, LM_FILTER_SHUFFLE));
    f = file_new(), f.root.zero[3] = 1;
    check_refused(&f, at(PATCH_OFFSET, LM_E_FORMAT, LM_NONE, LM_NONE));
    f = file_new(), f.root.codec = LM_CODEC_ZSTD;
    check_refused(&f, at(PATCH_OFFSET, LM_E_FORMAT, LM_PAGE_PLAIN, LM_CODEC_ZSTD));
    f = file_new(), f.root.codec = LM_PAGE_PATCH + 1;
    check_refused(&f, at(PATCH_OFFSET, LM_E_FORMAT, LM_PAGE_PLAIN, LM_PAGE_PATCH + 1));
    f = file_new(), f.root.offset = BASE_OFFSET - 1;
    CHECK_EQ(lookup(&f, out).code, LM_E_FORMAT);
    f = file_new(), f.root.offset = FILE_BYTES - f.root.stored_bytes + 1;
    CHECK_EQ(lookup(&f, out).code, LM_E_FORMAT);
    f = file_new(), f.root.offset = UINT64_MAX - 8;
    CHECK_EQ(lookup(&f, out).code, LM_E_FORMAT);
}

static void test_bases(void)
{
    const struct file sound = file_new();
    struct lm__entry out[ENTRIES];
    struct file f = sound;
    f.base.codec = LM_PAGE_PATCH; /* a chain */
    check_refused(&f, at(BASE_OFFSET, LM_E_FORMAT, LM_PAGE_PLAIN, LM_PAGE_PATCH));
    f = sound, f.base = f.root; /* a loop, but for the checksum that it can't know */
    check_refused(&f, at(PATCH_OFFSET, LM_E_FORMAT, LM_PAGE_PLAIN, LM_PAGE_PATCH));
    f = sound, f.base.codec = LM_CODEC_LZ4;
    check_refused(&f, at(BASE_OFFSET, LM_E_FORMAT, LM_PAGE_PLAIN, LM_CODEC_LZ4));
    f = sound, f.base.filter = LM_FILTER_SHUFFLE;
    check_refused(&f, at(BASE_OFFSET, LM_E_FORMAT, LM_FILTER_NONE, LM_FILTER_SHUFFLE));
    f = sound, f.base.zero[0] = 1;
    check_refused(&f, at(BASE_OFFSET, LM_E_FORMAT, LM_NONE, LM_NONE));
    f = sound, f.base = (struct lm__entry){.zero = {1}}; /* zeros, but for one byte */
    check_refused(&f, at(0, LM_E_FORMAT, LM_NONE, LM_NONE));
    f = sound, f.base.stored_bytes++;
    check_refused(&f, at(BASE_OFFSET, LM_E_FORMAT, sizeof f.page, sizeof f.page + 1));
    f = sound, f.base.crc ^= 1;
    check_refused(&f,
                  at(BASE_OFFSET, LM_E_CHECKSUM, sound.base.crc ^ 1, sound.base.crc));
    f = sound, f.base.offset = BASE_OFFSET - 1;
    CHECK_EQ(lookup(&f, out).code, LM_E_FORMAT);
    f = sound, f.base.offset = FILE_BYTES - sizeof f.page + 1;
    CHECK_EQ(lookup(&f, out).code, LM_E_FORMAT);
    f = sound, f.base.offset = UINT64_MAX - 8;
    CHECK_EQ(lookup(&f, out).code, LM_E_FORMAT);
    f = sound,
    f.base.stored_bytes -= LM_ENTRY_BYTES; /* of a page with one entry less */
    f.base.crc = lm_crc32c(0, f.page, f.base.stored_bytes);
    CHECK_EQ(lookup(&f, out).code, LM_E_DECODE);
    f = sound, f.base.stored_bytes = 0, f.base.crc = 0;
    CHECK_EQ(lookup(&f, out).code, LM_E_DECODE);
}

static void test_a_base_that_cannot_be_read(void)
{
    struct file f = file_new();
    struct lm__entry out[ENTRIES];
    lm_inject(LM_INJECT_READ, 1, -1, EIO); /* the patch can */
    struct lm_error err = lookup(&f, out);
    lm_inject(LM_INJECT_READ, 0, 0, 0);
    CHECK_EQ(err.code, -EIO);
    CHECK_EQ(err.offset, BASE_OFFSET);
}

int main(void)
{
    if (test_codecs() != 0)
        return test_skip("no lz4 and zstd");
    test_patch_of_a_plain_page();
    test_patch_of_a_packed_page();
    test_patch_of_zeros();
    test_patch_of_every_slot();
    test_lengths();
    test_slots();
    test_roots();
    test_bases();
    test_a_base_that_cannot_be_read();
    return TEST_OK;
}
