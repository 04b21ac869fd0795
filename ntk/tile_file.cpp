#include "ntk/tile_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <optional>
#include <span>
#include <string_view>
#include <system_error>

#include "engine/blas.hpp"
#include "engine/cpu.hpp"
#include "engine/npy.hpp"
#include "engine/tensor.hpp"
#include "ntk/packed.hpp"

namespace gradgram::ntk {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kMagic = "ggkernel";
constexpr std::uint32_t kJournalVersion = 1;
/// Magic, version, length of the facts, tile.
constexpr std::size_t kPreambleBytes = 8 + 4 + 4 + 8;
constexpr std::size_t kLongestFacts = std::size_t{1} << 20;
/// Records that are read at once: tiles of a few examples have more of them than memory may hold.
constexpr std::size_t kRecordsAtOnce = 4096;

std::string reason(int error) {
  return std::generic_category().message(error);
}

IoError failure(const std::string& doing, const fs::path& path, int error) {
  return IoError("kernel_to_file: cannot " + doing + " " + path.string() + ": " + reason(error));
}

/// An open file and its path.
class File {
 public:
  File() = default;
  File(fs::path path, int flags)
      : path_(std::move(path)), descriptor_(::open(path_.c_str(), flags | O_CLOEXEC, 0666)) {
    if (descriptor_ < 0) throw failure("open", path_, errno);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  File(File&& other) noexcept
      : path_(std::move(other.path_)), descriptor_(std::exchange(other.descriptor_, -1)) {}
  File& operator=(File&& other) noexcept {
    std::swap(path_, other.path_);
    std::swap(descriptor_, other.descriptor_);
    return *this;
  }
  ~File() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }

  int descriptor() const noexcept { return descriptor_; }
  const fs::path& path() const noexcept { return path_; }

  std::size_t size() const {
    struct stat status {};
    if (::fstat(descriptor_, &status) != 0) throw failure("read", path_, errno);
    return static_cast<std::size_t>(status.st_size);
  }

  void write_at(const void* data, std::size_t bytes, std::size_t offset) const {
    const char* from = static_cast<const char*>(data);
    while (bytes != 0) {
      const ssize_t written = ::pwrite(descriptor_, from, bytes, static_cast<off_t>(offset));
      if (written < 0) {
        if (errno == EINTR) continue;
        throw failure("write", path_, errno);
      }
      from += written;
      offset += static_cast<std::size_t>(written);
      bytes -= static_cast<std::size_t>(written);
    }
  }

  /// Bytes that are there, up to `bytes`.
  std::size_t read_at(void* data, std::size_t bytes, std::size_t offset) const {
    char* to = static_cast<char*>(data);
    std::size_t filled = 0;
    while (filled < bytes) {
      const ssize_t got =
          ::pread(descriptor_, to + filled, bytes - filled, static_cast<off_t>(offset + filled));
      if (got < 0) {
        if (errno == EINTR) continue;
        throw failure("read", path_, errno);
      }
      if (got == 0) break;
      filled += static_cast<std::size_t>(got);
    }
    return filled;
  }

  void sync() const {
    if (::fsync(descriptor_) != 0) throw failure("write", path_, errno);
  }

 private:
  fs::path path_;
  int descriptor_ = -1;
};

bool is_there(const fs::path& path) {
  std::error_code error;
  return fs::exists(fs::symlink_status(path, error));
}

fs::path with_suffix(const fs::path& path, const char* suffix) {
  fs::path result = path;
  result += suffix;
  return result;
}

/// One finished tile, as it stands in the journal.
struct Record {
  std::uint32_t row = 0, column = 0;  ///< numbers of the tile in the grid
  std::uint32_t data = 0;             ///< checksum of its bytes in the file
  std::uint32_t self = 0;             ///< checksum of the three numbers before

