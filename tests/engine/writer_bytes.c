/* SPDX-License-Identifier: BSD-3-Clause
 * Do a file's bytes depend on its data alone: not on the number of threads, nor on how often
 * a chunk is repeated?
 */
#define _GNU_SOURCE
#include "test.h"

#define CHUNK_BYTES 4096u

static struct test_store g_store;

/* In a child, since workers are counted when they start. */
static int write_on_cores(void *cores)
{
    cpu_set_t all, some;
    CHECK_EQ(sched_getaffinity(0, sizeof all, &all), 0);
    CPU_ZERO(&some);
    for (int cpu = 0, left = *(int *)cores; cpu < CPU_SETSIZE && left > 0; cpu++)
        if (CPU_ISSET(cpu, &all)) {
            CPU_SET(cpu, &some);
            left--;
        }
    CHECK_EQ(sched_setaffinity(0, sizeof some, &some), 0);
    struct test_store t = g_store;
    test_store_write(&t);
    CHECK_EQ(rename(t.path, g_store.path), 0);
    return TEST_OK;
}

/* All but the store id, times, and the checksums over them. */
static uint8_t *comparable(uint64_t *bytes)
{
    uint8_t *file = test_file_read(g_store.path, bytes);
    memset(file + 16, 0, LM_SUPERBLOCK_BYTES - 16);
    uint8_t *record = file + *bytes - LM_RECORD_BYTES;
    memset(record + 8, 0, 16);
    memset(record + 48, 0, 8);
    memset(record + 124, 0, 4);
    return file;
}

static void test_thread_count(int codec)
{
    int one = 1, many = 64;
    uint64_t bytes[2];
    g_store.enc = (struct lm_encoding){.object_bytes = 300 * CHUNK_BYTES - 5,
                                       .chunk_bytes = CHUNK_BYTES,
                                       .shuffle_width = 4,
                                       .codec = codec,
                                       .level = 3};
    g_store.data = malloc(g_store.enc.object_bytes);
    g_store.path = test_path("store.lzm");
    CHECK(g_store.data);
    test_fill(g_store.data, g_store.enc.object_bytes, 11);
    CHECK_EQ(test_in_child(write_on_cores, &one), 0);
    uint8_t *first = comparable(&bytes[0]);
    CHECK_EQ(test_in_child(write_on_cores, &many), 0);
    uint8_t *second = comparable(&bytes[1]);
    CHECK_EQ(bytes[0], bytes[1]);
    CHECK(memcmp(first, second, bytes[0]) == 0);
    free(first);
    free(second);
    test_store_close(&g_store);
}

static void test_repeats_are_stored_once(void)
{
    struct test_store t;
    struct lm_encoding enc = {.object_bytes = 100 * CHUNK_BYTES,
                              .chunk_bytes = CHUNK_BYTES};
    t = (struct test_store){.enc = enc, .data = calloc(1, enc.object_bytes)};
    CHECK(t.data);
    for (uint64_t c = 0; c < 100; c++) /* 33 zero chunks, then two kinds in turn */
        for (uint64_t i = 0; c % 3 && i < CHUNK_BYTES; i++)
            t.data[c * CHUNK_BYTES + i] = (uint8_t)(i * 7 + c % 3);
    test_store_write(&t);
    CHECK_EQ(t.written.chunks_total, 100);
    CHECK_EQ(t.written.chunks_zero, 34);
    CHECK_EQ(t.written.chunks_repeated, 64);
    CHECK_EQ(t.written.stored_bytes, 2 * CHUNK_BYTES);
    test_store_open(&t);
    uint8_t *got = malloc(enc.object_bytes);
    lm_job *job;
    CHECK(got);
    CHECK_EQ(lm_object_read(t.object, 0, enc.object_bytes, got, &job), 0);
    test_finish(job);
    CHECK(memcmp(got, t.data, enc.object_bytes) == 0);
    free(got);
    test_store_close(&t);
}

int main(void)
{
    if (test_codecs() != 0)
        return test_skip("no lz4 and zstd");
    for (int codec = LM_CODEC_NONE; codec <= LM_CODEC_ZSTD; codec++)
        test_thread_count(codec); /* before this process has workers */
    test_repeats_are_stored_once();
    return TEST_OK;
}
