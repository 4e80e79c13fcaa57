#include "emulator.h"

#include <algorithm>
#include <array>
#include <csignal>
#include <map>
#include <string>
#include <vector>

#include "fiber.h"

namespace emulator {
namespace {

std::map<std::string, Kernel>& kernels() {
    static std::map<std::string, Kernel> kernels;
    return kernels;
}

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

struct Copy {
    void* shared;
    const void* global;
    bool valid;

    void make() const {
        if (valid) std::memcpy(shared, global, 16);
        else std::memset(shared, 0, 16);
    }
};

enum class State { kReady, kAtWarp, kAtBarrier, kEnded };

struct Thread {
    Fiber fiber;
    State state;
    std::size_t shared_taken;
    // Not yet made: those of the group that is still open are the last ones.
    std::vector<std::vector<Copy>> groups;
};

struct Warp {
    int num_there;
    Together together;
    std::array<const void*, kLanes> inputs;
    std::array<void*, kLanes> outputs;
};

constexpr std::size_t kSharedBytes = 228 * 1024;
// A warp runs ahead for up to so many turns, each up to the next thing that it does together.
constexpr u32 kLongestStretch = 400;

struct Block {
    const Kernel* kernel;
    const void* args;
    Place place, grid;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    std::vector<unsigned char> shared = std::vector<unsigned char>(kSharedBytes + 128);
    Random random{0};
    // Of the thread that runs, or -1.
    int current = -1;
    int num_at_barrier, num_ended;
    const char* failure;

    Thread& thread() { return threads[current]; }

    void fail(const char* why) {
        failure = why;
        thread().fiber.leave();
    }

