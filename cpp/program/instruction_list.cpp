#include "program/instruction_list.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <type_traits>

namespace heddle {

namespace {

static_assert(std::endian::native == std::endian::little, "instruction lists and model files are read in place");

constexpr uint32_t kMagic = 0x504c4448;
constexpr uint32_t kVersion = 1;
/// Far above any real program, low enough that planning a hostile one ends soon.
constexpr uint32_t kMaxBuffers = 1U << 16;
constexpr uint32_t kMaxInstructions = 1U << 16;
constexpr size_t kSmallestBuffer = 8;
constexpr size_t kSmallestInstruction = 8;

[[noreturn]] void reject(const std::string& place, const std::string& expected, const std::string& got) {
  throw Error(ErrorCode::kFormat, place, expected, got);
}

/// Reads forward and never past the end.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  size_t left() const { return bytes_.size() - position_; }

  template <class T>
  T scalar() {
    static_assert(std::is_trivially_copyable_v<T>);
    need(sizeof(T));
    T value;
    std::memcpy(&value, bytes_.data() + position_, sizeof(T));
    position_ += sizeof(T);
    return value;
  }

  template <class T>
  std::vector<T> scalars(size_t count) {
    const size_t size = checked_mul(count, sizeof(T), "instruction list");
    need(size);
    std::vector<T> values(count);
    if (size != 0) std::memcpy(values.data(), bytes_.data() + position_, size);
    position_ += size;
    return values;
  }

  std::string text(size_t length) {
    need(length);
    std::string value(reinterpret_cast<const char*>(bytes_.data()) + position_, length);
    position_ += length;
    return value;
  }

  /// A count of things that take at least `smallest` bytes each: refused before anything is allocated for them.
  template <class T>
  size_t count(size_t smallest) {
    const size_t value = scalar<T>();
    if (value > left() / smallest) truncated(value * smallest);
    return value;
  }

 private:
  void need(size_t size) const {
    if (size > left()) truncated(size);
  }
  [[noreturn]] void truncated(size_t size) const {
    reject("instruction list at byte " + std::to_string(position_), std::to_string(size) + " more bytes",
           std::to_string(left()));
  }

  std::span<const std::byte> bytes_;
  size_t position_ = 0;
};

AttributeValue read_attribute(Reader& reader, const std::string& place) {
  switch (const auto type = reader.scalar<uint8_t>()) {
    case 0: return reader.scalar<int64_t>();
    case 1: return reader.scalar<double>();
    case 2: return reader.text(reader.count<uint32_t>(1));
    case 3: return reader.scalars<int64_t>(reader.count<uint32_t>(8));
    case 4: return reader.scalars<double>(reader.count<uint32_t>(8));
    case 5: {
      std::vector<std::string> texts(reader.count<uint32_t>(4));
      for (std::string& text : texts) text = reader.text(reader.count<uint32_t>(1));
      return texts;
    }
    default: reject(place, "an attribute type 0 to 5", std::to_string(type));
  }
}

class Decoder {
 public:
  explicit Decoder(std::span<const std::byte> bytes) : reader_(bytes) {}

  InstructionList decode() {
    if (const auto magic = reader_.scalar<uint32_t>(); magic != kMagic)
      reject("instruction list", "the magic number HDLP", std::to_string(magic));
    if (const auto version = reader_.scalar<uint32_t>(); version != kVersion)
      reject("instruction list", "version 1", std::to_string(version));

    const size_t buffers = capped(reader_.count<uint32_t>(kSmallestBuffer), kMaxBuffers, "buffers");
    list_.buffers.reserve(buffers);
    for (uint32_t id = 0; id < buffers; ++id) list_.buffers.push_back(read_buffer(id));
    list_.inputs = by_index(BufferKind::kInput, "input");
    list_.outputs = by_index(BufferKind::kOutput, "output");
    check_unique_bound();

    list_.written.assign(buffers, false);
    const size_t instructions = capped(reader_.count<uint32_t>(kSmallestInstruction), kMaxInstructions, "instructions");
    list_.instructions.reserve(instructions);
    for (size_t i = 0; i < instructions; ++i) list_.instructions.push_back(read_instruction(i));
    if (reader_.left() != 0) reject("instruction list", "the end", std::to_string(reader_.left()) + " more bytes");
    for (const uint32_t id : list_.outputs)
      if (!list_.written[id]) reject(name(id), "an instruction that writes this output", "none");
    return std::move(list_);
  }

 private:
  static size_t capped(size_t count, uint32_t limit, const char* what) {
    if (count > limit)
      reject("instruction list", "at most " + std::to_string(limit) + " " + what, std::to_string(count));
    return count;
  }

  static std::string name(uint32_t id) { return "buffer " + std::to_string(id); }

