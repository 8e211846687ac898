/* SPDX-License-Identifier: BSD-3-Clause
 * crc32c.c - CRC32C: by instruction where the processor has one, else by table.
 *
 * The table code takes eight bytes a step ("slicing-by-8": Kounavis and Berry, A Systematic
 * Approach to Building High Performance Software-Based CRC Generators, ISCC 2005).
 */
#include <stddef.h>

#include "align.h"
#include "lazymem.h"

#define POLYNOMIAL 0x82F63B78u /* 0x1EDC6F41, bits reversed */

static uint32_t g_table[8][256];

static uint32_t crc_by_table(uint32_t crc, const uint8_t *p, size_t bytes)
{
    for (; bytes >= 8; p += 8, bytes -= 8) {
        uint64_t v = lm__get64(p) ^ crc;
        crc = 0;
        for (int k = 0; k < 8; k++)
            crc ^= g_table[7 - k][v >> (8 * k) & 255];
    }
    for (; bytes; p++, bytes--)
        crc = crc >> 8 ^ g_table[0][(crc ^ *p) & 255];
    return crc;
}

#if defined(__x86_64__)
#include <nmmintrin.h>
__attribute__((target("sse4.2"))) static uint32_t crc_by_instruction(uint32_t crc,
                                                                     const uint8_t *p,
                                                                     size_t bytes)
{
    uint64_t c = crc;
    for (; bytes >= 8; p += 8, bytes -= 8)
        c = _mm_crc32_u64(c, lm__get64(p));
    for (; bytes; p++, bytes--)
        c = _mm_crc32_u8((uint32_t)c, *p);
    return (uint32_t)c;
}
static int has_instruction(void)
{
    __builtin_cpu_init(); /* nobody else has, so early */
    return __builtin_cpu_supports("sse4.2");
}
#elif defined(__aarch64__)
#include <sys/auxv.h>
#define HWCAP_CRC32_BIT (1ul << 7)
__attribute__((target("+crc"))) static uint32_t crc_by_instruction(uint32_t crc,
                                                                   const uint8_t *p,
                                                                   size_t bytes)
{
    for (; bytes >= 8; p += 8, bytes -= 8)
        crc = __builtin_aarch64_crc32cx(crc, lm__get64(p));
    for (; bytes; p++, bytes--)
        crc = __builtin_aarch64_crc32cb(crc, *p);
    return crc;
}
static int has_instruction(void)
{
    return (getauxval(AT_HWCAP) & HWCAP_CRC32_BIT) != 0;
}
#else
#define crc_by_instruction crc_by_table
static int has_instruction(void) { return 0; }
#endif

static uint32_t (*g_crc)(uint32_t, const uint8_t *, size_t);

/* When the library is loaded, and not when a first checksum is waited for. */
__attribute__((constructor)) static void init(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? POLYNOMIAL : 0);
        g_table[0][i] = crc;
    }
    for (int k = 1; k < 8; k++)
        for (int i = 0; i < 256; i++)
            g_table[k][i] =
                g_table[k - 1][i] >> 8 ^ g_table[0][g_table[k - 1][i] & 255];
    g_crc = has_instruction() ? crc_by_instruction : crc_by_table;
}

uint32_t lm_crc32c(uint32_t crc, const void *data, size_t data_bytes)
{
    return ~g_crc(~crc, data, data_bytes);
}
