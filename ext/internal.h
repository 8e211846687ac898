/* SPDX-License-Identifier: BSD-3-Clause
 * internal.h - what the engine's files share, from the bottom layer up.
 *
 * Layers (a file calls only what stands above it here; leaves serve all):
 *   leaves   error.c crc32c.c os.c align.h atomic.h check.h
 *   io.c     format.c     filter.c lz4join.c codec.c scratch.c     source.c
 *   index.c     index_diff.c
 *   payload.c     store.c object.c block.c     encode.c append.c     index_update.c
 *   spill.c     chunks.c     keeper.c uffd_open.c uffd_fd.c uffd.c
 *   failure.c interrupt.c
 *   shared.c     gate.c     queues.c budget.c     arena.c region.c region_fork.c     waiters.c     kept.c     writegate.c
 *   copying.c     shared_fill.c     evict.c     fill.c     freeze.c
 *   workers.c     dirty.c prefetch.c     ahead.c
 *   ones.c     fault.c
 *   pager.c
 *   read.c strip.c writer.c     snapshot.c restore.c prune.c copy.c     python.c
 * Up to chunks.c nothing knows of userfaultfd.
 *
 * Lock order, outermost first.  No lock is held while waiting for a chunk, doing I/O,
 * decoding, or touching memory that a region serves.
 *   pager.c start_lock > gate.c (read: a fill in flight, write: fork, a change of budget)
 *     > ahead.c locks > workers.c lock > arena.c lock > failure.c lock
 *   kept.c lock comes before the arenas', freeze.c's before that of a freeze.  Those of waiters.c,
 *   interrupt.c, uffd.c, object.c, budget.c, a freeze and a writer are leaves.
 *
 * Threads          takes                         never
 *   handler        all but the pager's          GIL, served memory
 *   worker         workers' lock, job locks      GIL; may touch served memory (it reads the
 *                                                user's arrays when packing), so handlers
 *                                                never wait for it
 *   reporter       failure lock, then, with none held, the GIL
 *   copier         those of freeze.c; touches served memory, so handlers never wait for it
 *   evictor        gate, budget.c               served memory
 *   keeper         none
 *   application    any, in the order above
 */
#ifndef LM_INTERNAL_H
#define LM_INTERNAL_H
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include "align.h"
#include "atomic.h"
#include "check.h"
#include "lazymem.h"

#define LM_NONE UINT64_MAX

/* ---- error.c ------------------------------------------------------------------------ */

/* An error whose other fields do not apply yet; the caller sets those that do. */
struct lm_error lm__error(int code, const char *what);
/* Store `cause` in *err if there is one, and return its code. */
int lm__fail(struct lm_error *err, struct lm_error cause);

/* ---- os.c -------------------------------------------------------------------------- */

size_t lm__page_bytes(void);
extern const uint8_t lm__zeros[65536];
/* Private anonymous pages, aligned, that the system does not account for.  NULL with errno. */
void *lm__pages_reserve(size_t bytes, size_t align, int protection);
/* Of a transparent huge page, where the system makes them of this size. */
#define LM_HUGE_BYTES ((size_t)2 << 20)
int lm__pages_can_be_huge(void);
/* Give pages back to the system, locked ones too.  The range stays mapped. */
void lm__pages_drop(uintptr_t addr, size_t bytes);
/* 1 if the page tables have the page of `addr`, or it is in the swap cache. */
int lm__page_is_present(uintptr_t addr);
int lm__pages_are_present(uintptr_t addr, size_t bytes); /* whole pages */
/* 1 if this process's page tables have it: of memory that processes share the page may be there
 * all the same.  0 if that can't be told. */
int lm__page_is_mapped(uintptr_t addr);
/* 1 if who touches the page gets SIGBUS: see lm__uffd_poison(). */
int lm__page_is_poisoned(uintptr_t addr);
/* 1 if all pages of a range are the system's page of zeros; 0 if not, or if that can't be told:
 * before Linux 6.7 it can't. */
int lm__pages_are_zero(uintptr_t addr, size_t bytes);
int lm__pages_can_tell_zero(void);
uint64_t lm__now_ns(void); /* that only goes on */
/* Room for `count` items of an array that grows.  0 or -ENOMEM. */
int lm__array_reserve(void *array, uint64_t *capacity, uint64_t count,
                      size_t item_bytes);
unsigned lm__cores(void); /* that this process may use */
struct lm__thread {
    void (*run)(void);
    const char *name;
};
/* Start a thread with all signals blocked, detached. */
int lm__thread_start(const struct lm__thread *thread);
int32_t lm__thread_id(void);
/* Let the calling thread run on one core only, of lm__cores(); threads that it starts run on all. */
void lm__thread_pin(unsigned core);
/* Let libc and the system have stacks ready for the next two threads. */
void lm__thread_warm(void);

/* Pause points: places where a test may hold a thread to force a race.  The hook is called
 * with the name of the point; builds without LM_CHECKS have neither. */
#ifdef LM_CHECKS
typedef void (*lm__pause_fn)(const char *point);
extern _Atomic(lm__pause_fn) lm__pause_hook;
static inline void lm__pause(const char *point)
{
    lm__pause_fn hook = lm_load_acquire(&lm__pause_hook);
    if (hook)
        hook(point);
}
#else
#define lm__pause(point) ((void)0)
#endif

/* ---- io.c ----------------------------------------------------------------------------- */

int lm__io_open(const char *path, int flags, unsigned mode); /* the fd, or -errno */
int lm__io_pread(int fd, uint64_t offset, size_t bytes, void *buf, int retries);
/* 0 if the page cache had it all; -EAGAIN, with `buf` undefined, if it would have to wait. */
int lm__io_pread_cached(int fd, uint64_t offset, size_t bytes, void *buf);
int lm__io_pwrite(int fd, uint64_t offset, size_t bytes, const void *buf);
int lm__io_sync(int fd);
/* Give the space of a range back, which reads as zeros from then on. */
int lm__io_punch(int fd, uint64_t offset, uint64_t bytes);
/* Start to read; a hint, so it can't fail. */
void lm__io_will_need(int fd, uint64_t offset, uint64_t bytes);
int lm__io_file_bytes(int fd, uint64_t *out);
/* Which file a descriptor is of, and whether it still is: the program may close it, and its
 * number be a stranger's. */
struct lm__file_id {
    uint64_t device, inode;
};
int lm__io_file_id(int fd, struct lm__file_id *out);
int lm__io_is_file(int fd, const struct lm__file_id *id);
int lm__io_used_bytes(int fd, uint64_t *out); /* on the disk */
/* The errno with which a test wants the next call at `point` to fail, or 0. */
int lm__injected(int point);

/* ---- format.c --------------------------------------------------------------------------- */

enum {
    LM_FORMAT_VERSION = 1,
    LM_SUPERBLOCK_BYTES = 64,
    LM_RECORD_BYTES = 128,
    LM_RECORD_ALIGN = 64,
    LM_ENTRY_BYTES = 24,
    LM_PAGE_ENTRIES = 1024, /* of an index page: 24 KiB for 1024 chunks */
    LM_INDEX_DEPTH_MAX = 6, /* 1024^6 chunks cover 2^63 bytes */
    LM_PAIR_BYTES = 26,     /* of a patch page: a slot number and the entry there */
    LM_PATCH_BYTES_MAX = LM_ENTRY_BYTES + LM_PAGE_ENTRIES * LM_PAIR_BYTES,
    LM_FILTER_NONE = 0,
    LM_FILTER_SHUFFLE = 1,
};

/* An index entry, in memory as in the file.  All zero: what it covers is zero. */
struct lm__entry {
    uint64_t offset;
    uint32_t stored_bytes;
    uint32_t crc;
    uint8_t codec;
    uint8_t filter;
    uint8_t zero[6];
};
_Static_assert(sizeof(struct lm__entry) == LM_ENTRY_BYTES,
               "entries are stored as they are");

struct lm__superblock {
    uint8_t store_id[16];
    uint64_t created_ns;
};

struct lm__record {
    uint8_t store_id[16];
    uint64_t offset;
    uint64_t sequence;
    uint64_t previous_offset;
    uint64_t time_ns;
    struct lm__entry manifest;
    uint32_t manifest_bytes; /* decoded */
};

void lm__superblock_encode(const struct lm__superblock *sb, uint8_t *out);
int lm__superblock_decode(const uint8_t *in, struct lm__superblock *sb,
                          struct lm_error *err);