  BufferDeclaration read_buffer(uint32_t id) {
    const auto kind = reader_.scalar<uint8_t>();
    const auto dtype = reader_.scalar<uint8_t>();
    const auto rank = reader_.scalar<uint8_t>();
    const auto zero = reader_.scalar<uint8_t>();
    const auto index = reader_.scalar<uint32_t>();
    if (kind > 4) reject(name(id), "a kind 0 to 4", std::to_string(kind));
    if (dtype >= kDTypeCount) reject(name(id), "a dtype code 0 to 7", std::to_string(dtype));
    if (zero != 0) reject(name(id), "a zero byte after the rank", std::to_string(zero));
    if (rank > Shape::kMaxRank) reject(name(id), "at most 8 dimensions", std::to_string(rank));

    BufferDeclaration buffer{
        static_cast<BufferKind>(kind), static_cast<DType>(dtype), Shape(reader_.scalars<int64_t>(rank)), index, id, 0};
    buffer.bytes = buffer.shape.bytes(buffer.dtype);
    if (buffer.kind != BufferKind::kAlias) return buffer;

    if (index >= id) reject(name(id), "an alias of an earlier buffer", std::to_string(index));
    const BufferDeclaration& root = list_.buffers[index];
    if (root.root != index) reject(name(id), "an alias of a buffer that is itself none", name(index));
    if (root.bytes != buffer.bytes)
      reject(name(id), std::to_string(root.bytes) + " bytes as " + name(index), std::to_string(buffer.bytes));
    buffer.kind = root.kind;
    buffer.index = root.index;
    buffer.root = index;
    return buffer;
  }

  bool is_root(uint32_t id) const { return list_.buffers[id].root == id; }

  /// Ids of the buffers of one kind by their index, which must be 0 .. n-1, each once.
  std::vector<uint32_t> by_index(BufferKind kind, const char* what) const {
    std::vector<uint32_t> ids;
    for (uint32_t id = 0; id < list_.buffers.size(); ++id)
      if (is_root(id) && list_.buffers[id].kind == kind) ids.push_back(id);
    std::vector<uint32_t> ordered(ids.size(), kAbsent);
    for (const uint32_t id : ids) {
      const uint32_t index = list_.buffers[id].index;
      if (index >= ids.size() || ordered[index] != kAbsent)
        reject(name(id), std::string(what) + " indices 0 to n-1, each once", std::to_string(index));
      ordered[index] = id;
    }
    return ordered;
  }

  void check_unique_bound() const {
    std::vector<uint32_t> indices;
    for (uint32_t id = 0; id < list_.buffers.size(); ++id)
      if (is_root(id) && list_.buffers[id].kind == BufferKind::kBound) indices.push_back(list_.buffers[id].index);
    std::ranges::sort(indices);
    const auto twice = std::ranges::adjacent_find(indices);
    if (twice != indices.end())
      reject("instruction list", "one buffer per bound tensor", "two for " + std::to_string(*twice));
  }

  std::vector<uint32_t> read_operands() { return reader_.scalars<uint32_t>(reader_.count<uint16_t>(4)); }

  Instruction read_instruction(size_t position) {
    Instruction instruction;
    instruction.op = reader_.text(reader_.count<uint16_t>(1));
    const std::string place = "instruction " + std::to_string(position) + " (" + instruction.op + ")";
    instruction.inputs = read_operands();
    instruction.outputs = read_operands();
    for (const uint32_t id : instruction.inputs) check_read(id, place);
    for (const uint32_t id : instruction.outputs) check_write(id, place);

    const size_t attributes = reader_.count<uint16_t>(4);
    for (size_t i = 0; i < attributes; ++i) {
      std::string key = reader_.text(reader_.count<uint16_t>(1));
      AttributeValue value = read_attribute(reader_, place);
      if (!instruction.attributes.values.emplace(key, std::move(value)).second)
        reject(place, "each attribute once", key + " twice");
    }
    return instruction;
  }

  const BufferDeclaration& known(uint32_t id, const std::string& place) const {
    if (id >= list_.buffers.size())
      reject(place, "a buffer id below " + std::to_string(list_.buffers.size()), std::to_string(id));
    return list_.buffers[id];
  }

  void check_read(uint32_t id, const std::string& place) const {
    if (id == kAbsent) return;
    const BufferDeclaration& buffer = known(id, place);
    const bool filled = buffer.kind == BufferKind::kInput || buffer.kind == BufferKind::kBound;
    if (!filled && !list_.written[buffer.root]) reject(place, name(id) + " written before it is read", "a first read");
  }

  void check_write(uint32_t id, const std::string& place) {
    if (id == kAbsent) return;
    const BufferDeclaration& buffer = known(id, place);
    if (buffer.kind == BufferKind::kInput) reject(place, "inputs that are only read", "a write to " + name(id));
    list_.written[buffer.root] = true;
  }

  Reader reader_;
  InstructionList list_;
};

}  // namespace

InstructionList decode_instruction_list(std::span<const std::byte> bytes) { return Decoder(bytes).decode(); }

}  // namespace heddle
