#include "engine/file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <memory>
#include <ostream>
#include <random>
#include <streambuf>
#include <string>
#include <system_error>
#include <utility>

#include "engine/error.hpp"

namespace gradgram {
namespace {

std::string reason(int error) {
  return std::generic_category().message(error);
}

class Descriptor {
 public:
  explicit Descriptor(int descriptor) noexcept : descriptor_(descriptor) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  int get() const noexcept { return descriptor_; }
  /// Closes now and tells whether the system took everything.
  int close() noexcept { return ::close(std::exchange(descriptor_, -1)); }

 private:
  int descriptor_;
};

/// Writes to a descriptor and remembers why the first write failed, which std::ofstream forgets.
class DescriptorBuffer : public std::streambuf {
 public:
  explicit DescriptorBuffer(int descriptor) : descriptor_(descriptor), buffer_(std::make_unique<Buffer>()) {
    setp(buffer_->data(), buffer_->data() + buffer_->size());
  }
  int error() const noexcept { return error_; }

 protected:
  int_type overflow(int_type character) override {
    if (!drain()) return traits_type::eof();
    if (!traits_type::eq_int_type(character, traits_type::eof())) sputc(traits_type::to_char_type(character));
    return traits_type::not_eof(character);
  }
  int sync() override { return drain() ? 0 : -1; }
  std::streamsize xsputn(const char* data, std::streamsize count) override {
    if (count < epptr() - pptr()) {
      std::copy_n(data, count, pptr());
      pbump(static_cast<int>(count));
      return count;
    }
    return drain() && put(data, static_cast<std::size_t>(count)) ? count : 0;
  }

 private:
  using Buffer = std::array<char, std::size_t{1} << 16>;

  bool drain() {
    const bool done = put(pbase(), static_cast<std::size_t>(pptr() - pbase()));
    setp(buffer_->data(), buffer_->data() + buffer_->size());
    return done;
  }
  bool put(const char* data, std::size_t count) {
    while (count != 0 && error_ == 0) {
      const ssize_t written = ::write(descriptor_, data, count);
      if (written < 0) {
        if (errno != EINTR) error_ = errno;
        continue;
      }
      data += written;
      count -= static_cast<std::size_t>(written);
    }
    return error_ == 0;
  }

  int descriptor_;
  int error_ = 0;
  std::unique_ptr<Buffer> buffer_;
};

/// Runs `write` on the descriptor and flushes; throws IoError when not everything arrived.
void fill(int descriptor, const std::filesystem::path& path,
          const std::function<void(std::ostream&)>& write) {
  DescriptorBuffer buffer(descriptor);
  std::ostream stream(&buffer);
  write(stream);
  stream.flush();
  if (buffer.error() != 0) {
    throw IoError("write_file: cannot write " + path.string() + ": " + reason(buffer.error()));
  }
  if (!stream) throw IoError("write_file: cannot write " + path.string() + ": its writer gave up");
}

IoError creation_failure(const std::filesystem::path& path, const std::string& why) {
  return IoError("write_file: cannot create " + path.string() + ": " + why);
}

}  // namespace

std::vector<std::byte> read_file(const std::filesystem::path& path, std::size_t limit) {
  Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.get() < 0) throw IoError("read_file: cannot open " + path.string() + ": " + reason(errno));
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) {
    throw IoError("read_file: cannot read " + path.string() + ": " + reason(errno));
  }
  if (S_ISDIR(status.st_mode))
    throw IoError("read_file: cannot read " + path.string() + ": " + reason(EISDIR));
  const auto too_large = [&](const std::string& size) {
    return IoError("read_file: " + path.string() + " holds " + size + " bytes, more than the limit of " +
                   std::to_string(limit));
  };
  const auto expected = S_ISREG(status.st_mode) ? static_cast<std::size_t>(status.st_size) : 0;
  if (expected > limit) throw too_large(std::to_string(expected));
  // One byte beyond the expected size, so that the end of an ordinary file is met without growing.
  std::vector<std::byte> bytes(expected + 1);
  std::size_t filled = 0;
  while (true) {
    if (filled == bytes.size()) bytes.resize(std::max(std::size_t{1} << 16, 2 * filled));
    const ssize_t got = ::read(file.get(), bytes.data() + filled, bytes.size() - filled);
    if (got < 0) {
      if (errno == EINTR) continue;
      throw IoError("read_file: cannot read " + path.string() + ": " + reason(errno));
    }
    if (got == 0) break;
    filled += static_cast<std::size_t>(got);
    if (filled > limit) throw too_large("at least " + std::to_string(filled));
  }
  bytes.resize(filled);
  return bytes;
}

