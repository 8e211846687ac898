/* SPDX-License-Identifier: BSD-3-Clause
 * umap_touch.cpp - a file mapped by UMap, and read by the loops of touch.h.
 *
 *   umap_touch FILE                 reads all of it: {"answer": sum, "s": seconds, "peak": bytes}
 *   umap_touch FILE OFFSETS_FILE    reads single words: {"answer": sum, "ns": [each, ...]}
 *
 * UMap takes its settings from the environment: UMAP_PAGESIZE, UMAP_BUFSIZE (in its pages),
 * UMAP_PAGE_FILLERS, UMAP_PAGE_EVICTORS.
 */
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "touch.h"
#include "umap/umap.h"

static std::vector<uint64_t> read_offsets(const char *path)
{
    std::ifstream file(path, std::ios::binary);
    std::vector<uint64_t> offsets;
    uint64_t offset;
    while (file.read(reinterpret_cast<char *>(&offset), sizeof offset))
        offsets.push_back(offset);
    if (offsets.empty())
        throw std::runtime_error(std::string(path) + ": can't be read");
    return offsets;
}

/* Not getrusage()'s, which remembers the memory of who started this process. */
static long peak_bytes()
{
    std::ifstream file("/proc/self/status");
    for (std::string word; file >> word;) {
        long kib;
        if (word == "VmHWM:" && file >> kib)
            return kib * 1024;
    }
    throw std::runtime_error("/proc/self/status: no VmHWM");
}

static void print_touches(const void *memory, const char *path)
{
    std::vector<uint64_t> offsets = read_offsets(path), ns(offsets.size());
    uint64_t sum = touch_each(memory, offsets.data(), offsets.size(), ns.data());
    std::printf("{\"answer\": %llu, \"ns\": [", static_cast<unsigned long long>(sum));
    for (size_t i = 0; i < ns.size(); i++)
        std::printf("%s%llu", i ? ", " : "", static_cast<unsigned long long>(ns[i]));
    std::printf("]}\n");
}

static void print_scan(const void *memory, size_t memory_bytes, long before_bytes)
{
    auto start = std::chrono::steady_clock::now();
    uint64_t sum = touch_all(memory, memory_bytes, 0);
    std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    std::printf("{\"answer\": %llu, \"s\": %.9f, \"peak\": %ld}\n",
                static_cast<unsigned long long>(sum), took.count(),
                peak_bytes() - before_bytes);
}

static void run(int argc, char **argv)
{
    struct stat info;
    int fd = argc > 1 ? open(argv[1], O_RDONLY) : -1;
    if (fd < 0 || fstat(fd, &info) != 0)
        throw std::runtime_error("usage: umap_touch FILE [OFFSETS_FILE]");
    size_t memory_bytes = static_cast<size_t>(info.st_size);
    long before_bytes = peak_bytes();
    void *memory = umap(nullptr, memory_bytes, PROT_READ, UMAP_PRIVATE, fd, 0);
    if (memory == UMAP_FAILED)
        throw std::runtime_error("umap() failed");
    if (argc > 2)
        print_touches(memory, argv[2]);
    else
        print_scan(memory, memory_bytes, before_bytes);
}

int main(int argc, char **argv)
{
    try {
        run(argc, argv);
    } catch (const std::exception &error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
    std::fflush(stdout);
    _exit(0); /* UMap's threads still run */
}