void lm__record_encode(const struct lm__record *rec, uint8_t *out);
/* `offset` is where the bytes were found.  LM_E_MAGIC: no record at all; LM_E_CHECKSUM: a
 * torn one; LM_E_NO_COMMIT: a record of another store; LM_E_FORMAT: sealed, but senseless. */
int lm__record_decode(const uint8_t *in, uint64_t offset, const uint8_t *store_id,
                      struct lm__record *rec, struct lm_error *err);
int lm__entry_is_zero(const struct lm__entry *e);
int lm__entry_is_equal(const struct lm__entry *a, const struct lm__entry *b);
struct lm__entry lm__entry_of_root(const struct lm_root *root);
struct lm_root lm__root_of(const struct lm__entry *e);
/* The depth of an index of `chunks` chunks, and how many entries page `page_idx` of level
 * `level` has (a leaf is level 1). */
unsigned lm__index_depth(uint64_t chunks);
uint32_t lm__index_page_entries(uint64_t chunks, unsigned level, uint64_t page_idx);

/* ---- filter.c ------------------------------------------------------------------------- */

void lm__shuffle(size_t width, size_t bytes, const uint8_t *src, uint8_t *dst);
void lm__unshuffle(size_t width, size_t bytes, const uint8_t *src, uint8_t *dst);

/* ---- lz4join.c -------------------------------------------------------------------------- */

/* A sequence of an LZ4 block: where it begins, and its literals. */
struct lm__lz4_run {
    size_t at, literals_at, literals;
};

/* A block that grows: all zero but for the buffer to begin with. */
struct lm__lz4_joint {
    uint8_t *block;
    size_t capacity, bytes;
    struct lm__lz4_run last;
};

/* Append the block `next`.  -1 if it does not fit. */
int lm__lz4_join(struct lm__lz4_joint *joint, const uint8_t *next, size_t next_bytes);

/* ---- scratch.c -------------------------------------------------------------------------- */

enum lm__block_state { LM_BLOCK_EMPTY = 0, LM_BLOCK_HUGE, LM_BLOCK_SMALL };

/* What one thread needs to decode or encode: two buffers that grow to the largest chunk met,
 * a block for chunks side by side, and the codecs' contexts.  All zero is a fresh one. */
struct lm__scratch {
    uint8_t *a, *b;
    size_t capacity;
    uint8_t *block; /* aligned to LM_HUGE_BYTES, of which block_bytes is a multiple */
    size_t block_bytes;
    enum lm__block_state block_state; /* the pages it has */
    unsigned block_uses;
    uint64_t block_faults;
    void *zstd_cctx, *zstd_dctx;
    /* Called before a read that may sleep; may be NULL. */
    void (*will_block)(struct lm__scratch *s);
    uintptr_t
        late_addr; /* of a chunk that there was no room for: wake who waits for it, later */
    size_t late_bytes;
    int32_t toucher_tid; /* the thread that waits for the fill, if the system tells */
    uintptr_t toucher_page; /* and where; 0: none does */
    int toucher_writes;
    int is_cached_only; /* a read that would sleep fails with -EAGAIN instead */
};

/* A scratch that somebody has used and given back, or an empty one. */
struct lm__scratch lm__scratch_take(void);
void lm__scratch_give(struct lm__scratch *s);
size_t lm__scratch_bytes(void); /* of all threads */
void lm__scratch_warm(void);    /* have some ready, with their memory touched */
int lm__scratch_reserve(struct lm__scratch *s, size_t bytes);
int lm__scratch_reserve_block(struct lm__scratch *s, size_t bytes);
/* Around the filling of the block's first `bytes`: finds out which pages it has. */
void lm__scratch_block_begin(struct lm__scratch *s);
void lm__scratch_block_filled(struct lm__scratch *s, size_t bytes);

/* ---- codec.c ---------------------------------------------------------------------------- */

/* What is to be encoded. */
struct lm__plain {
    const uint8_t *bytes;
    size_t count;
    size_t
        part_bytes; /* the encoder forgets what it has learnt at each multiple; 0: never */
};

struct lm__codec {
    const char *name;
    /* Bytes written to dst, or negative: did not fit, or LM_E_*. */
    int64_t (*encode)(struct lm__scratch *s, const struct lm__plain *plain, int level,
                      void *dst, size_t capacity);
    int64_t (*decode)(struct lm__scratch *s, const void *src, size_t bytes, void *dst,
                      size_t capacity);
};

/* NULL for an id that does not exist, or whose library is not loaded. */
const struct lm__codec *lm__codec(int id);
void *lm__zstd_dctx_new(void); /* NULL where the library is not loaded */
void lm__zstd_free(struct lm__scratch *s);

/* ---- source.c ----------------------------------------------------------------------------- */

#define LM_SOURCE_AREAS 1024

/* Where stored bytes come from: today, a file. */
struct lm__source {
    int fd;
    _Atomic uint64_t end_offset; /* nothing to be read lies at or behind this */
    _Atomic int is_failing;      /* the last read did */
    _Atomic uint64_t waited_at;  /* the offset of the last read that had to wait */
    _Atomic uint32_t waits[LM_SOURCE_AREAS]; /* in areas of the file; see source.c */
};

/* Read the bytes that `e` describes into buf and check them.  `what` names them in errors. */
int lm__source_read(struct lm__source *source, const struct lm__entry *e,
                    const char *what, struct lm__scratch *scratch, void *buf,
                    struct lm_error *err);

/* ---- index.c ------------------------------------------------------------------------------ */

struct lm__index_node;

/* The index of one object; pages are read when first needed and kept. */
struct lm__index {
    struct lm__entry root;
    uint64_t chunks;
    unsigned depth;
    _Atomic(struct lm__index_node *) root_node;
    _Atomic uint64_t kept_bytes;
};

int lm__index_lookup(struct lm__index *index, struct lm__source *source,
                     uint64_t chunk_idx, struct lm__scratch *scratch,
                     struct lm__entry *out, struct lm_error *err);
void lm__index_fini(struct lm__index *index);

/* Read the `count` entries of a page: a plain one, a patch, which is then made to its base, or
 * a page of zeros.  *base is the entry of the plain page that it is or is a patch of, or zero. */
int lm__page_read(const struct lm__entry *e, uint32_t count, struct lm__source *source,
                  struct lm__scratch *scratch, struct lm__entry *entries,
                  struct lm__entry *base, struct lm_error *err);

/* What reading an index takes. */
struct lm__index_reader {
    struct lm__index *index;
    struct lm__source *source;
    struct lm__scratch *scratch;
};

/* A page while somebody looks at it. */
struct lm__index_page {
    unsigned level; /* a leaf is level 1 */
    uint64_t page_idx;
    const struct lm__entry *entries; /* NULL: all zero */
    struct lm__index_node *node;
    int is_kept; /* by the index; else it is freed when closed */
};

/* Open page `slot` of the page `parent`, or the root where that is NULL.  After an error there
 * is nothing to close. */
int lm__index_page_open(const struct lm__index_reader *r,
                        const struct lm__index_page *parent, uint32_t slot,
                        struct lm__index_page *out, struct lm_error *err);
void lm__index_page_close(struct lm__index_page *page);
const struct lm__entry *lm__index_page_entry(const struct lm__index_page *page,
                                             uint32_t slot);

/* ---- index_diff.c ------------------------------------------------------------------------ */

/* The next run of chunks, from `from` on, whose entries differ between two indexes of equally
 * many chunks in one file.  What lies below equal entries is not read.  1, 0 if there is
 * none, or an error. */
int lm__index_diff(struct lm__index *a, struct lm__source *a_source,
                   struct lm__index *b, struct lm__source *b_source, uint64_t from,
                   struct lm__scratch *scratch, uint64_t *first, uint64_t *count,
                   struct lm_error *err);

/* ---- store.c, object.c --------------------------------------------------------------------- */

struct lm_store {
    _Atomic uint32_t refs;
    int32_t writer_pid; /* of the process that may append; 0: none.  Fixed after open */
    struct lm__source source;
    struct lm__file_id file_id;
    uint64_t file_bytes;
    struct lm__record
        record; /* the last; of a store that is written to, the writer's */
};

/* What an object's chunks are read from: an index, and the file that it is in. */
struct lm__base {
    _Atomic uint32_t refs;
    lm_store *store;
    struct lm__index index;
};

