/* SPDX-License-Identifier: BSD-3-Clause
 * Does an index of any depth give each chunk its own entry, and is a forged page refused?
 */
#define _GNU_SOURCE
#include "test.h"

#define CHUNK_BYTES 4096u
#define BLOCKS      40

/* An object of `chunks` chunks, of which a few are written: both ends and random others. */
static int test_depth(uint64_t chunks, unsigned depth)
{
    static uint8_t block[CHUNK_BYTES];
    uint64_t written[BLOCKS], count = 0, state = chunks;
    struct test_store t = {.enc = {.object_bytes = chunks * CHUNK_BYTES - 7,
                                   .chunk_bytes = CHUNK_BYTES,
                                   .codec = LM_CODEC_NONE}};
    struct lm_error err;
    lm_writer *writer;
    lm_writer_object *object;
    lm_job *job;
    if (test_codecs() != 0)
        return test_skip("no lz4 and zstd");
    t.path = test_path("store.lzm");
    CHECK_CALL(lm_writer_create(t.path, &writer, &err), err);
    CHECK_CALL(lm_writer_begin(writer, &t.enc, &object, &err), err);
    for (uint64_t c = 0; c < chunks && count < BLOCKS - 1; count++) {
        written[count] = c;
        lm__put64(block, c + 1);
        uint64_t left = t.enc.object_bytes - c * CHUNK_BYTES;
        CHECK_CALL(lm_writer_write(object, c * CHUNK_BYTES, block,
                                   left < CHUNK_BYTES ? left : CHUNK_BYTES, &job, &err),
                   err);
        test_finish(job);
        c += 1 + test_random(&state) % (chunks / 16 + 1);
    }
    if (written[count - 1] != chunks - 1) {
        written[count++] = chunks - 1;
        lm__put64(block, chunks);
        CHECK_CALL(lm_writer_write(object, (chunks - 1) * CHUNK_BYTES, block,
                                   CHUNK_BYTES - 7, &job, &err),
                   err);
        test_finish(job);
    }
    CHECK_CALL(lm_writer_end(object, &t.written, &err), err);
    CHECK_CALL(lm_writer_commit(writer, "{}", 2, NULL, &err), err);
    lm_writer_close(writer);

    test_store_open(&t);
    CHECK_EQ(t.object->base->index.depth, depth);
    for (uint64_t i = 0; i < count; i++) {
        struct lm__entry e = test_entry(&t, written[i]);
        uint64_t first_word = 0;
        CHECK(!lm__entry_is_zero(&e));
        CHECK_EQ(lm__io_pread(t.store->source.fd, e.offset, 8, &first_word, 0), 0);
        CHECK_EQ(first_word, written[i] + 1);
        if (i + 1 < count && written[i] + 1 < written[i + 1]) {
            e = test_entry(&t, written[i] + 1);
            CHECK(lm__entry_is_zero(&e));
        }
    }
    test_store_close(&t);
    return 0;
}

/* ---- forged pages: a file of one index page, with a right checksum ------------------------------ */

static struct lm_error lookup(const struct lm__entry *page, uint32_t entries,
                              uint64_t chunks, struct lm__entry root)
{
    char *path = test_path("page");
    uint8_t file[LM_SUPERBLOCK_BYTES + 8 * LM_ENTRY_BYTES] = {0};
    memcpy(file + LM_SUPERBLOCK_BYTES, page, entries * sizeof page[0]);
    test_file_write(path, file, sizeof file);
    struct lm__source source = {.fd = open(path, O_RDONLY | O_CLOEXEC),
                                .end_offset = sizeof file};
    struct lm__index index = {
        .root = root, .chunks = chunks, .depth = lm__index_depth(chunks)};
    struct lm__scratch scratch = {0};
    struct lm__entry out;
    struct lm_error err = lm__error(0, "");
    lm__index_lookup(&index, &source, chunks - 1, &scratch, &out, &err);
    lm__index_fini(&index);
    close(source.fd);
    unlink(path);
    free(path);
    return err;
}

