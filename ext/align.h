/* SPDX-License-Identifier: BSD-3-Clause
 * align.h - rounding, powers of two, little-endian fields.
 */
#ifndef LM_ALIGN_H
#define LM_ALIGN_H
#include <stdint.h>
#include <string.h>

static inline uint64_t lm__round_up(uint64_t value, uint64_t power_of_two)
{
    return (value + power_of_two - 1) & ~(power_of_two - 1);
}

static inline uint64_t lm__round_down(uint64_t value, uint64_t power_of_two)
{
    return value & ~(power_of_two - 1);
}

static inline uint64_t lm__div_up(uint64_t value, uint64_t by)
{
    return value / by + (value % by != 0);
}

static inline int lm__is_power_of_two(uint64_t value)
{
    return value != 0 && (value & (value - 1)) == 0;
}

static inline unsigned lm__log2(uint64_t power_of_two)
{
    return (unsigned)__builtin_ctzll(power_of_two);
}

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "lazymem runs on little-endian machines"
#endif

static inline uint16_t lm__get16(const void *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline uint32_t lm__get32(const void *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline uint64_t lm__get64(const void *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline void lm__put16(void *p, uint16_t v) { memcpy(p, &v, sizeof v); }
static inline void lm__put32(void *p, uint32_t v) { memcpy(p, &v, sizeof v); }
static inline void lm__put64(void *p, uint64_t v) { memcpy(p, &v, sizeof v); }

#endif