  static Record of(std::size_t row, std::size_t column, std::uint32_t data) {
    Record record{static_cast<std::uint32_t>(row), static_cast<std::uint32_t>(column), data, 0};
    record.self = record.checksum();
    return record;
  }
  std::uint32_t checksum() const { return crc32_of(this, offsetof(Record, self)); }
};
static_assert(sizeof(Record) == 16);

/// The journal of an unfinished kernel: facts about what makes its bits, then a record for each finished
/// tile. Locked against other processes for as long as this object lives.
class Journal {
 public:
  /// Opens or creates and locks. Throws IoError when another process holds it.
  explicit Journal(const fs::path& path, const fs::path& target) {
    for (;;) {
      file_ = File(path, O_RDWR | O_CREAT | O_APPEND);
      if (::flock(file_.descriptor(), LOCK_EX | LOCK_NB) != 0) {
        if (errno == EINTR) continue;
        if (errno != EWOULDBLOCK) throw failure("lock", path, errno);
        throw IoError("kernel_to_file: another process is writing " + target.string() + " (it holds " +
                      path.string() + "); only one may at a time");
      }
      // Its former owner may have removed the file between our opening and our locking it.
      struct stat mine {};
      struct stat there {};
      if (::fstat(file_.descriptor(), &mine) == 0 && ::stat(path.c_str(), &there) == 0 &&
          mine.st_ino == there.st_ino && mine.st_dev == there.st_dev) {
        break;
      }
    }
  }

  bool empty() const { return file_.size() == 0; }

  /// What an earlier call wrote. Before anything else.
  void read() {
    const std::size_t size = file_.size();
    std::array<char, kPreambleBytes> preamble{};
    if (file_.read_at(preamble.data(), preamble.size(), 0) != preamble.size()) return;
    std::uint32_t version = 0;
    std::uint32_t length = 0;
    std::uint64_t tile = 0;
    std::memcpy(&version, preamble.data() + 8, 4);
    std::memcpy(&length, preamble.data() + 12, 4);
    std::memcpy(&tile, preamble.data() + 16, 8);
    if (std::string_view(preamble.data(), 8) != kMagic || version != kJournalVersion ||
        length > kLongestFacts || tile == 0) {
      return;
    }
    std::string head(kPreambleBytes + length + 4, '\0');
    if (file_.read_at(head.data(), head.size(), 0) != head.size()) return;
    std::uint32_t checksum = 0;
    std::memcpy(&checksum, head.data() + head.size() - 4, 4);
    if (checksum != crc32_of(head.data(), head.size() - 4)) return;

    std::string_view text(head.data() + kPreambleBytes, length);
    while (!text.empty()) {
      const std::size_t tab = text.find('\t');
      const std::size_t end = text.find('\n', tab);
      if (end == std::string_view::npos) return;
      facts_.emplace_back(text.substr(0, tab), text.substr(tab + 1, end - tab - 1));
      text.remove_prefix(end + 1);
    }
    tile_ = tile;
    begun_ = true;
    records_begin_ = head.size();
    records_ = (size - records_begin_) / sizeof(Record);
    end_ = size;
    const std::size_t whole = records_begin_ + records_ * sizeof(Record);
    if (whole != size) truncate(whole);
  }

  /// Whether the file holds a journal (and not merely a name that was just created).
  bool begun() const { return begun_; }
  /// Whether there is something that is no journal of this version.
  bool broken() const { return !begun_ && !empty(); }
  const Facts& facts() const { return facts_; }
  std::size_t tile() const { return tile_; }
  /// Records that read() found.
  std::size_t records() const { return records_; }
  /// `count` of them from number `first` on, without those that a crash tore, which do not carry their own
  /// checksum: such a tile counts as unfinished.
  std::vector<Record> records(std::size_t first, std::size_t count) const {
    std::vector<Record> records(count);
    const std::size_t got =
        file_.read_at(records.data(), count * sizeof(Record), records_begin_ + first * sizeof(Record));
    records.resize(got / sizeof(Record));
    std::erase_if(records, [](const Record& record) { return record.self != record.checksum(); });
    return records;
  }

