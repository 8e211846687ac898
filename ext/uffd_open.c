/* SPDX-License-Identifier: BSD-3-Clause
 * uffd_open.c - how a userfaultfd is had: the system call, the device, or for user-mode faults
 * only; and which features it offers.  LAZYMEM_MASK names what is to be done without.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "internal.h"
#include "uffd_abi.h"

/* By bit number. */
static const char *const FEATURES[] = {
    "wp",
    "event_fork",
    "event_remap",
    "event_remove",
    "hugetlb",
    "shmem",
    "event_unmap",
    "sigbus",
    "thread_id",
    "minor_hugetlb",
    "minor_shmem",
    "exact_address",
    "wp_hugetlb_shmem",
    "wp_unpopulated",
    "poison",
    "wp_async",
    "move",
};
#define FEATURE_COUNT ((int)(sizeof FEATURES / sizeof FEATURES[0]))

const char *lm_uffd_feature_name(int bit)
{
    return bit >= 0 && bit < FEATURE_COUNT ? FEATURES[bit] : NULL;
}

static int is_masked(const char *name)
{
    const char *list = getenv("LAZYMEM_MASK");
    size_t length = strlen(name);
    for (const char *p = list; p && (p = strstr(p, name)); p += length)
        if ((p == list || p[-1] == ',') && (p[length] == 0 || p[length] == ','))
            return 1;
    return 0;
}

static int open_device(struct lm_uffd_info *info)
{
    int device = is_masked("dev") ? -1 : open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    int uffd = device < 0 ? -1 : ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC);
    info->dev_errno = uffd < 0 ? (is_masked("dev") ? EPERM : errno) : 0;
    if (device >= 0)
        close(device);
    return uffd;
}

static int open_syscall(const char *name, int flags, int32_t *error)
{
    int uffd = -1;
    errno = EPERM;
    if (!is_masked(name))
        uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | flags);
    *error = uffd < 0 ? errno : 0;
    return uffd;
}

/* The ladder: the system call, the device, which takes longer, and the system call for
 * user-mode faults only. */
static int open_ladder(struct lm_uffd_info *info)
{
    *info = (struct lm_uffd_info){.mode = LM_UFFD_FULL};
    int uffd = open_syscall("syscall", 0, &info->full_errno);
    if (uffd < 0)
        uffd = open_device(info);
    if (uffd < 0) {
        info->mode = LM_UFFD_USER_ONLY;
        uffd = open_syscall("user", UFFD_USER_MODE_ONLY, &info->user_errno);
    }
    if (uffd < 0)
        info->mode = LM_UFFD_NONE;
    return uffd;
}

static uint64_t unmasked_features(uint64_t features)
{
    for (int bit = 0; bit < FEATURE_COUNT; bit++)
        if (is_masked(FEATURES[bit]))
            features &= ~(1ull << bit);
    return features;
}

/* Exact addresses show strides that are no multiple of a page. */
#define FEATURES_WANTED                                                                \
    (UFFD_FEATURE_THREAD_ID | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EXACT_ADDRESS |  \
     UFFD_FEATURE_SHMEM | UFFD_FEATURE_MINOR_SHMEM)

static _Atomic uint64_t g_features_wanted = FEATURES_WANTED;

#ifdef LM_CHECKS
void lm__uffd_ask_for(uint64_t features)
{
    lm_store_relaxed(&g_features_wanted, FEATURES_WANTED | features);
}
#endif

/* A descriptor shakes hands once, and asking for an unknown feature ends it. */
static int open_with(uint64_t features, struct lm_uffd_info *info)
{
    struct uffdio_api api = {.api = UFFD_API, .features = features};
    int uffd = open_ladder(info);
    if (uffd < 0)
        return LM_E_NO_UFFD;
    if (ioctl(uffd, UFFDIO_API, &api) == 0) {
        info->features = unmasked_features(api.features);
        return uffd;
    }
    info->api_errno = errno;
    close(uffd);
    info->mode = LM_UFFD_NONE;
    return LM_E_NO_UFFD;
}

int lm__uffd_open(struct lm_uffd_info *info)
{
    uint64_t wanted = unmasked_features(lm_load_relaxed(&g_features_wanted));
    int uffd = open_with(wanted, info);
    if (uffd >= 0 || info->api_errno == 0)
        return uffd;
    uffd = open_with(0, info); /* an older kernel: what has it? */
    wanted &= info->features;
    if (uffd < 0 || wanted == 0)
        return uffd;
    close(uffd);
    return open_with(wanted, info);
}

void lm_uffd_probe(struct lm_uffd_info *out)
{
    int uffd = lm__uffd_open(out);
    if (uffd >= 0)
        close(uffd);
}