    void wait(State state) {
        thread().state = state;
        thread().fiber.leave();
    }
};

// Of each thread that launches kernels.
thread_local Block block;

void run_thread() {
    block.kernel->run(block.args);
    block.thread().state = State::kEnded;
    ++block.num_ended;
    block.thread().fiber.leave();
}

// Buffers of tests end where memory does. What a kernel does behind that is a failure as any other.
void on_fault(int signal) {
    if (block.current >= 0) block.fail("memory is read or written that is not its own");
    std::signal(signal, SIG_DFL);
}

void catch_faults() {
    struct sigaction action {};
    action.sa_handler = on_fault;
    // The handler is left for good, on the stack of the thread that failed.
    action.sa_flags = SA_NODEFER;
    sigaction(SIGSEGV, &action, nullptr);
}

// All who are left may be waiting for one that has just ended.
void open_barrier() {
    const int num_threads = static_cast<int>(block.threads.size());
    if (block.num_at_barrier == 0 || block.num_at_barrier + block.num_ended < num_threads) return;
    block.num_at_barrier = 0;
    for (Thread& thread : block.threads)
        if (thread.state == State::kAtBarrier) thread.state = State::kReady;
}

// Whether one of its lanes could run.
bool run_turn(int warp) {
    bool has_run = false;
    for (int lane = 0; lane < kLanes && !block.failure; ++lane) {
        block.current = warp * kLanes + lane;
        if (block.thread().state != State::kReady) continue;
        has_run = true;
        block.thread().fiber.enter();
    }
    block.current = -1;
    open_barrier();
    return has_run;
}

void run_block() {
    const int num_threads = static_cast<int>(block.threads.size());
    std::fill(block.shared.begin(), block.shared.end(), 0xff);
    block.num_at_barrier = block.num_ended = 0;
    for (Thread& thread : block.threads) {
        thread.state = State::kReady;
        thread.shared_taken = 0;
        thread.groups.assign(1, {});
        thread.fiber.begin(run_thread);
    }
    for (Warp& warp : block.warps) warp.num_there = 0;
    const u32 num_warps = static_cast<u32>(block.warps.size());
    while (block.num_ended < num_threads && !block.failure) {
        const u32 first = block.random.below(num_warps);
        bool has_run = false;
        for (u32 i = 0; i < num_warps && !has_run && !block.failure; ++i) {
            const int warp = static_cast<int>((first + i) % num_warps);
            const u32 stretch = 1 + block.random.below(kLongestStretch);
            for (u32 turn = 0; turn < stretch && !block.failure && run_turn(warp); ++turn)
                has_run = true;
        }
        if (!has_run && !block.failure) block.failure = "threads wait for each other for ever";
    }
}

thread_local std::uint64_t num_reads, num_cycles;

}  // namespace

Kernel::Kernel(const char* name, int num_threads, std::size_t args_size, void (*run)(const void*))
    : name(name), num_threads(num_threads), args_size(args_size), run(run) {
    kernels().emplace(name, *this);
}

Place thread_place() { return {static_cast<u32>(block.current), 0, 0}; }
Place block_place() { return block.place; }
Place grid_size() { return block.grid; }

void* shared_bytes(std::size_t size) {
    Thread& thread = block.thread();
    const std::size_t start = (thread.shared_taken + 127) / 128 * 128;
    thread.shared_taken = start + size;
    if (thread.shared_taken > kSharedBytes) block.fail("more shared memory than a block has");
    const auto first = reinterpret_cast<std::uintptr_t>(block.shared.data());
    return reinterpret_cast<void*>((first + 127) / 128 * 128 + start);
}

void join_warp(Together together, const void* input, void* output) {
    Warp& warp = block.warps[block.current / kLanes];
    const int lane = block.current % kLanes;
    if (warp.num_there > 0 && warp.together != together)
        block.fail("lanes of a warp do different things at once");
    warp.together = together;
    warp.inputs[lane] = input;
    warp.outputs[lane] = output;
    if (++warp.num_there < kLanes) return block.wait(State::kAtWarp);
    warp.num_there = 0;
    together(warp.inputs.data(), warp.outputs.data());
    for (int other = 0; other < kLanes; ++other) {
        Thread& thread = block.threads[block.current / kLanes * kLanes + other];
        if (thread.state == State::kAtWarp) thread.state = State::kReady;
    }
}

void join_block() {
    ++block.num_at_barrier;
    block.wait(State::kAtBarrier);
}

void copy(void* shared, const void* global, bool valid) {
    const Copy copy{shared, global, valid};
    if (block.random.below(2) == 0) copy.make();
    else block.thread().groups.back().push_back(copy);
}

void commit_copies() { block.thread().groups.emplace_back(); }

void wait_copies(int pending) {
    auto& groups = block.thread().groups;
    // The open one is not waited for.
    while (groups.size() > static_cast<std::size_t>(pending) + 1) {
        for (const Copy& copy : groups.front()) copy.make();
        groups.erase(groups.begin());
    }
}

void count_conflicts(const void* const* rows) {
    for (int matrix = 0; matrix < 4; ++matrix) {
        int asked[32] = {};
        for (int row = 0; row < 8; ++row) {
            const auto address = reinterpret_cast<std::uintptr_t>(rows[matrix * 8 + row]);
            for (int word = 0; word < 4; ++word) ++asked[(address / 4 + word) % 32];
        }
        ++num_reads;
        num_cycles += *std::max_element(asked, asked + 32);
    }
}

float f16_to_float(u16 bits) {
    static const std::vector<float> values = [] {
        std::vector<float> values(1 << 16);
        for (u32 bits = 0; bits < values.size(); ++bits) {
            const int exponent = static_cast<int>(bits >> 10 & 31);
            const float fraction = static_cast<float>(bits & 1023);
            float value = exponent == 0 ? std::ldexp(fraction, -24)
                                        : std::ldexp(fraction + 1024.0f, exponent - 25);
            if (exponent == 31) value = fraction == 0.0f ? INFINITY : NAN;
            values[bits] = bits >> 15 ? -value : value;
        }
        return values;
    }();
    return values[bits];
}

u16 f16_of_float(float value) {
    const u16 sign = static_cast<u16>(bits_of_float(value) >> 16 & 0x8000);
    const float magnitude = std::fabs(value);
    if (std::isnan(value)) return 0x7fff;
    if (magnitude == 0.0f) return sign;
    // Halfway from the largest number to where the next one would be.
    if (magnitude >= 65520.0f) return sign | 0x7c00;
    int exponent = 0;
    std::frexp(magnitude, &exponent);
    // A step of the last bit; below 2^-14 it gets no smaller.
    const int step = std::max(exponent - 11, -24);
    const auto steps = static_cast<u32>(std::nearbyint(std::ldexp(magnitude, -step)));
    // The hidden bit of `steps` adds one to the exponent, and so does its overflow.
    return sign | static_cast<u16>((static_cast<u32>(step + 24) << 10) + steps);
}

}  // namespace emulator

// Runs a kernel; returns why it could not, or null. `conflicts` gets how many times longer its reads
// of matrices took than without conflicts of banks.
extern "C" const char* emulator_launch(const char* name, const void* args, std::size_t args_size,
                                       const u32* grid, u32 num_threads, std::uint64_t seed,
                                       double* conflicts) {
    using namespace emulator;
    const auto found = kernels().find(name);
    if (found == kernels().end()) return "there is no such kernel";
    const Kernel& kernel = found->second;
    if (kernel.args_size != args_size) return "its arguments have another size";
    if (kernel.num_threads != static_cast<int>(num_threads)) return "its blocks have another size";
    catch_faults();
    block.kernel = &kernel;
    block.grid = {grid[0], grid[1], grid[2]};
    block.args = args;
    block.failure = nullptr;
    block.threads.resize(kernel.num_threads);
    block.warps.resize(kernel.num_threads / kLanes);
    num_reads = num_cycles = 0;
    for (u32 z = 0; z < grid[2]; ++z)
        for (u32 y = 0; y < grid[1]; ++y)
            for (u32 x = 0; x < grid[0] && !block.failure; ++x) {
                block.place = {x, y, z};
                block.random = Random(seed * 1000003 + (std::uint64_t(z) * grid[1] + y) * grid[0] + x);
                run_block();
            }
    *conflicts = num_reads == 0 ? 1.0 : static_cast<double>(num_cycles) / static_cast<double>(num_reads);
    return block.failure;
}