struct lm_object {
    _Atomic uint32_t refs;
    struct lm_object_spec
        spec; /* fixed after open, but for the root, which `base` has */
    uint64_t chunks;
    unsigned chunk_shift;
    struct lm__base *base; /* under the bases' lock; never NULL */
};

void lm__store_retain(lm_store *store);
/* The descriptor is still that of the store's file. */
int lm__store_has_file(const lm_store *store);
/* Let other writers in, though objects may keep the file open. */
void lm__store_unlock(lm_store *store);
/* As lm_store_open_at(), also while the caller prunes. */
int lm__store_reopen(const lm_store *store, uint64_t record_offset, int is_unmarked,
                     lm_store **out, struct lm_commit *commit, struct lm_error *err);
/* Let nobody mark a state that it reads, and wait for those who are at it.  0 or -errno. */
int lm__marks_close(int fd);
void lm__marks_open(int fd);
/* The first state at or behind `from` that a reader has marked; 0: none. */
uint64_t lm__marks_next(int fd, uint64_t from);
struct lm_commit lm__commit_of(const struct lm__record *rec, uint64_t file_bytes);
void lm__object_retain(lm_object *object);
/* What the object is read from now, with a reference. */
struct lm__base *lm__object_base(lm_object *object);
/* Let the system start to read the payloads of some chunks. */
void lm__object_will_need(lm_object *object, uint64_t first, uint64_t count,
                          struct lm__scratch *scratch);
void lm__base_drop(struct lm__base *base);
/* NULL: no memory. */
struct lm__base *lm__base_new(lm_store *store, uint64_t chunks,
                              const struct lm_root *root);
/* Read the object from `base`, which it takes over, from now on. */
void lm__object_set_base(lm_object *object, struct lm__base *base);
/* Bytes of chunk `chunk_idx`, decoded: chunk_bytes, or less for the last one. */
size_t lm__object_chunk_bytes(const lm_object *object, uint64_t chunk_idx);

/* Have the scratch's buffers ready for a chunk of the object. */
int lm__object_reserve(const lm_object *object, struct lm__scratch *scratch);

enum { LM_ZERO_CHUNK = 1 };
/* Decode a chunk to *out, or, where that is NULL, into the scratch, and let *out point there.
 * Stored bytes are added to *stored_bytes.  Returns 0, LM_ZERO_CHUNK (and writes nothing), or
 * an error. */
int lm__object_decode(lm_object *object, uint64_t chunk_idx,
                      struct lm__scratch *scratch, uint8_t **out,
                      uint64_t *stored_bytes, struct lm_error *err);

/* 1, 0, or an error. */
int lm__object_is_zero(lm_object *object, uint64_t chunk_idx,
                       struct lm__scratch *scratch);

/* ---- payload.c --------------------------------------------------------------------------------- */

/* Decode what `e` says to *out, or, where that is NULL, into the scratch, and let *out point
 * there.  Stored bytes are added to *stored_bytes. */
int lm__payload_decode(struct lm__source *source, const struct lm__entry *e,
                       uint32_t shuffle_width, size_t bytes,
                       struct lm__scratch *scratch, uint8_t **out,
                       uint64_t *stored_bytes, struct lm_error *err);

/* ---- block.c ------------------------------------------------------------------------------- */

struct lm__block {
    uint64_t
        offset; /* of an object's chunk, and [offset, offset + bytes) whole pages, ... */
    size_t bytes; /* ... zero behind the object's end */
    int is_apart; /* to be in the scratch's block, even if it is one chunk */
    uint8_t
        *data; /* in the scratch; NULL for a lone zero chunk, if it need not be apart */
    int is_zero;
    uint64_t stored_bytes; /* read for it */
};

/* Decode what offset, bytes and is_apart say, and set the rest. */
int lm__block_decode(lm_object *object, struct lm__block *block,
                     struct lm__scratch *scratch, struct lm_error *err);
/* `bytes` of 0xFF in the scratch's block, or NULL. */
const uint8_t *lm__block_ones(struct lm__scratch *scratch, size_t bytes);

/* ---- chunks.c -------------------------------------------------------------------------------- */

enum lm__chunk_state {
    LM_CHUNK_ABSENT = 0,
    LM_CHUNK_FILLING,
    LM_CHUNK_CLEAN,
    LM_CHUNK_DIRTY,     /* written since the last snapshot */
    LM_CHUNK_REFILLING, /* a DIRTY one of which pages are missing */
    LM_CHUNK_FROZEN,    /* part of a snapshot that has no copy of it yet */
    LM_CHUNK_COPYING,
    LM_CHUNK_SAVED,  /* the snapshot has a copy, and nobody has written since */
    LM_CHUNK_SPILLED /* written since the last snapshot, and in the spill file only */
};

static inline int lm__chunk_is_resident(enum lm__chunk_state state)
{
    return state != LM_CHUNK_ABSENT && state != LM_CHUNK_FILLING &&
           state != LM_CHUNK_REFILLING && state != LM_CHUNK_SPILLED;
}

/* Before it is filled nothing is charged for it, and after a failure it has no pages. */
static inline int lm__chunk_is_away(enum lm__chunk_state state)
{
    return state == LM_CHUNK_ABSENT || state == LM_CHUNK_SPILLED;
}

struct lm__chunks_leaf;
typedef _Atomic(struct lm__extent *) lm__extent_slot;

struct lm__chunks {
    _Atomic(struct lm__chunks_leaf *) *leaves; /* of words: generation and state */
    _Atomic uint64_t leaf_count;
    uint64_t count;
    _Atomic uint32_t generation;
    _Atomic uint64_t resident, dirty;
};

int lm__chunks_init(struct lm__chunks *chunks, uint64_t count);
void lm__chunks_fini(struct lm__chunks *chunks);
enum lm__chunk_state lm__chunks_state(const struct lm__chunks *chunks, uint64_t idx);
/* The first chunk of [idx, end) that belongs to a set; `end` if there is none.  Those being
 * filled are in ANY, and, if they were written to, in DIRTY. */
enum lm__chunk_set {
    LM_CHUNKS_CLEAN,
    LM_CHUNKS_RESIDENT,
    LM_CHUNKS_DIRTY,
    LM_CHUNKS_ANY
};
uint64_t lm__chunks_next(const struct lm__chunks *chunks, uint64_t idx, uint64_t end,
                         enum lm__chunk_set set);
/* How many of the chunks [first, first + count) are resident; `mask`, if there is one, gets a
 * byte for each: 1 if it is. */
uint64_t lm__chunks_mark_resident(const struct lm__chunks *chunks, uint64_t first,
                                  uint64_t count, uint8_t *mask);
/* If the chunk is in state `from`: -> FILLING, or, if it was written to, REFILLING.  1: it is
 * the caller's; 0: it is not, or no longer, in that state; -ENOMEM. */
int lm__chunks_claim(struct lm__chunks *chunks, uint64_t idx,
                     enum lm__chunk_state from);
/* The same, whatever was written, to forget it.  2: it was SPILLED; 0: it is ABSENT; -EAGAIN:
 * others are at it. */
int lm__chunks_claim_to_drop(struct lm__chunks *chunks, uint64_t idx);
/* FILLING -> CLEAN, or DIRTY; REFILLING -> DIRTY.  0: the generation has changed; the chunk is
 * as it was. */
int lm__chunks_publish(struct lm__chunks *chunks, uint64_t idx, int is_written);
/* FILLING -> ABSENT, REFILLING -> SPILLED if it has an extent, else DIRTY. */
void lm__chunks_abandon(struct lm__chunks *chunks, uint64_t idx);
/* Either -> ABSENT. */
void lm__chunks_forget(struct lm__chunks *chunks, uint64_t idx);
/* Every chunk in memory -> ABSENT, in one step. */
void lm__chunks_forget_all(struct lm__chunks *chunks);
/* One of the moves of writes and snapshots.  0: it is not in state `from`. */
int lm__chunks_move(struct lm__chunks *chunks, uint64_t idx, enum lm__chunk_state from,
                    enum lm__chunk_state to);
/* COPYING -> SAVED. */
void lm__chunks_copied(struct lm__chunks *chunks, uint64_t idx);

/* The extent that has the same bytes as a chunk: of one that is SPILLED; or of a DIRTY one that
 * was filled from there and is write-protected still.  NULL: none. */
