/* SPDX-License-Identifier: BSD-3-Clause
 * Reads of the file that the kernel cuts short or refuses, for real: does the toucher get an
 * error and no bytes that were not read, and the data once it can be read?
 */
#define _GNU_SOURCE
#include "uffd.h"

#define CHUNK_PAGES 4
#define CHUNKS      40

static size_t g_page;
static struct test_store g_store;

/* Touch the second page of a chunk, of whose payload at best the first part can be read. */
static void touch_is(lm_region *region, uint64_t chunk_idx, int code)
{
    struct test_toucher t;
    size_t at = (chunk_idx * CHUNK_PAGES + 1) * g_page + 3;
    test_touch_start(&t, (uint8_t *)lm_region_addr(region) + at);
    test_touch_end(&t);
    CHECK_EQ(t.has_error, code != 0);
    CHECK_EQ(t.got, code ? 0xFF : g_store.data[at]);
    if (code) {
        CHECK_EQ(t.err.code, code);
        CHECK_EQ(t.err.chunk_idx, chunk_idx);
    }
    lm_region_settle(region);
    AWAIT(lm__chunks_state(&region->chunks, chunk_idx) != LM_CHUNK_FILLING);
    CHECK_EQ(lm__chunks_state(&region->chunks, chunk_idx),
             code ? LM_CHUNK_ABSENT : LM_CHUNK_CLEAN);
}

static void test_file_that_ends_amid_a_payload(lm_region *region)
{
    struct lm__entry entry = test_entry(&g_store, 30);
    uint64_t bytes;
    uint8_t *file = test_file_read(g_store.path, &bytes);
    CHECK_EQ(truncate(g_store.path, (off_t)(entry.offset + entry.stored_bytes / 2)), 0);
    touch_is(region, 30, LM_E_TRUNCATED);
    touch_is(region, 30, LM_E_TRUNCATED);
    test_file_write(g_store.path, file, bytes);
    touch_is(region, 30, 0);
    free(file);
}

/* The file's descriptor becomes another thing, and is itself again. */
static int swap_source(int fd)
{
    int kept = dup(g_store.store->source.fd);
    CHECK(kept >= 0);
    CHECK_EQ(dup2(fd, g_store.store->source.fd), g_store.store->source.fd);
    close(fd);
    return kept;
}

static void test_read_that_is_refused(lm_region *region)
{
    int kept = swap_source(open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    touch_is(region, 31, -EISDIR);
    swap_source(kept);
    touch_is(region, 31, 0);
}

/* /proc/self/mem gives the bytes of the pages that are mapped, and EIO for those that are
 * not.  So the payload, at the address that is its offset, can be read up to a page's end. */
static void test_read_that_is_short_and_then_fails(lm_region *region)
{
    struct lm__entry entry = {0};
    uint64_t chunk_idx = 10, hole = 0;
    while (hole == 0 && ++chunk_idx < 30) { /* one that lies across a page's end */
        entry = test_entry(&g_store, chunk_idx);
        hole = lm__round_up(entry.offset + 1, g_page);
        if (entry.offset < 65536 || hole >= entry.offset + entry.stored_bytes)
            hole = 0;
    }
    CHECK(hole != 0);
    uintptr_t low = lm__round_down(entry.offset, g_page);
    size_t bytes = lm__round_up(entry.offset + entry.stored_bytes, g_page) - low;
    void *p = mmap((void *)low, bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (p != (void *)low) {
        if (p != MAP_FAILED)
            munmap(p, bytes);
        return; /* such low addresses can't be had here */
    }
    CHECK_EQ(lm__io_pread(g_store.store->source.fd, low, bytes, p, 0), 0);
    CHECK_EQ(munmap((void *)hole, low + bytes - hole), 0);

    int kept = swap_source(open("/proc/self/mem", O_RDONLY | O_CLOEXEC));
    uint8_t *buf = malloc(entry.stored_bytes);
    CHECK(buf);
    CHECK_EQ(
        pread(g_store.store->source.fd, buf, entry.stored_bytes, (off_t)entry.offset),
        (ssize_t)(hole - entry.offset));
    touch_is(region, chunk_idx, -EIO);
    CHECK(mmap((void *)hole, low + bytes - hole, PROT_READ | PROT_WRITE,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == (void *)hole);
    touch_is(region, chunk_idx, LM_E_CHECKSUM); /* zeros in place of the rest */
    CHECK_EQ(lm__io_pread(kept, low, bytes, p, 0), 0);
    touch_is(region, chunk_idx, 0); /* whole again */
    swap_source(kept);
    CHECK_EQ(munmap(p, bytes), 0);
    free(buf);
}

int main(void)
{
    g_page = lm__page_bytes();
    g_store.enc = (struct lm_encoding){.object_bytes = CHUNKS * CHUNK_PAGES * g_page,
                                       .chunk_bytes = (uint32_t)(CHUNK_PAGES * g_page)};
    uint64_t state = 61;
    g_store.data = malloc(g_store.enc.object_bytes);
    CHECK(g_store.data);
    for (size_t i = 0; i < g_store.enc.object_bytes; i++)
        g_store.data[i] = (uint8_t)(test_random(&state) >> 32);
    test_store_write(&g_store);
    test_store_open(&g_store);
    lm_region *region;
    if (test_region_open(&g_store, &region) != 0)
        return TEST_SKIP;
    (void)*(volatile uint8_t *)lm_region_addr(region); /* reads the index */
    test_file_that_ends_amid_a_payload(region);
    test_read_that_is_refused(region);
    test_read_that_is_short_and_then_fails(region);
    lm_region_close(region);
    test_store_close(&g_store);
    return TEST_OK;
}