static void test_forged_pages(void)
{
    struct lm__entry page[4] = {{.offset = 64, .stored_bytes = 24, .crc = 1}};
    struct lm__entry root = {.offset = LM_SUPERBLOCK_BYTES,
                             .stored_bytes = sizeof page,
                             .crc = lm_crc32c(0, page, sizeof page)},
                     bad;
    CHECK_EQ(lookup(page, 4, 4, root).code, 0);
    CHECK_EQ(lookup(page, 4, 5, root).code, LM_E_DECODE); /* a page too short */
    CHECK_EQ(lookup(page, 4, 3, root).code, LM_E_FORMAT); /* and too long */
    bad = root, bad.crc ^= 1;
    CHECK_EQ(lookup(page, 4, 4, bad).code, LM_E_CHECKSUM);
    bad = root, bad.offset = 63;
    CHECK_EQ(lookup(page, 4, 4, bad).code, LM_E_FORMAT);
    bad = root, bad.offset = UINT64_MAX - 8;
    CHECK_EQ(lookup(page, 4, 4, bad).code, LM_E_FORMAT);
    bad = root, bad.offset = LM_SUPERBLOCK_BYTES + 8 * LM_ENTRY_BYTES - 95;
    CHECK_EQ(lookup(page, 4, 4, bad).code, LM_E_FORMAT);
    bad = root, bad.codec = LM_CODEC_LZ4;
    CHECK_EQ(lookup(page, 4, 4, bad).code, LM_E_FORMAT);
    bad = root, bad.filter = LM_FILTER_SHUFFLE;
    CHECK_EQ(lookup(page, 4, 4, bad).code, LM_E_FORMAT);
    bad = root, bad.zero[5] = 1;
    CHECK_EQ(lookup(page, 4, 4, bad).code, LM_E_FORMAT);
}

/* A page stored as an LZ4 block: good, cut, and of another length than it should have. */
static void test_packed_pages(void)
{
    enum { ENTRIES = 40 };
    static struct lm__entry page[ENTRIES], packed[ENTRIES];
    struct lm__plain plain = {.bytes = (const uint8_t *)page, .count = sizeof page};
    page[ENTRIES - 1] = (struct lm__entry){.offset = 64, .stored_bytes = 24, .crc = 1};
    int64_t n =
        lm__codec(LM_CODEC_LZ4)->encode(NULL, &plain, 1, packed, 8 * sizeof packed[0]);
    CHECK(n > 0);
    struct lm__entry root = {.offset = LM_SUPERBLOCK_BYTES,
                             .stored_bytes = (uint32_t)n,
                             .crc = lm_crc32c(0, packed, (size_t)n)};
    CHECK_EQ(lookup(packed, 8, ENTRIES, root).code, 0);
    CHECK_EQ(lookup(packed, 8, ENTRIES - 1, root).code, LM_E_DECODE);
    CHECK_EQ(lookup(packed, 8, ENTRIES + 1, root).code, LM_E_DECODE);
    root.stored_bytes--;
    root.crc = lm_crc32c(0, packed, root.stored_bytes);
    CHECK_EQ(lookup(packed, 8, ENTRIES, root).code, LM_E_DECODE);
}

/* ---- readers that race for the same pages --------------------------------------------------------- */

static void *reader(void *arg)
{
    struct test_store *t = arg;
    for (uint64_t c = 0; c < t->object->chunks; c++) {
        struct lm__entry e = test_entry(t, c);
        CHECK(lm__entry_is_zero(&e) || e.stored_bytes > 0);
    }
    return NULL;
}

static void test_racing_readers(void)
{
    struct test_store t;
    pthread_t threads[4];
    const struct lm_encoding enc = {.object_bytes = 1100 * CHUNK_BYTES,
                                    .chunk_bytes = CHUNK_BYTES};
    CHECK_EQ(test_store_make(&t, enc, 5), 0);
    for (int i = 0; i < 4; i++)
        threads[i] = test_thread(reader, &t);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    test_store_close(&t);
}

int main(void)
{
    static const struct {
        uint64_t chunks;
        unsigned depth;
    } cases[] = {
        {1, 1},    {2, 1},       {1024, 1},          {1025, 2},
        {3000, 2}, {1 << 20, 2}, {(1 << 20) + 1, 3},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        if (test_depth(cases[i].chunks, cases[i].depth) != 0)
            return TEST_SKIP;
    test_forged_pages();
    test_packed_pages();
    test_racing_readers();
    return TEST_OK;
}