struct lm__extent *lm__chunks_extent(const struct lm__chunks *chunks, uint64_t idx);
/* By who has claimed the chunk.  0 or -ENOMEM. */
int lm__chunks_set_extent(struct lm__chunks *chunks, uint64_t idx,
                          struct lm__extent *extent);
void lm__chunks_drop_extent(const struct lm__chunks *chunks, uint64_t idx);

enum { LM_NOTE_STAMP_BITS = 22 };

/* What queues.c remembers of a chunk, under the lock of budget.c. */
struct lm__note {
    uint32_t place : 2;   /* enum lm__place */
    uint32_t entries : 2; /* which queues have an entry of it, maybe of before */
    uint32_t level : 3;   /* how often it came back soon */
    uint32_t lives : 3;
    uint32_t stamp : LM_NOTE_STAMP_BITS; /* when it was dropped */
};
enum lm__place { LM_PLACE_NONE, LM_PLACE_NEW, LM_PLACE_KNOWN, LM_PLACE_GHOST };

/* NULL: no memory, or the chunk has never been claimed. */
struct lm__note *lm__chunks_note(struct lm__chunks *chunks, uint64_t idx);
void lm__chunks_forget_notes(struct lm__chunks *chunks);

/* ---- encode.c ----------------------------------------------------------------------------- */

int lm__is_zero(const uint8_t *p, size_t bytes);
int lm__encoding_is_sound(const struct lm_encoding *enc);
/* Encode one chunk into `dst` of at least `bytes`.  e->offset is left to the caller; all of *e
 * is zero for a zero chunk. */
int lm__encode(const struct lm_encoding *enc, const uint8_t *src, size_t bytes,
               struct lm__scratch *scratch, uint8_t *dst, struct lm__entry *e);

/* ---- spill.c ------------------------------------------------------------------------------ */

/* A file for what has no room in memory, and a chunk in it. */
struct lm__spill;
struct lm__extent;

struct lm__spill *lm__spill_new(const char *folder); /* NULL: no memory */
void lm__spill_drop(struct lm__spill *spill);        /* its extents keep it */
uint64_t lm__spill_bytes(const struct lm__spill *spill);
/* Encode bytes and write them.  0, or -errno, and nothing is kept. */
int lm__spill_put(struct lm__spill *spill, const struct lm_encoding *enc,
                  const uint8_t *bytes, size_t count, struct lm__scratch *scratch,
                  struct lm__extent **out);
/* Decode into the scratch.  0, LM_ZERO_CHUNK, or an error. */
int lm__extent_read(const struct lm__extent *extent, uint32_t shuffle_width,
                    size_t bytes, struct lm__scratch *scratch, uint8_t **out,
                    struct lm_error *err);
struct lm__extent *lm__extent_hold(struct lm__extent *extent); /* one more reference */
void lm__extent_drop(struct lm__extent *extent);

/* ---- append.c ----------------------------------------------------------------------------- */

enum {
    LM_RING_SLOTS = 16,     /* chunks encoded ahead of the one that is appended */
    LM_REPEATS_SLOTS = 4096 /* payloads remembered, to store a repeated chunk once */
};

struct lm__ring_slot {
    int is_ready, is_unchanged;
    uint64_t chunk;
    struct lm__entry entry; /* all but the offset; all zero for a zero chunk */
    uint8_t *bytes;
    size_t capacity;
};

/* What has become of a chunk; NOTHING: it was said to be unchanged. */
enum lm__appended {
    LM_APPENDED_NOTHING,
    LM_APPENDED_ZERO,
    LM_APPENDED_REPEAT,
    LM_APPENDED_PAYLOAD
};
/* Called in the order of the steps, by one thread at a time. */
typedef int (*lm__appended_fn)(void *context, uint64_t chunk, const struct lm__entry *e,
                               enum lm__appended how, struct lm_error *err);

struct lm_writer {
    lm_store *store; /* that is appended to; NULL: a new file, which is the writer's */
    int fd;
    struct lm__file_id file_id;
    uint64_t next_sequence, next_time_ns; /* of the next commit; 0: as they come */
    struct lm__record
        last; /* of a new file, nothing but the store id is set at first */
    pthread_mutex_t lock;
    pthread_cond_t moved;   /* the ring has, or the writer has failed */
    uint64_t tail;          /* under lock or appending, as all below */
    uint64_t kept_tail;     /* what lies before is not cut off after an error */
    uint64_t synced_tail;   /* what lies before is on the disk, if it can be */
    uint32_t crc, kept_crc; /* of what lies between, up to tail and kept_tail */
    int has_synced;
    int is_unsure;                 /* a sync has failed since */
    uint64_t steps, steps_flushed; /* of the current job */
    lm__appended_fn appended;
    void *context;
    int is_appending;
    struct lm_error error; /* code 0: none */
    struct lm__ring_slot ring[LM_RING_SLOTS];
    struct lm__entry repeats[LM_REPEATS_SLOTS];
    uint8_t *compare; /* a stored payload, read back */
    size_t compare_capacity;
};

/* 0, or why the writer can't go on: an error, or a job that was given up half-way. */
int lm__append_check(lm_writer *w, struct lm_error *err);
/* (A3), for what went wrong outside a job. */
int lm__append_fail(lm_writer *w, struct lm_error cause, struct lm_error *err);
/* What was appended so far is whole, and can be read in the writer's store. */
void lm__append_keep(lm_writer *w);
/* Before something new is begun: let a store that has failed go on.  Nothing else is under
 * way. */
void lm__append_recover(lm_writer *w);
/* Make durable what was appended. */
int lm__append_sync(lm_writer *w, struct lm_error *err);
/* The writer goes on at `tail`, and knows nothing of what lies before. */
void lm__append_restart(lm_writer *w, uint64_t tail);
/* Append bytes, and set offset and length in *e. */
int lm__append(lm_writer *w, const void *bytes, size_t count, struct lm__entry *e,
               struct lm_error *err);
/* What a plain index page is stored as: its entries, or `packed`, of as many bytes, where
 * packing is worth it.  Returns how many bytes *stored has. */
size_t lm__page_pack(const struct lm__entry *entries, uint32_t count, void *packed,
                     const void **stored);
/* Append a plain index page and set all of *e. */
int lm__append_page(lm_writer *w, const struct lm__entry *entries, uint32_t count,
                    struct lm__entry *e, struct lm_error *err);

/* A job whose steps each append one chunk. */
void lm__append_begin(lm_writer *w, uint64_t steps, lm__appended_fn appended,
                      void *context);
/* Steps first wait, holding no buffer, and then append. */
int lm__append_wait_for_room(lm_writer *w, uint64_t step_idx, struct lm_error *err);
struct lm__chunk_bytes {
    uint64_t chunk; /* comes back in appended() */
    const struct lm_encoding *enc;
    const uint8_t *bytes; /* NULL: it is unchanged */
    size_t count;
    const struct lm__entry
        *encoded; /* if not NULL, `bytes` are such a payload already */
};
int lm__append_step(lm_writer *w, uint64_t step_idx,
                    const struct lm__chunk_bytes *chunk, struct lm__scratch *scratch,
                    struct lm_error *err);

/* ---- index_update.c ----------------------------------------------------------------------- */

struct lm__change {
    uint64_t chunk_idx;
    struct lm__entry entry; /* that the chunk is to have */
};

/* Append the pages that an index differs in when `changes` (ascending, each chunk once) are
 * made to it, and give the entry of the new root.  The index itself does not change.  What
 * an error leaves in the file is the caller's to give up: lm__append_fail(); else
 * lm__append_keep() lets it be read. */
int lm__index_update(const struct lm__index *index, struct lm__source *source,
                     lm_writer *writer, const struct lm__change *changes,
                     uint64_t count, struct lm__scratch *scratch,
                     struct lm__entry *root, struct lm_error *err);

/* ---- keeper.c -------------------------------------------------------------------------------- */

/* Let a thread hold descriptor `fd` where the program can't close it. */
void lm__keeper_prepare(int fd);
void lm__keeper_start(void); /* if it is prepared, and not yet started */
void lm__keeper_stop(void);
/* Wait until it holds it, if it was started.  0: it does not, and won't: kernels before 5.9 can't. */
int lm__keeper_await(void);
/* Another number of the same file, or -1 for now.  One caller at a time. */
int lm__keeper_fetch(void);

/* ---- uffd_open.c, uffd_fd.c ------------------------------------------------------------------- */