  /// Forgets all and writes the head.
  void begin(const Facts& facts, std::size_t tile) {
    std::string text;
    for (const auto& [name, value] : facts) text += name + '\t' + value + '\n';
    std::string head(kMagic);
    const auto append = [&](const auto& number) {
      head.append(reinterpret_cast<const char*>(&number), sizeof(number));
    };
    append(kJournalVersion);
    append(static_cast<std::uint32_t>(text.size()));
    append(static_cast<std::uint64_t>(tile));
    head += text;
    append(crc32_of(head.data(), head.size()));
    truncate(0);
    append_whole(head.data(), head.size());
    file_.sync();
    facts_ = facts;
    tile_ = tile;
    records_ = 0;
    begun_ = true;
  }

  /// Called by several threads at once.
  void add(const Record& record) {
    const std::lock_guard lock(mutex_);
    append_whole(&record, sizeof(record));
  }

  const fs::path& path() const { return file_.path(); }

 private:
  void truncate(std::size_t bytes) {
    if (::ftruncate(file_.descriptor(), static_cast<off_t>(bytes)) != 0) {
      throw failure("write", file_.path(), errno);
    }
    end_ = bytes;
  }

  /// All of it or, when the disk is full, nothing: later records must stay aligned.
  void append_whole(const void* data, std::size_t bytes) {
    ssize_t written = 0;
    do {
      written = ::write(file_.descriptor(), data, bytes);
    } while (written < 0 && errno == EINTR);
    if (written == static_cast<ssize_t>(bytes)) {
      end_ += bytes;
      return;
    }
    const int error = written < 0 ? errno : ENOSPC;
    if (written > 0) truncate(end_);
    throw failure("write", file_.path(), error);
  }

  File file_;
  std::mutex mutex_;
  std::size_t end_ = 0;
  bool begun_ = false;
  Facts facts_;
  std::size_t tile_ = 0;
  std::size_t records_begin_ = 0, records_ = 0;
};

/// Some tiles of a grid, as runs of neighbours in every row: in such runs they are finished, and of tiles of
/// single examples there may be more than memory has bits for.
class TileSet {
 public:
  explicit TileSet(std::size_t rows) : rows_(rows) {}

  bool has(std::size_t row, std::size_t column) const {
    const std::vector<Run>& runs = rows_[row];
    const auto next = after(runs, column);
    return next != runs.begin() && column < std::prev(next)->end;
  }
  void add(std::size_t row, std::size_t column) {
    std::vector<Run>& runs = rows_[row];
    const auto next = runs.begin() + (after(runs, column) - runs.begin());
    const bool touches_next = next != runs.end() && next->begin == column + 1;
    if (next != runs.begin() && column <= std::prev(next)->end) {
      const auto run = std::prev(next);
      if (column < run->end) return;
      run->end = touches_next ? next->end : column + 1;
      if (touches_next) runs.erase(next);
    } else if (touches_next) {
      next->begin = column;
    } else {
      runs.insert(next, {column, column + 1});
    }
  }
  /// Tiles that are not in `other`, and all when there is none.
  std::size_t count(const TileSet* other = nullptr) const {
    std::size_t total = 0;
    for (std::size_t row = 0; row < rows_.size(); ++row) {
      for (const Run& run : rows_[row]) {
        for (std::size_t column = run.begin; column < run.end; ++column) {
          if (other == nullptr || !other->has(row, column)) ++total;
        }
      }
    }
    return total;
  }

 private:
  /// Columns [begin, end).
  struct Run {
    std::size_t begin, end;
  };
  /// The first run that begins behind a column.
  static std::vector<Run>::const_iterator after(const std::vector<Run>& runs, std::size_t column) {
    return std::upper_bound(runs.begin(), runs.end(), column,
                            [](std::size_t at, const Run& run) { return at < run.begin; });
  }

  std::vector<std::vector<Run>> rows_;  ///< ascending, with gaps between them
};

/// Tiles in an .npy file, each noted in the journal once it is there.
template <class T>
class FileStore final : public TileStore {
 public:
  FileStore(const TileGrid& grid, bool packed, File file, std::size_t header_bytes, Journal& journal,
            std::size_t workers)
      : file_(std::move(file)),
        header_bytes_(header_bytes),
        journal_(journal),
        tile_(grid.tile),
        rows_(grid.rows),
        columns_(grid.columns),
        symmetric_(grid.symmetric),
        packed_(packed),
        group_(grid.group()),
        finished_((rows_ + tile_ - 1) / tile_) {
    const std::size_t side = tile_ * group_;
    for (std::size_t w = 0; w < workers; ++w) stages_.emplace_back(Shape{side * side});
  }

