/* SPDX-License-Identifier: BSD-3-Clause
 * codec.c - none, lz4 and zstd behind one table; their code lives in other people's libraries.
 *
 * The wheels of the PyPI packages lz4 and zstandard export the plain C functions of both
 * libraries from their extension modules.  Taking them from there means that nothing but a C
 * compiler is needed to build, and that users get the codecs they have installed.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <link.h>
#include <sys/mman.h>

#include "internal.h"

struct zstd_in {
    const void *src;
    size_t size, pos;
};

struct zstd_out {
    void *dst;
    size_t size, pos;
};

static struct {
    int (*compress_fast)(const char *, char *, int, int, int);
    int (*compress_hc)(const char *, char *, int, int, int);
    int (*decompress_safe)(const char *, char *, int, int);
} g_lz4;

static struct {
    void *(*create_cctx)(void);
    size_t (*free_cctx)(void *);
    void *(*create_dctx)(void);
    size_t (*free_dctx)(void *);
    size_t (*reset)(void *, int);
    size_t (*set_parameter)(void *, int, int);
    size_t (*set_pledged_size)(void *, unsigned long long);
    size_t (*compress)(void *, struct zstd_out *, struct zstd_in *, int);
    size_t (*decompress)(void *, void *, size_t, const void *, size_t);
    unsigned (*is_error)(size_t);
} g_zstd;

/* ---- codecs --------------------------------------------------------------------------------- */

static int64_t none_code(const void *src, size_t bytes, void *dst, size_t capacity)
{
    if (bytes > capacity)
        return LM_E_DECODE;
    memcpy(dst, src, bytes);
    return (int64_t)bytes;
}

static int64_t none_encode(struct lm__scratch *s, const struct lm__plain *plain,
                           int level, void *dst, size_t capacity)
{
    (void)s, (void)level;
    return none_code(plain->bytes, plain->count, dst, capacity);
}

static int64_t none_decode(struct lm__scratch *s, const void *src, size_t bytes,
                           void *dst, size_t capacity)
{
    (void)s;
    return none_code(src, bytes, dst, capacity);
}

#define LZ4_HC_LEVEL_MIN 2 /* from here on the slow, dense compressor */

static int lz4_compress(const void *src, size_t bytes, void *dst, size_t capacity,
                        int level)
{
    if (level >= LZ4_HC_LEVEL_MIN)
        return g_lz4.compress_hc(src, dst, (int)bytes, (int)capacity, level);
    return g_lz4.compress_fast(src, dst, (int)bytes, (int)capacity,
                               level < 0 ? -level : 1);
}

static int64_t lz4_encode(struct lm__scratch *s, const struct lm__plain *plain,
                          int level, void *dst, size_t capacity)
{
    if (plain->part_bytes == 0 || plain->count <= plain->part_bytes) {
        int n = lz4_compress(plain->bytes, plain->count, dst, capacity, level);
        return n > 0 ? n : LM_E_DECODE;
    }
    struct lm__lz4_joint joint = {.block = dst, .capacity = capacity};
    for (size_t at = 0; at < plain->count; at += plain->part_bytes) {
        size_t left = plain->count - at;
        int n = lz4_compress(plain->bytes + at,
                             left < plain->part_bytes ? left : plain->part_bytes, s->b,
                             s->capacity, level);
        if (n <= 0 || lm__lz4_join(&joint, s->b, (size_t)n) != 0)
            return LM_E_DECODE;
    }
    return (int64_t)joint.bytes;
}

static int64_t lz4_decode(struct lm__scratch *s, const void *src, size_t bytes,
                          void *dst, size_t capacity)
{
    (void)s;
    int n = g_lz4.decompress_safe(src, dst, (int)bytes, (int)capacity);
    return n >= 0 ? n : LM_E_DECODE;
}

#define ZSTD_C_COMPRESSION_LEVEL 100
#define ZSTD_C_CONTENT_SIZE_FLAG 200
#define ZSTD_RESET_SESSION       1
#define ZSTD_E_FLUSH             1
#define ZSTD_E_END               2

/* Each part begins a block of the frame, with entropy tables of its own: planes of shuffled
 * data have little in common, and are up to 15 % smaller so than compressed as one. */
static int64_t zstd_encode(struct lm__scratch *s, const struct lm__plain *plain,
                           int level, void *dst, size_t capacity)
{
    if (!s->zstd_cctx && !(s->zstd_cctx = g_zstd.create_cctx()))
        return -ENOMEM;
    g_zstd.reset(s->zstd_cctx, ZSTD_RESET_SESSION);
    g_zstd.set_parameter(s->zstd_cctx, ZSTD_C_COMPRESSION_LEVEL, level);
    g_zstd.set_parameter(s->zstd_cctx, ZSTD_C_CONTENT_SIZE_FLAG, 0); /* known anyway */
    g_zstd.set_pledged_size(s->zstd_cctx, plain->count);
    size_t step = plain->part_bytes ? plain->part_bytes : plain->count;
    struct zstd_in in = {.src = plain->bytes};
    struct zstd_out out = {.dst = dst, .size = capacity};
    while (in.size < plain->count) {
        in.size = plain->count - in.size < 2 * step ? plain->count : in.size + step;
        int is_last = in.size == plain->count;
        size_t left = g_zstd.compress(s->zstd_cctx, &out, &in,
                                      is_last ? ZSTD_E_END : ZSTD_E_FLUSH);
        if (g_zstd.is_error(left) || left != 0) /* left: dst is full */
            return LM_E_DECODE;
    }
    return (int64_t)out.pos;
}