/* Open one, and say how.  The descriptor, or LM_E_NO_UFFD. */
int lm__uffd_open(struct lm_uffd_info *info);
/* ioctl() on the process's userfaultfd, wherever it is. */
int lm__uffd_control(unsigned long request, void *arg);
uint64_t lm__uffd_events(void); /* page faults read */

/* ---- uffd.c ------------------------------------------------------------------------------------ */

/* How an install ended.  See the table in uffd.c. */
enum lm__install { LM_INSTALLED, LM_VANISHED, LM_EXITING, LM_NO_MEMORY, LM_REFUSED };

struct lm__fault {
    uintptr_t addr;
    int32_t tid; /* 0 where the kernel does not say */
    int is_write;
    int is_protected; /* the page is there, and write-protected */
};

int lm__uffd_start(void); /* open the process's userfaultfd; 0 or LM_E_NO_UFFD */
void lm__uffd_stop(void);
int lm__uffd_is_open(void);
int lm__uffd_register(uintptr_t addr, size_t bytes);
/* Writes to protected pages are faults, too. */
int lm__uffd_register_tracked(uintptr_t addr, size_t bytes);
/* Memory that other processes fill, too: the first touch of what they have filled is a fault. */
int lm__uffd_register_shared(uintptr_t addr, size_t bytes);
int lm__uffd_unregister(uintptr_t addr, size_t bytes); /* what nobody reads yet */
/* Read the next page fault, waiting for it.  0, -EAGAIN if reads do not block, or -errno when
 * the descriptor is of no more use. */
int lm__uffd_read(struct lm__fault *out);
void lm__uffd_read_no_more_blocks(void);
void lm__uffd_await_events(void); /* where reads do not block */
/* 1 if a fault waits to be read. */
int lm__uffd_has_events(void);
/* Install pages.  Pages already there stay.  Nobody is woken: that is for when the books are
 * in order. */
enum lm__install lm__uffd_copy(uintptr_t addr, const void *src, size_t bytes);
/* The same for private hugetlb memory, of which `addr` and `bytes` are whole pages.  The
 * kernel has no zeropage for it. */
enum lm__install lm__uffd_copy_huge(uintptr_t addr, const void *src, size_t bytes,
                                    unsigned page_shift);
/* Either, write-protected from the first moment. */
enum lm__install lm__uffd_copy_protected(uintptr_t addr, const void *src, size_t bytes,
                                         unsigned page_shift);
/* Install one page where there is none.  1: it is the caller's, and his to drop. */
int lm__uffd_lend(uintptr_t addr, const void *src, unsigned page_shift,
                  int is_protected);
/* There is no such zeropage: whoever protects it later looks whether it still is one. */
enum lm__install lm__uffd_zero(uintptr_t addr, size_t bytes);
/* As lm__uffd_copy(), but REFUSED, and *met_existing is 1, where a page is there. */
enum lm__install lm__uffd_copy_absent(uintptr_t addr, const void *src, size_t bytes,
                                      int *met_existing);
/* Map pages of shared memory, which it has. */
enum lm__install lm__uffd_continue(uintptr_t addr, size_t bytes);
/* Protect pages of tracked memory that are there, or let them be written.  Nobody is woken.
 * 0 or -errno. */
int lm__uffd_protect(uintptr_t addr, size_t bytes, int is_protected);
int lm__uffd_can_track(unsigned page_shift);
/* Let pages of `src` become pages of the region.  Returns how many bytes were moved, from the
 * start; the others are where they were. */
size_t lm__uffd_move(uintptr_t addr, void *src, size_t bytes);
void lm__uffd_wake(uintptr_t addr, size_t bytes);
/* Let every touch of absent pages raise SIGBUS, until they are dropped. */
void lm__uffd_poison(uintptr_t addr, size_t bytes);
int lm__uffd_can_poison(void);
int lm__uffd_can_move(void);
int lm__uffd_can_hugetlb(void);
int lm__uffd_can_share(void);
int lm__uffd_has_moved(void); /* 1 if the program has moved memory that is registered */
void lm__uffd_stats(struct lm_pager_stats *out);
#ifdef LM_CHECKS
/* For tests: let the next start ask for these features too. */
void lm__uffd_ask_for(uint64_t features);
#endif

/* ---- failure.c ----------------------------------------------------------------------------------- */

/* How a language runtime learns that an error waits for thread `tid`.  `at_once` is called by
 * handlers, must not block, and returns 1 if that was all; else the error is queued and the
 * reporter calls `later`, which may block and is to announce all that is queued: threads
 * that compete for the runtime's lock must not come between one error and the next. */
struct lm__runtime {
    int (*at_once)(int32_t tid);
    void (*later)(void);
    int takes_interrupts; /* -EINTR for the main thread becomes what SIGINT means there */
};
int lm__failure_takes_interrupts(void);
int lm__failure_take(int32_t tid, struct lm_error *out);
int lm__failure_is_waiting(int32_t tid); /* 1 if an error waits for thread `tid` */
int lm__failure_next_queued(struct lm_error *out); /* 1 if there was one */
/* The runtime has been told.  Returns 0 if the error was taken meanwhile. */
int lm__failure_announced(int32_t tid);
void lm__failure_set_runtime(const struct lm__runtime *runtime);
/* Keep `cause` for thread `tid`, unless an error waits for it already.  Returns how many
 * failures that thread has met since it last took one: 1 for the first. */
unsigned lm__failure_report(int32_t tid, const struct lm_error *cause);
/* Wait until what waits for `tid` has been announced, at most timeout_ms. */
void lm__failure_wait_announced(int32_t tid, int timeout_ms);
/* Hand the error that waits for `tid`, a thread no runtime knows, to thread `heir`. */
void lm__failure_bequeath(int32_t tid, int32_t heir);

/* ---- interrupt.c --------------------------------------------------------------------------------- */

/* Thread `tid` will have to wait; if it is the main thread, SIGINT is to end that. */
void lm__interrupt_watch(int32_t tid);
/* It is about to be woken, or need not wait. */
void lm__interrupt_end(int32_t tid);
/* 1 if SIGINT has come for the thread, which has faulted anew.  Ends the watch. */
int lm__interrupt_take(int32_t tid);
/* 1 from then on until the thread has had its error. */
int lm__interrupt_is_pending(int32_t tid);
#ifdef LM_CHECKS
uint32_t lm__interrupt_count(void); /* how often SIGINT was taken */
#endif

/* ---- arena.c ----------------------------------------------------------------------------------------- */

struct lm__arena {
    uintptr_t addr;
    size_t bytes;
    unsigned slot_shift;
    unsigned page_shift;
    size_t slots;
    lm_region **regions;  /* by slot; under the arenas' lock, as all below */
    size_t used_slots;    /* handed out at least once: the first ones */
    uint32_t *free_slots; /* a stack of those that came back */
    size_t free_count;
    int served_dangling; /* free slots may hold pages */
    int is_lost;         /* a forked child could not register it: no slot to hand out */
    int is_tracked;      /* fixed after open, but in a forked child */
    int is_shared;       /* one region's, of memory that other processes have, too */
};

void lm__arenas_lock(void);
void lm__arenas_unlock(void);
/* The arena that `addr` lies in, or NULL. */
struct lm__arena *lm__arena_find_locked(uintptr_t addr);
/* By address; NULL past the last one. */
struct lm__arena *lm__arena_at_locked(size_t i);
int lm__arena_register(const struct lm__arena *arena);
/* Find a region room, and set where it is.  0 or an error. */
int lm__slot_take(lm_region *region);
void lm__slot_give_back(lm_region *region);
void lm__arena_counts(uint64_t *regions, uint64_t *arenas);

/* ---- region.c ---------------------------------------------------------------------------------------- */

struct lm__span {
    uintptr_t addr;
    size_t bytes;
};

/* How writes are found.  ALL: they are not, so whatever was filled is taken for written. */
enum lm__tracking { LM_TRACK_NONE, LM_TRACK_PROTECT, LM_TRACK_ALL };

struct lm__freeze;

