/* SPDX-License-Identifier: BSD-3-Clause
 * check.h - assertions: for our own mistakes only, never for bytes from a file.
 *
 * LM_CHECKS is defined in test builds.  A failed assertion aborts: the state it found can
 * no longer be trusted with data.
 */
#ifndef LM_CHECK_H
#define LM_CHECK_H

#ifdef LM_CHECKS
#include <stdio.h>
#include <stdlib.h>
#define lm_assert(condition)                                                           \
    do {                                                                               \
        if (!(condition)) {                                                            \
            fprintf(stderr, "%s:%d: %s: assertion failed: %s\n", __FILE__, __LINE__,   \
                    __func__, #condition);                                             \
            abort();                                                                   \
        }                                                                              \
    } while (0)
#else
#define lm_assert(condition) ((void)0)
#endif

#endif
