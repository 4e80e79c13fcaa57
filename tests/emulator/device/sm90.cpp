#include "block.h"

namespace emulator {
namespace {

// What lies in a `Phase`.
struct PhaseState {
    std::uint8_t is_made, parity, num_arrivals, num_left;
    std::int32_t num_bytes;
};
static_assert(sizeof(PhaseState) == sizeof(Phase));

// Shared memory is ones in every bit at the start.
constexpr std::uint8_t kMade = 1;

PhaseState state_of(const Phase* phase) {
    PhaseState state;
    std::memcpy(&state, phase, sizeof state);
    if (state.is_made != kMade) block->fail("a phase has not begun");
    return state;
}

// Puts it back, and begins the next phase if this one has all that it expects.
void change(Phase* phase, PhaseState state) {
    if (state.num_left == 0 && state.num_bytes == 0) {
        state.parity ^= 1;
        state.num_left = state.num_arrivals;
        for (Thread& thread : block->threads)
            if (thread.state == State::kAtPhase && thread.phase == phase) thread.state = State::kReady;
    }
    std::memcpy(phase, &state, sizeof state);
}

// Where the hardware puts what has this address in shared memory: in rows of 128 bytes, by eight.
std::size_t swizzled(std::size_t address) { return address ^ (address >> 7 & 7) << 4; }

bool is_shared(std::size_t start, std::size_t size) { return start + size <= kMaxShared; }

// Element `k` of row `row` of the matrix that a descriptor says.
u16 element(u64 descriptor, int row, int k) {
    const std::size_t start = (descriptor & 0x3fff) << 4, eight_rows = (descriptor >> 32 & 0x3fff) << 4;
    const std::size_t address = start + row / 8 * eight_rows + row % 8 * 128 + k * 2;
    u16 bits;
    std::memcpy(&bits, block->first_shared() + swizzled(address), sizeof bits);
    return bits;
}

bool is_known(u64 descriptor, int num_rows) {
    const std::size_t start = (descriptor & 0x3fff) << 4, eight_rows = (descriptor >> 32 & 0x3fff) << 4;
    return descriptor >> 62 == 1 && is_shared(start, (num_rows / 8 - 1) * eight_rows + 1024);
}

void join_warpgroup(Together together, const void* input) {
    block->join(block->warpgroup().gathering, kWarpgroupLanes, together, input, nullptr);
}

}  // namespace

unsigned char* dynamic_shared() {
    // Behind something else, so that it is not aligned by chance.
    shared_bytes(128);
    return static_cast<unsigned char*>(shared_bytes(block->dynamic_shared));
}

u32 shared_address(const void* shared) {
    return static_cast<u32>(static_cast<const unsigned char*>(shared) - block->first_shared());
}

void begin_phases(Phase* phase, int arrivals) {
    const auto count = static_cast<std::uint8_t>(arrivals);
    const PhaseState state{kMade, 0, count, count, 0};
    if (!is_shared(shared_address(phase), sizeof state)) block->fail("a phase outside of shared memory");
    std::memcpy(phase, &state, sizeof state);
    block->phases_are_published = false;
}

void publish_phases() { block->phases_are_published = true; }

void arrive(Phase* phase, u32 expected_bytes) {
    PhaseState state = state_of(phase);
    if (state.num_left == 0) block->fail("more arrive than a phase expects");
    --state.num_left;
    state.num_bytes += static_cast<std::int32_t>(expected_bytes);
    change(phase, state);
}

void wait_phase(const Phase* phase, u32 parity) {
    if (state_of(phase).parity != parity) return;
    block->thread().phase = phase;
    block->wait(State::kAtPhase);
}

void copy_box(void* shared, const TensorMap& matrix, int column, int row, Phase* phase) {
    const std::size_t start = shared_address(shared);
    Box box{start, std::vector<unsigned char>(matrix.box_rows * 128), phase};
    if (start % 1024 != 0) block->fail("a box is not where a swizzle begins");
    if (!is_shared(start, box.rows.size())) block->fail("a box outside of shared memory");
    if (!block->phases_are_published) block->fail("a box may not see its phase");
    for (u64 i = 0; i < matrix.box_rows; ++i)
        for (int chunk = 0; chunk < 8; ++chunk) {
            const u64 from_row = row + i, from_column = column + chunk * 8;
            if (from_row >= matrix.num_rows || from_column >= matrix.num_columns) continue;
            const u64 source = matrix.address + from_row * matrix.row_bytes + from_column * 2;
            std::memcpy(&box.rows[i * 128 + chunk * 16], reinterpret_cast<const void*>(source), 16);
        }
    block->boxes.push_back(std::move(box));
}

bool Block::receive_box() {
    if (boxes.empty()) return false;
    const u32 index = random.below(static_cast<u32>(boxes.size()));
    const Box box = std::move(boxes[index]);
    boxes.erase(boxes.begin() + index);
    for (std::size_t offset = 0; offset < box.rows.size(); offset += 16)
        std::memcpy(first_shared() + swizzled(box.start + offset), &box.rows[offset], 16);
    PhaseState state = state_of(box.phase);
    state.num_bytes -= static_cast<std::int32_t>(box.rows.size());
    change(box.phase, state);
    return true;
}

void begin_products() {
    join_warpgroup([](const void* const*, void* const*) { block->warpgroup().has_begun = true; }, nullptr);
}

void start_product(const Product& product) {
    join_warpgroup([](const void* const* inputs, void* const*) {
        Warpgroup& warpgroup = block->warpgroup();
        Multiplication multiplication{*static_cast<const Product*>(inputs[0]), {}};
        const Product& product = multiplication.product;
        for (int i = 0; i < kWarpgroupLanes; ++i) {
            const auto& other = *static_cast<const Product*>(inputs[i]);
            if (other.a != product.a || other.b != product.b || other.adds != product.adds)
                block->fail("threads of a warpgroup ask for different products");
            multiplication.sums[i] = other.sums;
        }
        if (!is_known(product.a, 64) || !is_known(product.b, product.num_columns))
            block->fail("a descriptor is of no matrix that is known here");
        if (!warpgroup.has_begun) block->fail("products have not begun");
        warpgroup.products.push(multiplication);
        if (!warpgroup.is_late) warpgroup.products.make_all();
    }, &product);
}

void Multiplication::make() const {
    const int num_columns = product.num_columns;
    std::vector<float> b(16 * num_columns), all(64 * num_columns);
    for (int column = 0; column < num_columns; ++column)
        for (int k = 0; k < 16; ++k)
            b[k * num_columns + column] = product.value(element(product.b, column, k));
    for (int row = 0; row < 64; ++row)
        for (int k = 0; k < 16; ++k) {
            const float a = product.value(element(product.a, row, k));
            for (int column = 0; column < num_columns; ++column)
                all[row * num_columns + column] += a * b[k * num_columns + column];
        }
    for (int thread = 0; thread < kWarpgroupLanes; ++thread)
        for (int i = 0; i < num_columns / 2; ++i) {
            const int row = thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8;
            const int column = i / 4 * 8 + thread % 4 * 2 + i % 2;
            float& sum = sums[thread][i];
            sum = (product.adds ? sum : 0.0f) + all[row * num_columns + column];
        }
}

void commit_products() {
    join_warpgroup([](const void* const*, void* const*) { block->warpgroup().products.commit(); },
                   nullptr);
}

void wait_products(int pending) {
    join_warpgroup([](const void* const* inputs, void* const*) {
        block->warpgroup().has_begun = false;
        block->warpgroup().products.wait(*static_cast<const int*>(inputs[0]));
    }, &pending);
}

}  // namespace emulator
