/* SPDX-License-Identifier: BSD-3-Clause
 * error.c - one table of codes, one way to fill a struct lm_error.
 */
#include <stdio.h>
#include <string.h>

#include "internal.h"

const char *lm_strerror(int code)
{
    switch (code) {
    case 0: return "success";
    case LM_E_MAGIC: return "not a lazymem store file";
    case LM_E_VERSION: return "written by a newer version of the format";
    case LM_E_FORMAT: return "a field contradicts the file format";
    case LM_E_CHECKSUM: return "checksum mismatch";
    case LM_E_TRUNCATED: return "the file ends too early";
    case LM_E_NO_COMMIT: return "no intact commit record";
    case LM_E_DECODE: return "the codec could not decode the payload";
    case LM_E_CODEC: return "codec not available";
    case LM_E_CLOSED: return "the store is closed";
    case LM_E_NO_UFFD: return "userfaultfd is not available";
    case LM_E_LOST_MAPPING:
        return "the array's memory mapping was changed from outside";
    case LM_E_ORDER:
        return "blocks must be written in ascending order, within the object";
    case LM_E_CANCELLED: return "cancelled";
    case LM_E_DANGLING: return "touched memory of an array that no longer exists";
    case LM_E_NO_HUGE_PAGES: return "the system's pool has too few of them free";
    case LM_E_LOCKED: return "another writer has the store open";
    case LM_E_BUDGET: return "the memory limit is reached, and nothing can be dropped";
    default: return code < 0 ? strerror(-code) : "unknown code";
    }
}

struct lm_error lm__error(int code, const char *what)
{
    struct lm_error e = {
        .code = code,
        .tag = LM_NONE,
        .chunk_idx = LM_NONE,
        .offset = LM_NONE,
        .expected = LM_NONE,
        .found = LM_NONE,
    };
    snprintf(e.what, sizeof e.what, "%s", what);
    return e;
}

int lm__fail(struct lm_error *err, struct lm_error cause)
{
    if (err)
        *err = cause;
    return cause.code;
}