/* See writegate.c, dirty.c. */
struct lm__writes {
    pthread_mutex_t pause; /* held while they are paused */
    _Atomic int is_freezing;
    _Atomic int at_work; /* handlers that let a chunk be written */
    _Atomic uint64_t faults;
    _Atomic uint64_t next; /* the chunk behind those that may be written, in a run */
    _Atomic uint64_t
        wire; /* one before it that was left out: its fault says where the run is */
    _Atomic uint64_t window; /* how many chunks there were from the wire to next */
    _Atomic(struct lm__freeze *)
        freeze;          /* that it takes part in, under freeze.c's lock */
    uint32_t freeze_idx; /* its place there */
};

/* A run of accesses; see ahead.c. */
struct lm__stream {
    uint64_t at;      /* where the reader is known to be */
    int64_t stride;   /* in bytes; 0: no stream */
    uint32_t ahead;   /* steps before the reader that were asked for */
    uint32_t window;  /* how many are to be */
    uint64_t reached; /* steps asked for that the reader has passed */
    uint64_t last;    /* when it was last followed */
    uint64_t wire;    /* where its last piece has a tripwire; LM_NONE: it has none */
    int is_chased; /* the reader has waited for what was being filled, of the last piece */
    int is_late;   /* some of it was dropped before he got there */
    uint32_t most; /* what its window has room for, by experience */
    uint64_t calm; /* `reached` when that was found */
    uint64_t
        asked[2]; /* lm__ahead_room.clock, when its last two pieces were asked for */
};

/* What a budget has for readahead. */
struct lm__ahead_room {
    uint64_t
        bytes; /* of all that nobody has asked for yet, at most; UINT64_MAX: no limit */
    uint64_t clock; /* grows with each drop */
};

enum { LM_STREAMS = 4, LM_AHEAD_HISTORY = 8 };

struct lm__ahead {
    pthread_mutex_t lock;
    _Atomic int advice;                    /* enum lm_advice */
    struct lm__stream streams[LM_STREAMS]; /* under lock, as all below */
    struct lm__ahead_room room;            /* at the last fault */
    uint64_t history[LM_AHEAD_HISTORY];    /* offsets of faults that follow no stream */
    uint64_t clock;                        /* faults */
    unsigned strikes;                      /* streams lately that were for nothing */
    _Atomic uint64_t chunks, wasted;
};

/* Chunks that are dealt with as one. */
struct lm__run {
    uint64_t first, count;
};

struct lm__member;

/* What a region has of a budget. */
struct lm__charges {
    lm_budget
        *budget; /* changes with the gate closed; as all below, under budget.c's lock */
    struct lm__member *member; /* NULL: nothing of it is charged */
    uint64_t bytes;
    struct lm__run *pins;
    uint64_t pin_count, pin_capacity;
};

/* A region's part of memory that several processes have; see shared.c. */
struct lm__share {
    lm_shared *shared; /* NULL: it is not; fixed after open, as all but the count */
    _Atomic uint8_t *states;
    uint8_t *pages;         /* in a mapping that can't be accessed */
    _Atomic uint64_t fills; /* of chunks that others have decoded */
};

struct lm_region {
    _Atomic uint32_t refs; /* the owner's, and one for every fill in flight */
    lm_object *object;     /* fixed after open, as all down to slot_idx */
    enum lm_on_error on_error;
    int is_writable;
    enum lm__tracking tracking; /* changes in a forked child only */
    uintptr_t addr;
    size_t bytes;                     /* of the mapping: whole pages */
    unsigned page_shift, chunk_shift; /* see lm_region_chunk_bytes() */
    struct lm__arena *arena;
    size_t slot_idx;
    struct lm__chunks chunks;
    struct lm__writes writes;
    struct lm__ahead ahead;
    struct lm__charges charges;
    struct lm__share share;
    _Atomic int lost; /* what touches get: LM_E_CLOSED or LM_E_LOST_MAPPING; 0: data */
    _Atomic uint32_t lent; /* false pages in chunks that another thread fills */
    _Atomic uint64_t faults, fills, zero_fills, stored_bytes_read;
    _Atomic uint64_t failures,
        failures_over;          /* begun, and with 0xFF bytes gone again */
    struct lm_error last_error; /* under the arenas' lock; code 0: none */
};

/* The region that owns `addr`, with a reference, or NULL. */
lm_region *lm__region_find(uintptr_t addr);
void lm__region_drop(lm_region *region);
/* What a touch of a page that no region owns means: LM_E_DANGLING in an arena,
 * LM_E_LOST_MAPPING elsewhere (mremap() has moved it), or 0 behind a region in its slot,
 * where no pointer leads, but mlockall(). */
int lm__region_dangling_code(uintptr_t addr);
/* Let the thread that has touched such a page go on, with 0xFF bytes. */
void lm__region_serve_dangling(uintptr_t addr);
/* Let such a page, which is there, be written.  1 if mremap() has moved it. */
int lm__region_unprotect_dangling(uintptr_t addr);
static inline size_t lm__region_page_bytes(const lm_region *r)
{
    return (size_t)1 << r->page_shift;
}
static inline int lm__region_is_hugetlb(const lm_region *r)
{
    return lm__region_page_bytes(r) != lm__page_bytes();
}
static inline int lm__region_is_shared(const lm_region *r)
{
    return r->share.shared != NULL;
}
/* 1 if a touch of the page is no fault. */
static inline int lm__region_has_page(const lm_region *r, uintptr_t addr)
{
    return lm__region_is_shared(r) ? lm__page_is_mapped(addr)
                                   : lm__page_is_present(addr);
}
/* Huge pages can be moved into it. */
int lm__region_can_move(const lm_region *region);
/* The memory of a chunk: whole pages. */
struct lm__span lm__region_span(const lm_region *region, uint64_t chunk_idx);
struct lm__span lm__region_run_span(const lm_region *region, struct lm__run run);
/* One more reference, unless the last one is gone: 0. */
int lm__region_retain_live(lm_region *region);
/* Bytes of it that are the object's. */
size_t lm__region_chunk_bytes(const lm_region *region, uint64_t chunk_idx);
/* Say in *err which object it was, and which of its chunks was the first concerned. */
void lm__region_blame(const lm_region *region, uint64_t chunk_idx,
                      struct lm_error *err);
void lm__region_keep_error(lm_region *region, const struct lm_error *cause);

/* ---- waiters.c ------------------------------------------------------------------------------------------- */

struct lm__waiter {
    uintptr_t page;
    int32_t tid;
};

struct lm__waiter lm__waiter_of(const struct lm__fault *fault);
/* Read the next page fault and enter its thread, unless it waits to write to a page that is
 * there.  0, or -errno as lm__uffd_read(). */
int lm__waiter_read(struct lm__fault *out);
/* Wait, for a bounded time, until all faults that have happened are entered. */
void lm__waiters_await_entered(void);
int lm__waiter_take(struct lm__waiter w);     /* 0: somebody else has taken it */
int lm__waiter_is_there(struct lm__waiter w); /* or not */
/* Mark it as one that the caller fills a chunk for, and who takes it in the end.  0: it is not
 * there, or somebody else does. */
int lm__waiter_serve(struct lm__waiter w);
void lm__waiter_serve_later(struct lm__waiter w); /* the caller does not, for now */
/* Take any waiter for a page of the span.  Its tid (-1 where it is not known), or 0. */
enum lm__waiter_kind { LM_WAITER_UNSERVED, LM_WAITER_ANY };
int32_t lm__waiter_take_in(struct lm__span span, enum lm__waiter_kind kind);
/* Wake all who wait for a range.  None of them stays on the table: an error would be left for
 * a thread that has long gone on. */
void lm__waiters_wake(struct lm__span span);
/* Take a thread off the table and wake it.  1, with the thread taken again, if it has come
 * again: it waits for that very page. */
int lm__waiter_comes_again(struct lm__waiter w);

/* Touches of no region's memory that are being looked into.  BEGUN: by the caller, who has
 * taken the waiter and calls end; ELSEWHERE: by another handler, who will find it. */
enum lm__suspicion { LM_SUSPECT_ELSEWHERE, LM_SUSPECT_STALE, LM_SUSPECT_BEGUN };
enum lm__suspicion lm__suspect_begin(struct lm__waiter w);
void lm__suspect_end(struct lm__waiter w);

/* ---- kept.c ---------------------------------------------------------------------------------------------- */

/* How many failures a thread has met in one operation, with this one. */
unsigned lm__kept_count(int32_t tid);
/* False bytes of ABSENT chunks, or such as are about to be, stay for thread `tid`, and older
 * ones go until `bytes_max` are left. */
