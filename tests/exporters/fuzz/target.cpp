// A libFuzzer target for the C++ export: whatever the bytes, every entry of every path gives the bits of the plain path, and reads nothing that it may not.
//
// Compiled with -DTYPED=<the arguments of net::evaluate> beside an export (tests/exporters/fuzz/run.py). Arrays have exactly the size that the interface states and lie
// at any address, so that AddressSanitizer sees a read or write beside them; the constituents of a single event are those that exist and no more.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "net_c.cpp"

extern "C" int LLVMFuzzerRunDriver(int* argc, char*** argv, int (*target)(const std::uint8_t* data, std::size_t size));

namespace {

constexpr std::int64_t most = 3;  // events

// The bytes that the fuzzer makes, one after the other; zeros when there are no more.
struct Bytes {
  const std::uint8_t* at;
  std::size_t left;
  void take(void* to, std::size_t n) {
    const std::size_t given = n < left ? n : left;
    std::memset(to, 0, n);
    if (given > 0) std::memcpy(to, at, given);
    at += given;
    left -= given;
  }
  std::uint8_t one() {
    std::uint8_t byte = 0;
    take(&byte, 1);
    return byte;
  }
};

// n values in a block of their exact size, `shift` bytes from where the allocator puts it.
template <class T> class Block {
 public:
  Block(std::size_t n, std::size_t shift) : bytes_(new unsigned char[shift + n * sizeof(T)]), shift_(shift), size_(n * sizeof(T)) {}
  T* get() { return reinterpret_cast<T*>(bytes_.get() + shift_); }
  unsigned char* raw() { return bytes_.get() + shift_; }
  std::size_t size() const { return size_; }

 private:
  std::unique_ptr<unsigned char[]> bytes_;
  std::size_t shift_, size_;
};

std::size_t row(int g) { return static_cast<std::size_t>(net::groups[g].variables); }

std::int64_t existing(int g, std::int32_t count) {
  const std::int64_t length = net::groups[g].length;
  if (length == 0) return 1;
  return count < 0 ? 0 : (count > length ? length : count);
}

constexpr std::size_t outputs = static_cast<std::size_t>(net::n_outputs);

void check(bool good) {
  if (!good) std::abort();
}

bool same_bits(const net::Logit* a, const net::Logit* b, std::size_t n) { return std::memcmp(a, b, n * sizeof(net::Logit)) == 0; }

#ifdef PLANTED
// A fault that only one value of one input reaches: what a fuzzer without feedback does not find.
void planted(const unsigned char* x) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, x, sizeof bits);
  if (bits == 0x447a2000u) {  // 1000.5f
    const std::unique_ptr<net::Logit[]> logits(new net::Logit[outputs]);
    volatile net::Logit* at = logits.get();  // not to be optimised away
    at[outputs] = net::Logit{};
  }
}
#endif

int target(const std::uint8_t* data, std::size_t size) {
  Bytes bytes{data, size};
  const std::uint8_t form = bytes.one();
  const std::int64_t n = form & 3;
  const std::size_t shift = bytes.one() % 64;
  const std::size_t step = (form & 4) != 0 ? shift : shift / sizeof(float) * sizeof(float);
  std::unique_ptr<Block<float>> values[net::n_groups];
  std::unique_ptr<Block<std::int32_t>> counted[net::n_groups];
  const float* x[net::n_groups] = {};
  const std::int32_t* count[net::n_groups] = {};
  for (int g = 0; g < net::n_groups; ++g) {
    const std::int32_t length = net::groups[g].length;
    if (length > 0) {
      counted[g].reset(new Block<std::int32_t>(static_cast<std::size_t>(n), 0));
      for (std::int64_t k = 0; k < n; ++k) {
        std::int32_t c = 0;
        if ((bytes.one() & 1) != 0) {
          bytes.take(&c, sizeof c);  // anything
        } else {
          c = bytes.one() % (length + 3) - 1;
        }
        counted[g]->get()[k] = c;
      }
      count[g] = counted[g]->get();
    }
    values[g].reset(new Block<float>(static_cast<std::size_t>(n) * row(g) * static_cast<std::size_t>(length > 0 ? length : 1), step));
    bytes.take(values[g]->raw(), values[g]->size());
    x[g] = values[g]->get();
  }
#ifdef PLANTED
  if (n > 0) planted(values[0]->raw());
#endif

  const std::size_t all = static_cast<std::size_t>(n) * outputs;
  Block<net::Logit> expected(all, 0), found(all, 0);
  check(net_evaluate_path(0, x, count, n, expected.get()) == 0);
  for (int p = 0; p < net::n_paths; ++p) {
    if (!net::paths[p].available()) continue;
    std::memset(found.raw(), 0x55, found.size());
    check(net_evaluate_path(p, x, count, n, found.get()) == 0);
    check(same_bits(found.get(), expected.get(), all));
    std::memset(found.raw(), 0x55, found.size());
    net::evaluate_batch(net::paths[p], x, count, n, found.get());
    check(same_bits(found.get(), expected.get(), all));
  }
  check(net_evaluate(x, count, n, found.get()) == 0);
  check(same_bits(found.get(), expected.get(), all));
  for (const std::int32_t none : {-1, net::n_paths, INT32_MIN, INT32_MAX}) check(net_evaluate_path(none, x, count, n, nullptr) == 1);

  for (std::int64_t k = 0; k < n; ++k) {
    std::unique_ptr<Block<float>> alone[net::n_groups];
    const float* at[net::n_groups] = {};
    std::int32_t counts[net::n_groups] = {};
    for (int g = 0; g < net::n_groups; ++g) {
      const std::int32_t length = net::groups[g].length;
      if (length > 0) counts[g] = count[g][k];
      alone[g].reset(new Block<float>(static_cast<std::size_t>(existing(g, counts[g])) * row(g), step));
      const std::size_t stride = row(g) * sizeof(float) * static_cast<std::size_t>(length > 0 ? length : 1);
      if (alone[g]->size() > 0) std::memcpy(alone[g]->raw(), values[g]->raw() + static_cast<std::size_t>(k) * stride, alone[g]->size());
      at[g] = alone[g]->get();
    }
    const net::Logit* wanted = expected.get() + static_cast<std::size_t>(k) * outputs;
    Block<net::Logit> logits(outputs, 0);
    for (const net::Path& path : net::paths) {
      if (!path.available()) continue;
      std::memset(logits.raw(), 0x55, logits.size());
      path.evaluate_groups(at, counts, logits.get());
      check(same_bits(logits.get(), wanted, outputs));
    }
    std::memset(logits.raw(), 0x55, logits.size());
    net::evaluate(TYPED, logits.get());
    check(same_bits(logits.get(), wanted, outputs));
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) { return LLVMFuzzerRunDriver(&argc, &argv, target); }
