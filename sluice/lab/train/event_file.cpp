#include "sluice/lab/train/event_file.h"

#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "sluice/base/error.h"
#include "sluice/base/file.h"

namespace sluice::lab {
namespace {

std::array<uint32_t, 256> make_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) value = value >> 1 ^ (value & 1 ? 0x82F63B78u : 0);
    table[i] = value;
  }
  return table;
}

template <class T>
void put(std::string& out, T value) {
  char bytes[sizeof value];
  std::memcpy(bytes, &value, sizeof value);
  out.append(bytes, sizeof bytes);
}

/// TFRecord rotates and shifts checksums, so that a checksum of checksums is not a constant.
uint32_t masked(std::string_view bytes) {
  const uint32_t crc = crc32c(bytes);
  return (crc >> 15 | crc << 17) + 0xA282EAD8u;
}

// Protocol buffers: a key is field number and wire type, 0 varint, 1 eight bytes, 2 length and
// bytes, 5 four bytes.
void put_varint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out.push_back(static_cast<char>(value | 0x80));
  out.push_back(static_cast<char>(value));
}
void put_key(std::string& out, unsigned field, unsigned type) {
  put_varint(out, field << 3 | type);
}
void put_bytes(std::string& out, unsigned field, std::string_view bytes) {
  put_key(out, field, 2);
  put_varint(out, bytes.size());
  out += bytes;
}

std::string begin_event() {
  const double now =
      std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  std::string event;
  put_key(event, 1, 1);
  put(event, now);
  return event;
}

std::string host_name() {
  char name[256] = {};
  return ::gethostname(name, sizeof name - 1) == 0 ? name : "localhost";
}

}  // namespace

uint32_t crc32c(std::string_view bytes) {
  static const std::array<uint32_t, 256> table = make_table();
  uint32_t value = ~0u;
  for (const char byte : bytes)
    value = table[(value ^ static_cast<unsigned char>(byte)) & 0xFF] ^ value >> 8;
  return ~value;
}

EventFile::EventFile(const std::string& directory) {
  make_directories(directory);
  const auto now = std::chrono::duration_cast<std::chrono::seconds>(
                       std::chrono::system_clock::now().time_since_epoch())
                       .count();
  path_ = fmt::format("{}/events.out.tfevents.{}.{}.{}", directory, now, host_name(), ::getpid());
  file_.reset(std::fopen(path_.c_str(), "wb"));
  if (!file_) fail(Code::io, "cannot write {}: {}", path_, std::strerror(errno));
  std::string event = begin_event();
  put_bytes(event, 3, "brain.Event:2");
  record(event);
}

void EventFile::scalar(std::string_view tag, int64_t step, double value) {
  std::string point, summary, event = begin_event();
  put_bytes(point, 1, tag);
  put_key(point, 2, 5);
  put(point, static_cast<float>(value));
  put_bytes(summary, 1, point);
  put_key(event, 2, 0);
  put_varint(event, static_cast<uint64_t>(step));
  put_bytes(event, 5, summary);
  record(event);
}

void EventFile::record(std::string_view event) {
  std::string length, out;
  put(length, static_cast<uint64_t>(event.size()));
  out = length;
  put(out, masked(length));
  out += event;
  put(out, masked(event));
  if (std::fwrite(out.data(), 1, out.size(), file_.get()) != out.size() ||
      std::fflush(file_.get()) != 0)
    fail(Code::io, "cannot write {}: {}", path_, std::strerror(errno));
}

}  // namespace sluice::lab