enum lm__kept_bytes { LM_KEPT_AT_FIRST = 16 << 20, LM_KEPT_MOST = 64 << 20 };
void lm__kept_add(lm_region *region, struct lm__span span, int32_t tid,
                  enum lm__kept_bytes bytes_max);
/* Drop what is kept in a span, of which the caller has claimed the chunks; and what was added
 * with it. */
void lm__kept_drop_in(struct lm__span span);
/* Drop what is kept for threads that have had their error. */
void lm__kept_drop_told(void);

/* ---- writegate.c ------------------------------------------------------------------------------------------ */

/* Before a chunk is made DIRTY, or memory that nobody protects appears; end follows.  0: not
 * now, a freeze is under way.  Nothing between the two waits. */
int lm__writes_begin(lm_region *region);
void lm__writes_end(lm_region *region);
/* Let no chunk become DIRTY, until resume, which wakes all who wait to write.  0: somebody else
 * has paused them. */
void lm__writes_pause(lm_region *region);
int lm__writes_try_pause(lm_region *region);
void lm__writes_resume(lm_region *region);

/* ---- shared.c -------------------------------------------------------------------------------------------- */

/* The region has its memory where the options say.  0 or -EINVAL. */
int lm__share_join(lm_region *region, const struct lm_region_options *options);
void lm__share_leave(lm_region *region); /* if it has joined */
/* Another mapping of a part of it.  NULL with errno. */
void *lm__share_map(const lm_region *region, size_t offset, size_t bytes,
                    int protection);

/* ---- gate.c ---------------------------------------------------------------------------------------------- */

/* Inside, regions can be looked at and chunks claimed.  `scratch` may be NULL. */
void lm__gate_enter(struct lm__scratch *scratch);
void lm__gate_leave(void);
/* Wait until nobody is inside, and let nobody in. */
void lm__gate_close(void);
void lm__gate_open(void);
/* Before a thread that has a handler's scratch lets time pass: others are to read events. */
void lm__will_block(struct lm__scratch *scratch);

/* ---- queues.c -------------------------------------------------------------------------------------------- */

/* Chunks that may be dropped to make room; with a reference to the region. */
struct lm__victim {
    lm_region *region;
    struct lm__run run;
};

struct lm__queued;

struct lm__queue {
    struct lm__queued *ring;
    uint64_t head, count, capacity; /* a power of two */
    uint64_t bytes;                 /* of the chunks that are in it */
};

/* The chunks of a budget that can go; all under its lock. */
struct lm__queues {
    struct lm__queue queues[2]; /* by place - LM_PLACE_NEW */
    uint64_t dropped_bytes;     /* ever: the clock of ghosts */
};

struct lm__choice {
    uint64_t limit_bytes;
    int may_spill;
    int (*can_go)(const lm_region *region, uint64_t chunk_idx, int may_spill);
};

struct lm__member *lm__queues_join(lm_region *region); /* NULL: no memory */
void lm__queues_leave(struct lm__queues *queues, struct lm__member *member);
void lm__queues_fini(struct lm__queues *queues); /* when all have left */
/* A chunk is there, though nobody asked for it. */
void lm__queues_enter(struct lm__queues *queues, lm_region *region, uint64_t chunk_idx);
/* It was filled.  1: soon after it was dropped. */
int lm__queues_filled(struct lm__queues *queues, lm_region *region, uint64_t chunk_idx,
                      uint64_t limit_bytes);
void lm__queues_dropped(struct lm__queues *queues, lm_region *region,
                        struct lm__run run, uint64_t bytes);
/* Whether the chunk was dropped since `clock`, unread: then it comes back as a NEW one. */
int lm__queues_forget_drop(struct lm__queues *queues, lm_region *region,
                           uint64_t chunk_idx, uint64_t clock);
uint64_t lm__queues_clock(const struct lm__queues *queues);
/* How much NEW chunks can have. */
uint64_t lm__queues_new_bytes(const struct lm__queues *queues, uint64_t limit_bytes);
/* 0: nothing may go. */
int lm__queues_take(struct lm__queues *queues, const struct lm__choice *choice,
                    struct lm__victim *victim);

/* ---- budget.c -------------------------------------------------------------------------------------------- */

enum lm__room { LM_ROOM_CHARGED, LM_ROOM_VICTIM, LM_ROOM_NONE, LM_ROOM_NEVER };

/* Charge FILLING chunks to the region's budget, if there is room: else *victim is what may go,
 * or there is nothing that may.  In the gate, as all that has to do with charges; so nobody waits
 * for room there, or who closes it would wait for him, and the evictor for both. */
enum lm__room lm__budget_charge(lm_region *region, struct lm__run run,
                                struct lm__victim *victim);
/* They are about to be published. */
void lm__budget_filled(lm_region *region, struct lm__run run);
/* They have no pages, and are still claimed; `was_there`: dropped now. */
void lm__budget_uncharge(lm_region *region, struct lm__run run, int was_there);
/* What is left of a victim, of which so many chunks are gone, stays for now. */
void lm__budget_return(const struct lm__victim *victim, uint64_t dropped);
/* Whether what was written could be spilled: 0, or -errno of the last try. */
void lm__budget_spilled(lm_region *region, int code);
struct lm__spill *lm__budget_spill(const lm_region *region); /* NULL: there is none */
/* Wait until somebody has given room back. */
void lm__budget_await_room(int timeout_ms);
/* Wait until there is little room in some budget. */
void lm__budget_await_excess(void);
/* Take what may go there.  CHARGED: there is room; NONE: nothing may. */
enum lm__room lm__budget_take_excess(struct lm__victim *victim);
int lm__budget_is_over(const lm_budget *budget);
void lm__budget_set_limit(lm_budget *budget, uint64_t limit_bytes);
uint64_t lm__budget_limit(const lm_region *region); /* UINT64_MAX: none */
struct lm__ahead_room lm__budget_ahead_room(const lm_region *region); /* in the gate */
/* As lm__queues_forget_drop(). */
int lm__budget_forget_drop(lm_region *region, uint64_t chunk_idx, uint64_t clock);
int lm__budget_take_spill_error(
    lm_region *region); /* whoever comes next waits for another try */
/* The region leaves its budget and joins `budget`, or none; with the gate closed. */
int lm__budget_join(lm_region *region, lm_budget *budget);
/* Nothing of the region is charged any more, nor will be. */
void lm__budget_release(lm_region *region);

/* ---- shared_fill.c -------------------------------------------------------------------------------------- */

/* A chunk is about to be filled.  1: it is to be decoded first; 0: another process has; or an
 * error. */
int lm__share_begin(lm_region *region, uint64_t chunk_idx, struct lm_error *err);
void lm__share_give_up(const lm_region *region, uint64_t chunk_idx);
int lm__share_is_begun(const lm_region *region, uint64_t chunk_idx); /* by anybody */
/* Install a chunk that was begun; `bytes` is NULL if it is zero, or needed no decoding. */
enum lm__install lm__share_install(const lm_region *region, uint64_t chunk_idx,
                                   const uint8_t *bytes);
/* Install false bytes, or whatever is there: who reads it has an error. */
enum lm__install lm__share_install_false(const lm_region *region, struct lm__span span,
                                         const uint8_t *bytes);

/* ---- evict.c --------------------------------------------------------------------------------------------- */

/* Give claimed chunks up and let those who wait for them fault again. */
void lm__run_abandon(lm_region *region, struct lm__run run);
/* Drop a chunk whatever was written; waits for fills under way.  1 if it was in memory. */
int lm__evict_any(lm_region *region, uint64_t chunk_idx);
/* Charge chunks that the caller has claimed, and drop others where there is no room.  0; LM_LATER:
 * nothing may go now, and *err is not set; or an error: nor has any for a long time. */
enum { LM_LATER = -20100 };
int lm__evict_for(lm_region *region, struct lm__run run, struct lm_error *err);
int lm__evictor_start(void); /* if it does not run */

/* ---- fill.c ---------------------------------------------------------------------------------------------- */

/* Fill a chunk that the caller has claimed in state `from`.  On failure, or LM_LATER, it is still
 * claimed. */
int lm__fill(lm_region *region, uint64_t chunk_idx, enum lm__chunk_state from,
             struct lm__scratch *scratch, struct lm_error *err);
/* Bring missing pages of a chunk back that another thread, which waits for them, is COPYING. */
int lm__fill_in_place(lm_region *region, uint64_t chunk_idx,
                      struct lm__scratch *scratch, struct lm_error *err);