  bool has(const TilePlace& place) const override {
    return finished_.has(place.row / tile_, place.column / tile_);
  }

  void put(const PlacedTile& tile, std::size_t worker) override {
    const TilePlace& place = tile.place;
    T* const stage = stages_[worker].data();
    const auto at = [&](std::size_t columns, std::size_t i, std::size_t j, std::size_t k, std::size_t l) {
      return ((i * columns + j) * group_ + k) * group_ + l;
    };
    tile.each_entry<T>([&](std::size_t i, std::size_t j, std::size_t k, std::size_t l, T value) {
      stage[at(place.columns, i, j, k, l)] = value;
      if (place.diagonal) stage[at(place.columns, j, i, l, k)] = value;
    });
    std::uint32_t checksum = write(place, stage, 0);
    if (mirrored(place)) {
      tile.each_entry<T>([&](std::size_t i, std::size_t j, std::size_t k, std::size_t l, T value) {
        stage[at(place.rows, j, i, l, k)] = value;
      });
      checksum = write(mirror(place), stage, checksum);
    }
    journal_.add(Record::of(place.row / tile_, place.column / tile_, checksum));
    done_.fetch_add(1, std::memory_order_relaxed);
  }

  /// Reads again what the journal calls finished; what is not as it was written counts as unfinished.
  /// Returns how many tiles are damaged.
  std::size_t verify(const Workers& workers, const Progress& progress, const std::stop_token& stop) {
    TileSet damaged((rows_ + tile_ - 1) / tile_);
    const std::size_t total = journal_.records();
    for (std::size_t first = 0; first < total; first += kRecordsAtOnce) {
      std::vector<Record> records = journal_.records(first, std::min(kRecordsAtOnce, total - first));
      std::erase_if(records, [&](const Record& record) { return !within(record); });
      std::vector<char> intact(records.size(), 0);
      Progress further;
      if (progress) further = [&](std::size_t done, std::size_t) { progress(first + done, total); };
      workers.run(
          records.size(),
          [&](std::size_t index, std::size_t worker) {
            const Record& record = records[index];
            const TilePlace place = place_of(record.row, record.column);
            T* const stage = stages_[worker].data();
            std::optional<std::uint32_t> checksum = read(place, stage, 0);
            if (checksum && mirrored(place)) checksum = read(mirror(place), stage, *checksum);
            intact[index] = checksum == record.data ? 1 : 0;
          },
          further, stop);
      for (std::size_t index = 0; index < records.size(); ++index) {
        (intact[index] != 0 ? finished_ : damaged).add(records[index].row, records[index].column);
      }
    }
    done_.store(finished_.count(), std::memory_order_relaxed);
    // A tile that was damaged once has two records, one of which its bytes may still be true to.
    return damaged.count(&finished_);
  }

  std::size_t tiles() const {
    const std::size_t row_tiles = (rows_ + tile_ - 1) / tile_;
    return symmetric_ ? row_tiles * (row_tiles + 1) / 2 : row_tiles * ((columns_ + tile_ - 1) / tile_);
  }
  std::size_t done() const { return done_.load(std::memory_order_relaxed); }
  const File& file() const { return file_; }

 private:
  bool within(const Record& record) const {
    return record.row * tile_ < rows_ && record.column * tile_ < columns_ &&
           (!symmetric_ || record.column <= record.row);
  }
  TilePlace place_of(std::size_t row, std::size_t column) const {
    row *= tile_;
    column *= tile_;
    return {row, std::min(tile_, rows_ - row), column, std::min(tile_, columns_ - column),
            symmetric_ && row == column};
  }
  /// Whether the file also holds the mirror image.
  bool mirrored(const TilePlace& place) const { return symmetric_ && !packed_ && !place.diagonal; }
  static TilePlace mirror(const TilePlace& place) {
    return {place.column, place.columns, place.row, place.rows, false};
  }