static int64_t zstd_decode(struct lm__scratch *s, const void *src, size_t bytes,
                           void *dst, size_t capacity)
{
    if (!s->zstd_dctx && !(s->zstd_dctx = g_zstd.create_dctx()))
        return -ENOMEM;
    size_t n = g_zstd.decompress(s->zstd_dctx, dst, capacity, src, bytes);
    return g_zstd.is_error(n) ? LM_E_DECODE : (int64_t)n;
}

const struct lm__codec *lm__codec(int id)
{
    static const struct lm__codec codecs[] = {
        [LM_CODEC_NONE] = {"none", none_encode, none_decode},
        [LM_CODEC_LZ4] = {"lz4", lz4_encode, lz4_decode},
        [LM_CODEC_ZSTD] = {"zstd", zstd_encode, zstd_decode},
    };
    if (id < 0 || id > LM_CODEC_ZSTD ||
        (id == LM_CODEC_LZ4 && !g_lz4.decompress_safe) ||
        (id == LM_CODEC_ZSTD && !g_zstd.decompress))
        return NULL;
    return &codecs[id];
}

void *lm__zstd_dctx_new(void)
{
    return g_zstd.create_dctx ? g_zstd.create_dctx() : NULL;
}

void lm__zstd_free(struct lm__scratch *s)
{
    if (s->zstd_cctx)
        g_zstd.free_cctx(s->zstd_cctx);
    if (s->zstd_dctx)
        g_zstd.free_dctx(s->zstd_dctx);
}

/* ---- where the functions come from -------------------------------------------------------------- */

struct symbol {
    const char *name;
    void *slot; /* of a function pointer, all of which have one size on Linux */
};

static int resolve(const char *library, const char *path, const struct symbol *symbols,
                   size_t count, struct lm_error *err)
{
    struct lm_error e = lm__error(LM_E_CODEC, library);
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!handle)
        return lm__fail(err, e);
    for (size_t i = 0; i < count; i++) {
        void *address = dlsym(handle, symbols[i].name);
        if (!address) {
            snprintf(e.what, sizeof e.what, "%s has no %s", library, symbols[i].name);
            return lm__fail(err, e);
        }
        memcpy(symbols[i].slot, &address, sizeof address);
    }
    return 0; /* the handle stays open for the life of the process */
}

#define MADV_POPULATE_READ_ 22 /* Linux 5.14; a hint, so a refusal does not matter */

/* Map the code and the tables of the library that holds a function now, and not fault by
 * fault when a first chunk waits. */
static int populate_library(struct dl_phdr_info *info, size_t size, void *function)
{
    (void)size;
    int is_inside = 0;
    for (int i = 0; i < info->dlpi_phnum && !is_inside; i++) {
        const ElfW(Phdr) *ph = &info->dlpi_phdr[i];
        is_inside = ph->p_type == PT_LOAD &&
                    (uintptr_t)function - (info->dlpi_addr + ph->p_vaddr) < ph->p_memsz;
    }
    for (int i = 0; i < info->dlpi_phnum && is_inside; i++) {
        const ElfW(Phdr) *ph = &info->dlpi_phdr[i];
        uintptr_t start = info->dlpi_addr + ph->p_vaddr;
        uintptr_t page = lm__round_down(start, lm__page_bytes());
        if (ph->p_type == PT_LOAD)
            madvise((void *)page, start + ph->p_memsz - page, MADV_POPULATE_READ_);
    }
    return is_inside;
}

int lm_codecs_load(const char *lz4_path, const char *zstd_path, struct lm_error *err)
{
    const struct symbol lz4[] = {
        {"LZ4_compress_fast", &g_lz4.compress_fast},
        {"LZ4_compress_HC", &g_lz4.compress_hc},
        {"LZ4_decompress_safe", &g_lz4.decompress_safe},
    };
    const struct symbol zstd[] = {
        {"ZSTD_createCCtx", &g_zstd.create_cctx},
        {"ZSTD_freeCCtx", &g_zstd.free_cctx},
        {"ZSTD_createDCtx", &g_zstd.create_dctx},
        {"ZSTD_freeDCtx", &g_zstd.free_dctx},
        {"ZSTD_CCtx_reset", &g_zstd.reset},
        {"ZSTD_CCtx_setParameter", &g_zstd.set_parameter},
        {"ZSTD_CCtx_setPledgedSrcSize", &g_zstd.set_pledged_size},
        {"ZSTD_compressStream2", &g_zstd.compress},
        {"ZSTD_decompressDCtx", &g_zstd.decompress},
        {"ZSTD_isError", &g_zstd.is_error},
    };
    int rc = resolve("lz4", lz4_path ? lz4_path : "liblz4.so.1", lz4,
                     sizeof lz4 / sizeof lz4[0], err);
    if (rc == 0)
        rc = resolve("zstd", zstd_path ? zstd_path : "libzstd.so.1", zstd,
                     sizeof zstd / sizeof zstd[0], err);
    if (rc == 0) {
        dl_iterate_phdr(populate_library, (void *)(uintptr_t)lm_codecs_load);
        dl_iterate_phdr(populate_library, (void *)(uintptr_t)g_lz4.decompress_safe);
        dl_iterate_phdr(populate_library, (void *)(uintptr_t)g_zstd.decompress);
    }
    return rc;
}