/* Put a chunk that was claimed in state `from` back into it. */
void lm__fill_unclaim(lm_region *region, uint64_t chunk_idx, enum lm__chunk_state from);
/* Fill a chunk nobody waits for, or wait until another thread has.  0 also if it is resident, or if
 * there is no room for it, which is left to who touches it. */
int lm__fill_ahead(lm_region *region, uint64_t chunk_idx, struct lm__scratch *scratch,
                   struct lm_error *err);
/* The same, but a chunk that another thread fills is left to it, and one of zeros to somebody
 * who is about to write: his fault brings pages that can be written. */
int lm__fill_readahead(lm_region *region, uint64_t chunk_idx, int is_write,
                       struct lm__scratch *scratch, struct lm_error *err);
/* As lm__fill_ahead(), for chunks that fill huge pages, if those can be moved in as they are.
 * 0: nothing was done; they are to be filled one by one. */
int lm__fill_ahead_side_by_side(lm_region *region, uint64_t first, uint64_t count,
                                struct lm__scratch *scratch);

/* ---- copying.c -------------------------------------------------------------------------------------------- */

/* Copy a chunk that the caller has claimed, or is COPYING.  A page that the application has given
 * back is filled meanwhile.  0; why the region is lost; or -EIO, as a page could not be had.  But
 * for 0 the copy is anything. */
int lm__chunk_copy(const lm_region *region, uint64_t chunk_idx, uint8_t *to);
/* If the thread copies the chunk: which copier it is, who goes on when end is called at the
 * earliest.  Else -1. */
int lm__copier_serve_begin(const lm_region *region, uint64_t chunk_idx, int32_t tid);
void lm__copier_serve_end(int copier);
void lm__copier_fail(int copier); /* its page could not be had */

/* ---- freeze.c --------------------------------------------------------------------------------------------- */

/* What was written to some regions, at one moment, as items [0, count). */
struct lm__freeze;
struct lm__frozen {
    uint32_t region; /* of those that were frozen */
    uint32_t uses;   /* take() and give() that are left */
    uint64_t chunk_idx;
    struct lm__extent *extent; /* that has it, where it was SPILLED; else NULL */
    uint8_t *copy; /* under the freeze's lock; NULL: none yet, or none any more */
};

int lm__freeze_begin(lm_region *const *regions, int count, struct lm__freeze **out,
                     struct lm_snapshot_stats *stats, struct lm_error *err);
/* Ascending, region by region. */
const struct lm__frozen *lm__freeze_items(const struct lm__freeze *freeze,
                                          uint64_t *count);
/* The bytes of an item as they were then: in the scratch's block, or a copy that give()
 * frees with its last use. */
int lm__freeze_take(struct lm__freeze *freeze, uint64_t item_idx,
                    struct lm__scratch *scratch, const uint8_t **out,
                    struct lm_error *err);
void lm__freeze_give(struct lm__freeze *freeze, uint64_t item_idx);
/* What nobody has written to since is CLEAN if all is stored, else everything is DIRTY. */
void lm__freeze_end(struct lm__freeze *freeze, int is_stored);
/* Somebody waits for a FROZEN chunk. */
void lm__freeze_hurry(lm_region *region, uint64_t chunk_idx);
/* A missing page of a chunk that is copied could not be had. */
void lm__freeze_fail(lm_region *region, const struct lm_error *cause);
#ifdef LM_CHECKS
/* For tests: the bound of (Z2). */
void lm__freeze_bound_copies(size_t bytes_max);
#endif

/* ---- ones.c ---------------------------------------------------------------------------------------------- */

enum { LM_ANNOUNCE_MS = 50, LM_ONES_BYTES = 65536 };
extern const uint8_t lm__ones[LM_ONES_BYTES];

/* What could not be had, and for whom. */
struct lm__failed {
    const struct lm_error *cause;
    int32_t tid;               /* -1: not known; 0: that thread waits no more */
    uintptr_t page;            /* that it has touched */
    struct lm__span span;      /* pages whose waiters share its fate */
    enum lm__chunk_state from; /* the chunk's, before the fill */
    int is_write;
    int is_interrupt;
    int is_copier; /* it has its error already, and may neither wait nor die */
    uint64_t began_ns;
};

/* Of a fault that begins to be served; the cause is set when there is one. */
struct lm__failed lm__failed_fault(const lm_region *region, uint64_t chunk_idx,
                                   const struct lm__fault *fault);
/* Let all who wait end their instruction with false bytes, and their operation with an
 * error. */
void lm__ones_serve(lm_region *region, struct lm__failed failed,
                    struct lm__scratch *scratch);

/* ---- fault.c --------------------------------------------------------------------------------------------- */

/* Serve one page fault, whose thread was entered by lm__waiter_read(). */
void lm__fault_serve(const struct lm__fault *fault, struct lm__scratch *scratch);

/* ---- workers.c ----------------------------------------------------------------------------------------------- */

/* One step of a job, on some worker.  0, or a negative code with *err filled. */
typedef int (*lm__step_fn)(void *context, uint64_t step_idx,
                           struct lm__scratch *scratch, struct lm_error *err);

/* Of jobs, those that somebody is about to wait for go first, those that are of use only later
 * last. */
enum lm__job_priority { LM_JOB_NORMAL, LM_JOB_URGENT, LM_JOB_BACKGROUND };

struct lm__job_spec {
    lm__step_fn step;
    void (*free_context)(void *context); /* may be NULL */
    void *context;
    uint64_t steps;
    int keep_going; /* after a failed step: 1 for all errors, 0 to stop at the first */
    enum lm__job_priority priority;
};

/* Run the steps in ascending order on all cores.  A normal job of one step runs before
 * return. */
int lm__job_start(const struct lm__job_spec *spec, lm_job **out);

/* ---- dirty.c ---------------------------------------------------------------------------------------------- */

/* Serve a write to a page that is protected. */
void lm__write_serve(lm_region *region, uint64_t chunk_idx,
                     const struct lm__fault *fault);

/* ---- prefetch.c ------------------------------------------------------------------------------------------- */

/* Start to fill, urgently, the chunks of `count` bytes of the object, the first at `at`, the others
 * each `stride` bytes on; for somebody who is about to write, or not. */
void lm__prefetch_run(lm_region *region, uint64_t at, int64_t stride, uint64_t count,
                      int is_write);

/* ---- ahead.c ---------------------------------------------------------------------------------------------- */

/* Somebody waits for a chunk, at this byte of the object. */
void lm__ahead_note(lm_region *region, uint64_t offset, int is_write);

/* ---- fork: what each file does around it, called by pager.c in lock order --------------- */

void lm__object_fork_prepare(void);
void lm__object_fork_done(void);
void lm__gate_fork_child(void);
void lm__budget_fork_prepare(void);
void lm__budget_fork_done(void);
void lm__budget_fork_child(void);
void lm__evictor_fork_child(void);
void lm__waiters_fork_prepare(void);
void lm__waiters_fork_done(void);
void lm__waiters_fork_child(void);
void lm__kept_fork_prepare(void);
void lm__kept_fork_done(void);
void lm__freeze_fork_prepare(void);
void lm__freeze_fork_done(void);
void lm__freeze_fork_child(void);
void lm__copiers_fork_child(void);
void lm__spill_fork_prepare(void);
void lm__spill_fork_done(void);
void lm__region_fork_prepare(void);
void lm__region_fork_done(void);
/* In the parent, without locks. */
void lm__region_fork_parent(void);
/* In the child: register every arena anew, in ordinary pages: huge ones were reserved for the
 * parent.  Where that fails its memory is made inaccessible: a crash is better than zeros. */
void lm__region_fork_child(void);
/* In the child, which knows of nothing that it was written, and so may not drop it: a region that
 * can be written is bound by nothing any more. */
void lm__budget_forked_locked(lm_region *region);
void lm__failure_fork_prepare(void);
void lm__failure_fork_done(void);
void lm__failure_fork_child(void);
void lm__interrupt_fork_prepare(void);
void lm__interrupt_fork_done(void);
void lm__uffd_fork_prepare(void);
void lm__uffd_fork_done(void);
void lm__keeper_fork_child(void);
void lm__workers_fork_prepare(void);
void lm__workers_fork_done(void);
void lm__workers_fork_child(void); /* the threads are gone, and the jobs they ran */

#endif