  /// What a row of a tile takes in the file: contiguous bytes.
  struct Run {
    std::size_t offset = 0, bytes = 0;
  };
  Run run(const TilePlace& place, std::size_t i) const {
    const std::size_t row = place.row + i;
    const std::size_t first = (packed_ ? packed_size(row) : row * columns_) + place.column;
    const std::size_t count = packed_ && place.diagonal ? i + 1 : place.columns;
    const std::size_t entry = group_ * group_ * sizeof(T);
    return {header_bytes_ + first * entry, count * entry};
  }
  const T* staged(const TilePlace& place, const T* stage, std::size_t i) const {
    return stage + i * place.columns * group_ * group_;
  }

  std::uint32_t write(const TilePlace& place, const T* stage, std::uint32_t checksum) const {
    for (std::size_t i = 0; i < place.rows; ++i) {
      const Run there = run(place, i);
      const T* const from = staged(place, stage, i);
      file_.write_at(from, there.bytes, there.offset);
      checksum = crc32_of(from, there.bytes, checksum);
    }
    return checksum;
  }

  /// Nothing when the file ends before the tile does.
  std::optional<std::uint32_t> read(const TilePlace& place, T* stage, std::uint32_t checksum) const {
    for (std::size_t i = 0; i < place.rows; ++i) {
      const Run there = run(place, i);
      if (file_.read_at(stage, there.bytes, there.offset) != there.bytes) return std::nullopt;
      checksum = crc32_of(stage, there.bytes, checksum);
    }
    return checksum;
  }

  File file_;
  std::size_t header_bytes_;
  Journal& journal_;
  std::size_t tile_, rows_, columns_;
  bool symmetric_, packed_;
  std::size_t group_;
  TileSet finished_;  ///< by earlier calls; not touched while tiles are put
  std::atomic<std::size_t> done_{0};
  std::vector<Tensor<T>> stages_;  ///< per worker
};

/// `a is 1 there and 2 now; ...`, empty when nothing differs.
std::string differences(const Facts& there, const Facts& now) {
  const auto find = [](const Facts& facts, const std::string& name) -> const std::string* {
    const auto found =
        std::find_if(facts.begin(), facts.end(), [&](const auto& fact) { return fact.first == name; });
    return found == facts.end() ? nullptr : &found->second;
  };
  std::string text;
  const auto note = [&](const std::string& name, const std::string* old, const std::string* fresh) {
    text += fmt::format("{}{} was {} and is now {}", text.empty() ? "" : "; ", name,
                        old == nullptr ? "not given" : *old, fresh == nullptr ? "not given" : *fresh);
  };
  for (const auto& [name, value] : now) {
    const std::string* const old = find(there, name);
    if (old == nullptr || *old != value) note(name, old, &value);
  }
  for (const auto& [name, value] : there) {
    if (find(now, name) == nullptr) note(name, &value, nullptr);
  }
  return text;
}

/// Removes what a call has begun unless it got as far as tiles.
class Litter {
 public:
  /// Refers to the paths.
  Litter(const fs::path& partial, const fs::path& journal) noexcept : partial_(partial), journal_(journal) {}
  Litter(const Litter&) = delete;
  Litter& operator=(const Litter&) = delete;
  ~Litter() {
    if (partial_armed_) ::unlink(partial_.c_str());
    if (journal_armed_) ::unlink(journal_.c_str());
  }
  void arm_journal() noexcept { journal_armed_ = true; }
  void arm() noexcept { partial_armed_ = journal_armed_ = true; }
  void release() noexcept { partial_armed_ = journal_armed_ = false; }

 private:
  const fs::path& partial_;
  const fs::path& journal_;
  bool partial_armed_ = false, journal_armed_ = false;
};

/// The file itself when `path` is a link to one.
fs::path target_of(const fs::path& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (!path.has_filename() || fs::is_directory(status)) {
    throw IoError("kernel_to_file: cannot create " + path.string() + ": " + reason(EISDIR));
  }
  if (!fs::exists(status)) return path;
  if (!fs::is_regular_file(status)) {
    throw IoError("kernel_to_file: cannot create " + path.string() + ": it is not an ordinary file");
  }
  return fs::canonical(path);
}

/// posix_fallocate, which a signal may interrupt.
int reserve(const File& file, std::size_t bytes) {
  for (;;) {
    const int error = ::posix_fallocate(file.descriptor(), 0, static_cast<off_t>(bytes));
    if (error != EINTR) return error;
  }
}

}  // namespace

