// Stacks to run on, one at a time, on one CPU thread.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulator {

#if defined(__x86_64__)
// Saves where the caller is in `*from`, and goes on where `to` was saved. `swapcontext` would also ask
// the system for the signal mask, which takes ten times longer than all the rest.
extern "C" void emulator_switch(void** from, void* to);
#endif

class Fiber {
public:
    // Will run `entry()`, which never returns: it ends by `leave`.
    void begin(void (*entry)()) {
        if (!stack_) stack_ = std::make_unique<std::uint64_t[]>(kStackWords);
#if defined(__x86_64__)
        // What `emulator_switch` pops: six registers, and where to go. Behind a call, the stack is 8
        // bytes off a multiple of 16.
        std::uint64_t* top = stack_.get() + kStackWords;
        while (reinterpret_cast<std::uintptr_t>(top) % 16 != 0) --top;
        *--top = 0;
        *--top = reinterpret_cast<std::uint64_t>(entry);
        for (int i = 0; i < 6; ++i) *--top = 0;
        place_ = top;
#else
        getcontext(&place_);
        place_.uc_stack.ss_sp = stack_.get();
        place_.uc_stack.ss_size = kStackWords * sizeof(std::uint64_t);
        place_.uc_link = nullptr;
        makecontext(&place_, entry, 0);
#endif
    }

    // Runs it until it leaves.
    void enter() { jump(outside_, place_); }
    void leave() { jump(place_, outside_); }

private:
    static constexpr int kStackWords = 8192;

#if defined(__x86_64__)
    using Place = void*;
    static void jump(Place& from, Place& to) { emulator_switch(&from, to); }
#else
    using Place = ucontext_t;
    static void jump(Place& from, Place& to) { swapcontext(&from, &to); }
#endif
    std::unique_ptr<std::uint64_t[]> stack_;
    Place place_{}, outside_{};
};

}  // namespace emulator