std::filesystem::path behind_links(std::filesystem::path path) {
  constexpr int kMostLinks = 40;  // as Linux has it
  std::error_code error;
  for (int links = 0; std::filesystem::is_symlink(std::filesystem::symlink_status(path, error)); ++links) {
    const std::filesystem::path next = std::filesystem::read_symlink(path, error);
    if (error || links == kMostLinks) {
      throw IoError(path.string() + " leads nowhere: " + (error ? error.message() : reason(ELOOP)));
    }
    // As it stands: where a folder is a link itself, what follows by ".." is not beside that link.
    path = path.parent_path() / next;
  }
  return path;
}

StagedFile::StagedFile(const std::filesystem::path& path, const std::function<void(std::ostream&)>& write)
    : path_(path), target_(path) {
  std::error_code error;
  if (!path.has_filename()) throw creation_failure(path, "the path names no file");
  const std::filesystem::file_status status = std::filesystem::status(path, error);
  if (std::filesystem::is_directory(status)) throw creation_failure(path, reason(EISDIR));
  if (std::filesystem::exists(status)) {
    if (!std::filesystem::is_regular_file(status)) {
      Descriptor file(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
      if (file.get() < 0) throw creation_failure(path, reason(errno));
      fill(file.get(), path, write);
      if (file.close() != 0) throw creation_failure(path, reason(errno));
      return;
    }
    target_ = std::filesystem::canonical(path, error);
    if (error) throw creation_failure(path, error.message());
  }
  const std::filesystem::path folder = target_.has_parent_path() ? target_.parent_path() : ".";
  if (!std::filesystem::exists(folder, error)) {
    throw creation_failure(path, "its folder " + folder.string() + " does not exist");
  }
  if (!std::filesystem::is_directory(folder, error)) {
    throw creation_failure(path, folder.string() + " is not a folder");
  }

  // Not mkstemp(): that makes the file private, and the mode that the user's umask asks for cannot be read
  // back safely.
  std::random_device device;
  std::filesystem::path name;
  int descriptor = -1;
  do {
    const std::uint64_t number = (std::uint64_t{device()} << 32) | device();
    // Long names stay within the 255 bytes of a file system without their own name in front.
    name = folder / (".gradgram-" + std::to_string(number) + ".part");
    descriptor = ::open(name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  } while (descriptor < 0 && errno == EEXIST);
  if (descriptor < 0) throw creation_failure(path, reason(errno));
  Descriptor file(descriptor);
  try {
    fill(file.get(), path, write);
    // A crash after the rename must not leave an empty file in the place of the old one.
    if (::fsync(file.get()) != 0) throw creation_failure(path, reason(errno));
    if (file.close() != 0) throw creation_failure(path, reason(errno));
  } catch (...) {
    ::unlink(name.c_str());
    throw;
  }
  temporary_ = std::move(name);
}

StagedFile::StagedFile(StagedFile&& other) noexcept
    : path_(std::move(other.path_)),
      target_(std::move(other.target_)),
      temporary_(std::exchange(other.temporary_, {})) {}

StagedFile::~StagedFile() {
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void StagedFile::commit() {
  if (temporary_.empty()) return;
  if (::rename(temporary_.c_str(), target_.c_str()) != 0) throw creation_failure(path_, reason(errno));
  temporary_.clear();
  // The name itself: best effort, some file systems do not sync folders.
  const std::filesystem::path folder = target_.has_parent_path() ? target_.parent_path() : ".";
  Descriptor parent(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (parent.get() >= 0) ::fsync(parent.get());
}

void write_file(const std::filesystem::path& path, const std::function<void(std::ostream&)>& write) {
  StagedFile(path, write).commit();
}

}  // namespace gradgram