std::uint32_t crc32_of(const void* data, std::size_t bytes, std::uint32_t before) {
  return static_cast<std::uint32_t>(crc32_z(before, static_cast<const Bytef*>(data), bytes));
}

std::string hexadecimal(std::uint32_t value) {
  return fmt::format("{:08x}", value);
}

template <class T>
std::string fingerprint(TensorView<const T> values) {
  return values.shape().to_string() + " " + hexadecimal(crc32_of(values.data(), values.size() * sizeof(T)));
}

template <class T>
Facts facts_of_process() {
  return {{"library version", GRADGRAM_VERSION},
          {"instruction set", std::string(isa_name(active_isa()))},
          {"matrix product kernels", blas::kernel_set()},
          {"precision", sizeof(T) == 4 ? "f32" : "f64"}};
}

Shape TileGrid::shape(bool packed) const {
  if (packed && outputs != 0) return {packed_size(rows), outputs, outputs};
  if (packed) return {packed_size(rows)};
  if (outputs != 0) return {rows, columns, outputs, outputs};
  return {rows, columns};
}

fs::path unfinished_beside(const fs::path& path) {
  const fs::path target = target_of(path);
  const fs::path partial = with_suffix(target, ".partial");
  return is_there(partial) && is_there(with_suffix(target, ".journal")) ? partial : fs::path();
}

void discard_unfinished(const fs::path& path) {
  const fs::path target = target_of(path);
  const fs::path partial = with_suffix(target, ".partial");
  const Journal journal(with_suffix(target, ".journal"), target);  // nobody else writes it
  for (const fs::path& file : {partial, journal.path()}) {
    if (::unlink(file.c_str()) != 0 && errno != ENOENT) throw failure("remove", file, errno);
  }
}

