// A block of threads that runs: what the words of kernels share.
#pragma once
#include <array>
#include <cstddef>
#include <vector>

#include "fiber.h"
#include "sm90.h"

namespace emulator {

constexpr int kWarpgroupLanes = 4 * kLanes;
// Of a multiprocessor, in bytes.
constexpr std::size_t kMaxShared = 227 * 1024;

// The same numbers for the same seed.
class Random {
public:
    explicit Random(std::uint64_t seed) : state_(seed * 2 + 1) {}
    u32 below(u32 end) {
        state_ ^= state_ << 13;
        state_ ^= state_ >> 7;
        state_ ^= state_ << 17;
        return static_cast<u32>((state_ >> 32) * end >> 32);
    }

private:
    std::uint64_t state_;
};

// What has been asked for and is not made yet, in groups: the last one is still open.
template <class Work> class Groups {
public:
    void clear() { groups_.assign(1, {}); }
    void push(Work work) { groups_.back().push_back(std::move(work)); }
    void commit() { groups_.emplace_back(); }
    // Makes all but the last `pending` groups; the open one is not waited for.
    void wait(int pending) {
        while (groups_.size() > static_cast<std::size_t>(pending) + 1) {
            for (Work& work : groups_.front()) work.make();
            groups_.erase(groups_.begin());
        }
    }
    // Makes what there is.
    void make_all() {
        for (auto& group : groups_) {
            for (Work& work : group) work.make();
            group.clear();
        }
    }

private:
    std::vector<std::vector<Work>> groups_;
};

struct Copy {
    void* shared;
    const void* global;
    bool valid;

    void make() const {
        if (valid) std::memcpy(shared, global, 16);
        else std::memset(shared, 0, 16);
    }
};

// A product, and where the sums of each thread are.
struct Multiplication {
    Product product;
    std::array<float*, kWarpgroupLanes> sums;

    void make() const;
};

// A box that has left and has not arrived.
struct Box {
    std::size_t start;
    std::vector<unsigned char> rows;
    Phase* phase;
};

enum class State { kReady, kTogether, kAtBarrier, kAtPhase, kEnded };

struct Thread {
    Fiber fiber;
    State state;
    std::size_t shared_taken;
    Groups<Copy> copies;
    // That it waits for.
    const Phase* phase;
};

// Threads that do something as soon as all of them are there.
struct Gathering {
    int num_there;
    Together together;
    std::array<const void*, kWarpgroupLanes> inputs;
    std::array<void*, kWarpgroupLanes> outputs;
};

struct Warpgroup {
    Gathering gathering;
    Groups<Multiplication> products;
    bool has_begun;
    // Makes products as late as it may.
    bool is_late;
};

struct Block {
    const Kernel* kernel;
    const void* args;
    std::size_t dynamic_shared;
    Place place, grid;
    std::vector<Thread> threads;
    std::vector<Gathering> warps;
    std::vector<Warpgroup> warpgroups;
    std::vector<Box> boxes;
    bool phases_are_published;
    std::vector<unsigned char> shared = std::vector<unsigned char>(kMaxShared + 1024);
    Random random{0};
    // Of the thread that runs, or -1.
    int current = -1;
    int num_at_barrier, num_ended;
    const char* failure;

    Thread& thread() { return threads[current]; }
    Warpgroup& warpgroup() { return warpgroups[current / kWarpgroupLanes]; }

    // Where shared memory begins, as its addresses count: with the whole of a swizzle.
    unsigned char* first_shared() {
        const auto first = reinterpret_cast<std::uintptr_t>(shared.data());
        return reinterpret_cast<unsigned char*>((first + 1023) / 1024 * 1024);
    }

    void fail(const char* why) {
        failure = why;
        if (current >= 0) thread().fiber.leave();
    }

    void wait(State state) {
        thread().state = state;
        thread().fiber.leave();
    }

    // Returns when as many threads are there as a group has, and `together` has been called, once.
    void join(Gathering& gathering, int group_size, Together together, const void* input, void* output);

    // Whether a box was on its way; one of them has arrived now.
    bool receive_box();
};

// Of this thread, if it has launched a kernel. A pointer, which costs nothing to look for.
extern constinit thread_local Block* block;

}  // namespace emulator
