/* SPDX-License-Identifier: BSD-3-Clause
 * uffd_abi.h - the kernel's structs and numbers of userfaultfd, since system headers lag behind
 * kernels.  Only uffd_open.c, uffd_fd.c and uffd.c include it.
 */
#ifndef LM_UFFD_ABI_H
#define LM_UFFD_ABI_H
#include <stdint.h>
#include <sys/ioctl.h>

#define UFFD_API                          0xAAull
#define UFFD_USER_MODE_ONLY               1
#define UFFD_EVENT_PAGEFAULT              0x12
#define UFFD_EVENT_REMAP                  0x14
#define UFFD_PAGEFAULT_FLAG_WRITE         1ull
#define UFFD_PAGEFAULT_FLAG_WP            2ull
#define UFFDIO_REGISTER_MODE_MISSING      1ull
#define UFFDIO_REGISTER_MODE_WP           2ull
#define UFFDIO_REGISTER_MODE_MINOR        4ull
#define UFFDIO_MODE_DONTWAKE              1ull /* of COPY and its like */
#define UFFDIO_COPY_MODE_WP               2ull
#define UFFDIO_WRITEPROTECT_MODE_WP       1ull
#define UFFDIO_WRITEPROTECT_MODE_DONTWAKE 2ull
#define UFFD_FEATURE_WP                   (1ull << 0)
#define UFFD_FEATURE_WP_HUGETLB           (1ull << 12)
#define UFFD_FEATURE_EVENT_REMAP          (1ull << 2) /* memory that moves stays ours */
#define UFFD_FEATURE_THREAD_ID            (1ull << 8)
#define UFFD_FEATURE_HUGETLB              (1ull << 4)
#define UFFD_FEATURE_SHMEM                (1ull << 5)
#define UFFD_FEATURE_MINOR_SHMEM          (1ull << 10)
#define UFFD_FEATURE_EXACT_ADDRESS        (1ull << 11)
#define UFFD_FEATURE_POISON               (1ull << 14)
#define UFFD_FEATURE_MOVE                 (1ull << 16)

struct uffd_msg {
    uint8_t event;
    uint8_t zero[7];
    uint64_t flags;
    uint64_t address;
    uint32_t ptid;
    uint32_t pad;
};
_Static_assert(sizeof(struct uffd_msg) == 32, "struct uffd_msg of the kernel");

struct uffdio_api {
    uint64_t api, features, ioctls;
};
struct uffdio_range {
    uint64_t start, len;
};
struct uffdio_register {
    struct uffdio_range range;
    uint64_t mode, ioctls;
};
struct uffdio_copy {
    uint64_t dst, src, len, mode;
    int64_t copy;
};
struct uffdio_zeropage {
    struct uffdio_range range;
    uint64_t mode;
    int64_t zeropage;
};
struct uffdio_move {
    uint64_t dst, src, len, mode;
    int64_t move;
};
struct uffdio_writeprotect {
    struct uffdio_range range;
    uint64_t mode;
};
struct uffdio_continue {
    struct uffdio_range range;
    uint64_t mode;
    int64_t mapped;
};
struct uffdio_poison {
    struct uffdio_range range;
    uint64_t mode;
    int64_t updated;
};

#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#define UFFDIO_API          _IOWR(0xAA, 0x3F, struct uffdio_api)
#define UFFDIO_REGISTER     _IOWR(0xAA, 0x00, struct uffdio_register)
#define UFFDIO_UNREGISTER   _IOR(0xAA, 0x01, struct uffdio_range)
#define UFFDIO_WAKE         _IOR(0xAA, 0x02, struct uffdio_range)
#define UFFDIO_COPY         _IOWR(0xAA, 0x03, struct uffdio_copy)
#define UFFDIO_ZEROPAGE     _IOWR(0xAA, 0x04, struct uffdio_zeropage)
#define UFFDIO_MOVE         _IOWR(0xAA, 0x05, struct uffdio_move)
#define UFFDIO_WRITEPROTECT _IOWR(0xAA, 0x06, struct uffdio_writeprotect)
#define UFFDIO_CONTINUE     _IOWR(0xAA, 0x07, struct uffdio_continue)
#define UFFDIO_POISON       _IOWR(0xAA, 0x08, struct uffdio_poison)

#endif