template <class T>
KernelFile tiles_to_file(TileSource& source, const KernelDestination& destination, const Workers& workers,
                         const std::stop_token& stop) {
  TileGrid grid = source.grid();
  if (destination.packed && !grid.symmetric) {
    throw ArgumentError(
        "kernel_to_file: packed must be off for the kernel of two sets of inputs, which is not symmetric");
  }
  const fs::path target = target_of(destination.path);
  KernelFile result;
  result.shape = grid.shape(destination.packed);
  if (grid.rows == 0 || grid.columns == 0) {
    StagedFile empty = stage_npy<T>(target, Tensor<T>(result.shape).view());
    if (destination.before_naming) destination.before_naming(result);
    empty.commit();
    return result;
  }

  const std::string header = npy_header(sizeof(T) == 4 ? NpyType::F4 : NpyType::F8, result.shape.extents());
  const std::size_t bytes =
      checked_add(header.size(), checked_multiply(result.shape.size(), sizeof(T), "kernel_to_file: bytes"),
                  "kernel_to_file: bytes");

  const fs::path partial = with_suffix(target, ".partial");
  const fs::path journal_path = with_suffix(target, ".journal");
  Journal journal(journal_path, target);
  Litter litter(partial, journal_path);  // goes before the lock does
  if (journal.empty()) litter.arm_journal();
  journal.read();
  bool resumed = false;
  if (!destination.restart && is_there(partial) && journal.broken()) {
    throw FormatError("kernel_to_file: " + journal.path().string() +
                      " is not the journal of an unfinished kernel that this version reads; remove it and " +
                      partial.string() + ", or begin anew (restart)");
  }
  const auto facts_now = [&] {
    Facts facts = source.facts();
    facts.emplace_back("storage", destination.packed ? "packed" : "square");
    facts.insert(facts.end(), destination.provenance.begin(), destination.provenance.end());
    for (auto& [name, value] : facts) {
      for (std::string* text : {&name, &value}) {
        std::replace_if(
            text->begin(), text->end(), [](char c) { return c == '\t' || c == '\n'; }, ' ');
      }
    }
    return facts;
  };
  if (!destination.restart && journal.begun()) {
    source.adopt(journal.facts());
    const std::string different = differences(journal.facts(), facts_now());
    if (is_there(partial)) {
      if (!different.empty()) {
        throw ArgumentError("kernel_to_file: " + partial.string() +
                            " is unfinished and was begun with something else: " + different +
                            "; begin anew (restart) or choose another file");
      }
      resumed = true;
    } else if (different.empty() && fs::is_regular_file(target) && fs::file_size(target) == bytes) {
      // The last call died between giving the file its name and removing the journal.
      if (::rename(target.c_str(), partial.c_str()) != 0) throw failure("rename", target, errno);
      resumed = true;
    }
  }
  if (!resumed) {
    litter.arm();
    ::unlink(partial.c_str());
    source.adopt({});
    grid = source.grid();
    journal.begin(facts_now(), grid.tile);
  } else {
    try {
      source.follow(journal.tile());
    } catch (const BudgetError& error) {
      throw BudgetError(fmt::format(
          "{}; their size is that of the unfinished {}, which keeps it; give more memory, or begin anew "
          "(restart) with smaller ones",
          error.what(), partial.string()));
    }
    grid = source.grid();
  }
  result.block_examples = source.block_examples();
  result.planned_bytes = source.planned_bytes();

  File file(partial, O_RDWR | O_CREAT);
  // A full disk is told now rather than after hours.
  if (const int error = reserve(file, bytes); error != 0) {
    std::error_code ignored;
    const fs::space_info space =
        fs::space(target.has_parent_path() ? target.parent_path() : fs::path("."), ignored);
    throw IoError(fmt::format("kernel_to_file: cannot reserve {} bytes for {} ({} bytes are free): {}", bytes,
                              partial.string(), ignored ? 0 : space.available, reason(error)));
  }
  file.write_at(header.data(), header.size(), 0);
  FileStore<T> store(grid, destination.packed, std::move(file), header.size(), journal, workers.count());
  result.tiles = store.tiles();
  const auto state = [&] {
    return fmt::format("{} of {} tiles are in {}; the same call goes on from there", store.done(),
                       store.tiles(), partial.string());
  };
  bool verified = false;
  try {
    result.damaged = store.verify(workers, destination.verify_progress, stop);
    verified = true;
    result.found = store.done();
    source.produce(store);
    store.file().sync();
    litter.release();
    if (destination.before_naming) destination.before_naming(result);
  } catch (...) {
    // A file in which no tile is finished is worth nothing.
    if (store.done() == 0 && !resumed) throw;
    litter.release();
    try {
      throw;
    } catch (const Cancelled&) {
      if (!verified) {
        throw StoppedResumable("stopped while what is finished in " + partial.string() +
                               " was verified, of which nothing is lost; the same call goes on from there");
      }
      throw StoppedResumable("stopped; " + state());
    } catch (const IoError& error) {
      if (!verified) throw;
      throw IoError(std::string(error.what()) + "; " + state());
    }
  }
  const fs::path folder_path = target.has_parent_path() ? target.parent_path() : fs::path(".");
  if (::rename(partial.c_str(), target.c_str()) != 0) throw failure("rename", partial, errno);
  // Nothing throws from here on: the kernel is there.
  ::unlink(journal_path.c_str());
  // The name itself: best effort, some file systems do not sync folders.
  const int folder = ::open(folder_path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder >= 0) {
    ::fsync(folder);
    ::close(folder);
  }
  return result;
}

#define GRADGRAM_INSTANTIATE(T)                                                               \
  template std::string fingerprint(TensorView<const T>);                                      \
  template Facts facts_of_process<T>();                                                       \
  template KernelFile tiles_to_file<T>(TileSource&, const KernelDestination&, const Workers&, \
                                       const std::stop_token&);
GRADGRAM_INSTANTIATE(float)
GRADGRAM_INSTANTIATE(double)
#undef GRADGRAM_INSTANTIATE

}  // namespace gradgram::ntk
