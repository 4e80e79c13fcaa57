#include <algorithm>
#include <csignal>
#include <map>
#include <string>

#include "block.h"

namespace emulator {

constinit thread_local Block* block = nullptr;

namespace {

std::map<std::string, Kernel>& kernels() {
    static std::map<std::string, Kernel> kernels;
    return kernels;
}

// A warp runs ahead for up to so many turns, each up to the next thing that it does together.
constexpr u32 kLongestStretch = 400;

void run_thread() {
    block->kernel->run(block->args);
    block->thread().state = State::kEnded;
    ++block->num_ended;
    block->thread().fiber.leave();
}

// Buffers of tests end where memory does. What a kernel does behind that is a failure as any other.
void on_fault(int signal) {
    if (block && block->current >= 0) block->fail("memory is read or written that is not its own");
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
    const int num_threads = static_cast<int>(block->threads.size());
    if (block->num_at_barrier == 0 || block->num_at_barrier + block->num_ended < num_threads) return;
    block->num_at_barrier = 0;
    for (Thread& thread : block->threads)
        if (thread.state == State::kAtBarrier) thread.state = State::kReady;
}

// Whether one of its lanes could run.
bool run_turn(int warp) {
    bool has_run = false;
    for (int lane = 0; lane < kLanes && !block->failure; ++lane) {
        block->current = warp * kLanes + lane;
        if (block->thread().state != State::kReady) continue;
        has_run = true;
        block->thread().fiber.enter();
    }
    block->current = -1;
    open_barrier();
    return has_run;
}

void run_block() {
    const int num_threads = static_cast<int>(block->threads.size());
    std::fill(block->shared.begin(), block->shared.end(), 0xff);
    block->num_at_barrier = block->num_ended = 0;
    for (Thread& thread : block->threads) {
        thread.state = State::kReady;
        thread.shared_taken = 0;
        thread.copies.clear();
        thread.fiber.begin(run_thread);
    }
    for (Gathering& warp : block->warps) warp.num_there = 0;
    for (Warpgroup& warpgroup : block->warpgroups) {
        warpgroup.gathering.num_there = 0;
        warpgroup.products.clear();
        warpgroup.has_begun = false;
        warpgroup.is_late = block->random.below(2) == 0;
    }
    block->boxes.clear();
    block->phases_are_published = false;
    const u32 num_warps = static_cast<u32>(block->warps.size());
    while (block->num_ended < num_threads && !block->failure) {
        const u32 first = block->random.below(num_warps);
        bool has_run = block->random.below(2) == 0 && block->receive_box();
        for (u32 i = 0; i < num_warps && !has_run && !block->failure; ++i) {
            const int warp = static_cast<int>((first + i) % num_warps);
            const u32 stretch = 1 + block->random.below(kLongestStretch);
            for (u32 turn = 0; turn < stretch && !block->failure && run_turn(warp); ++turn)
                has_run = true;
        }
        if (!has_run && !block->failure && !block->receive_box()) block->failure = "threads wait for each other for ever";
    }
}

thread_local std::uint64_t num_reads, num_cycles;

}  // namespace

Kernel::Kernel(const char* name, int num_threads, std::size_t args_size, void (*run)(const void*))
    : name(name), num_threads(num_threads), args_size(args_size), run(run) {
    kernels().emplace(name, *this);
}

Place thread_place() { return {static_cast<u32>(block->current), 0, 0}; }
Place block_place() { return block->place; }
Place grid_size() { return block->grid; }

void* shared_bytes(std::size_t size) {
    Thread& thread = block->thread();
    const std::size_t start = (thread.shared_taken + 127) / 128 * 128;
    thread.shared_taken = start + size;
    if (thread.shared_taken > kMaxShared) block->fail("more shared memory than a block has");
    return block->first_shared() + start;
}

void Block::join(Gathering& gathering, int group_size, Together together, const void* input,
                 void* output) {
    const int index = current % group_size, first = current - index;
    if (gathering.num_there > 0 && gathering.together != together)
        fail("threads of a group do different things at once");
    gathering.together = together;
    gathering.inputs[index] = input;
    gathering.outputs[index] = output;
    if (++gathering.num_there < group_size) return wait(State::kTogether);
    gathering.num_there = 0;
    together(gathering.inputs.data(), gathering.outputs.data());
    for (int other = first; other < first + group_size; ++other)
        if (threads[other].state == State::kTogether) threads[other].state = State::kReady;
}

void join_warp(Together together, const void* input, void* output) {
    block->join(block->warps[block->current / kLanes], kLanes, together, input, output);
}

void join_block() {
    ++block->num_at_barrier;
    block->wait(State::kAtBarrier);
}

void copy(void* shared, const void* global, bool valid) {
    const Copy copy{shared, global, valid};
    if (block->random.below(2) == 0) copy.make();
    else block->thread().copies.push(copy);
}

void commit_copies() { block->thread().copies.commit(); }

void wait_copies(int pending) { block->thread().copies.wait(pending); }

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

// Of a kernel's arguments; 0 if there is no such kernel.
extern "C" std::size_t emulator_args_size(const char* name) {
    const auto found = emulator::kernels().find(name);
    return found == emulator::kernels().end() ? 0 : found->second.args_size;
}

// Runs a kernel; returns why it could not, or null. `conflicts` gets how many times longer its reads
// of matrices took than without conflicts of banks.
extern "C" const char* emulator_launch(const char* name, const void* args, std::size_t args_size,
                                       const u32* grid, u32 num_threads, u32 dynamic_shared,
                                       std::uint64_t seed, double* conflicts) {
    using namespace emulator;
    const auto found = kernels().find(name);
    if (found == kernels().end()) return "there is no such kernel";
    const Kernel& kernel = found->second;
    if (kernel.args_size != args_size) return "its arguments have another size";
    if (kernel.num_threads != static_cast<int>(num_threads)) return "its blocks have another size";
    catch_faults();
    static thread_local Block own;
    block = &own;
    block->kernel = &kernel;
    block->grid = {grid[0], grid[1], grid[2]};
    block->args = args;
    block->dynamic_shared = dynamic_shared;
    block->failure = nullptr;
    block->threads.resize(kernel.num_threads);
    block->warps.resize(kernel.num_threads / kLanes);
    block->warpgroups.resize(kernel.num_threads / kWarpgroupLanes);
    num_reads = num_cycles = 0;
    for (u32 z = 0; z < grid[2]; ++z)
        for (u32 y = 0; y < grid[1]; ++y)
            for (u32 x = 0; x < grid[0] && !block->failure; ++x) {
                block->place = {x, y, z};
                block->random = Random(seed * 1000003 + (std::uint64_t(z) * grid[1] + y) * grid[0] + x);
                run_block();
            }
    *conflicts = num_reads == 0 ? 1.0 : static_cast<double>(num_cycles) / static_cast<double>(num_reads);
    return block->failure;
}
